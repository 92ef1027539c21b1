"""A user's strict type checker, which has no plugin for pydantic, takes what our pages show and knows what it gives."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.paths import REPOSITORY

pytestmark = pytest.mark.slow

REFUSED = """\
from langchain_vllm_local import ChatVLLM, ChatVLM  # attr-defined
from llama_index_vllm_local import VLLM
from shared_engine import Engine

ChatVLLM(model=5)  # arg-type
ChatVLLM(modell="Qwen/Qwen3-4B")  # call-arg
VLLM(base_url=[5])  # list-item
engine = Engine(model="Qwen/Qwen3-4B")
engine.rerank("q", [], topn=1)  # call-arg
engine.embed(5)  # arg-type
VLLM(model="Qwen/Qwen3-4B").chat("Hello")  # arg-type
"""


def errors(file: Path) -> list[str]:
    """``line error-code`` of each, in our own code as well as in the file."""
    pytest.importorskip("mypy")  # not in the environment of the oldest releases
    command = [
        sys.executable,
        "-m",
        "mypy",
        "--strict",
        "--config-file=",
        "--cache-dir=.mypy_cache/users",
        "--follow-imports=silent",
        "--no-error-summary",
    ]
    ran = subprocess.run(
        [*command, str(file)], capture_output=True, text=True, cwd=REPOSITORY, timeout=200, check=False
    )
    return (ran.stdout + ran.stderr).splitlines()


def test_what_users_write_has_the_types_that_it_has() -> None:
    assert errors(REPOSITORY / "tests/support/user_code.py") == []


def test_what_is_wrong_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "wrong.py"
    file.write_text(REFUSED)
    wanted = [
        (number, line.partition("  # ")[2]) for number, line in enumerate(REFUSED.splitlines(), 1) if "  # " in line
    ]
    said = errors(file)
    found = [(int(line.split(":")[1]), line.rpartition("[")[2].rstrip("]")) for line in said if ": error: " in line]
    assert found == wanted, "\n".join(said)
