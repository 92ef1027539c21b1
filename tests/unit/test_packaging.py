"""What stands in pyproject.toml holds elsewhere: the version, the Pythons, the project's home."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from typing import TypeGuard

import pytest

import langchain_vllm_local
import llama_index_vllm_local
import shared_engine
from tests.support.paths import REPOSITORY

PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
HOME = PROJECT["urls"]["Homepage"]


def test_the_version_of_each_package_is_the_projects() -> None:
    for package in (shared_engine, langchain_vllm_local, llama_index_vllm_local):
        assert package.__version__ == PROJECT["version"]


def test_the_version_is_looked_up_only_when_asked_for() -> None:
    code = "import shared_engine, sys; assert 'importlib.metadata' not in sys.modules"
    subprocess.run([sys.executable, "-S", "-c", code], check=True, cwd=REPOSITORY)


def test_ci_runs_every_python_that_is_claimed() -> None:
    workflow = (REPOSITORY / ".github" / "workflows" / "test.yml").read_text()
    (listed,) = re.findall(r"^ +python: \[(.*)\]$", workflow, re.MULTILINE)
    claimed = [name.rpartition(" ")[2] for name in PROJECT["classifiers"] if re.search(r":: 3\.\d+$", name)]
    assert re.findall(r'"(.*?)"', listed) == claimed
    assert PROJECT["requires-python"] == f">={claimed[0]}"


def test_links_to_the_project_name_its_home() -> None:
    pages = [*REPOSITORY.glob("*.md"), *(REPOSITORY / "docs").glob("*.md"), *(REPOSITORY / ".github").rglob("*.*")]
    linked = {url for page in pages for url in re.findall(r"https://github\.com/vllm-local[\w/-]*", page.read_text())}
    assert linked
    assert all(url.startswith(HOME) for url in [*linked, *PROJECT["urls"].values()])


@pytest.mark.slow
def test_type_checkers_of_users_see_which_fields_have_defaults() -> None:
    """They know pydantic by PEP 681 alone, which takes no positional default; our plugin does."""
    packages = ("shared_engine", "langchain_vllm_local", "llama_index_vllm_local")
    files = [path for package in packages for path in (REPOSITORY / package).rglob("*.py")]
    calls = [(path, node) for path in files for node in ast.walk(ast.parse(path.read_text())) if is_field(node)]
    assert len(calls) > 50
    assert [f"{path.relative_to(REPOSITORY)}:{call.lineno}" for path, call in calls if call.args] == []


def is_field(node: ast.AST) -> TypeGuard[ast.Call]:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Field"
