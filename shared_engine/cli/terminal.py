"""What may be written to whom: colours and drawing only for a terminal that can show them; complaints on stderr."""

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


def complain(text: str) -> None:
    """A line on stderr, under the command's name."""
    if sys.stderr is not None:  # it is, where the shell has closed it; print would take stdout
        print(f"vllm-local: {text}", file=sys.stderr)
