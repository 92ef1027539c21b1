"""What decides a model's answers beside what it is asked: of a file of them that a later process goes on with."""

from __future__ import annotations

from typing import Any

from shared_engine.machine.home import expanded
from shared_engine.model_files.adapter import read_adapter
from shared_engine.settings import EngineSettings

# Of engine_args, what has no say in answers.
_OF_SPEED = frozenset({
    "api_server_count", "block_size", "compilation_config", "cpu_offload_gb", "cudagraph_capture_sizes",
    "data_parallel_backend", "disable_log_stats", "disable_uvicorn_access_log", "distributed_executor_backend",
    "enable_chunked_prefill", "enable_prefix_caching", "kv_cache_memory_bytes", "log_level", "max_num_batched_tokens",
    "max_num_queued_reqs", "max_num_seqs", "runner",
})  # fmt: skip
_SETTINGS = ("revision", "tokenizer", "dtype", "quantization", "trust_remote_code", "max_model_len")


def answering_model(settings: EngineSettings, model: str | None, lora: str | None) -> dict[str, Any]:
    """The model and its files, the settings that its answers depend on, and the adapter with its files.

    Args:
        model: its name, where it has no folder on this machine.
        lora: the name of an adapter.
    """
    folder = settings.model_folder()
    files = [] if folder is None else sorted(folder.glob("*.safetensors")) + sorted(folder.glob("*.json"))
    return {
        "model": model if folder is None else str(folder.resolve()),
        "files": [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files],
        "settings": {name: getattr(settings, name) for name in _SETTINGS},
        "engine_args": {name: value for name, value in settings.engine_args.items() if name not in _OF_SPEED},
        "adapter": None if lora is None else _version_of((settings.lora_adapters or {}).get(lora, lora)),
    }


def _version_of(adapter: str) -> str:
    """Of a folder its files; else a name, of the hub or of the server."""
    try:
        return read_adapter(adapter).version if expanded(adapter).is_dir() else adapter
    except ValueError:  # refused when it is asked for
        return adapter
