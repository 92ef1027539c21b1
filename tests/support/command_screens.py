"""What a terminal shows of a command, as text for the pages: taken by the tests, and compared but for its numbers.

``WRITE_SCREENS=1`` has the tests write docs/screens/ again.
"""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from collections.abc import Sequence

from tests.support.paths import REPOSITORY

SCREENS = REPOSITORY / "docs" / "screens"
COLUMNS, LINES = 80, 24


def shown_by(arguments: Sequence[str], **environment: str) -> str:
    """All that the command writes to a terminal of 80x24, as it comes; it must end well."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", LINES, COLUMNS, 0, 0))
    process = subprocess.Popen(
        [sys.executable, "-m", "shared_engine.cli", *arguments],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        cwd=REPOSITORY,
        env={**os.environ, "TERM": "xterm", **environment},
        start_new_session=True,
    )
    os.close(theirs)
    shown = b""
    while True:
        try:
            piece = os.read(ours, 65536)
        except OSError:  # the command has ended
            break
        shown += piece
    os.close(ours)
    assert process.wait(60) == 0, shown
    return shown.decode()


def frames_of(shown: str) -> list[str]:
    """The lines that stood there one after the other; of a bar the last one of each phase."""
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown)
    frames = [frame.rstrip() for frame in re.split(r"[\r\n]+", plain) if frame.strip()]
    phases = [re.sub(r"[\d/.:|█▏▎▍▌▋▊▉ ]|of|MB|GB", "", frame) for frame in frames]
    return [frame for frame, phase, after in zip(frames, phases, [*phases[1:], ""], strict=True) if phase != after]


def see_that_it_is_as_in_the_docs(name: str, screen: str) -> None:
    """Compares words and places, not numbers, keys, and how far a start was when somebody looked."""
    file = SCREENS / f"{name}.txt"
    if os.environ.get("WRITE_SCREENS"):
        file.parent.mkdir(exist_ok=True)
        file.write_text(screen)
    assert _without_numbers(screen) == _without_numbers(file.read_text()), f"WRITE_SCREENS=1 writes {file} again"


def _without_numbers(screen: str) -> list[list[str]]:
    text = re.sub(r"\b[0-9a-f]{8}\b", "KEY", screen)
    lines = [line for line in text.splitlines() if not re.search(r" \d\d:\d\d$", line)]
    return [re.sub(r"\d+(\.\d+)?[KMGT]?", "9", line).split() for line in lines]
