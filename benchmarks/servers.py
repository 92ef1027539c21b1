"""What the contenders run on: a runtime directory of this run's own, and the settings of their engine."""

from __future__ import annotations

import os
import platform
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from shared_engine import EngineSettings
from shared_engine.launch.spec import resolve_model
from shared_engine.machine.processor import is_slow_in_bfloat16
from shared_engine.runtime.directory import ROOT_VARIABLE

# Of all contenders: in bfloat16, such a processor would be all that is measured.
DTYPE = "float32" if is_slow_in_bfloat16() else "auto"
MODEL = str(HERE.parent / "examples" / "tiny_chat")
SETTINGS: dict[str, Any] = {
    "model": MODEL,
    "enforce_eager": True,
    "max_model_len": 2048,
    "engine_args": {"kv_cache_memory_bytes": 512 << 20},
    "dtype": DTYPE,
}
HELLO = [{"role": "user", "content": "Hello"}]
ENV_DEFAULTS = {"HF_HUB_OFFLINE": "1", "LANGSMITH_TRACING": "false", "OPENAI_API_KEY": "none"}


@contextmanager
def runtime_directory() -> Iterator[Path]:
    """One of this run's own: its engines are shared with nobody else's. Engines must be gone before it is left.

    SIGTERM leaves it as Ctrl-C does, so that no engine stays behind.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    root = Path(tempfile.mkdtemp(prefix="vlb-", dir="/tmp"))
    os.environ[ROOT_VARIABLE] = str(root)
    for name, value in ENV_DEFAULTS.items():
        os.environ.setdefault(name, value)
    try:
        yield root
    finally:
        shutil.rmtree(root, ignore_errors=True)


def machine() -> str:
    """What a benchmark ran on, and in which type, for its page."""
    cores = f"{platform.machine()}, {os.cpu_count()} cores"
    return cores if DTYPE == "auto" else f"{cores} without AVX-512 (all in {DTYPE})"


def model_name(settings: Mapping[str, Any]) -> str:
    """As the server names it."""
    return resolve_model(EngineSettings(**settings))


def llm_options(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of ``vllm.LLM`` for the same."""
    options = {**settings, **settings.get("engine_args", {})}
    options.pop("engine_args", None)
    return options
