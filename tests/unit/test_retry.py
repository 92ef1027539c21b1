"""One rule for trying again: what, how often, and when."""

from __future__ import annotations

import pytest

from shared_engine.errors import (
    EngineDiedError,
    RateLimitError,
    RequestError,
    RequestRejectedError,
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
        retry = Retry(8)
        waits.append([retry.wait_s(ServerConnectionError("cut")) for _ in range(8)])
    for step, column in enumerate(zip(*waits, strict=True)):
        times = [wait for wait in column if wait is not None]
        assert len(set(times)) > 40
        longest = min(0.1 * 2**step, MAX_WAIT_S)
        assert longest / 2 <= min(times) <= max(times) <= longest


@pytest.mark.parametrize(("asked", "least", "most"), [(None, 0.05, 0.1), (0, 0.05, 0.1), (2, 2.05, 2.1), (60, 8, 8)])
def test_a_server_is_not_asked_before_it_wants_to_be(asked: float | None, least: float, most: float) -> None:
    wait_s = Retry(1).wait_s(refused(asked))
    assert wait_s is not None
    assert least <= wait_s <= most


@pytest.mark.parametrize(
    ("error", "retries"),
    [
        (RequestRejectedError("no", 400), 0),
        (ServerError("oops", 500), 0),
        (ServerError("busy", 503), 3),
        (RateLimitError("slow down", 429), 3),
        (ServerConnectionError("cut"), 3),
        (EngineDiedError("died"), 1),
    ],
)
def test_what_is_tried_again_and_how_often(error: VLLMError, retries: int) -> None:
    retry = Retry(3)
    assert [retry.wait_s(error) is not None for _ in range(4)] == [True] * retries + [False] * (4 - retries)
    assert Retry(0).wait_s(error) is None
