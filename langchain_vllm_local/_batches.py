"""Batches that keep an engine full: as many requests in flight as it takes, where the caller sets no limit.

Core's own default is one thread for each CPU and a few. Each input keeps its own callbacks, cache look-up, rate limit
and error, as core has it; but here an error, Ctrl-C or leaving the loop early ends the requests that are still running.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator, Iterator, Sequence
from contextlib import aclosing, closing, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.messages import AIMessage
from langchain_core.outputs import LLMResult
from langchain_core.runnables.config import RunnableConfig, get_config_list, merge_configs

from langchain_vllm_local._answers import combined_llm_output
from shared_engine.adapting.batches import all_in_tasks, in_tasks, in_threads

Output_co = TypeVar("Output_co", covariant=True)

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from langchain_core.callbacks import Callbacks
    from langchain_core.language_models.base import LanguageModelInput
    from langchain_core.messages import BaseMessage
    from langchain_core.runnables import Runnable

    from shared_engine import Engine

    _Runnable = Runnable[LanguageModelInput, Output_co]
else:
    _Runnable = Generic

Config = RunnableConfig | list[RunnableConfig] | None


class Batches(_Runnable[Output_co]):
    """Mixed into a model: its batches keep its engine full."""

    @property
    def engine(self) -> Engine:
        """The engine behind this object."""
        raise NotImplementedError

    def batch(
        self,
        inputs: Sequence[LanguageModelInput],
        config: Config = None,
        *,
        return_exceptions: bool = False,
        use_tqdm: bool | None = None,
        **kwargs: Any,
    ) -> list[Output_co]:
        """Answer each input, in order, with as many in flight as the engine takes; see Runnable.batch.

        Args:
            config: for all, or a list with one for each; ``max_concurrency`` sets another limit.
            return_exceptions: an input that fails leaves its error in its place, and the others are answered. Without,
                the first error ends the batch.
            use_tqdm: show a progress bar.
        """
        outputs: list[Any] = [None] * len(inputs)
        completed = self.batch_as_completed(
            inputs, config, return_exceptions=return_exceptions, use_tqdm=use_tqdm, **kwargs
        )
        with closing(completed):
            for index, output in completed:
                outputs[index] = output
        return outputs

    async def abatch(
        self,
        inputs: Sequence[LanguageModelInput],
        config: Config = None,
        *,
        return_exceptions: bool = False,
        use_tqdm: bool | None = None,
        **kwargs: Any,
    ) -> list[Output_co]:
        """See ``batch``."""
        outputs: list[Any] = [None] * len(inputs)
        completed = self.abatch_as_completed(
            inputs, config, return_exceptions=return_exceptions, use_tqdm=use_tqdm, **kwargs
        )
        async with aclosing(completed):
            async for index, output in completed:
                outputs[index] = output
        return outputs

    def batch_as_completed(
        self,
        inputs: Sequence[LanguageModelInput],
        config: Any = None,
        *,
        return_exceptions: bool = False,
        use_tqdm: bool | None = None,
        **kwargs: Any,
    ) -> Generator[tuple[int, Output_co], None, None]:
        """As ``batch``, but yields ``(index, answer)`` as soon as each answer is complete."""
        if not inputs:
            return
        configs = _configs(config, len(inputs))

        def answer(index: int) -> Any:
            return self.invoke(inputs[index], merge_configs(configs[index], extra), **kwargs)

        with _shown(len(inputs), use_tqdm) as extra, self._concurrency(configs) as limit:
            answers: Generator[tuple[int, Any], None, None] = in_threads(
                answer, len(inputs), limit, return_exceptions=return_exceptions
            )
            with closing(answers):
                yield from answers

    async def abatch_as_completed(
        self,
        inputs: Sequence[LanguageModelInput],
        config: Any = None,
        *,
        return_exceptions: bool = False,
        use_tqdm: bool | None = None,
        **kwargs: Any,
    ) -> AsyncGenerator[tuple[int, Output_co], None]:
        """See ``batch_as_completed``."""
        if not inputs:
            return
        configs = _configs(config, len(inputs))

        async def answer(index: int) -> Any:
            return await self.ainvoke(inputs[index], merge_configs(configs[index], extra), **kwargs)

        with _shown(len(inputs), use_tqdm) as extra, self._concurrency(configs) as limit:
            answers: AsyncGenerator[tuple[int, Any], None] = in_tasks(
                answer, len(inputs), limit, return_exceptions=return_exceptions
            )
            async with aclosing(answers):
                async for index, output in answers:
                    yield index, output

    def _concurrency(self, configs: Sequence[RunnableConfig]) -> AbstractContextManager[Callable[[int], int]]:
        return self.engine.concurrency(len(configs), configs[0].get("max_concurrency"))


def _configs(config: Any, count: int) -> Sequence[RunnableConfig]:
    """One for each input. A single one is shared, as each request copies it: a hundred thousand copies are 40 MB."""
    if isinstance(config, Sequence) or (config and config.get("run_id") is not None):
        return get_config_list(config, count)
    return get_config_list(config, 1) * count


class ChatBatches(Batches[AIMessage], BaseChatModel):
    """Mixed into a chat model: ``generate`` and ``agenerate`` keep the engine full, too."""

    def generate(
        self,
        messages: list[list[BaseMessage]],
        stop: list[str] | None = None,
        callbacks: Callbacks = None,
        **kwargs: Any,
    ) -> LLMResult:
        """Answer each conversation, in order; core's own asks one after the other, this keeps the engine full.

        An error is raised when all have ended, the first one of them in order.
        """
        if len(messages) < 2:
            return super().generate(messages, stop, callbacks, **kwargs)
        run_id = kwargs.pop("run_id", None)  # the first one's, as core has it

        def answer(index: int) -> LLMResult:
            own = {"run_id": run_id} if index == 0 else {}
            return super(ChatBatches, self).generate([messages[index]], stop, callbacks, **own, **kwargs)

        with self.engine.concurrency(len(messages)) as limit:
            answers = in_threads(answer, len(messages), limit, return_exceptions=True)
            with closing(answers):
                by_index = dict(answers)
        return self._in_one([by_index[index] for index in range(len(messages))])

    async def agenerate(
        self,
        messages: list[list[BaseMessage]],
        stop: list[str] | None = None,
        callbacks: Callbacks = None,
        **kwargs: Any,
    ) -> LLMResult:
        """See ``generate``."""
        if len(messages) < 2:
            return await super().agenerate(messages, stop, callbacks, **kwargs)
        run_id = kwargs.pop("run_id", None)

        async def answer(index: int) -> LLMResult:
            own = {"run_id": run_id} if index == 0 else {}
            return await super(ChatBatches, self).agenerate([messages[index]], stop, callbacks, **own, **kwargs)

        with self.engine.concurrency(len(messages)) as limit:
            return self._in_one(await all_in_tasks(answer, len(messages), limit, return_exceptions=True))

    def _combine_llm_outputs(self, llm_outputs: list[dict[str, Any] | None], /) -> dict[str, Any]:
        return combined_llm_output(llm_outputs)

    def _in_one(self, outcomes: Sequence[LLMResult | Exception]) -> LLMResult:
        results = [_result_of(outcome) for outcome in outcomes]
        return LLMResult(
            generations=[result.generations[0] for result in results],
            llm_output=self._combine_llm_outputs([result.llm_output for result in results]),
            run=[run for result in results for run in result.run or ()] or None,
        )


def _result_of(outcome: LLMResult | Exception) -> LLMResult:
    if isinstance(outcome, Exception):
        raise outcome
    return outcome


@contextmanager
def _shown(count: int, use_tqdm: bool | None) -> Iterator[RunnableConfig]:
    """What each config gets, so that progress is shown."""
    shown: AbstractContextManager[_Progress | None] = _Progress(count) if use_tqdm else nullcontext()
    with shown as progress:
        yield RunnableConfig(callbacks=[progress]) if progress else RunnableConfig()


class _Progress(BaseCallbackHandler):
    """A bar that counts what has been answered, or has failed."""

    def __init__(self, count: int) -> None:
        from tqdm.auto import tqdm  # type: ignore[import-untyped]

        self._bar = tqdm(total=count, unit="input", dynamic_ncols=True)

    def __enter__(self) -> _Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def on_llm_end(self, *_: Any, **__: Any) -> None:
        self._bar.update()

    def on_llm_error(self, *_: Any, **__: Any) -> None:
        self._bar.update()
