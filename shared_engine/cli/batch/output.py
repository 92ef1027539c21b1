"""Where answers go: a file of answers, or what isn't a file (``-``, a pipe, a device), which is only written to."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from shared_engine.answer_file.out_file import OutFile, unwritable, write_all
from shared_engine.cli.batch.rows import Input
from shared_engine.cli.batch.survey import Survey
from shared_engine.errors import InvalidInputError

STDOUT = "-"
_STDOUT_FD = 1


class Output(Protocol):
    """Where answers go."""

    name: str

    def append(self, line: bytes, number: int) -> None:
        """Write one whole line, or leave what was there.

        Raises:
            OutputError: it can't be written.
        """

    def close(self) -> None:
        """See what was written safely stored.

        Raises:
            OutputError: it is not.
        """


class OutStream:
    """The standard output, a pipe, a device."""

    def __init__(self, name: str) -> None:
        self.name = "the standard output" if name == STDOUT else name
        try:
            self._fd = os.dup(_STDOUT_FD) if name == STDOUT else os.open(name, os.O_WRONLY | os.O_CLOEXEC)
        except OSError as exc:
            raise unwritable(self.name, exc) from exc

    def append(self, line: bytes, number: int) -> None:  # noqa: ARG002
        try:
            write_all(self._fd, line)
        except BrokenPipeError:
            raise
        except OSError as exc:
            raise unwritable(self.name, exc) from exc

    def close(self) -> None:
        os.close(self._fd)


def output_of(name: str, rows: Input, hows: Sequence[str], survey: Survey | None) -> Output:
    """Where answers go.

    Args:
        hows: see ``OutFile``.
        survey: None where the input can be read once only; a file then has to be empty.

    Raises:
        InvalidInputError: the output is the input, or would have to be resumed and can't.
        OutputError: see ``OutFile``.
    """
    path = Path(name)
    if name == STDOUT or (path.exists() and not path.is_file() and not path.is_dir()):
        return OutStream(name)
    if rows.is_file and path.exists() and os.path.samefile(rows.name, path):
        raise InvalidInputError(f"{name} is both the input and the output")
    if survey is None and path.exists() and path.stat().st_size:
        raise InvalidInputError(
            f"{name} is not empty, and an input that is not a file can't be resumed: give a file, or remove {name}"
        )
    return OutFile(path, survey or Survey(), hows, rows.unit)
