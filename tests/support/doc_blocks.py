"""Blocks of code in the pages, whatever their language."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from tests.support.paths import REPOSITORY

PLACES = ("*.md", "docs/*.md", "deploy/**/*.md", "deploy/**/*.mdx", "examples/**/*.md")
PAGES = sorted(path for place in PLACES for path in REPOSITORY.glob(place))

_BLOCK = re.compile(
    r"(?:^<!-- not run: (?P<reason>.+?) -->\n)?^```(?P<language>.*)\n(?P<code>(?:.*\n)*?)```$", re.MULTILINE
)


@dataclass(frozen=True)
class Block:
    """
    Attributes:
        page: its path in the repository.
        language: the first word after the fence: pages in MDX have a title after it.
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
    found = []
    for match in _BLOCK.finditer(text):
        line, language = text.count("\n", 0, match.start()) + 1, match["language"].partition(" ")[0]
        found.append(Block(page, line, language, match["code"], match["reason"]))
    return found


def all_blocks(*languages: str) -> list[Block]:
    return [block for path in PAGES for block in blocks_of(path) if not languages or block.language in languages]


def without_distributions(code: str) -> str:
    """Imports from ours in place of the distributions' modules, which come with those alone: test_distributions.py."""
    return re.sub(r"from llama_index\.\w+\.vllm_local\w* import", "from llama_index_vllm_local import", code)
