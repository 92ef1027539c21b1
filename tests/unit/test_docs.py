"""What docs/ claims: every test that a feature table names exists, every footnote and link leads somewhere."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

DOCS = sorted((REPOSITORY / "docs").glob("*.md"))
PAGES = [*DOCS, REPOSITORY / "README.md"]

NAMED_TEST = re.compile(r"`(test_\w+\.py)::(\w+)`")
OURS = re.compile(r"(`test_\w+\.py::\w+`(, )?)+(\[\^[\w-]+\])?|not(\[\^[\w-]+\])?")
THEIRS = re.compile(r"(seen|not|-)(\[\^[\w-]+\])?")
each_of_docs = pytest.mark.parametrize("page", DOCS, ids=lambda page: page.stem)


def table(page: Path) -> str:
    return page.read_text().partition("## Feature table")[2]


def rows(page: Path) -> Iterator[list[str]]:
    """Cells of the rows, without the heads of the tables."""
    for line in table(page).splitlines():
        if line.startswith("| ") and not line.startswith("| Feature |"):
            yield [cell.strip() for cell in line.strip("|").split("|")]


def names_by_file() -> dict[str, set[str]]:
    """Name of a test file -> its test functions and classes; of files of one name, those of all."""
    found: dict[str, set[str]] = {}
    for path in (REPOSITORY / "tests").rglob("test_*.py"):
        nodes = ast.parse(path.read_text()).body
        names = {n.name for n in nodes if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)}
        found.setdefault(path.name, set()).update(name for name in names if name.lower().startswith("test"))
    return found


def test_each_adapter_has_a_page() -> None:
    assert [page.stem for page in DOCS] == ["langchain", "llama_index"]


@each_of_docs
def test_every_cell_of_the_feature_table_names_tests_or_says_what_was_seen(page: Path) -> None:
    assert len(list(rows(page))) > 60
    for feature, ours, *theirs in rows(page):
        assert OURS.fullmatch(ours), (feature, ours)
        assert len(theirs) == 3, feature
        assert all(THEIRS.fullmatch(cell) for cell in theirs), (feature, theirs)


@each_of_docs
def test_every_test_that_the_feature_table_names_exists(page: Path) -> None:
    existing = names_by_file()
    named = NAMED_TEST.findall(table(page))
    assert named
    assert [f"{file}::{name}" for file, name in named if name not in existing.get(file, ())] == []


@each_of_docs
def test_every_footnote_is_there_and_used(page: Path) -> None:
    defined = re.findall(r"^\[\^([\w-]+)\]:", page.read_text(), re.MULTILINE)
    used = re.findall(r"\[\^([\w-]+)\](?!:)", page.read_text())
    assert len(defined) == len(set(defined))
    assert set(defined) == set(used)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)]+)\)", page.read_text()):
        file, _, anchor = target.partition("#")
        linked = (page.parent / file).resolve() if file else page
        assert linked.exists(), target
        assert not anchor or anchor in anchors(linked), target


def anchors(page: Path) -> set[str]:
    """Of its headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
