"""Imports vLLM and all that a server needs, before any is forked."""

from __future__ import annotations

import contextlib
import gc
import importlib
import os

from shared_engine.launcher.blanks import MODULE, allow_few_blanks
from shared_engine.launcher.compile_cache import keep_compiled_models
from shared_engine.launcher.lora import answer_without_adapter
from shared_engine.launcher.polling import rest_between_steps
from shared_engine.launcher.seeds import keep_seeds_of_unfinished_prompts
from shared_engine.launcher.start_method import START_VARIABLE, fork_refusal, use_fork_inside_vllm
from shared_engine.launcher.vllm_build import is_cpu_build
from shared_engine.vllm_versions import release_of

# In addition to what the API server imports by itself.
PRELOAD = (
    "vllm.v1.engine.async_llm",
    "vllm.v1.engine.core",
    "vllm.v1.executor.multiproc_executor",
    "vllm.v1.utils",
    "vllm.model_executor.model_loader",
    "vllm.model_executor.models.registry",
    "uvloop",
)
# What vLLM imports with the first request, and the first structured one. Not every version has all of it.
PRELOAD_REQUESTS = (
    "anyio._backends._asyncio",
    "vllm.v1.structured_output.backend_lm_format_enforcer",
    "vllm.v1.structured_output.backend_outlines",
)
CPU_RUNNER = "vllm.v1.worker.cpu_model_runner"
PRELOAD_CPU = ("vllm.v1.worker.cpu_worker", CPU_RUNNER)


def server_modules(version: str) -> tuple[str, ...]:
    """The modules of the API server, in the release that ``version`` is of."""
    release = release_of(version)
    return release.api_server, release.cli_args, release.startup


def import_vllm(*, with_server: bool = True) -> tuple[str, str | None]:
    """Import vLLM and all that a server needs; return its version and why forking is off (None: it is on).

    Args:
        with_server: False for a process that has no API server, but an EngineCore only.
    """
    import vllm

    version = str(vllm.__version__)
    is_cpu = is_cpu_build()
    refusal = fork_refusal(version)
    if refusal is None:
        use_fork_inside_vllm()
    for name in (server_modules(version) if with_server else ()) + PRELOAD + (PRELOAD_CPU if is_cpu else ()):
        importlib.import_module(name)
    for name in PRELOAD_REQUESTS:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    if refusal is None and is_cpu:
        rest_between_steps()
        keep_compiled_models()
        answer_without_adapter()
        keep_seeds_of_unfinished_prompts(importlib.import_module(CPU_RUNNER))
    with contextlib.suppress(ImportError):
        allow_few_blanks(importlib.import_module(MODULE))
    refusal = fork_refusal(version)
    os.environ.pop(START_VARIABLE, None)  # vLLM warns of variables it does not know
    gc.collect()
    gc.freeze()  # keeps the collector from touching, and so copying, every page shared with the children
    return version, refusal
