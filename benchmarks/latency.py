"""Time to first token, gaps between tokens, one short answer: ours and bare aiohttp in turn, one request at a time."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import chain

from bare import Streamed
from figures import Row, percentile

BARE = "bare aiohttp"
AGAIN = "bare aiohttp again (what is noise)"

Source = Callable[[list[str]], list[Streamed]]
"""Streams as many texts at once as it is given."""


def in_turn(actions: Mapping[str, Callable[[], None]], times: int) -> None:
    """Each action ``times`` times: forwards, backwards, forwards."""
    for index in range(times):
        for name in list(actions)[:: 1 if index % 2 == 0 else -1]:
            actions[name]()


def measure_streams(
    sources: Mapping[str, Source], texts: list[str], groups: int, rounds: int, check: Callable[[list[Streamed]], None]
) -> dict[str, list[list[Streamed]]]:
    """The streams of each source, round by round; a group of them, one for each text, runs at once."""
    streams: dict[str, list[list[Streamed]]] = {name: [] for name in sources}

    def group_of(name: str) -> Callable[[], None]:
        def group() -> None:
            came = sources[name](texts)
            check(came)
            streams[name][-1].extend(came)

        return group

    groups_of = {name: group_of(name) for name in sources}
    for index in range(-1, rounds):
        for each in streams.values():
            each.append([])
        in_turn(groups_of, groups if index >= 0 else 1)
    return {name: each[1:] for name, each in streams.items()}


def stream_rows(streams: Mapping[str, list[list[Streamed]]], what: str) -> list[Row]:
    rows = []
    for kind, per_stream, limit_ms in (("first token", _firsts_ms, 1.0), ("gap", _gaps_ms, 0.1)):
        values = {name: [per_stream(of_round) for of_round in rounds] for name, rounds in streams.items()}
        rows += middle_and_slowest(values, f"{what}, {kind}", limit_ms)
    return rows


def middle_and_slowest(taken: Mapping[str, list[list[float]]], what: str, limit_ms: float) -> list[Row]:
    """The middle of each round, and the slowest of all rounds together: one round has too few for that."""
    middle = {name: [statistics.median(of_round) for of_round in rounds] for name, rounds in taken.items()}
    slowest = {name: [percentile(list(chain.from_iterable(rounds)), 99)] for name, rounds in taken.items()}
    return added_rows(f"{what}, p50", middle, limit_ms) + added_rows(f"{what}, p99", slowest, limit_ms)


def added_rows(what: str, figures: Mapping[str, list[float]], limit_ms: float) -> list[Row]:
    """What each adds to bare aiohttp, in ms; nothing is decided where it differs more from itself, in any round."""
    bare = figures[BARE]
    again = Row(f"{what}: {AGAIN}", figures[AGAIN], "ms", BARE, bare, "more at most")
    noise = max(map(abs, again.results()))
    ours = [name for name in figures if name not in (BARE, AGAIN)]
    return [
        *(Row(f"{what}: {name}", figures[name], "ms", BARE, bare, "more at most", limit_ms, noise) for name in ours),
        again,
    ]


def _firsts_ms(streams: Sequence[Streamed]) -> list[float]:
    return [stream.first_s * 1000 for stream in streams]


def _gaps_ms(streams: Sequence[Streamed]) -> list[float]:
    return [gap * 1000 for stream in streams for gap in stream.gaps_s]


def measure_calls(calls: Mapping[str, Callable[[], None]], times: int, rounds: int) -> dict[str, list[list[float]]]:
    """What each call took, in ms, round by round."""
    taken: dict[str, list[list[float]]] = {name: [] for name in calls}

    def timed(name: str) -> Callable[[], None]:
        def call() -> None:
            began = time.perf_counter()
            calls[name]()
            taken[name][-1].append((time.perf_counter() - began) * 1000)

        return call

    timed_calls = {name: timed(name) for name in calls}
    for index in range(-1, rounds):
        for each in taken.values():
            each.append([])
        in_turn(timed_calls, times if index >= 0 else 3)
    return {name: each[1:] for name, each in taken.items()}
