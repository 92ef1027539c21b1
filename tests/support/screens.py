"""What a terminal shows, as text for the pages: taken by the tests, and compared but for its numbers.

    <!-- screen: hello -->
    ```text
    ...
    ```

``WRITE_SCREENS=1`` has the tests write the pages again.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence

from tests.support.command import COMMAND
from tests.support.paths import REPOSITORY
from tests.support.terminal import on_a_terminal


def shown_by(arguments: Sequence[str], **environment: str) -> str:
    """All that the command writes to a terminal of 80x24, as it comes; it must end well."""
    with on_a_terminal([*COMMAND, *arguments], environment) as terminal:
        assert terminal.ended(60) == 0, terminal.text
        return terminal.output.decode()


def frames_of(shown: str) -> list[str]:
    """The lines that stood there one after the other; of a bar the last one of each phase."""
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\^C", "", shown)
    frames = [frame.rstrip() for frame in re.split(r"[\r\n]+", plain) if frame.strip()]
    phases = [re.sub(r"[\d/.,:|█▏▎▍▌▋▊▉ -]|of|MB|GB", "", frame) for frame in frames]
    return [frame for frame, phase, after in zip(frames, phases, [*phases[1:], ""], strict=True) if phase != after]


def check_screen(page: str, name: str, screen: str) -> None:
    """The page, a file of docs/, shows the screen under that name.

    Words and places are compared, not numbers, keys, bars, and how far a start was when somebody looked.
    """
    file, block = REPOSITORY / "docs" / page, _block(name)
    screen = "".join(f"{line.rstrip()}\n" for line in screen.splitlines())
    if os.environ.get("WRITE_SCREENS"):
        file.write_text(block.sub(lambda found: found[1] + screen + found[3], file.read_text()))
    found = block.search(file.read_text())
    assert found is not None, f"{file} has no screen {name!r}"
    assert _without_numbers(screen) == _without_numbers(found[2]), "WRITE_SCREENS=1 writes it again"


def _block(name: str) -> re.Pattern[str]:
    return re.compile(rf"(<!-- screen: {re.escape(name)} -->\n```text\n)(.*?)(```)", re.DOTALL)


def _without_numbers(screen: str) -> list[list[str]]:
    text = re.sub(r"\b[0-9a-f]{8}\b", "KEY", re.sub(r"\|[█▏▎▍▌▋▊▉ ]*\|", "BAR", screen))
    lines = [line for line in text.splitlines() if not re.search(r" \d\d:\d\d$", line)]
    return [re.sub(r"\d+([.,:]\d+)*[KMGT]?", "9", line).split() for line in lines]
