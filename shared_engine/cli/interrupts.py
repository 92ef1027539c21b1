"""Ctrl-C while the command imports: it ends at once, by the signal, as programs do that don't handle it.

Python can't be interrupted well there: packages in C panic, import locks swallow the exception.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager

_is_program = False
"""Whether this process is the command: not so in a test."""
_is_ours = False
"""And Ctrl-C is meant for it: not so in the background."""


def end_at_once() -> None:
    """From now on; for the command's first module."""
    global _is_program, _is_ours
    _is_program = True
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        _is_ours = True
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def is_program() -> bool:
    """Whether nothing but the command is in this process, so that its end is the process's."""
    return _is_program


def raise_again() -> None:
    """From now on Ctrl-C raises KeyboardInterrupt."""
    if _is_ours:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@contextmanager
def importing() -> Iterator[None]:
    """Meanwhile the command ends at once; for what it imports late."""
    before = signal.getsignal(signal.SIGINT)
    if not _is_ours or before is not signal.default_int_handler:
        yield
        return
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
