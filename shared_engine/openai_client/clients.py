"""An ``openai`` client for an engine: the official class, with a transport of ours under it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from shared_engine.openai_client.transport import transports
from shared_engine.request.endpoint import Endpoint
from shared_engine.request.forwarding import Forwarding
from shared_engine.settings import EngineSettings

if TYPE_CHECKING:
    from types import ModuleType

    import openai

INSTALL = "pip install 'vllm-local[openai]'"
MIN_MAJOR = 2
LOCAL_ROOT = "http://vllm-local"
"""No host of this name is ever looked for: requests go over a private socket."""
PLACEHOLDER_KEY = "vllm-local"
"""openai wants a key. This one is public, and never sent."""
_THE_ENGINES_OWN = ("api_key", "base_url", "http_client", "websocket_base_url")


def make_client(settings: EngineSettings, endpoint: Endpoint, options: Mapping[str, Any]) -> openai.OpenAI:
    """See ``Engine.openai_client``."""
    module = _openai()
    keywords = _keywords(settings, options)
    transport = transports()[0](Forwarding(endpoint, settings), _root(settings), PLACEHOLDER_KEY)
    client: openai.OpenAI = module.OpenAI(
        http_client=module.DefaultHttpxClient(transport=transport, trust_env=False), **keywords
    )
    return client


def make_async_client(settings: EngineSettings, endpoint: Endpoint, options: Mapping[str, Any]) -> openai.AsyncOpenAI:
    """See ``Engine.async_openai_client``."""
    module = _openai()
    keywords = _keywords(settings, options)
    transport = transports()[1](Forwarding(endpoint, settings), _root(settings), PLACEHOLDER_KEY)
    client: openai.AsyncOpenAI = module.AsyncOpenAI(
        http_client=module.DefaultAsyncHttpxClient(transport=transport, trust_env=False), **keywords
    )
    return client


def _openai() -> ModuleType:
    try:
        import openai
    except ImportError as exc:
        raise ImportError(f"the package openai is not installed here: {INSTALL}") from exc
    if int(openai.__version__.partition(".")[0]) < MIN_MAJOR:
        raise ImportError(f"openai {openai.__version__} is too old, {MIN_MAJOR}.0 or newer is needed: {INSTALL}")
    return openai


def _keywords(settings: EngineSettings, options: Mapping[str, Any]) -> dict[str, Any]:
    taken = [name for name in _THE_ENGINES_OWN if name in options]
    if taken:
        raise TypeError(
            f"{', '.join(taken)}: can't be given, the engine's own settings decide where requests go and how"
        )
    return {
        "api_key": PLACEHOLDER_KEY,
        "base_url": f"{_root(settings)}/v1",
        "timeout": None,  # the engine's own then holds: see ForwardedRequest
        "max_retries": settings.max_retries,
        **options,
    }


def _root(settings: EngineSettings) -> str:
    return settings.base_url if isinstance(settings.base_url, str) else LOCAL_ROOT
