"""What README and examples/ show, run as a user would; `make demo` as a whole."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import REPOSITORY, TINY_CHAT

README_BLOCKS = re.findall(r"```python\n(.*?)```", (REPOSITORY / "README.md").read_text(), re.DOTALL)
MAKE_COMMANDS = re.findall(r"^make (\w+)", (REPOSITORY / "README.md").read_text(), re.MULTILINE)


def run(*command: str) -> str:
    done = subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, cwd=REPOSITORY, timeout=280, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("index", range(len(README_BLOCKS)))
def test_readme_code_runs(index: int, tiny_chat: dict[str, Any]) -> None:
    """As it stands, but for the model: the test run's own engine in place of one from the hub."""
    rest = ", ".join(f"{name}={value!r}" for name, value in tiny_chat.items() if name != "model")
    block = README_BLOCKS[index]
    if "base_url=" in block:  # somebody else's server: constructing it is all that can be shown here
        block = "from langchain_vllm_local import ChatVLLM\n" + block
    else:
        block = block.replace('model="Qwen/Qwen3-4B"', f'model="{TINY_CHAT}", {rest}')
        assert str(TINY_CHAT) in block
    out = run("-c", block)
    expected = {"ChatVLLM(model": "Paris", "SummaryIndex": "1936", "chat_batch": "EngineState.READY"}
    for mark, text in expected.items():
        if mark in block:
            assert text in out


def test_readme_names_only_make_targets_that_exist() -> None:
    makefile = (REPOSITORY / "Makefile").read_text()
    assert MAKE_COMMANDS
    for target in MAKE_COMMANDS:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_examples_are_short() -> None:
    for path in (REPOSITORY / "examples").glob("*.py"):
        if path.name != "demo.py":
            assert len(path.read_text().splitlines()) <= 40, path


def test_the_demo_shows_right_answers_one_start_and_leaves_nothing(runtime_root: Path) -> None:
    out = run("examples/demo.py")
    for answer in ("blue-heron-42", "I don't know", "Ada Norling in 1987", "Mara Lindt"):
        assert answer in out
    assert len(re.findall(r"tokens: \d+ in, \d+ out", out)) == 2
    assert "started 1 time(s)" in out
    assert out.count("starting -> ready") == 1, "shown after both examples"
    assert "everything ended" in out
    assert not list(Path("/tmp").glob("vld-*")), "its runtime directory is gone too"
