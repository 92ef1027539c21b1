"""How long an engine of ours is waited for: by the setting's limit of silence, and by a call's own limit."""

from __future__ import annotations

import time

import pytest

from shared_engine import EngineDiedError, RequestTimeoutError
from tests.fake.conftest import MakeEngine
from tests.support.callers import ANSWER, HELLO

SOON_S = 5.0


@pytest.mark.parametrize("stream", [False, True])
def test_a_call_whose_time_is_over_leaves_the_start_alone(fake_engine: MakeEngine, stream: bool) -> None:
    engine = fake_engine({"start_delay_s": 3, "weights": 3})
    began = time.monotonic()
    with pytest.raises(RequestTimeoutError, match=r"timeout of 0\.5 s is over: .* for the engine to be ready"):
        list(engine.stream_chat(HELLO, timeout=0.5)) if stream else engine.chat(HELLO, timeout=0.5)
    assert time.monotonic() - began < 2
    assert engine.chat(HELLO, timeout=20).text == ANSWER
    socket = engine.status().socket
    assert socket is not None
    assert socket.endswith("/1.sock"), "it is the first start's engine"


def test_an_answer_in_one_piece_may_take_longer_than_the_limit_of_silence(fake_engine: MakeEngine) -> None:
    engine = fake_engine({"token_delay_s": 0.25}, timeout=0.4, max_retries=0)
    began = time.monotonic()
    assert engine.chat(HELLO).text == ANSWER
    assert time.monotonic() - began > 4 * 0.4


def test_a_stream_of_an_engine_that_hangs_is_given_up_after_the_limit_of_silence(fake_engine: MakeEngine) -> None:
    engine = fake_engine({"hang_mid_generation": True}, timeout=0.4, max_retries=0, stall_timeout_s=60)
    engine.warmup()
    began = time.monotonic()
    with pytest.raises(
        RequestTimeoutError, match=r"sent nothing for timeout = 0\.4 s; the engine has 1 requests running"
    ):
        list(engine.stream_chat(HELLO))
    assert time.monotonic() - began < SOON_S


def test_an_answer_in_one_piece_of_an_engine_that_hangs_ends_with_the_engine(fake_engine: MakeEngine) -> None:
    engine = fake_engine({"hang_mid_generation": True}, timeout=0.4, max_retries=0, stall_timeout_s=2)
    began = time.monotonic()
    with pytest.raises(EngineDiedError, match="hung"):
        engine.chat(HELLO)
    assert time.monotonic() - began < 20


def test_a_calls_own_limit_holds_while_the_engine_works(fake_engine: MakeEngine) -> None:
    engine = fake_engine({"token_delay_s": 0.3}, timeout=0.2, max_retries=0)
    engine.warmup()
    began = time.monotonic()
    with pytest.raises(RequestTimeoutError, match=r"timeout of 1 s is over: it waited .* s for an answer"):
        engine.chat(HELLO, timeout=1)
    assert 1 <= time.monotonic() - began < SOON_S
