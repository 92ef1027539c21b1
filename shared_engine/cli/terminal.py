"""What may be written to whom: colours and drawing only for a terminal that can show them; what is told, on stderr."""

from __future__ import annotations

import os
import sys
from typing import TextIO

BOLD, DIM, RED, GREEN, YELLOW = "1", "2", "31", "32", "33"


def can_draw(stream: TextIO | None) -> bool:
    """Whether the stream is a terminal that moves its cursor: none of them is a pipe, a file, or TERM=dumb."""
    return stream is not None and stream.isatty() and os.environ.get("TERM", "dumb") != "dumb"


def has_colours(stream: TextIO | None) -> bool:
    """Whether to colour what goes there; NO_COLOR (no-color.org) forbids it."""
    return can_draw(stream) and not os.environ.get("NO_COLOR")


def painted(text: str, style: str, stream: TextIO | None) -> str:
    """The text in a style of the above, where the stream shows colours."""
    return f"\x1b[{style}m{text}\x1b[0m" if has_colours(stream) else text


def tell(text: str, *, end: str = "\n") -> None:
    """On stderr, at once. Where it can't be written (closed, a full disk) nobody is told, and nothing else changes."""
    if sys.stderr is None:  # the shell has closed it; print would take stdout
        return
    try:
        print(text, end=end, file=sys.stderr, flush=True)
    except OSError:
        drop(sys.stderr)


def complain(text: str) -> None:
    """A line on stderr, under the command's name."""
    tell(f"vllm-local: {text}")


def drop(stream: TextIO) -> None:
    """What is still buffered must not fail a second time when Python ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
