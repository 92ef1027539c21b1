"""complete_batch and chat_batch: many prompts at once, which LlamaIndex itself has no call for.

Each prompt goes through the LLM's own endpoint, so it has its own events, usage and error. Knows nothing of requests.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import threading
from abc import abstractmethod
from collections.abc import Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

from llama_index.core.base.llms.types import ChatMessage, ChatResponse, CompletionResponse

from shared_engine.adapting.batches import all_in_tasks
from shared_engine.errors import InvalidInputError

if TYPE_CHECKING:
    from shared_engine import Engine

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
            InvalidInputError: before anything starts, for anything but a list of conversations.
        """
        for index, messages in enumerate(_checked(conversations, "conversations", "of conversations")):
            _checked(messages, f"conversations[{index}]", "of ChatMessage")

        async def answer(index: int) -> ChatResponse:
            return await self.achat(conversations[index], **kwargs)

        limit = self.engine.max_concurrency
        return await all_in_tasks(answer, len(conversations), limit, return_exceptions=return_exceptions)

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

        async def answer(index: int) -> CompletionResponse:
            return await self.acomplete(prompts[index], formatted, **kwargs)

        limit = self.engine.max_concurrency
        return await all_in_tasks(answer, len(prompts), limit, return_exceptions=return_exceptions)

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
    """Run on a new event loop in a new thread: an app's callbacks, which may ask an LLM themselves, then block no other
    request, and this thread's own loop, which runs in a notebook, is not touched.
    """
    is_left = threading.Event()
    running: list[tuple[asyncio.AbstractEventLoop, asyncio.Task[T]]] = []

    async def cancellable() -> T:
        task = asyncio.ensure_future(batch)
        running.append((asyncio.get_running_loop(), task))
        if is_left.is_set():
            task.cancel()
        return await task

    with ThreadPoolExecutor(1) as executor:
        done = executor.submit(contextvars.copy_context().run, asyncio.run, cancellable())
        try:
            return done.result()
        except BaseException:  # Ctrl-C reaches the thread that waits only
            is_left.set()
            for loop, task in running:
                with contextlib.suppress(RuntimeError):  # the loop is closed: it has ended
                    loop.call_soon_threadsafe(task.cancel)
            raise
