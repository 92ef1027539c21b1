"""One vLLM engine, shared by every LangChain and LlamaIndex app on the machine.

The errors are here at once. All other names are loaded when first used: the supervisor imports this package too, and
must stay small.
"""

from __future__ import annotations

import importlib
import os
import sys
from typing import TYPE_CHECKING, Any

if sys.platform == "win32":
    raise ImportError("vllm-local does not run on Windows: install it inside WSL 2 (`wsl --install`)")

from shared_engine import errors
from shared_engine.errors import *  # noqa: F403

if "VLLM_LOCAL_LOG_LEVEL" in os.environ or "VLLM_LOCAL_LOG_FORMAT" in os.environ:
    from shared_engine.logs import setup_by_environment

    setup_by_environment(os.environ)

if TYPE_CHECKING:
    from shared_engine.answer_file.vectors import VectorFile as VectorFile
    from shared_engine.engine import Engine as Engine
    from shared_engine.gpu import GPUAlert as GPUAlert
    from shared_engine.gpu import GPUMonitor as GPUMonitor
    from shared_engine.gpu import GPUProcess as GPUProcess
    from shared_engine.gpu import GPUStats as GPUStats
    from shared_engine.observe.engine_info import EngineInfo as EngineInfo
    from shared_engine.params import GenerationParams as GenerationParams
    from shared_engine.results import Choice as Choice
    from shared_engine.results import EmbeddingResult as EmbeddingResult
    from shared_engine.results import GenerationChunk as GenerationChunk
    from shared_engine.results import GenerationResult as GenerationResult
    from shared_engine.results import ItemFailure as ItemFailure
    from shared_engine.results import MultiVectorResult as MultiVectorResult
    from shared_engine.results import RankedDocument as RankedDocument
    from shared_engine.results import RerankResult as RerankResult
    from shared_engine.results import SparseResult as SparseResult
    from shared_engine.results import TokenUsage as TokenUsage
    from shared_engine.results import ToolCall as ToolCall
    from shared_engine.results import ToolCallDelta as ToolCallDelta
    from shared_engine.runtime.life_stats import LifeStats as LifeStats
    from shared_engine.runtime.record import EngineState as EngineState
    from shared_engine.settings import EngineSettings as EngineSettings
    from shared_engine.stats import EngineStats as EngineStats
    from shared_engine.stats import RequestStats as RequestStats
    from shared_engine.stats import Timing as Timing
    from shared_engine.token_count.chunks import ChunkPlan as ChunkPlan

    __version__: str

_MODULE_OF = {
    "Choice": "results",
    "ChunkPlan": "token_count.chunks",
    "EmbeddingResult": "results",
    "Engine": "engine",
    "EngineInfo": "observe.engine_info",
    "EngineSettings": "settings",
    "EngineState": "runtime.record",
    "EngineStats": "stats",
    "GPUAlert": "gpu",
    "GPUMonitor": "gpu",
    "GPUProcess": "gpu",
    "GPUStats": "gpu",
    "GenerationChunk": "results",
    "GenerationParams": "params",
    "GenerationResult": "results",
    "ItemFailure": "results",
    "LifeStats": "runtime.life_stats",
    "MultiVectorResult": "results",
    "RankedDocument": "results",
    "RequestStats": "stats",
    "RerankResult": "results",
    "SparseResult": "results",
    "Timing": "stats",
    "TokenUsage": "results",
    "ToolCall": "results",
    "ToolCallDelta": "results",
    "VectorFile": "answer_file.vectors",
}

__all__ = list(_MODULE_OF)
__all__ += errors.__all__

if not TYPE_CHECKING:  # checkers would take every name for one that is there

    def __getattr__(name: str) -> Any:
        if name == "__version__":
            from importlib.metadata import version  # late: it takes longer to import than this package

            return version("vllm-local")
        if name not in _MODULE_OF:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(importlib.import_module(f"{__name__}.{_MODULE_OF[name]}"), name)


def __dir__() -> list[str]:
    return __all__
