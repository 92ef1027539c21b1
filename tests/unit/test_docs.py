"""What the pages promise: feature tables rest on tests that exist, links and footnotes lead somewhere."""

from __future__ import annotations

import ast
import re
import runpy
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import shared_engine
from shared_engine import errors
from shared_engine.supervisor import start_failures
from tests.support.paths import REPOSITORY

DOCS = sorted((REPOSITORY / "docs").glob("*.md"))
PAGES = [*DOCS, *sorted(REPOSITORY.glob("*.md"))]
FRAMEWORKS = ("langchain", "llama_index")

NAMED_TEST = re.compile(r"`((?:tests/\w+/)?\w+\.py)::(\w+)`")
FOOTNOTE = r"(\[\^[\w-]+\])?"
OURS = re.compile(rf"(`test_\w+\.py::\w+`(, )?)+{FOOTNOTE}|not{FOOTNOTE}")
THEIRS = re.compile(rf"(seen|not|-){FOOTNOTE}")
OF_TESTS = (*(f"evidence-{framework}" for framework in FRAMEWORKS), "public-reports")
each_framework = pytest.mark.parametrize("framework", FRAMEWORKS)
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)


def text_of(name: str) -> str:
    return (REPOSITORY / "docs" / f"{name}.md").read_text()


# ---- feature tables and their evidence


def rows(text: str) -> Iterator[list[str]]:
    """Cells of the feature tables' rows, without their heads."""
    is_in_table = False
    for line in text.splitlines():
        if not line.startswith("| "):
            is_in_table = is_in_table and line.startswith("|---")
        elif line.startswith("| Feature |"):
            is_in_table = True
        elif is_in_table:
            yield [cell.strip() for cell in line.strip("|").split("|")]


def short(cell: str) -> str:
    """What the user's page shows of a cell of the evidence."""
    finding, _, footnote = cell.partition("[^")
    word = {"seen": "yes", "not": "no", "-": "-"}.get(finding, "yes")
    return f"{word}*" if footnote else word


def names_by_file() -> dict[str, set[str]]:
    """Name of a test_*.py, or path of any file -> its tests. No two test_*.py share a name: a cell means one test."""
    found: dict[str, set[str]] = {}
    for path in (REPOSITORY / "tests").rglob("*.py"):
        is_named = path.name.startswith("test_")
        assert not is_named or path.name not in found, path
        nodes = ast.parse(path.read_text()).body
        names = {n.name for n in nodes if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)}
        tests = {name for name in names if name.lower().startswith("test")}
        found[path.relative_to(REPOSITORY).as_posix()] = tests
        if is_named:
            found[path.name] = tests
    return found


@each_framework
def test_every_cell_of_the_evidence_names_tests_or_what_was_seen(framework: str) -> None:
    evidence = list(rows(text_of(f"evidence-{framework}")))
    assert len(evidence) > 60
    for feature, ours, *theirs in evidence:
        assert OURS.fullmatch(ours), (feature, ours)
        assert len(theirs) == 3, feature
        assert all(THEIRS.fullmatch(cell) for cell in theirs), (feature, theirs)


@pytest.mark.parametrize("page", OF_TESTS)
@pytest.mark.slow
def test_every_test_that_the_evidence_names_exists(page: str) -> None:
    existing = names_by_file()
    named = NAMED_TEST.findall(text_of(page))
    assert named
    assert [f"{file}::{name}" for file, name in named if name not in existing.get(file, ())] == []


@each_framework
def test_the_users_table_shows_what_the_evidence_holds(framework: str) -> None:
    evidence = [[feature, *map(short, cells)] for feature, *cells in rows(text_of(f"evidence-{framework}"))]
    shown = list(rows(text_of(framework).partition("## Feature table")[2]))
    assert shown == evidence


@pytest.mark.slow
def test_every_cell_of_the_fleets_evidence_names_tests_that_exist_or_what_was_seen_or_read() -> None:
    evidence, existing = list(rows(text_of("evidence-fleets"))), names_by_file()
    assert len(evidence) > 20
    for feature, ours, *theirs in evidence:
        assert OURS.fullmatch(ours), (feature, ours)
        assert [name for file, name in NAMED_TEST.findall(ours) if name not in existing.get(file, ())] == []
        assert len(theirs) == 5, feature
        for cell in theirs:
            assert re.fullmatch(r"-|not looked at|.+; (seen|read\[\^[\w-]+\])", cell), (feature, cell)


def test_every_report_names_tests_or_says_that_there_is_none() -> None:
    lines = [line for line in text_of("public-reports").splitlines() if line.startswith("| ")]
    found = [line.strip("| ").rsplit(" | ", 1)[-1] for line in lines if not line.endswith("| Shown by |")]
    assert len(found) > 100
    assert [cell for cell in found if not NAMED_TEST.search(cell) and not cell.startswith("**no test**")] == []


# ---- links and footnotes


@each_page
def test_every_footnote_is_there_and_used(page: Path) -> None:
    defined = re.findall(r"^\[\^([\w-]+)\]:", page.read_text(), re.MULTILINE)
    used = re.findall(r"\[\^([\w-]+)\](?!:)", page.read_text())
    assert len(defined) == len(set(defined))
    assert set(defined) == set(used)


@each_page
def test_every_table_has_its_head(page: Path) -> None:
    """Rows after an empty line are shown as text."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    for table in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        assert re.match(r".*\n\|[ :|-]+\|\n", table), table[:100]


@each_page
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


# ---- the site


def menu() -> dict[str, Any]:
    return runpy.run_path(str(REPOSITORY / "docs" / "site" / "navigation.py"))


def test_every_page_is_in_the_menu_of_the_site_once() -> None:
    found = menu()
    assert sorted(found["pages"]()) == sorted(page.stem for page in DOCS)
    parents = {page for group in found["GROUPS"].values() for page in group}
    assert set(found["BELOW"]) <= parents


def test_files_that_the_menu_names_are_there_and_each_public_package_has_its_reference() -> None:
    assert [file for file in menu()["OF_THE_REPOSITORY"] if not (REPOSITORY / file).is_file()] == []
    places = [place for page in DOCS for place in re.findall(r"^<!-- api: (\w+) -->$", page.read_text(), re.MULTILINE)]
    assert sorted(places) == ["langchain_vllm_local", "llama_index_vllm_local", "shared_engine"]


def test_the_page_of_errors_is_what_their_docstrings_say() -> None:
    """``python docs/errors_page.py > docs/errors.md`` writes it."""
    made = "".join(runpy.run_path(str(REPOSITORY / "docs" / "errors_page.py"))["page"]())
    assert text_of("errors") == made
    assert {name for name in vars(errors) if name.endswith("Error")} == set(
        re.findall(r"^\| \[`(\w+)`\]", made, re.MULTILINE)
    )


# ---- pages against the code


def headings(name: str) -> list[str]:
    return re.findall(r"^#+ (.+)$", text_of(name), re.MULTILINE)


def test_every_public_error_has_its_remedy() -> None:
    of_the_command_line = {"InstallError", "EngineNameError", "FetchError"}
    public = {name for name in vars(errors) if name.endswith("Error")}
    assert public - of_the_command_line == {name for name in shared_engine.__all__ if name.endswith("Error")}
    assert public <= set(headings("troubleshooting"))


def test_every_cause_of_a_failed_start_has_its_remedy() -> None:
    page = text_of("troubleshooting")
    for _, message in start_failures._CAUSES:
        beginning = message.partition(":")[0].replace("{what}", "...")
        assert f"| `{beginning}` |" in page, beginning


@pytest.mark.slow
def test_the_page_of_answer_types_is_as_they_are_tested() -> None:
    """``python docs/structured_page.py > docs/structured.md`` writes it."""
    command = [sys.executable, "-c", "import runpy; runpy.run_path('docs/structured_page.py', run_name='__main__')"]
    made = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, check=True).stdout
    assert text_of("structured") == made


@pytest.mark.slow
def test_the_page_of_the_command_line_is_what_its_parser_says() -> None:
    """``python docs/cli_page.py > docs/cli.md`` writes it."""
    command = [sys.executable, "docs/cli_page.py"]
    made = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, check=True).stdout
    assert text_of("cli") == made


def test_every_field_of_the_json_is_described() -> None:
    table = text_of("cli").partition("`status --json`")[2]
    described = re.findall(r"`(\w+)`", "\n".join(re.findall(r"^\| (.*?) \|", table, re.MULTILINE)))
    assert sorted(described) == sorted(shared_engine.EngineInfo(state=shared_engine.EngineState.READY).to_json())


@pytest.mark.slow
def test_every_public_name_is_documented() -> None:
    pages = "\n".join(page.read_text() for page in PAGES)
    assert [name for name in shared_engine.__all__ if not re.search(rf"\b{name}\b", pages)] == []


def test_every_file_that_the_architecture_names_exists() -> None:
    page = text_of("architecture")
    named = re.findall(r"`((?:[\w.-]+/)*[\w.-]+(?:/|\.py))`", page)
    assert len(named) > 50
    places = [REPOSITORY, REPOSITORY / "shared_engine"]
    adapters = [REPOSITORY / f"{framework}_vllm_local" for framework in FRAMEWORKS]
    for name in named:
        if "/" in name:
            assert any((place / name).exists() for place in places), name
        else:
            assert any((adapter / name).exists() for adapter in adapters), name


def test_every_folder_of_the_engine_is_in_the_architecture() -> None:
    page = text_of("architecture")
    for init in (REPOSITORY / "shared_engine").glob("*/__init__.py"):
        assert f"| `shared_engine/{init.parent.name}/`" in page, init


def test_each_feature_names_a_test_that_there_is() -> None:
    rows = (REPOSITORY / "docs" / "features.md").read_text().splitlines()
    named = [row.rsplit("|", 2)[1].strip().strip("`") for row in rows if row.startswith("| ") and "tests/" in row]
    assert len(named) >= 30
    for name in named:
        file, _, test = name.partition("::")
        path = REPOSITORY / file
        assert path.is_file(), name
        assert not test or f"def {test}(" in path.read_text(), name
