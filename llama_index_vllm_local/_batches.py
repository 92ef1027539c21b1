"""complete_batch and chat_batch: many prompts at once, which LlamaIndex itself has no call for.

Each prompt goes through the LLM's own endpoint, so it has its own events, usage and error. Knows nothing of requests.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, overload

from llama_index.core.base.llms.types import ChatMessage, ChatResponse, CompletionResponse

from shared_engine.adapting.batches import all_in_tasks, on_own_loop
from shared_engine.errors import InvalidInputError

if TYPE_CHECKING:
    from shared_engine import Engine

Conversations = Sequence[Sequence[ChatMessage]]


class Batches:
    """Mixed into an LLM, whose ``achat`` and ``acomplete`` these call."""

    if TYPE_CHECKING:

        @property
        def engine(self) -> Engine: ...

        @abstractmethod
        async def achat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse: ...

        @abstractmethod
        async def acomplete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse: ...

    @overload
    async def achat_batch(
        self, conversations: Conversations, *, return_exceptions: Literal[False] = False, **kwargs: Any
    ) -> list[ChatResponse]: ...

    @overload
    async def achat_batch(
        self, conversations: Conversations, *, return_exceptions: bool, **kwargs: Any
    ) -> list[ChatResponse | Exception]: ...

    async def achat_batch(self, conversations: Conversations, *, return_exceptions: bool = False, **kwargs: Any) -> Any:
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

        with self.engine.concurrency(len(conversations)) as limit:
            return await all_in_tasks(answer, len(conversations), limit, return_exceptions=return_exceptions)

    @overload
    def chat_batch(
        self, conversations: Conversations, *, return_exceptions: Literal[False] = False, **kwargs: Any
    ) -> list[ChatResponse]: ...

    @overload
    def chat_batch(
        self, conversations: Conversations, *, return_exceptions: bool, **kwargs: Any
    ) -> list[ChatResponse | Exception]: ...

    def chat_batch(self, conversations: Conversations, *, return_exceptions: bool = False, **kwargs: Any) -> Any:
        """See ``achat_batch``."""
        return on_own_loop(self.achat_batch(conversations, return_exceptions=return_exceptions, **kwargs))

    @overload
    async def acomplete_batch(
        self,
        prompts: Sequence[str],
        formatted: bool = False,
        *,
        return_exceptions: Literal[False] = False,
        **kwargs: Any,
    ) -> list[CompletionResponse]: ...

    @overload
    async def acomplete_batch(
        self, prompts: Sequence[str], formatted: bool = False, *, return_exceptions: bool, **kwargs: Any
    ) -> list[CompletionResponse | Exception]: ...

    async def acomplete_batch(
        self, prompts: Sequence[str], formatted: bool = False, *, return_exceptions: bool = False, **kwargs: Any
    ) -> Any:
        """Answer each prompt, in their order; see ``achat_batch``, and ``complete`` for ``formatted``."""
        for index, prompt in enumerate(_checked(prompts, "prompts", "of strings")):
            if not isinstance(prompt, str):
                raise InvalidInputError(f"prompts[{index}] must be a string, got {type(prompt).__name__}")

        async def answer(index: int) -> CompletionResponse:
            return await self.acomplete(prompts[index], formatted, **kwargs)

        with self.engine.concurrency(len(prompts)) as limit:
            return await all_in_tasks(answer, len(prompts), limit, return_exceptions=return_exceptions)

    @overload
    def complete_batch(
        self,
        prompts: Sequence[str],
        formatted: bool = False,
        *,
        return_exceptions: Literal[False] = False,
        **kwargs: Any,
    ) -> list[CompletionResponse]: ...

    @overload
    def complete_batch(
        self, prompts: Sequence[str], formatted: bool = False, *, return_exceptions: bool, **kwargs: Any
    ) -> list[CompletionResponse | Exception]: ...

    def complete_batch(
        self, prompts: Sequence[str], formatted: bool = False, *, return_exceptions: bool = False, **kwargs: Any
    ) -> Any:
        """See ``acomplete_batch``."""
        return on_own_loop(self.acomplete_batch(prompts, formatted, return_exceptions=return_exceptions, **kwargs))


def _checked(values: Any, name: str, of: str) -> Sequence[Any]:
    if isinstance(values, (str, ChatMessage)) or not isinstance(values, Sequence):
        raise InvalidInputError(f"{name} must be a list {of}, got {type(values).__name__}: {values!r:.80}")
    return values
