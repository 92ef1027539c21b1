"""A call that blocks does not stop the loop; where no thread starts any more, it is made all the same."""

from __future__ import annotations

import asyncio
import threading

import pytest

from shared_engine.request.threads import in_a_thread


async def test_the_loop_goes_on_and_gets_the_value_or_the_error() -> None:
    may_end = threading.Event()

    def wait() -> int:
        assert may_end.wait(30)
        return threading.get_ident()

    waiting = asyncio.create_task(in_a_thread(wait))
    await asyncio.sleep(0.05)
    may_end.set()
    assert await waiting != threading.get_ident()
    with pytest.raises(ZeroDivisionError):
        await in_a_thread(lambda: 1 // 0)


async def test_without_threads_the_call_is_made_here(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread at interpreter shutdown")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    assert await in_a_thread(threading.get_ident) == threading.get_ident()
