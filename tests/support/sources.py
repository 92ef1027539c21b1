"""Streams of an engine that note when they were closed, and the garbage collector out of the way meanwhile."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncGenerator, Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest

from shared_engine import Engine, GenerationChunk


class Source:
    """Pieces, as ``Engine.stream_chat`` and its siblings would give them."""

    def __init__(self, pieces: Sequence[str] = "abc") -> None:
        self.closed = False
        self._pieces = [GenerationChunk(text=piece) for piece in pieces]

    def gives(self, pieces: Sequence[GenerationChunk]) -> None:
        """Give these instead."""
        self._pieces = [*pieces]

    def chunks(self, *_: Any, **__: Any) -> Generator[GenerationChunk, None, None]:
        try:
            yield from self._pieces
        finally:
            self.closed = True

    async def achunks(self, *_: Any, **__: Any) -> AsyncGenerator[GenerationChunk, None]:
        try:
            for piece in self._pieces:
                yield piece
        finally:
            await asyncio.sleep(0)  # as the end of a request takes a while
            self.closed = True

    def is_the_engine(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Every stream of every Engine is this one."""
        for kind in ("chat", "generate"):
            monkeypatch.setattr(Engine, f"stream_{kind}", lambda _, *args, **kwargs: self.chunks(*args, **kwargs))
            monkeypatch.setattr(Engine, f"astream_{kind}", lambda _, *args, **kwargs: self.achunks(*args, **kwargs))

    async def is_closed_soon(self) -> None:
        """Return when the event loop has closed it, which it does by itself, a few of its rounds after it was left."""
        async with asyncio.timeout(10):
            while not self.closed:
                await asyncio.sleep(0)


@contextmanager
def no_garbage_collection() -> Iterator[None]:
    """What ends in here has ended because it was closed, or by its last reference; not because of a cycle found."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
