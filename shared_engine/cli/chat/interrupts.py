"""Ctrl-C while an answer is on its way: it ends what is waited for, never the program."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


class Interrupts:
    """Takes signals over for a ``with``. Where it is ``allowed`` SIGINT raises KeyboardInterrupt, once; else nothing.

    At the prompt the terminal sends no signal: there Ctrl-C is a key. SIGTERM and SIGHUP end the program as ever, but
    not before the terminal is as it was.
    """

    def __init__(self) -> None:
        self._is_allowed = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interrupts:
        self._before = {number: signal.signal(number, _end) for number in (signal.SIGTERM, signal.SIGHUP)}
        self._before[signal.SIGINT] = signal.signal(signal.SIGINT, self._on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextmanager
    def allowed(self) -> Iterator[None]:
        self._is_allowed = True
        try:
            yield
        finally:
            self._is_allowed = False

    def _on_signal(self, _: int, __: FrameType | None) -> None:
        if self._is_allowed:
            self._is_allowed = False  # a second one must not end what the first one has begun to end
            raise KeyboardInterrupt


def _end(number: int, _: FrameType | None) -> None:
    raise SystemExit(128 + number)
