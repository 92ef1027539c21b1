"""EngineSettings -> the server's command line, environment and key. The only file that knows vLLM's flags."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from shared_engine.interpreter import Interpreter, find_interpreter
from shared_engine.parsers import choose_parsers
from shared_engine.settings import ENVIRONMENT, EngineSettings

# Field -> flag, for settings that are plain values and left out when None.
_FLAGS = {
    "max_model_len": "--max-model-len",
    "quantization": "--quantization",
    "revision": "--revision",
    "tokenizer": "--tokenizer",
    "download_dir": "--download-dir",
    "seed": "--seed",
}
# Never passed on to the engine: ours, or of the app's Python and not of the engine's.
_APP_ONLY = (*ENVIRONMENT.values(), "PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "__PYVENV_LAUNCHER__")


@dataclass(frozen=True)
class EngineSpec:
    """What decides one server process. Equal specs have equal keys and share one engine.

    Attributes:
        argv: the arguments of ``vllm serve``, without the socket, which is new at each start.
        environment: variables set on top of the environment of the process that starts the engine.
        python: the interpreter that has vLLM.
        vllm_version: for messages; a new version is a new engine.
        model: as requests name it.
        protocol: what client, supervisor and launcher say to each other; those of another version are left alone.
    """

    argv: tuple[str, ...]
    python: str
    vllm_version: str
    model: str
    environment: Mapping[str, str] = field(default_factory=dict)
    protocol: int = 1

    @property
    def key(self) -> str:
        """16 hex digits; the name of the engine's runtime directory."""
        canonical = json.dumps(asdict(self), sort_keys=True, default=list)
        return hashlib.sha256(canonical.encode()).hexdigest()[:16]

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "argv": list(self.argv), "environment": dict(self.environment)}


def engine_spec(settings: EngineSettings) -> EngineSpec:
    """The spec of a local engine.

    Raises:
        EngineNotInstalledError: no Python with vLLM.
    """
    interpreter = find_interpreter(settings.python)
    model = resolve_model(settings)
    argv = [
        "--model", model,
        "--tensor-parallel-size", str(settings.tensor_parallel_size),
        "--dtype", settings.dtype,
        "--enable-prompt-tokens-details",
    ]  # fmt: skip
    for name, flag in _FLAGS.items():
        value = getattr(settings, name)
        if value is not None:
            argv += [flag, str(value)]
    if settings.enforce_eager:
        argv.append("--enforce-eager")
    if settings.trust_remote_code:
        argv.append("--trust-remote-code")
    argv += _memory_flags(settings, interpreter)
    argv += _flags(choose_parsers(model, settings.engine_args))
    return EngineSpec(
        argv=tuple(argv),
        python=interpreter.path,
        vllm_version=interpreter.version,
        model=model,
        environment=_environment(settings),
    )


def resolve_model(settings: EngineSettings) -> str:
    """The model as vLLM and requests name it: a folder by its real path, a hub id as it is."""
    assert settings.model is not None  # EngineSettings checked it
    path = os.path.expanduser(settings.model)
    return os.path.realpath(path) if os.path.exists(path) else settings.model


def _memory_flags(settings: EngineSettings, interpreter: Interpreter) -> list[str]:
    """GPU: the share. CPU: a KV cache of 1/16 of the RAM, 4 GiB at most, unless the user says otherwise.

    Left alone, vLLM's CPU build wants gpu_memory_utilization of all RAM for itself and refuses to start when
    other programs have some of it.
    """
    share = ["--gpu-memory-utilization", str(settings.gpu_memory_utilization)]
    chosen = "kv_cache_memory_bytes" in settings.engine_args or "VLLM_CPU_KVCACHE_SPACE" in os.environ
    if interpreter.build != "cpu" or chosen:
        return share
    return [*share, "--kv-cache-memory-bytes", str(min(total_memory() // 16, 4 << 30))]


def total_memory() -> int:
    """Bytes of RAM this process may have: the machine's, or less in a container."""
    limits = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    for file in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError):  # no such limit; "max"
            limits.append(int(Path(file).read_text()))
    return min(limits)


def _flags(args: Mapping[str, Any]) -> list[str]:
    """vLLM flags from names with underscores: True and False are switches, None is left out, dicts are JSON."""
    argv: list[str] = []
    for name, value in sorted(args.items()):
        flag = name.replace("_", "-")
        if value is None:
            continue
        if isinstance(value, bool):
            argv.append(f"--{flag}" if value else f"--no-{flag}")
        elif isinstance(value, dict):
            argv += [f"--{flag}", json.dumps(value, sort_keys=True)]
        elif isinstance(value, (list, tuple)):
            argv += [f"--{flag}", *map(str, value)]
        else:
            argv += [f"--{flag}", str(value)]
    return argv


def _environment(settings: EngineSettings) -> dict[str, str]:
    environment = {
        "VLLM_NO_USAGE_STATS": "1",
        # A client that reuses a connection must not race the server closing it: only our clients are here.
        "VLLM_HTTP_TIMEOUT_KEEP_ALIVE": "3600",
    }
    if settings.visible_devices is not None:
        environment["CUDA_VISIBLE_DEVICES"] = settings.visible_devices
    for name in ("CUDA_VISIBLE_DEVICES", "VLLM_CPU_KVCACHE_SPACE", "VLLM_CPU_OMP_THREADS_BIND"):
        if name in os.environ:
            environment.setdefault(name, os.environ[name])
    return environment


def launch_environment(base: Mapping[str, str]) -> dict[str, str]:
    """The environment of the engine's processes, from the app's: without what is the app's alone."""
    return {name: value for name, value in base.items() if name not in _APP_ONLY}
