"""The code for LangChain's and LlamaIndex's own documentation, on the engines of the test run."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from aiohttp import web

from tests.support.doc_blocks import blocks_of, without_distributions
from tests.support.example_notebooks import code_cells, read, source_of
from tests.support.paths import REPOSITORY
from tests.support.remote_server import RemoteServer, chat_answer, running_server

INTEGRATIONS = REPOSITORY / "deploy" / "integrations"
CAPITALS = [f"The capital of {where}." for where in ("France is Paris", "Italy is Rome", "Spain is Madrid")]
REMOTE = "That is far away."


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> Iterator[RemoteServer]:
    """In place of the servers that the pages name, and of the model that sees."""
    monkeypatch.setenv("VLLM_SHOW_SCHEMA", "false")  # tiny_chat takes a limit in a schema for the answer

    async def answer(request: web.Request) -> web.StreamResponse:
        return web.json_response(chat_answer(REMOTE))

    with running_server() as server:
        server.handler = answer
        yield server


def lines_of(code: str, chat: dict[str, Any], embedder: dict[str, Any], elsewhere: RemoteServer) -> list[str]:
    """What the code prints, run as a cell of a notebook."""
    stand_ins = {
        r",\s+gpu_memory_utilization=[\d.]+": "",
        r'model="(?:sentence-transformers/all-MiniLM-L6-v2|BAAI/bge-reranker-base)"': keywords(embedder),
        r'base_url="http://gpu-box:8000/v1", model="Qwen/Qwen3-4B"|model="Qwen/Qwen2.5-VL-3B-Instruct"': keywords(
            {"base_url": elsewhere.url}
        ),
        r'base_url="http://gpu-box:8000/v1", ': "",  # of vectors: an engine of the run, too
        r'model="Qwen/Qwen3-4B"': keywords(chat),
    }
    for written, settings in stand_ins.items():
        code = re.sub(written, settings.replace("\\", r"\\"), code)
    head = "import ast, asyncio\nasync def done(): pass\n"
    cell = f"compile({without_distributions(code)!r}, 'cell', 'exec', ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)"
    command = [sys.executable, "-c", f"{head}asyncio.run(eval({cell}) or done())"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, timeout=280, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.splitlines()


def keywords(settings: dict[str, Any]) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in settings.items())


@pytest.mark.parametrize(
    ("component", "expected"),
    [
        ("chat", (*CAPITALS, "The result is 5.", "name='Anna Smith' age=31", "['reasoning', 'text']", REMOTE)),
        ("embeddings", ("The Rhine flows through Basel.", "3 True", "384")),
        ("retrievers", ("The violin has four strings.",)),
    ],
)
def test_the_code_of_the_pages_for_langchains_docs_runs(
    component: str,
    expected: tuple[str, ...],
    tiny_chat: dict[str, Any],
    minilm: dict[str, Any],
    elsewhere: RemoteServer,
) -> None:
    page = INTEGRATIONS / "langchain" / "pages" / component / "vllm_local.mdx"
    code = "\n".join(block.code for block in blocks_of(page) if block.language == "python")
    lines = lines_of(code, tiny_chat, minilm, elsewhere)
    assert [line for line in expected if line not in lines] == [], lines


def test_the_code_of_the_notebook_for_llamaindexs_docs_runs(
    tiny_chat: dict[str, Any], minilm: dict[str, Any], elsewhere: RemoteServer
) -> None:
    cells = map(source_of, code_cells(read(INTEGRATIONS / "llama_index" / "pages" / "vllm_local.ipynb")))
    code = "\n".join(cell for cell in cells if cell[0] not in "%!")
    lines = lines_of(code, tiny_chat, minilm, elsewhere)
    assert lines.count("The Norling bridge was opened in 1936.") == 2
    for line in (*CAPITALS, "5", "name='Anna Smith' age=31", "['thinking', 'text']", REMOTE):
        assert any(line in shown for shown in lines), (line, lines)
