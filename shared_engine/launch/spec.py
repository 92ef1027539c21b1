"""EngineSettings -> the server's command line, environment and key. Beside settings.py, which names a flag for
each setting, the only file that knows vLLM's."""

from __future__ import annotations

import functools
import json
import logging
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from shared_engine.errors import EngineNotInstalledError, SettingsError
from shared_engine.launch.adapters import check_adapters, lora_args
from shared_engine.launch.devices import check_devices, gpus_of
from shared_engine.launch.free_gpus import on_free_gpus
from shared_engine.launch.interpreter import INSTALL_COMMAND, Interpreter, find_interpreter
from shared_engine.launch.reproducible import EXACT_ON_A_CPU, batch_invariance
from shared_engine.launcher.start_method import START_VARIABLE
from shared_engine.machine.home import expanded, home
from shared_engine.machine.memory import total_memory
from shared_engine.machine.service_manager import OF_ONE_SERVICE
from shared_engine.model_files.parsers import choose_parsers
from shared_engine.model_files.pooling_recipes import with_recipe
from shared_engine.model_files.quantization import quantization_of
from shared_engine.parallelism import Parallelism
from shared_engine.runtime.directory import ROOT_VARIABLE, runtime_root
from shared_engine.runtime.log_level import FORMAT_VARIABLE, LEVEL_VARIABLE
from shared_engine.runtime.spec import EngineSpec
from shared_engine.settings import ENVIRONMENT, FLAGS, EngineSettings
from shared_engine.vllm_versions import INSTALLED, RELEASES, Age, Release, age_of, matter_of_version, release_of

_log = logging.getLogger("shared_engine")

# Sequences at once, where nobody says otherwise: what vllm.LLM takes, and vLLM's API server on most GPUs.
DEFAULT_MAX_NUM_SEQS = 256
MOST_STOP_STRINGS = "1024"  # a limit for servers that anybody may ask; each string costs a look at each piece of text
# Holds a call to the form of the model's calls, with any JSON for arguments: so that it can be read. To hold it to the
# tools' schemas too would refuse many a tool (benchmarks/NOTES.md).
CALL_LEVEL = "tool_strict_level"
# Never passed on to the engine: ours, of the app's Python and not of the engine's, or of the service that the app is.
_OURS = (*ENVIRONMENT.values(), ROOT_VARIABLE, LEVEL_VARIABLE, FORMAT_VARIABLE)
_APP_ONLY = (*_OURS, *OF_ONE_SERVICE, "PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "__PYVENV_LAUNCHER__")
# What decides which tokenizer a server loads: these settings, and all engine_args but those known to have no say in it.
_TOKENIZER_SETTINGS = ("revision", "tokenizer", "trust_remote_code")
_NO_SAY_IN_TOKENIZERS = frozenset({
    "api_server_count", "block_size", "chat_template", "chat_template_content_format", "compilation_config",
    "cpu_offload_gb", "cudagraph_capture_sizes", "data_parallel_backend", "default_chat_template_kwargs",
    "disable_log_stats", "disable_uvicorn_access_log", "distributed_executor_backend", "enable_auto_tool_choice",
    "enable_chunked_prefill", "enable_expert_parallel", "enable_lora", "enable_prefix_caching", "fully_sharded_loras",
    "generation_config", "kv_cache_dtype", "kv_cache_memory_bytes", "limit_mm_per_prompt", "log_level", "lora_dtype",
    "lora_modules", "max_cpu_loras", "max_logprobs", "max_lora_rank",
    "max_loras", "max_num_batched_tokens", "max_num_queued_reqs", "max_num_seqs", "nnodes",
    "override_generation_config", "reasoning_parser", "swap_space", "tool_call_parser", "tool_strict_level",
})  # fmt: skip


def engine_spec(settings: EngineSettings, interpreter: Interpreter | None = None) -> EngineSpec:
    """The spec of an engine of this machine.

    Args:
        interpreter: the Python that has vLLM; by default it is found by the settings.

    Raises:
        EngineNotInstalledError: no Python with a vLLM that is supported.
        SettingsError: this vLLM lacks one of the engine_args, or the model can't have one of the adapters.
    """
    interpreter = interpreter or find_interpreter(settings.python)
    _check_version(interpreter)
    release = release_of(interpreter.version)
    _check_args(settings.engine_args, release)
    _check_quantization(settings, release)
    check_devices(settings, interpreter)
    check_adapters(settings)
    model = resolve_model(settings)
    is_cpu = interpreter.build == "cpu"
    if is_cpu and settings.reproducible and settings.dtype == "auto":
        settings = settings.model_copy(update={"dtype": EXACT_ON_A_CPU})
    argv = ["--enable-prompt-tokens-details", "--disable-uvicorn-access-log", "--model", model]
    argv += _setting_flags(settings, (name for name in FLAGS if name != "model"))
    if interpreter.build not in ("cpu", "cuda"):
        _say_once(f"vLLM's build for {interpreter.build} ({interpreter.path}) was not tried with vllm-local")
    if settings.sleep_after_s is not None:
        if is_cpu:
            _say_once("sleep_after_s has no effect on a CPU build of vLLM: the weights are in RAM anyway")
        else:
            argv.append("--enable-sleep-mode")
    argv += _cpu_memory_flags(settings, interpreter)
    if is_cpu and settings.max_model_len is None:
        argv += ["--max-model-len", "auto"]  # long contexts rarely fit in the KV cache that is the default here
    if is_cpu and settings.engine_args.get("max_num_seqs") is None:
        # A CPU build's API server takes half as many: its batches need twice the steps of LLM's (benchmarks/NOTES.md).
        argv += ["--max-num-seqs", str(DEFAULT_MAX_NUM_SEQS)]
    args = choose_parsers(model, settings.engine_args, unknown=release.lacks_parsers)
    if args.get("runner") == "pooling":
        args = with_recipe(str(settings.model), settings.model_folder(), args)
    if args.get("tool_call_parser") is not None and CALL_LEVEL not in release.lacks_args:
        args = {CALL_LEVEL: "function", **args}
    argv += [*_backend_flags(args), *_flags({**args, **lora_args(settings)})]
    spec = EngineSpec(
        argv=tuple(argv),
        python=interpreter.path,
        vllm_version=interpreter.version,
        model=model,
        environment={**_environment(settings, argv, release), **_batch_invariance(settings, interpreter)},
        devices=("cpu",) if is_cpu else gpus_of(settings),
        memory_share=0.0 if is_cpu else settings.gpu_memory_utilization,
        memory_bytes=_memory_bytes(argv, model, settings.parallelism) if is_cpu else 0,
    )
    is_free_to_choose = interpreter.build == "cuda" and "CUDA_VISIBLE_DEVICES" not in spec.environment
    return on_free_gpus(spec) if is_free_to_choose else spec


def _check_version(interpreter: Interpreter) -> None:
    matter = matter_of_version(interpreter.version)
    if matter is None:
        return
    if age_of(interpreter.version) is Age.TOO_OLD:
        raise EngineNotInstalledError(
            f"{matter}; `{INSTALL_COMMAND}` makes an environment with {INSTALLED}, or name another Python with "
            f"python=... (now {interpreter.path})"
        )
    _say_once(f"{matter}; it is started as {RELEASES[-1].minor} is")


def _check_args(engine_args: Mapping[str, Any], release: Release) -> None:
    unknown = [name for name in engine_args if name.replace("-", "_") in release.lacks_args]
    if unknown:
        raise SettingsError(
            f"engine_args: vLLM {release.minor} has no {', '.join(unknown)}; leave it out, or use a newer vLLM "
            f"(`{INSTALL_COMMAND}` makes an environment with {INSTALLED})"
        )


def _check_quantization(settings: EngineSettings, release: Release) -> None:
    """What the model's own files contradict, EngineSettings has refused."""
    folder = settings.model_folder()
    method = settings.quantization or (None if folder is None else quantization_of(folder))
    if method in release.lost_quantizations:
        asked = f"quantization = {method!r}" if settings.quantization else f"the model in {folder} is {method}"
        raise SettingsError(f"{asked}: vLLM {release.minor} no longer has it; use a model that is quantised otherwise")


def tokenizer_argv(settings: EngineSettings) -> list[str]:
    """Of the server's command line, what may decide which tokenizer it loads."""
    argv = ["--model", resolve_model(settings), *_setting_flags(settings, _TOKENIZER_SETTINGS)]
    return argv + _flags({k: v for k, v in settings.engine_args.items() if k not in _NO_SAY_IN_TOKENIZERS})


def _setting_flags(settings: EngineSettings, names: Iterable[str]) -> list[str]:
    argv: list[str] = []
    for name in names:
        value = getattr(settings, name)
        if value is not None and value is not False:
            argv += [FLAGS[name]] if value is True else [FLAGS[name], str(value)]
    return argv


@functools.cache
def _say_once(text: str) -> None:
    _log.warning(text)


def _memory_bytes(argv: list[str], model: str, parallelism: Parallelism) -> int:
    """What a server on the CPU takes: its KV caches, and the weights if they are on disk. 0 if that is not known."""
    if "--kv-cache-memory-bytes" not in argv:
        return 0
    size = argv[argv.index("--kv-cache-memory-bytes") + 1]
    if not size.isdigit():
        return 0
    weights = sum(file.stat().st_size for file in Path(model).glob("*.safetensors"))
    return parallelism.world * int(size) + parallelism.data * weights


def resolve_model(settings: EngineSettings) -> str:
    """The model as vLLM and requests name it: a folder by its real path, a hub id as it is."""
    assert settings.model is not None  # EngineSettings checked it
    path = expanded(settings.model)
    return os.path.realpath(path) if os.path.exists(path) else settings.model


def chooses_form_backend(args: Mapping[str, Any]) -> bool:
    """Whether the user says what holds answers to a form."""
    return any(name.replace("-", "_").partition(".")[0] == "structured_outputs_config" for name in args)


def _backend_flags(args: Mapping[str, Any]) -> list[str]:
    """What holds answers to a form: xgrammar, unless the user says otherwise.

    Left to vLLM, an engine's first request with a form decides it for all that follow, whoever sends them: after one
    that only guidance takes (an ``allOf``), forced tool calls fail with 500 and other answers come back empty; after
    any other, an ``allOf`` is accepted and not held. Mistral's own tokenizers need guidance for tool calls.
    """
    is_mistrals = "mistral" in (args.get("tokenizer_mode"), args.get("tool_call_parser"), args.get("config_format"))
    if chooses_form_backend(args) or is_mistrals or args.get("runner") == "pooling":
        return []
    return ["--structured-outputs-config.backend", "xgrammar"]


def _cpu_memory_flags(settings: EngineSettings, interpreter: Interpreter) -> list[str]:
    """CPU: KV caches of 1/16 of the RAM, 4 GiB at most for each worker, unless the user says otherwise.

    Left alone, vLLM's CPU build wants gpu_memory_utilization of all RAM for itself and refuses to start when
    other programs have some of it.
    """
    chosen = "kv_cache_memory_bytes" in settings.engine_args or "VLLM_CPU_KVCACHE_SPACE" in os.environ
    if interpreter.build != "cpu" or chosen:
        return []
    return ["--kv-cache-memory-bytes", str(min(total_memory() // 16 // settings.parallelism.world, 4 << 30))]


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
            items = [json.dumps(item, sort_keys=True) if isinstance(item, dict) else str(item) for item in value]
            argv += [f"--{flag}", *items]
        else:
            argv += [f"--{flag}", str(value)]
    return argv


def _environment(settings: EngineSettings, argv: list[str], release: Release) -> dict[str, str]:
    environment = {
        "VLLM_NO_USAGE_STATS": "1",
        # A client that reuses a connection must not race the server closing it: only our clients are here.
        "VLLM_HTTP_TIMEOUT_KEEP_ALIVE": "3600",
    }
    if release.limits_stop:
        environment["VLLM_MAX_STOP_STRINGS"] = MOST_STOP_STRINGS
    if "--enable-sleep-mode" in argv:
        environment["VLLM_SERVER_DEV_MODE"] = "1"  # has the routes to sleep; the socket is private
    if "--enable-lora" in argv:
        environment["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] = "1"  # likewise
    if settings.visible_devices is not None:
        environment["CUDA_VISIBLE_DEVICES"] = settings.visible_devices
    if settings.cpu_omp_threads_bind is not None:
        environment["VLLM_CPU_OMP_THREADS_BIND"] = settings.cpu_omp_threads_bind
    for name in ("CUDA_VISIBLE_DEVICES", "VLLM_CPU_KVCACHE_SPACE", START_VARIABLE):
        if name in os.environ:
            environment.setdefault(name, os.environ[name])
    return environment


def _batch_invariance(settings: EngineSettings, interpreter: Interpreter) -> dict[str, str]:
    environment, lacking = batch_invariance(settings, interpreter.build)
    if lacking is not None:
        _say_once(lacking)
    return environment


def launch_environment(base: Mapping[str, str]) -> dict[str, str]:
    """The environment of the engine's processes, from the app's: without what is the app's alone."""
    environment = {name: value for name, value in base.items() if name not in _APP_ONLY}
    if environment.get("VLLM_PORT", "").startswith("tcp://"):
        del environment["VLLM_PORT"]  # Kubernetes' address of a service named vllm; vLLM takes it for a port, and fails
    if home(base) is None:
        environment["HOME"] = str(runtime_root() / "home")  # vLLM and torch keep things there: private, and not in "~"
    return environment
