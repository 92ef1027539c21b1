"""benchmarks/first_minutes.py: what its users type and see, its tables, and the pages that quote them."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import pytest

from tests.support.paths import REPOSITORY

MODULES = ("first_minutes_page", "first_steps", "new_user", "step_runner", "figures")
RESULTS = REPOSITORY / "benchmarks" / "results" / "first_minutes.md"


@pytest.fixture(autouse=True)
def benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(REPOSITORY / "benchmarks")
    for name in MODULES:
        monkeypatch.delitem(sys.modules, name, raising=False)


@pytest.mark.slow
def test_what_is_typed_is_timed_until_its_first_words_and_its_end(tmp_path: Path) -> None:
    from new_user import NewUser

    user = NewUser(tmp_path, {"NAMED": "here"})
    seen = user.types("echo $NAMED $HOME; sleep 0.2; test -t 1 && printf end")
    assert seen.text == f"here {tmp_path}\nend"
    assert seen.first_s is not None
    assert seen.first_s < seen.total_s - 0.15


def test_the_prompt_is_back_although_something_was_left_running(tmp_path: Path) -> None:
    from new_user import NewUser

    seen = NewUser(tmp_path, {}).types("sleep 30 & echo $!")
    os.kill(int(seen.text), 9)
    assert seen.total_s < 10


def test_a_line_that_fails_shows_what_it_wrote(tmp_path: Path) -> None:
    from new_user import NewUser, UserError

    with pytest.raises(UserError, match=r"(?s)ended with 3:\nout.*err"):
        NewUser(tmp_path, {}).types("echo out; echo err >&2; exit 3")


def test_nothing_of_this_machines_user_reaches_the_new_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from new_user import NewUser

    for name in ("VLLM_IDLE_TTL_SECONDS", "XDG_CACHE_HOME", "PYTHONPATH", "PIP_CACHE_DIR", "HF_HOME"):
        monkeypatch.setenv(name, "x")
    monkeypatch.setenv("PIP_CERT", "certificates")
    environment = NewUser(tmp_path, {}).environment
    assert {name for name, value in environment.items() if value == "x"} == set()
    assert environment["PIP_CERT"] == "certificates"


def test_both_programs_are_the_one_of_the_page() -> None:
    from first_steps import programs

    ours, theirs = (code.splitlines() for code in programs().values())
    assert [(one, other) for one, other in zip(ours, theirs, strict=True) if one != other] == [
        ("from langchain_vllm_local import ChatVLLM", "from langchain_openai import ChatOpenAI"),
        (
            'llm = ChatVLLM(model="./tiny_chat", temperature=0)',
            'llm = ChatOpenAI(model="./tiny_chat", openai_api_base="http://localhost:8000/v1", '
            'openai_api_key="EMPTY", temperature=0)',
        ),
    ]


def test_the_page_has_each_step_and_the_sums() -> None:
    from first_minutes_page import page
    from first_steps import OURS, THEIRS, Found
    from new_user import Behind, Seen

    found = {}
    for name, steps in {"ours": OURS, "theirs": THEIRS}.items():
        seen = {step.row: [Seen(0.5, 1.0), Seen(0.7, 2.0)] for step in steps}
        found[name] = Found(seen, [Behind(3, 900.0, (8000,) if name == "theirs" else ())] * 2, [3.5, 3.5])
    text = page(found, 2)
    rows = {row[0]: row[1:] for row in cells(text)}
    assert rows["`vllm-local install`: vLLM"][:2] == ["1.5 (1 to 2)", ""]
    assert rows["start the server, until `/health` answers"][:2] == ["", "1.5 (1 to 2)"]
    assert rows["**all that is installed**"][:2] == ["4.5 (3 to 6)", "3 (2 to 4)"]
    assert rows["**from nothing to the first answer**"][:2] == ["6 (4 to 8)", "6 (4 to 8)"]
    assert rows["lines typed until the first answer"] == ["4", "4", "2"]
    assert rows["stays after the last answer"][:2] == [
        f"3 processes, 900 MB; {port} that other machines reach" for port in ("no port", "port 8000")
    ]
    published = [row[3] for row in cells(text) if re.match(r"[\d.]", row[3]) and row[0][:5] != "lines"]
    assert [cell for cell in published if "published[^" not in cell] == ["1"]  # terminals
    assert set(re.findall(r"\[\^[\w-]+\](?!:)", text)) == set(re.findall(r"(\[\^[\w-]+\]):", text))


def cells(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]


def test_the_faq_quotes_the_results() -> None:
    quoted = (REPOSITORY / "docs" / "faq.md").read_text().partition("## How long until the first answer?")[2]
    table = cells(quoted.partition("\n## ")[0])
    measured = {tuple(row[1:3]) for row in cells(RESULTS.read_text())}
    assert len(table) > 6
    assert [row for row in table[2:] if tuple(row[1:3]) not in measured] == []
