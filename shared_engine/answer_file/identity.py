"""The id of each line of the output: which row it answers, what that row said, and how it was asked. Pure."""

from __future__ import annotations

import hashlib
import re
from array import array
from collections.abc import Mapping
from typing import Any, NamedTuple

import msgspec

_ID = re.compile(r"([1-9]\d{0,11})-([0-9a-f]{16})-([0-9a-f]{8})")
_BEGUN = re.compile(rb'\{"id":"[1-9]\d{0,11}-[0-9a-f]{16}-[0-9a-f]{8}",.*|\{"id":"[0-9a-f-]{0,38}"?', re.DOTALL)
_HEAD = b'{"id":"'


class Identity(NamedTuple):
    """What an id says.

    Attributes:
        number: of the row.
        digest: of its text; not 0.
        how: digest of the model and the parameters.
    """

    number: int
    digest: int
    how: str

    def __str__(self) -> str:
        return f"{self.number}-{self.digest:016x}-{self.how}"


def digest_of(text: bytes) -> int:
    """Of a row's text; never 0."""
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") or 1


def how_digest(how: Mapping[str, Any]) -> str:
    """Of what decides the answers beside the rows."""
    encoded = msgspec.json.encode(how, order="deterministic", enc_hook=str)
    return hashlib.blake2b(encoded, digest_size=4).hexdigest()


class Digests:
    """What rows say, in 8 bytes each; 0 for a row that is blank."""

    def __init__(self) -> None:
        self.digests = array("Q")

    def says(self, identity: Identity) -> bool:
        """True if the row of that number has that text."""
        return identity.number <= len(self.digests) and self.digests[identity.number - 1] == identity.digest


class Written(msgspec.Struct):
    """What is read of a line of the output."""

    id: str
    error: Any = None


def read_written(line: bytes) -> tuple[Identity, bool] | None:
    """Which row a line of the output answers, and whether by an error; None for a line that is not one of ours."""
    try:
        written = msgspec.json.decode(line, type=Written)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    match = _ID.fullmatch(written.id)
    if match is None:
        return None
    return Identity(int(match[1]), int(match[2], 16), match[3]), written.error is not None


def is_begun(tail: bytes) -> bool:
    """True for what a kill may have left of one of our lines."""
    return _HEAD.startswith(tail) or _BEGUN.fullmatch(tail) is not None
