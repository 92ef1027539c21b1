"""One vLLM engine, shared by every LangChain and LlamaIndex app on the machine.

Names are loaded when first used: the supervisor imports this package too, and must stay small.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from shared_engine.engine import Engine
    from shared_engine.errors import (
        AuthenticationError,
        ContextLengthError,
        EngineBusyError,
        EngineDiedError,
        EngineError,
        EngineNotInstalledError,
        EngineStartError,
        EngineStartTimeoutError,
        EngineStoppedError,
        InvalidInputError,
        LengthFinishReasonError,
        ModelNotFoundError,
        PermissionDeniedError,
        RateLimitError,
        RequestError,
        RequestRejectedError,
        RequestTimeoutError,
        ServerConnectionError,
        ServerError,
        ServerUnreachableError,
        SettingsError,
        VLLMError,
    )
    from shared_engine.observe.engine_info import EngineInfo
    from shared_engine.params import GenerationParams
    from shared_engine.results import (
        Choice,
        EmbeddingResult,
        GenerationChunk,
        GenerationResult,
        RankedDocument,
        RerankResult,
        TokenUsage,
        ToolCall,
        ToolCallDelta,
    )
    from shared_engine.runtime.record import EngineState
    from shared_engine.settings import EngineSettings

    __version__: str

_HOME = {
    "engine": ("Engine",),
    "settings": ("EngineSettings",),
    "observe.engine_info": ("EngineInfo",),
    "runtime.record": ("EngineState",),
    "params": ("GenerationParams",),
    "results": (
        "Choice",
        "EmbeddingResult",
        "GenerationChunk",
        "GenerationResult",
        "RankedDocument",
        "RerankResult",
        "TokenUsage",
        "ToolCall",
        "ToolCallDelta",
    ),
    "errors": (
        "AuthenticationError",
        "ContextLengthError",
        "EngineBusyError",
        "EngineDiedError",
        "EngineError",
        "EngineNotInstalledError",
        "EngineStartError",
        "EngineStartTimeoutError",
        "EngineStoppedError",
        "InvalidInputError",
        "LengthFinishReasonError",
        "ModelNotFoundError",
        "PermissionDeniedError",
        "RateLimitError",
        "RequestError",
        "RequestRejectedError",
        "RequestTimeoutError",
        "ServerConnectionError",
        "ServerError",
        "ServerUnreachableError",
        "SettingsError",
        "VLLMError",
    ),
}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}

__all__ = [
    "AuthenticationError",
    "Choice",
    "ContextLengthError",
    "EmbeddingResult",
    "Engine",
    "EngineBusyError",
    "EngineDiedError",
    "EngineError",
    "EngineInfo",
    "EngineNotInstalledError",
    "EngineSettings",
    "EngineStartError",
    "EngineStartTimeoutError",
    "EngineState",
    "EngineStoppedError",
    "GenerationChunk",
    "GenerationParams",
    "GenerationResult",
    "InvalidInputError",
    "LengthFinishReasonError",
    "ModelNotFoundError",
    "PermissionDeniedError",
    "RankedDocument",
    "RateLimitError",
    "RequestError",
    "RequestRejectedError",
    "RequestTimeoutError",
    "RerankResult",
    "ServerConnectionError",
    "ServerError",
    "ServerUnreachableError",
    "SettingsError",
    "TokenUsage",
    "ToolCall",
    "ToolCallDelta",
    "VLLMError",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version  # late: it takes longer to import than this package

        return version("vllm-local")
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULE_OF[name]}"), name)


def __dir__() -> list[str]:
    return __all__
