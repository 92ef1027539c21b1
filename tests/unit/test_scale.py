"""What docs/scale.md reckons and quotes: its arithmetic, and figures from results that are there."""

from __future__ import annotations

import contextlib
import io
import re

from tests.support.paths import REPOSITORY

PAGE = (REPOSITORY / "docs" / "scale.md").read_text()
SIMULATED = (REPOSITORY / "benchmarks" / "results" / "fleet_simulation.md").read_text()
MEASURED = (REPOSITORY / "benchmarks" / "results" / "fleet.md").read_text().partition("\n## ")[0]
CONVERSATIONS_STAY = "least in flight, conversations stay (a fleet)"


def test_the_arithmetic_gives_the_numbers_beside_it() -> None:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    printed = io.StringIO()
    values: dict[str, int] = {}
    with contextlib.redirect_stdout(printed):
        exec(compile(code, "docs/scale.md", "exec"), values)
    claimed = re.findall(r"^print.*?# .*: ([\d,]+) tokens, or (\d+) requests of 4,000", code, re.MULTILINE)
    assert len(claimed) == 3
    for tokens, (whole, requests) in zip(map(int, printed.getvalue().split()), claimed, strict=True):
        assert f"{tokens:,}" == whole
        assert tokens // 4000 == int(requests)
    assert [f"{values[name]:,}" for name in ("small", "large")] == re.findall(
        r"# .*: ([\d,]+)(?: bytes a token)?$", code, re.MULTILINE
    )


def rows(text: str) -> list[list[str]]:
    return [
        [cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("| ")
    ]


def test_the_simulations_figures_are_those_of_its_results() -> None:
    of = {(row[0], row[1]): row for row in rows(SIMULATED)[1:]}
    quoted = rows(PAGE.partition("| 100 servers |")[2].partition("\n\n")[0])
    assert len(quoted) == 5
    names = {CONVERSATIONS_STAY: "least in flight, with sessions"}
    for choice, cached, first, whole in quoted:
        found = of["100", names.get(choice, choice)]
        assert [cached, first, whole] == [found[7], f"{found[4]} s", f"{float(found[6]):.1f} s"]
    few = of["10", "cache-aware (vllm-router's rule)"]
    assert f"({few[7]}, first token {few[4]} s)" in PAGE
    assert f"({float(few[6]):.1f} s against {float(of['10', names[CONVERSATIONS_STAY]][6]):.1f} s)" in PAGE


def test_the_measured_requests_are_those_of_the_results() -> None:
    requests = sum(int(row[1]) for row in rows(MEASURED)[1:])
    assert f"{requests:,} requests" in PAGE
    assert {row[3] for row in rows(MEASURED)[1:]} == {"0"}, "lost"
