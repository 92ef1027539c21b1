"""Texts of a command: words of its line, lines of a pipe, or a file."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence

from shared_engine.errors import InvalidInputError
from shared_engine.machine.home import expanded

STDIN = "-"


def texts_of(given: Sequence[str], file: str | None, what: str) -> list[str]:
    """Those that were given; else the lines of the file, or of what is piped in, but for empty ones.

    Args:
        what: a text is called for people.

    Raises:
        InvalidInputError: there is none, or the file can't be read.
    """
    if given and file is not None:
        raise InvalidInputError(f"{what}: in the command line or in a file ({file}), not both")
    if given and list(given) != [STDIN]:
        return list(given)
    # Not by splitlines: it takes U+2028 and the like for ends of lines.
    lines = [line for line in re.split(r"\r?\n", whole_text((), file, what)) if line.strip()]
    if not lines:
        raise InvalidInputError(f"{what}: there is none in {file or 'the input'}")
    return lines


def whole_text(given: Sequence[str], file: str | None, what: str) -> str:
    """The words with a space between them; else all of the file, or of what is piped in, as it is.

    Raises:
        InvalidInputError: there is none, or the file can't be read.
    """
    if given and file is not None:
        raise InvalidInputError(f"{what}: in the command line or in a file ({file}), not both")
    if given and list(given) != [STDIN]:
        return " ".join(given)
    if file not in (None, STDIN):
        return decoded(_content(str(file)), str(file))
    if sys.stdin is None or (sys.stdin.isatty() and not given):
        raise InvalidInputError(f"{what}: there is none; name it, pipe it in, or pass --file")
    return decoded(sys.stdin.buffer.read(), "the input")


def _content(file: str) -> bytes:
    try:
        return expanded(file).read_bytes()
    except OSError as exc:
        raise InvalidInputError(f"{file} can't be read: {exc.strerror or exc}") from exc


def decoded(data: bytes, where: str, remedy: str = "") -> str:
    """
    Raises:
        InvalidInputError: it is not UTF-8, which is wanted whatever the locale is: models know Unicode.
    """
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as exc:
        raise InvalidInputError(f"{where} is not UTF-8: byte {exc.start} is 0x{data[exc.start]:02x}{remedy}") from None
