"""Packages that take an openai client, on real vLLM: the blocks of docs/openai_client.md, where they are installed.

Only langchain-openai is among the development tools; for the others see tests/openai_packages.txt.
"""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from typing import Any

import pytest

from shared_engine import Engine
from tests.support.paths import REPOSITORY

BLOCKS = re.findall(r"```python\n(.*?)```", (REPOSITORY / "docs" / "openai_client.md").read_text(), re.DOTALL)
ANSWERS = {
    "pydantic": [
        "The capital of France is Paris.",
        "The capital of France is Paris.",
        "name='Anna Smith' age=31",
        "The capital of Italy is Rome.",
    ],
    "instructor": ["name='Anna Smith' age=31"],
    "pydantic_ai": ["The result is 5."],
    "agents": ["The result is 5."],
    "smolagents": ["The capital of France is Paris."],
    "haystack": ["The capital of France is Paris."],
}


def package_of(block: str) -> str:
    """The first one that a block imports: the one that it shows."""
    found = re.match(r"(?:from|import) (\w+)", block)
    assert found is not None
    return found[1]


def test_every_block_has_its_answers() -> None:
    assert [package_of(block) for block in BLOCKS] == list(ANSWERS)


@pytest.mark.parametrize("block", BLOCKS, ids=package_of)
def test_the_code_in_the_docs_of_the_openai_client_runs(block: str, tiny_chat: dict[str, Any]) -> None:
    package = package_of(block)
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed: see tests/openai_packages.txt")
    written = 'model="Qwen/Qwen3-4B"'
    assert written in block
    code = block.replace(written, ", ".join(f"{name}={value!r}" for name, value in tiny_chat.items()))
    environment = {**os.environ, "HAYSTACK_TELEMETRY_ENABLED": "False"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert [line.replace("|", "").replace("None", "") for line in done.stdout.splitlines()] == ANSWERS[package]


async def test_langchains_chat_openai_takes_a_client(tiny_chat: dict[str, Any]) -> None:
    langchain_openai = pytest.importorskip("langchain_openai")
    engine = Engine(**tiny_chat)
    chat = langchain_openai.ChatOpenAI(
        model="default",
        temperature=0,
        api_key="unused",
        client=engine.openai_client().chat.completions,
        async_client=engine.async_openai_client().chat.completions,
    )
    question = "What is the capital of France?"
    assert chat.invoke(question).text == (await chat.ainvoke(question)).text == "The capital of France is Paris."
    assert "".join(chunk.text for chunk in chat.stream(question)) == "The capital of France is Paris."
