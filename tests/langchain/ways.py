"""The ways to ask one model several things, alike: inputs, and a config or a list of them; answers in their order."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

Way = Callable[..., Awaitable[list[Any]]]


async def batch(llm: Any, inputs: list[Any], config: Any = None, **more: Any) -> list[Any]:
    return await asyncio.to_thread(llm.batch, inputs, config, **more)


async def abatch(llm: Any, inputs: list[Any], config: Any = None, **more: Any) -> list[Any]:
    return await llm.abatch(inputs, config, **more)


async def batch_as_completed(llm: Any, inputs: list[Any], config: Any = None, **more: Any) -> list[Any]:
    found = await asyncio.to_thread(lambda: dict(llm.batch_as_completed(inputs, config, **more)))
    return [found[index] for index in range(len(inputs))]


async def abatch_as_completed(llm: Any, inputs: list[Any], config: Any = None, **more: Any) -> list[Any]:
    found = {index: value async for index, value in llm.abatch_as_completed(inputs, config, **more)}
    return [found[index] for index in range(len(inputs))]


async def one_by_one(llm: Any, inputs: list[Any], config: Any = None) -> list[Any]:
    return [await asyncio.to_thread(llm.invoke, text, config) for text in inputs]


async def one_by_one_async(llm: Any, inputs: list[Any], config: Any = None) -> list[Any]:
    return [await llm.ainvoke(text, config) for text in inputs]


BATCHES: list[Way] = [batch, abatch, batch_as_completed, abatch_as_completed]
ONE_BY_ONE: list[Way] = [one_by_one, one_by_one_async]
