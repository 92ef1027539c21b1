"""The notebooks, run from top to bottom on real vLLM. WRITE_NOTEBOOKS=1 puts what they show into their files."""

from __future__ import annotations

import os
import re
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from shared_engine.observe.engines import find_engines
from tests.support.engines import end_engines
from tests.support.example_notebooks import NOTEBOOKS, code_cells, read, run, source_of, texts_of, write

# What they show on each run, whatever the machine.
SHOWN = {
    "langchain_agent": ("stopped", "The capital of France is Paris.", "The result is 294.", " of 16 are right"),
    "llama_index_rag": ("from (0.", "Halden Station was built by Ada Norling in 1987.", "4 messages are remembered"),
    "batch_extraction": ("ContextLengthError", "500 documents in ", "of 500 have no mistake"),
    "evaluation": ("600 answers", "95 of 100 draws are between "),
}
PICTURES = {"langchain_agent": 1, "llama_index_rag": 1, "batch_extraction": 1, "evaluation": 2}


@pytest.fixture
def own_runtime(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Each begins where nothing runs, and leaves nothing."""
    with tempfile.TemporaryDirectory(prefix="vln-", dir="/tmp") as root:
        monkeypatch.setenv("VLLM_LOCAL_RUNTIME_DIR", root)
        monkeypatch.setenv("IPYTHONDIR", root)
        # Bars are text here, which is what stays readable in a file.
        monkeypatch.setenv("PYTHONWARNINGS", "ignore:IProgress not found")
        yield
        try:
            assert [engine.name for engine in find_engines() if engine.is_alive] == []
        finally:
            end_engines(Path(root))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_and_shows_what_it_promises(path: Path, own_runtime: None) -> None:
    ran = run(path)
    text = "".join(map(texts_of, code_cells(ran)))
    for shown in SHOWN[path.stem]:
        assert shown in text, text
    assert not re.search(rf"\b{re.escape(socket.gethostname())}\b", text), "of this machine"
    pictures = [
        output for cell in code_cells(ran) for output in cell["outputs"] if "image/png" in output.get("data", {})
    ]
    assert len(pictures) == PICTURES[path.stem]
    assert [source_of(cell) for cell in code_cells(ran)] == [source_of(cell) for cell in code_cells(read(path))]
    if "WRITE_NOTEBOOKS" in os.environ:
        write(path, ran)
