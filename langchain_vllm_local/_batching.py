"""Batches that keep an engine full: as many requests in flight as it takes, where the caller sets no limit.

Core's own default is one thread for each CPU and a few. Each input keeps its own callbacks, cache look-up, rate limit
and error, as core has it; but here an error, Ctrl-C or leaving the loop early ends the requests that are still running.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Iterator, Sequence
from concurrent.futures import as_completed
from contextlib import aclosing, closing, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, TypeVar

from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.runnables.config import ContextThreadPoolExecutor, RunnableConfig, get_config_list, merge_configs

from shared_engine.request.io_loop import CancelScope

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from langchain_core.language_models.base import LanguageModelInput
    from langchain_core.runnables import Runnable

    from shared_engine.engine import Engine

    _Runnable = Runnable[LanguageModelInput, Any]
else:
    _Runnable = object

Config = RunnableConfig | list[RunnableConfig] | None
T = TypeVar("T")


def in_threads(call: Callable[[int], T], count: int, limit: int) -> Generator[tuple[int, T], None, None]:
    """``call`` for each index, at most ``limit`` at once; each index with its value as soon as it is there.

    The calls are an app's code too (callbacks, caches), so they have threads of their own. The first error, or closing
    this, cancels the requests of all others.
    """
    scope = CancelScope()

    def in_scope(index: int) -> T:
        scope.enter()
        return call(index)

    with ContextThreadPoolExecutor(min(limit, count)) as executor:
        futures = {executor.submit(in_scope, index): index for index in range(count)}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BaseException:
            for future in futures:
                future.cancel()
            scope.cancel()
            raise


async def in_tasks(call: Callable[[int], Awaitable[T]], count: int, limit: int) -> AsyncGenerator[tuple[int, T], None]:
    """As ``in_threads``, in tasks of the running loop."""
    turns = asyncio.Semaphore(limit)

    async def in_turn(index: int) -> tuple[int, T]:
        async with turns:
            return index, await call(index)

    running = [asyncio.ensure_future(in_turn(index)) for index in range(count)]
    try:
        for completed in asyncio.as_completed(running):
            yield await completed
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


class FullBatches(_Runnable):
    """Mixed into a model: its batches keep its engine full."""

    @property
    def engine(self) -> Engine:
        """The engine behind this object."""
        raise NotImplementedError

    def batch(
        self,
        inputs: list[LanguageModelInput],
        config: Config = None,
        *,
        return_exceptions: bool = False,
        use_tqdm: bool | None = None,
        **kwargs: Any,
    ) -> list[Any]:
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
        inputs: list[LanguageModelInput],
        config: Config = None,
        *,
        return_exceptions: bool = False,
        use_tqdm: bool | None = None,
        **kwargs: Any,
    ) -> list[Any]:
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
    ) -> Generator[tuple[int, Any], None, None]:
        """As ``batch``, but each answer with its input's position as soon as it is there."""
        if not inputs:
            return
        configs = get_config_list(config, len(inputs))

        def answer(index: int) -> Any:
            try:
                return self.invoke(inputs[index], merge_configs(configs[index], extra), **kwargs)
            except Exception as exc:
                if not return_exceptions:
                    raise
                return exc

        with (
            _shown(len(inputs), use_tqdm) as extra,
            closing(in_threads(answer, len(inputs), self._limit(configs))) as each,
        ):
            yield from each

    async def abatch_as_completed(
        self,
        inputs: Sequence[LanguageModelInput],
        config: Any = None,
        *,
        return_exceptions: bool = False,
        use_tqdm: bool | None = None,
        **kwargs: Any,
    ) -> AsyncGenerator[tuple[int, Any], None]:
        """See ``batch_as_completed``."""
        if not inputs:
            return
        configs = get_config_list(config, len(inputs))

        async def answer(index: int) -> Any:
            try:
                return await self.ainvoke(inputs[index], merge_configs(configs[index], extra), **kwargs)
            except Exception as exc:
                if not return_exceptions:
                    raise
                return exc

        with _shown(len(inputs), use_tqdm) as extra:
            async with aclosing(in_tasks(answer, len(inputs), self._limit(configs))) as each:
                async for pair in each:
                    yield pair

    def _limit(self, configs: Sequence[RunnableConfig]) -> int:
        return configs[0].get("max_concurrency") or self.engine.max_concurrency


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
