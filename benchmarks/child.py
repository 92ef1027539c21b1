"""A contender that needs another Python than this one: a child process that is asked line by line, in JSON."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

LEAVE_S = 30.0


class Child:
    """A process of ``python``, which runs ``script`` and has said that it is ready.

    Args:
        options: what it is to do, as its one argument, in JSON.
        log: where its stderr goes, and what it prints.
        leaves_at_eof: it ends when nothing more is asked; else it has to be told.
    """

    def __init__(
        self, python: str, script: Path, options: Mapping[str, Any], log: Path, *, leaves_at_eof: bool = True
    ) -> None:
        self._log = log
        self._leaves_at_eof = leaves_at_eof
        with open(log, "wb") as stderr:
            self._process = subprocess.Popen(
                [python, str(script), json.dumps(options)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
            )
        self.told = self._answer()

    def ask(self, **request: Any) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"{self._process.args!r} ended: {self._log.read_text()[-3000:]}")
        return dict(json.loads(line))

    def __enter__(self) -> Child:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: object, trace: TracebackType | None) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        if not self._leaves_at_eof:
            self._process.terminate()
        try:
            self._process.wait(LEAVE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
