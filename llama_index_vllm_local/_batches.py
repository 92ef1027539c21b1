"""complete_batch and chat_batch: many prompts at once, which LlamaIndex itself has no call for.

Each prompt goes through the LLM's own endpoint, so it has its own events, usage and error. Knows nothing of requests.
"""

from __future__ import annotations

import asyncio
import contextvars
from abc import abstractmethod
from collections.abc import Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

from llama_index.core.base.llms.types import ChatMessage, ChatResponse, CompletionResponse

from shared_engine.errors import InvalidInputError
from shared_engine.requests import gather

if TYPE_CHECKING:
    from shared_engine.engine import Engine

T = TypeVar("T")


class Batches:
    """Mixed into an LLM, whose ``achat`` and ``acomplete`` these call."""

    if TYPE_CHECKING:

        @property
        def engine(self) -> Engine: ...

        @abstractmethod
        async def achat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse: ...

        @abstractmethod
        async def acomplete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse: ...

    async def achat_batch(
        self, conversations: Sequence[Sequence[ChatMessage]], *, return_exceptions: bool = False, **kwargs: Any
    ) -> list[Any]:
        """Answer each conversation, in their order; as many at once as the engine takes.

        Args:
            return_exceptions: leave an error in the place of its answer. Without, the first one ends the batch.
            kwargs: as for ``achat``, for all of them.

        Raises:
            InvalidInputError: before anything starts, for what is no list of conversations.
        """
        for index, messages in enumerate(_checked(conversations, "conversations", "of conversations")):
            _checked(messages, f"conversations[{index}]", "of ChatMessage")

        async def call(messages: Sequence[ChatMessage]) -> ChatResponse:
            return await self.achat(messages, **kwargs)

        return await gather(conversations, call, self.engine.max_concurrency, return_exceptions)

    def chat_batch(
        self, conversations: Sequence[Sequence[ChatMessage]], *, return_exceptions: bool = False, **kwargs: Any
    ) -> list[Any]:
        """See ``achat_batch``."""
        return _run(self.achat_batch(conversations, return_exceptions=return_exceptions, **kwargs))

    async def acomplete_batch(
        self, prompts: Sequence[str], formatted: bool = False, *, return_exceptions: bool = False, **kwargs: Any
    ) -> list[Any]:
        """Answer each prompt, in their order; see ``achat_batch``, and ``complete`` for ``formatted``."""
        for index, prompt in enumerate(_checked(prompts, "prompts", "of strings")):
            if not isinstance(prompt, str):
                raise InvalidInputError(f"prompts[{index}] must be a string, got {type(prompt).__name__}")

        async def call(prompt: str) -> CompletionResponse:
            return await self.acomplete(prompt, formatted, **kwargs)

        return await gather(prompts, call, self.engine.max_concurrency, return_exceptions)

    def complete_batch(
        self, prompts: Sequence[str], formatted: bool = False, *, return_exceptions: bool = False, **kwargs: Any
    ) -> list[Any]:
        """See ``acomplete_batch``."""
        return _run(self.acomplete_batch(prompts, formatted, return_exceptions=return_exceptions, **kwargs))


def _checked(values: Any, name: str, of: str) -> Sequence[Any]:
    if isinstance(values, (str, ChatMessage)) or not isinstance(values, Sequence):
        raise InvalidInputError(f"{name} must be a list {of}, got {type(values).__name__}: {values!r:.80}")
    return values


def _run(batch: Coroutine[Any, Any, T]) -> T:
    """On an event loop of its own, so that an app's callbacks, which may ask an LLM themselves, hold up nobody else.

    In this thread; in another one where this one has a loop already, as in Jupyter.
    """
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(batch)
    running: list[tuple[asyncio.AbstractEventLoop, asyncio.Task[Any] | None]] = []

    async def told() -> T:
        running.append((asyncio.get_running_loop(), asyncio.current_task()))
        return await batch

    with ThreadPoolExecutor(1) as executor:
        done = executor.submit(contextvars.copy_context().run, asyncio.run, told())
        try:
            return done.result()
        except BaseException:  # Ctrl-C reaches the thread that waits only
            for loop, task in running:
                if task is not None and not done.done():
                    loop.call_soon_threadsafe(task.cancel)
            raise
