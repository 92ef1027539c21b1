"""The notebooks in examples/notebooks: read, run, and written again with what they then show."""

from __future__ import annotations

import hashlib
import importlib
import json
from pathlib import Path
from typing import Any

from tests.support.paths import REPOSITORY

FOLDER = REPOSITORY / "examples" / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
CELL_TIMEOUT_S = 300
Notebook = dict[str, Any]


def read(path: Path) -> Notebook:
    notebook: Notebook = json.loads(path.read_text())
    return notebook


def write(path: Path, notebook: Notebook) -> None:
    path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n")


def code_cells(notebook: Notebook) -> list[dict[str, Any]]:
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def source_of(cell: dict[str, Any]) -> str:
    return "".join(cell["source"])


def hash_of(notebook: Notebook) -> str:
    """Of all its code: what is shown is of the code that stands there, if this is what it was."""
    return hashlib.sha256("\0".join(map(source_of, code_cells(notebook))).encode()).hexdigest()


def texts_of(cell: dict[str, Any]) -> str:
    """All that a cell shows as text."""
    shown: list[str] = []
    for output in cell["outputs"]:
        texts = (output.get("text", ""), output.get("data", {}).get("text/plain", ""), output.get("traceback", ""))
        shown.extend("".join(text) for text in texts)
    return "".join(shown)


def run(path: Path) -> Notebook:
    """The notebook as it is after all of its cells have run, from top to bottom, in a kernel of its own."""
    # Only where notebooks are run are these installed, and known to mypy.
    nbformat: Any = importlib.import_module("nbformat")
    nbclient: Any = importlib.import_module("nbclient")
    notebook = nbformat.read(path, as_version=4)
    nbclient.NotebookClient(
        notebook, timeout=CELL_TIMEOUT_S, kernel_name="python3", resources={"metadata": {"path": str(FOLDER)}}
    ).execute()
    ran: Notebook = json.loads(nbformat.writes(notebook))
    for cell in code_cells(ran):
        cell["metadata"] = {}  # when it ran
        cell["outputs"] = [_settled(output) for output in _joined(cell["outputs"])]
    ran["metadata"] = {**read(path)["metadata"], "ran": hash_of(ran)}
    return ran


def _joined(outputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Pieces of one stream as one, as a person sees them; words for screens before those for programs."""
    found: list[dict[str, Any]] = []
    for output in outputs:
        before = next((each for each in found if each.get("name") == output.get("name")), None)
        if output["output_type"] == "stream" and before is not None:
            before["text"] = "".join(before["text"]) + "".join(output["text"])
        else:
            found.append(output)
    return found


def _settled(output: dict[str, Any]) -> dict[str, Any]:
    """A progress bar as it stood last."""
    if output["output_type"] == "stream":
        lines = [line.rsplit("\r", 1)[-1] for line in "".join(output["text"]).replace("\r\n", "\n").split("\n")]
        output["text"] = "\n".join(lines).splitlines(keepends=True)
    return output
