"""The input, row after row in flat memory: JSON lines as they are, the rows of CSV and Parquet as JSON."""

from __future__ import annotations

import csv
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import msgspec

from shared_engine.errors import InvalidInputError

STDIN = "-"
_STDIN_FD = 0
INSTALL_PARQUET = "pip install 'vllm-local[parquet]'"
_BOM = b"\xef\xbb\xbf"
_PARQUET_ROWS = 256


class Row(NamedTuple):
    """One row that is to be answered.

    Attributes:
        number: of the line in a file of JSON lines, of the row in a table; from 1.
        text: JSON, or what should have been.
    """

    number: int
    text: bytes


@dataclass(frozen=True)
class Input:
    """What is to be answered.

    Attributes:
        name: a path, or ``-`` for the standard input.
        prompt_column: of a table, which must have it.
    """

    name: str
    prompt_column: str

    @property
    def is_stdin(self) -> bool:
        return self.name == STDIN

    @property
    def suffix(self) -> str:
        return Path(self.name).suffix.lower()

    @property
    def is_table(self) -> bool:
        return self.suffix in _TABLES

    @property
    def is_file(self) -> bool:
        """False where it can be read once only, from its beginning."""
        path = Path(self.name)
        return not self.is_stdin and not path.is_fifo() and not path.is_char_device()

    @property
    def unit(self) -> str:
        """What a row of it is called."""
        return "row" if self.is_table else "line"

    def rows(self) -> Iterator[Row]:
        """
        Raises:
            InvalidInputError: it can't be read, or is not a table with that column.
        """
        with _said("the standard input" if self.is_stdin else self.name):
            if self.is_stdin:
                with open(_STDIN_FD, "rb", closefd=False) as file:
                    yield from _json_lines(file)
            elif self.is_table:
                yield from _TABLES[self.suffix](self.name, self.prompt_column)
            else:
                with open(self.name, "rb") as file:
                    yield from _json_lines(file)


@contextmanager
def _said(name: str) -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        raise InvalidInputError(f"{name} can't be read: {exc.strerror or exc}") from exc


def _json_lines(file: BinaryIO) -> Iterator[Row]:
    for number, line in enumerate(file, 1):
        text = (line.removeprefix(_BOM) if number == 1 else line).strip()
        if text:
            yield Row(number, text)


def _csv(name: str, prompt_column: str) -> Iterator[Row]:
    csv.field_size_limit(sys.maxsize)
    with open(name, newline="", encoding="utf-8-sig") as file:
        reader = csv.reader(file, delimiter="\t" if name.lower().endswith(".tsv") else ",")
        try:
            columns = next(reader, [])
            _check_columns(name, columns, prompt_column)
            for number, cells in enumerate((cells for cells in reader if cells), 1):
                # A row of another length becomes an error of its own: it is not an object.
                fits = len(cells) == len(columns)
                yield Row(number, _json(dict(zip(columns, cells, strict=True)) if fits else cells))
        except (csv.Error, UnicodeDecodeError) as exc:
            raise InvalidInputError(f"{name} is not valid CSV in UTF-8, near line {reader.line_num}: {exc}") from exc


def _parquet(name: str, prompt_column: str) -> Iterator[Row]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as exc:
        raise InvalidInputError(f"{name}: reading Parquet needs the package pyarrow: {INSTALL_PARQUET}") from exc
    try:
        with open(name, "rb") as opened, pyarrow.parquet.ParquetFile(opened) as file:
            _check_columns(name, file.schema_arrow.names, prompt_column)
            number = 0
            for batch in file.iter_batches(batch_size=_PARQUET_ROWS):
                for row in batch.to_pylist():
                    number += 1
                    yield Row(number, _json(row))
    except pyarrow.ArrowInvalid as exc:
        raise InvalidInputError(f"{name} is not a valid Parquet file: {exc}") from exc


_TABLES: dict[str, Callable[[str, str], Iterator[Row]]] = {".csv": _csv, ".tsv": _csv, ".parquet": _parquet}


def _check_columns(name: str, columns: Sequence[str], prompt_column: str) -> None:
    if prompt_column not in columns:
        known = ", ".join(map(repr, columns)) or "none"
        raise InvalidInputError(f"{name} has no column {prompt_column!r}; it has {known}: use --prompt-column")
    if len(set(columns)) < len(columns):
        twice = next(column for column in columns if columns.count(column) > 1)
        raise InvalidInputError(f"{name} has the column {twice!r} twice")


def _json(value: Any) -> bytes:
    return msgspec.json.encode(value, enc_hook=str)
