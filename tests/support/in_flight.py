"""Requests in flight on the engine that the whole run shares: begun, seen, and seen to end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from shared_engine import Engine, GenerationResult
from shared_engine.request.io_loop import io_loop
from tests.support.waiting import wait_until

HELLO = [{"role": "user", "content": "Hello"}]
SHORT: dict[str, Any] = {"max_tokens": 4, "temperature": 0}
SHORT_ANSWER = "Hello! How"
LONG: dict[str, Any] = {"max_tokens": 400, "extra_body": {"ignore_eos": True}}
# vLLM on two cores may leave no one else the processor until the last token is done (benchmarks/NOTES.md).
ATTEMPTS = 20


def running(engine: Engine) -> float:
    return engine.metrics().get("num_requests_running", 0)


def wait_quiet(engine: Engine) -> None:
    wait_until(lambda: running(engine) == 0, 30, "all requests to end")


def is_cut_short(engine: Engine, leave: Callable[[], object]) -> bool:
    """True if vLLM ends a request of LONG that ``leave`` begins and abandons, before its last token."""
    wait_quiet(engine)
    before = engine.metrics()["generation_tokens"]
    leave()
    wait_quiet(engine)
    return bool(engine.metrics()["generation_tokens"] - before < LONG["max_tokens"])


def answer_in_flight(engine: Engine) -> Future[GenerationResult]:
    """An unstreamed LONG answer, under way on the background loop: cancel it to leave it."""
    answer = asyncio.run_coroutine_threadsafe(engine.achat(HELLO, **LONG), io_loop())
    wait_until(lambda: running(engine) > 0 or answer.done(), 30, "the request to run")
    return answer


def use(engine: Engine) -> str:
    """Sync, then async on a loop of its own; in a process pool too."""
    text = engine.chat(HELLO, **SHORT).text
    assert asyncio.run(engine.achat(HELLO, **SHORT)).text == text
    return text
