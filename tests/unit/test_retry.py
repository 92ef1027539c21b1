"""One rule for trying again: what, how often, and when."""

from __future__ import annotations

import pytest

from shared_engine.errors import (
    EngineDiedError,
    RateLimitError,
    RequestError,
    RequestRejectedError,
    RequestTimeoutError,
    ServerConnectionError,
    ServerError,
    VLLMError,
)
from shared_engine.request.retry import MAX_WAIT_S, Retry


def refused(retry_after_s: float | None) -> RequestError:
    error = RateLimitError("slow down", 429)
    error.retry_after_s = retry_after_s
    return error


def test_each_wait_is_longer_and_no_two_requests_wait_alike() -> None:
    waits = []
    for _ in range(50):
        retry = Retry(8, patience_s=600)
        waits.append([retry.wait_s(ServerConnectionError("cut")) for _ in range(8)])
    for step, column in enumerate(zip(*waits, strict=True)):
        times = [wait for wait in column if wait is not None]
        assert len(set(times)) > 40
        longest = min(0.1 * 2**step, MAX_WAIT_S)
        assert longest / 2 <= min(times) <= max(times) <= longest


@pytest.mark.parametrize(
    ("asked", "least", "most"), [(None, 0.25, 0.5), (0, 0.25, 0.5), (2, 2.25, 2.5), (60, 60.25, 60.5), (120, 120, 121)]
)
def test_a_server_is_not_asked_before_it_wants_to_be(asked: float | None, least: float, most: float) -> None:
    wait_s = Retry(1, patience_s=600).wait_s(refused(asked))
    assert wait_s is not None
    assert least <= wait_s <= most


def test_a_server_that_asks_for_more_time_than_there_is_is_not_asked_again() -> None:
    assert Retry(5, patience_s=600).wait_s(refused(121)) is None
    assert Retry(5, patience_s=600).wait_s(refused(10), left_s=5) is None
    assert Retry(5, patience_s=600).wait_s(refused(10), left_s=20) is not None
    assert Retry(5, patience_s=600).wait_s(ServerConnectionError("cut"), left_s=0.01) is None


def status(number: int, should_retry: bool | None = None) -> RequestError:
    error = RequestError("no", number)
    error.should_retry = should_retry
    return error


@pytest.mark.parametrize(
    ("error", "retries"),
    [
        (RequestRejectedError("no", 400), 0),
        (status(408), 4),
        (status(409), 4),
        (status(422), 0),
        (RateLimitError("slow down", 429), 4),
        (ServerError("oops", 500), 2),
        (status(501), 0),
        (status(502), 4),
        (ServerError("busy", 503), 4),
        (status(504), 4),
        (status(522), 4),
        (status(529), 4),
        (status(None), 0),  # type: ignore[arg-type]
        (status(400, should_retry=True), 4),
        (status(429, should_retry=False), 0),
        (status(503, should_retry=False), 0),
        (ServerConnectionError("cut"), 4),
        (RequestTimeoutError("silence"), 0),
        (EngineDiedError("died"), 1),
    ],
)
def test_what_is_tried_again_and_how_often(error: VLLMError, retries: int) -> None:
    retry = Retry(4, patience_s=600)
    assert [retry.wait_s(error) is not None for _ in range(5)] == [True] * retries + [False] * (5 - retries)
    assert Retry(0, patience_s=600).wait_s(error) is None


def test_an_engine_that_somebody_else_ends_is_tried_as_long_as_its_caller_waits() -> None:
    killed = EngineDiedError("vLLM was killed by SIGKILL", is_from_outside=True)
    retry = Retry(2, patience_s=600)
    assert all(retry.wait_s(killed) is not None for _ in range(50))
    assert retry.wait_s(EngineDiedError("vLLM was killed by SIGSEGV")) is not None, "the first that is its own doing"
    assert retry.wait_s(EngineDiedError("vLLM was killed by SIGSEGV")) is None
    assert retry.wait_s(killed, left_s=0.01) is None
    hasty = Retry(2, patience_s=0.01)
    assert hasty.wait_s(killed) is not None, "it heard of it when its patience was over"
    assert hasty.wait_s(killed) is None
    assert Retry(2, patience_s=None).wait_s(killed) is not None
    assert Retry(0, patience_s=600).wait_s(killed) is None, "the user wants no retries"
