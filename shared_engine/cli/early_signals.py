"""Signals to ``vllm-local serve`` while it does not serve yet, or no longer.

Imports nothing that takes time: it is entered before what does is imported.
"""

from __future__ import annotations

import atexit
import os
import signal
from types import FrameType, TracebackType
from typing import Any

from shared_engine.cli.exit_codes import DONE
from shared_engine.cli.interrupts import is_program


class EarlySignals:
    """Entered, until the gateway handles signals itself: SIGTERM ends the process, SIGHUP and SIGUSR2 do not.

    After the gateway has left, each of them ends what is left of the process, and none changes what it exits with.
    """

    def __init__(self) -> None:
        self._hung_up = False
        self._before: dict[int, Any] = {}

    def has_hung_up(self) -> bool:
        """SIGHUP came: what is read of the configuration may be old."""
        return self._hung_up

    def __enter__(self) -> EarlySignals:
        # SIGUSR2 asks for another gateway in this one's place, which is new itself.
        for number, handler in (
            (signal.SIGTERM, _end), (signal.SIGHUP, self._hang_up), (signal.SIGUSR2, lambda *_: None)
        ):  # fmt: skip
            self._before[number] = signal.signal(number, handler)
        # Python forgets its handlers before it has ended. Registered now, this runs after what else is registered.
        atexit.register(self._handle_last, signal.SIG_IGN)
        return self

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        if kind is None and is_program():
            self._handle_last(_end)
        else:
            atexit.unregister(self._handle_last)
            for number, handler in self._before.items():
                signal.signal(number, handler)

    def _handle_last(self, handler: Any) -> None:
        for number in (*self._before, signal.SIGINT):
            signal.signal(number, handler)

    def _hang_up(self, _: int, __: FrameType | None) -> None:
        self._hung_up = True


def _end(_: int, __: FrameType | None) -> None:
    """Without an exception, which imports may swallow, and the end of Python shows. There is nothing to clean up."""
    os._exit(DONE)
