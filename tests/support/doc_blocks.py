"""Blocks of code in the pages, whatever their language."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from tests.support.paths import REPOSITORY

PAGES = sorted(
    path for place in ("*.md", "docs/*.md", "deploy/**/*.md", "examples/**/*.md") for path in REPOSITORY.glob(place)
)

_BLOCK = re.compile(
    r"(?:^<!-- not run: (?P<reason>.+?) -->\n)?^```(?P<language>.*)\n(?P<code>(?:.*\n)*?)```$", re.MULTILINE
)


@dataclass(frozen=True)
class Block:
    """
    Attributes:
        page: its path in the repository.
        reason: why no test runs it: ``<!-- not run: REASON -->`` before it.
    """

    page: str
    line: int
    language: str
    code: str
    reason: str | None

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks_of(path: Path) -> list[Block]:
    text, page = path.read_text(), path.relative_to(REPOSITORY).as_posix()
    return [
        Block(page, text.count("\n", 0, found.start()) + 1, found["language"], found["code"], found["reason"])
        for found in _BLOCK.finditer(text)
    ]


def all_blocks(*languages: str) -> list[Block]:
    return [block for path in PAGES for block in blocks_of(path) if not languages or block.language in languages]
