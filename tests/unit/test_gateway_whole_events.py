"""A stream of events on its way through: all of its bytes go on, and where it is cut, they end with a whole event."""

from __future__ import annotations

import random

import pytest

from shared_engine.gateway.whole_events import MOST_HELD, WholeEvents

ONE = b'data: {"a": 1}\n\n'
TWO = b"event: message_start\r\ndata: {}\r\n\r\n"
COMMENT = b": ping\n"


@pytest.mark.parametrize(
    ("pieces", "passed", "rest"),
    [
        ([ONE, TWO], [ONE, TWO], b""),
        ([ONE + b"da"], [ONE], b"da"),
        ([b"da", b"ta: 1", b"\n", b"\n"], [b"", b"", b"", b"data: 1\n\n"], b""),
        ([TWO[:-1], TWO[-1:]], [b"", TWO], b""),
        ([TWO[:-2], TWO[-2:] + ONE[:5], ONE[5:]], [b"", TWO, ONE], b""),
        ([ONE + ONE + b"data: x\n"], [ONE + ONE], b"data: x\n"),
        ([b"data: x\r\rdata"], [b"data: x\r\r"], b"data"),
        ([ONE, COMMENT, COMMENT, ONE], [ONE, COMMENT, COMMENT, ONE], b""),
        ([b"\n", b":\r\n", ONE], [b"\n", b":\r\n", ONE], b""),
        ([COMMENT + b"data: x\n", b"\n"], [b"", COMMENT + b"data: x\n\n"], b""),
        ([b": pi", b"ng\n"], [b"", b": ping\n"], b""),
        ([b"x" * MOST_HELD, b"y", b"z"], [b"", b"x" * MOST_HELD + b"y", b""], b"z"),
    ],
)
def test_what_goes_on_after_each_piece(pieces: list[bytes], passed: list[bytes], rest: bytes) -> None:
    events = WholeEvents()
    assert [events.ended(piece) for piece in pieces] == passed
    assert events.rest() == rest


@pytest.mark.parametrize("seed", range(20))
def test_wherever_a_stream_is_divided_its_bytes_are_the_same(seed: int) -> None:
    chosen = random.Random(seed)
    stream = b"".join(chosen.choices((ONE, TWO, COMMENT, b"\n", b"data: {}\n\n"), k=50))
    events, passed, at = WholeEvents(), b"", 0
    while at < len(stream):
        size = chosen.choice((1, 2, 7, 40, 300))
        passed += events.ended(stream[at : at + size])
        assert stream.startswith(passed)
        at += size
    assert passed + events.rest() == stream
