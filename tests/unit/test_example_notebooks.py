"""The notebooks as they are in the repository: run from top to bottom, as their code stands, and fit to be shown."""

from __future__ import annotations

import ast
import importlib
import re
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.support.example_notebooks import FOLDER, NOTEBOOKS, code_cells, hash_of, read, source_of, texts_of

LARGEST_BYTES = 300_000
# Of this machine or a user of it; and addresses.
PRIVATE = re.compile(
    r"(?<![\w.])/(home|root|tmp|work|opt|usr|mnt|var|Users|private)/|\b\d+\.\d+\.\d+\.\d+\b|0x[0-9a-f]{6,}"
)
each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def test_all_are_there_and_in_the_list() -> None:
    names = [path.stem for path in NOTEBOOKS]
    assert names == ["batch_extraction", "evaluation", "langchain_agent", "llama_index_rag"]
    listed = re.findall(r"^\| \[(\w+)\]\(\1\.ipynb\)", (FOLDER / "README.md").read_text(), re.MULTILINE)
    assert sorted(listed) == names


@each_notebook
def test_what_is_shown_is_of_the_code_as_it_stands(path: Path) -> None:
    notebook = read(path)
    assert notebook["metadata"].get("ran") == hash_of(notebook), "a cell was changed: make notebooks"
    cells = code_cells(notebook)
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    assert [output for cell in cells for output in cell["outputs"] if output["output_type"] == "error"] == []


@each_notebook
def test_every_cell_that_should_show_something_does(path: Path) -> None:
    for cell in code_cells(read(path)):
        shows = re.search(r"^ *(print\(|plt\.show\(|.*pretty_print\()", source_of(cell), re.MULTILINE)
        assert bool(shows) <= bool(cell["outputs"]), source_of(cell)
        is_picture = "plt.show()" in source_of(cell)
        assert is_picture == any("image/png" in output.get("data", {}) for output in cell["outputs"])


@each_notebook
def test_nothing_of_a_machine_is_shown_and_no_warning(path: Path) -> None:
    notebook = read(path)
    shown = "".join(map(texts_of, code_cells(notebook)))
    assert not PRIVATE.search(shown), PRIVATE.search(shown)
    assert "Warning" not in shown
    assert "\r" not in shown
    assert set(notebook["metadata"]) == {"kernelspec", "language_info", "ran"}
    assert all(cell["metadata"] == {} for cell in notebook["cells"])


@each_notebook
def test_it_is_small(path: Path) -> None:
    assert path.stat().st_size < LARGEST_BYTES
    assert all(len(source_of(cell).splitlines()) <= 30 for cell in read(path)["cells"]), "short cells"


@each_notebook
def test_its_code_compiles(path: Path) -> None:
    for cell in code_cells(read(path)):
        compile(source_of(cell), path.name, "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)


@each_notebook
@pytest.mark.slow
def test_what_it_imports_exists(path: Path) -> None:
    code = "\n".join(map(source_of, code_cells(read(path))))
    found = list(imports(code))
    assert len(found) >= 3
    only_for_notebooks = set(re.findall(r"^(\w+)", (FOLDER / "requirements.txt").read_text(), re.MULTILINE))
    for module, name in found:
        top = module.partition(".")[0]
        if top in only_for_notebooks and find_spec(top) is None:
            continue  # in no environment but theirs
        imported = importlib.import_module(module)
        assert name is None or hasattr(imported, name), f"{module} has no {name}"


def imports(code: str) -> Iterator[tuple[str, str | None]]:
    """Module and, where one of its names is imported, that."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            yield from ((each.name, None) for each in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from ((node.module, each.name) for each in node.names)
