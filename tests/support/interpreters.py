"""Environments made by hand, to be looked at by those who search for one with vLLM."""

from __future__ import annotations

from pathlib import Path


def make_interpreter(prefix: Path, distribution: str | None) -> str:
    """A folder laid out like a virtual environment; nothing in it is ever run."""
    site = prefix / "lib" / "python3.11" / "site-packages"
    site.mkdir(parents=True)
    if distribution:
        (site / f"{distribution}.dist-info").mkdir()
    python = prefix / "bin" / "python"
    python.parent.mkdir()
    python.write_text("#!/bin/false\n")
    python.chmod(0o755)
    return str(python)


def add_torch(prefix: Path, version: str, values: str) -> None:
    """What the environment's torch says of itself, as ``torch/version.py`` has it."""
    folder = prefix / "lib" / "python3.11" / "site-packages" / "torch"
    folder.mkdir(exist_ok=True)
    (folder / "version.py").write_text(f"from typing import Optional\n\n__version__ = '{version}'\n{values}\n")
