"""Many prompts or conversations at once, as many in flight as the engine takes; results in order."""

from __future__ import annotations

from collections.abc import Awaitable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal, overload

from shared_engine.conversations.tool_results import cut_results, limits_of, readable
from shared_engine.params import GenerationParams
from shared_engine.request.batches import gather, max_in_flight
from shared_engine.request.bodies import ToolChoice, Tools, chat_request, completion_request, offered
from shared_engine.request.checks import Message, check_messages, check_prompts
from shared_engine.request.forms import answer_form, with_held_arguments
from shared_engine.request.io_loop import run_sync
from shared_engine.request.lifecycle import Lifecycle
from shared_engine.request.reproducible import held
from shared_engine.request.sending import metrics_of
from shared_engine.request.window import SPARE, Limit, Window
from shared_engine.results import GenerationResult

Results = list[GenerationResult]
ResultsOrErrors = list[GenerationResult | Exception]


class Batches(Lifecycle):
    """See the module's docstring. Each result has its own usage and finish reason.

    With ``return_exceptions`` a refused item leaves its error in its place; without, the first error ends the batch,
    and its other requests.
    """

    @property
    def max_concurrency(self) -> int:
        """How many requests a batch has in flight as it begins: a quarter more than vLLM's ``max_num_seqs``, for each
        server. That number is the engine's own once it has run, and a guess before, and of a remote server."""
        endpoint = self._requests.endpoint
        return self._servers * max_in_flight(self.settings, SPARE, endpoint.max_num_seqs)

    def concurrency(self, count: int, limit: int | None = None) -> AbstractContextManager[Limit]:
        """How many of a batch of ``count`` requests may be in flight, to be asked after each answer, with how many are:
        ``max_concurrency`` at first, then as the servers' queues are. For those who write their own batches.

        Args:
            limit: what the caller wants in place of it.
        """
        if limit:
            return nullcontext(lambda _: limit)
        if self.settings.engine_args.get("max_num_queued_reqs") is not None:
            return nullcontext(lambda _: self.max_concurrency)
        return Window(lambda: self.max_concurrency, self._queues).watched(count)

    async def _queues(self) -> str | None:
        endpoint = self._requests.endpoint
        return await metrics_of(endpoint) if await endpoint.observer_clients() else None

    def _checked(self, messages: Sequence[Message], position: str = "messages") -> Sequence[Message]:
        """The conversation, with the results of tools as text, of a length that can fit.

        Raises:
            InvalidInputError: naming the position of what can't be sent.
        """
        checked = check_messages(readable(messages), position)
        limit = self.settings.max_tool_result_chars
        most, kept = limits_of(self.context_window) if limit == "auto" else (limit, limit)
        return checked if most is None or kept is None else cut_results(checked, most, kept)

    def _params(self, params: GenerationParams | None, overrides: Mapping[str, Any]) -> GenerationParams:
        """The settings' defaults, ``params`` over them, and keywords over those."""
        merged = self._defaults.merged({} if params is None else params.given, overrides)
        if self.settings.reproducible:
            merged = held(merged, self.reproducible_seed)
        if merged.lora is not None:
            self._requests.endpoint.check_model(merged.lora, "lora")
        elif merged.model is not None:
            self._requests.endpoint.check_model(merged.model, "model")
        return merged

    @overload
    async def agenerate_batch(
        self,
        prompts: Sequence[str],
        params: GenerationParams | None = None,
        *,
        return_exceptions: Literal[False] = False,
        **overrides: Any,
    ) -> Results: ...

    @overload
    async def agenerate_batch(
        self,
        prompts: Sequence[str],
        params: GenerationParams | None = None,
        *,
        return_exceptions: bool,
        **overrides: Any,
    ) -> ResultsOrErrors: ...

    async def agenerate_batch(
        self,
        prompts: Sequence[str],
        params: GenerationParams | None = None,
        *,
        return_exceptions: bool = False,
        **overrides: Any,
    ) -> Any:
        """Continue each prompt, in order of the prompts; none gives an empty list."""
        checked = check_prompts(prompts)
        merged = answer_form(self._params(params, overrides), self.settings).params

        def call(prompt: str) -> Awaitable[GenerationResult]:
            return self._requests.generate(completion_request(prompt, merged))

        with self.concurrency(len(checked)) as limit:
            return await gather(checked, call, limit, return_exceptions)

    @overload
    def generate_batch(
        self,
        prompts: Sequence[str],
        params: GenerationParams | None = None,
        *,
        return_exceptions: Literal[False] = False,
        **overrides: Any,
    ) -> Results: ...

    @overload
    def generate_batch(
        self,
        prompts: Sequence[str],
        params: GenerationParams | None = None,
        *,
        return_exceptions: bool,
        **overrides: Any,
    ) -> ResultsOrErrors: ...

    def generate_batch(
        self,
        prompts: Sequence[str],
        params: GenerationParams | None = None,
        *,
        return_exceptions: bool = False,
        **overrides: Any,
    ) -> Any:
        """The blocking form of ``agenerate_batch``; see there."""
        return run_sync(self.agenerate_batch(prompts, params, return_exceptions=return_exceptions, **overrides))

    @overload
    async def achat_batch(
        self,
        conversations: Sequence[Sequence[Message]],
        params: GenerationParams | None = None,
        *,
        tools: Tools | None = None,
        tool_choice: ToolChoice | None = None,
        return_exceptions: Literal[False] = False,
        **overrides: Any,
    ) -> Results: ...

    @overload
    async def achat_batch(
        self,
        conversations: Sequence[Sequence[Message]],
        params: GenerationParams | None = None,
        *,
        tools: Tools | None = None,
        tool_choice: ToolChoice | None = None,
        return_exceptions: bool,
        **overrides: Any,
    ) -> ResultsOrErrors: ...

    async def achat_batch(
        self,
        conversations: Sequence[Sequence[Message]],
        params: GenerationParams | None = None,
        *,
        tools: Tools | None = None,
        tool_choice: ToolChoice | None = None,
        return_exceptions: bool = False,
        **overrides: Any,
    ) -> Any:
        """Answer each conversation, in their order, with the same tools; none gives an empty list."""
        checked = [self._checked(messages, f"conversations[{index}]") for index, messages in enumerate(conversations)]
        merged = self._params(params, overrides)
        tools, tool_choice = offered(tools, tool_choice, is_remote=self.settings.is_remote)
        held_tools = with_held_arguments(tools, merged, self.settings)
        form = answer_form(merged, self.settings)

        def call(messages: Sequence[Message]) -> Awaitable[GenerationResult]:
            request = chat_request(form.of(messages), form.params, tools=held_tools, tool_choice=tool_choice)
            return self._requests.generate(request)

        with self.concurrency(len(checked)) as limit:
            return await gather(checked, call, limit, return_exceptions)

    @overload
    def chat_batch(
        self,
        conversations: Sequence[Sequence[Message]],
        params: GenerationParams | None = None,
        *,
        tools: Tools | None = None,
        tool_choice: ToolChoice | None = None,
        return_exceptions: Literal[False] = False,
        **overrides: Any,
    ) -> Results: ...

    @overload
    def chat_batch(
        self,
        conversations: Sequence[Sequence[Message]],
        params: GenerationParams | None = None,
        *,
        tools: Tools | None = None,
        tool_choice: ToolChoice | None = None,
        return_exceptions: bool,
        **overrides: Any,
    ) -> ResultsOrErrors: ...

    def chat_batch(
        self,
        conversations: Sequence[Sequence[Message]],
        params: GenerationParams | None = None,
        *,
        tools: Tools | None = None,
        tool_choice: ToolChoice | None = None,
        return_exceptions: bool = False,
        **overrides: Any,
    ) -> Any:
        """The blocking form of ``achat_batch``; see there."""
        return run_sync(
            self.achat_batch(
                conversations,
                params,
                tools=tools,
                tool_choice=tool_choice,
                return_exceptions=return_exceptions,
                **overrides,
            )
        )
