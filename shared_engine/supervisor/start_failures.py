"""Why a start failed, in words a user can act on, from vLLM's log. Pure.

vLLM's last line is always "Engine core initialization failed. See root cause above": the cause stands earlier.
Patterns were read off real failed starts (vLLM 0.32).
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence

from shared_engine.machine.proc import exit_in_words

NO_GPU = "no usable GPU"
_CPU_INSTEAD = ": {what}; `vllm-local install --cpu` makes an environment that needs none"
# (pattern in the log, message for the user); the first match in this order wins.
_CAUSES: tuple[tuple[str, str], ...] = (
    (r"unrecognized arguments?: (?P<what>.+)", "vLLM does not know {what}: check engine_args"),
    (r"error: argument (?P<what>.+)", "vLLM refused a setting: {what}"),
    (r"(?P<what>Repo id must be .+)", "the model was not found: {what}"),
    # huggingface_hub's remedy is an argument that does not exist here.
    (r"(?P<what>outgoing traffic has been disabled)",
     "the model is not on this disk, and HF_HUB_OFFLINE keeps it from being fetched: unset that, or fetch the model "
     "where the hub can be reached (`vllm-local pull`)"),
    (r"(?P<what>\S{1,300} is not a local folder and is not a valid model identifier.*)",
     "the model was not found: {what}"),
    (r"(?P<what>(Cannot find|couldn't find|Can't load|We couldn't connect to).{0,200})",
     "the model can't be loaded: {what}"),
    (r"^(?P<what>.*does not recognize this architecture.*)", "this vLLM does not support the model: {what}"),
    (r"(?P<what>Model architectures .* are not supported for now.*)", "this vLLM does not support the model: {what}"),
    (r"^(?P<what>.*(requires you to execute the configuration file|trust_remote_code=True).*)",
     "the model needs its own code, which is run only with trust_remote_code=True: {what}"),
    # torch's words for an operator that is declared, and not built in.
    (r"(?P<what>_C\w{0,40}::\w{1,200})\(\) expected at most 0 argument",
     "this build of vLLM lacks a kernel that the model's quantization needs: {what}"),
    (r"(?P<what>User-specified max_model_len .* is greater than the derived.*)", "max_model_len is too large: {what}"),
    (r"^(?P<what>.*estimated maximum model length is.*)",
     "the KV cache is too small for max_model_len: lower it ('auto' takes the longest that fits) or raise "
     "gpu_memory_utilization (on CPU: engine_args={{'kv_cache_memory_bytes': ...}}): {what}"),
    (r"(?P<what>No available memory for the cache blocks.*)",
     "no memory left for the KV cache: raise gpu_memory_utilization or lower max_model_len: {what}"),
    (r"(?P<what>Free memory on device .* is less than desired.*)",
     "the GPU's memory is taken: lower gpu_memory_utilization or free it: {what}"),
    (r"(?P<what>Available memory on node .* is less than desired.*)",
     "not enough memory: lower gpu_memory_utilization, set engine_args['kv_cache_memory_bytes'], or free some: {what}"),
    (r"(?P<what>Available memory on node .* less than requested.*)",
     "not enough memory: lower engine_args['kv_cache_memory_bytes'] or free some: {what}"),
    (r"(?P<what>(torch\.)?(OutOfMemoryError|cuda out of memory).*)",
     "out of GPU memory: lower gpu_memory_utilization or max_model_len: {what}"),
    (r"(?P<what>SafetensorError: .*)", "the model's weights are damaged: {what}"),
    (r"^(.*\s)?(?P<what>MemoryError)\b", "the model's weights are damaged or too large for memory: {what}"),
    (r"(?P<what>Insufficient space in \S{1,80} for .{1,80} MiB required.*)",
     "/dev/shm is too small, through which vLLM's processes talk: {what}"),
    (r"(?P<what>No space left on device.*)", "a disk is full, of the model cache, /tmp or /dev/shm: {what}"),
    (r"(?P<what>No such file or directory: .*)", "a file is missing: {what}"),
    # What follows is a hint at vLLM's own log level, which shows nothing more.
    (r"(?P<what>Failed to infer device type)", NO_GPU + _CPU_INSTEAD),
    (r"(?P<what>(No CUDA GPUs are available|libcuda\.so|no NVIDIA driver).*)", NO_GPU + _CPU_INSTEAD),
    # In pydantic's form, what is known by no other words.
    (r"Value error, (?P<what>.{1,600}?) \[type=", "vLLM refused a setting: {what}"),
)  # fmt: skip
_COMPILED = tuple((re.compile(pattern, re.IGNORECASE), text) for pattern, text in _CAUSES)
# What another engine on the device may be the cause of: those that are idle can make room.
_LACKS_MEMORY = re.compile(
    r"Free memory on device .* is less than desired|Available memory on node .* is less than"
    r"|OutOfMemoryError|CUDA out of memory|Cannot allocate memory",
    re.IGNORECASE,
)
MAX_CHARACTERS = 2000  # of a line: vLLM's words for a cause are shorter, and the supervisor does nothing else meanwhile
_ERROR_LINE = re.compile(r"^(?P<what>\w*(Error|Exception): .+)")
_KILLED = re.compile(r"Failed core proc\(s\): .{0,200}?'(\w+)': -(\d+)")
_FIELD_REFUSED = re.compile(r"\s+(?P<fault>\S.{0,600}?) \[type=\w+, input_value=(?P<value>.{0,200}?), input_type=")
_LOG_PREFIX = re.compile(r"^(\(\S+ pid=\d+\) )?([A-Z]+ \d\d-\d\d \d\d:\d\d:\d\d \[\S+\] )?")


def lacks_memory(log: Sequence[str]) -> bool:
    """True when the start failed because the device's memory was taken."""
    return any(_LACKS_MEMORY.search(line) for line in log)


def explain(log: Sequence[str]) -> str | None:
    """The cause, found in the log's lines, oldest first; None where there is no known one."""
    lines = [_LOG_PREFIX.sub("", line[:MAX_CHARACTERS]) for line in log]
    for pattern, text in _COMPILED:
        for line in lines:
            found = pattern.search(line)
            if found:
                what = found["what"].strip()
                return text.format(what=what if text.endswith("{what}") else what.rstrip("."))
    if refused := _refused_fields(lines):
        return f"vLLM refused a setting: {'; '.join(refused)}"
    errors = [found["what"] for line in lines if (found := _ERROR_LINE.match(line))]
    own = [line for line in errors if "Engine core initialization failed" not in line]
    killed = [f"vLLM's {name} {exit_in_words(-int(number))}" for name, number in _KILLED.findall("\n".join(errors))]
    return "; ".join([*own[-1:], *killed[-1:]]) or None


def _refused_fields(lines: Sequence[str]) -> list[str]:
    """What pydantic says of each field: its name stands in the line before."""
    found = ((name.strip(), _FIELD_REFUSED.match(line)) for name, line in itertools.pairwise(lines))
    return list(dict.fromkeys(f"{name} = {line['value']}: {line['fault']}" for name, line in found if line and name))
