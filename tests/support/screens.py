"""What pages show of a terminal is what a test has seen there.

    <!-- screen: hello -->
    ```text
    ...
    ```

WRITE_SCREENS=1 writes the pages again.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from tests.support.paths import REPOSITORY


def check_screen(page: str, name: str, picture: str, *, changing: str = r"(?!)") -> None:
    """The page has the picture under that name.

    Args:
        changing: a pattern of what is another each time, and not compared.
    """
    file = REPOSITORY / "docs" / f"{page}.md"
    if os.environ.get("WRITE_SCREENS"):
        _write(file, name, picture)
    found = _block(name).search(file.read_text())
    assert found is not None, f"{file} has no screen {name!r}"
    assert re.sub(changing, "~", found[2]) == re.sub(changing, "~", picture + "\n"), "WRITE_SCREENS=1 writes it again"


def _write(file: Path, name: str, picture: str) -> None:
    text = file.read_text()
    file.write_text(_block(name).sub(lambda found: f"{found[1]}{picture}\n{found[3]}", text))


def _block(name: str) -> re.Pattern[str]:
    return re.compile(rf"(<!-- screen: {re.escape(name)} -->\n```text\n)(.*?)(```)", re.DOTALL)
