"""A file of vectors, one line for each text: written by ``Engine.embed_file``, read here in flat memory."""

from __future__ import annotations

import base64
from array import array
from collections.abc import Iterator, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, overload

import msgspec

from shared_engine import errors
from shared_engine.answer_file.identity import Identity, read_written
from shared_engine.errors import InvalidInputError, RequestError, VLLMError
from shared_engine.results import ItemFailure


class _Error(msgspec.Struct):
    message: str
    type: str = "VLLMError"
    code: int | None = None


class _Line(msgspec.Struct):
    id: str
    vector: str | None = None
    """Base64 of 32-bit floats, little endian."""
    error: _Error | None = None


_decoder = msgspec.json.Decoder(_Line)


def line_of(identity: Identity, vector: Sequence[float]) -> bytes:
    """The line of a text that has a vector."""
    numbers = array("f", vector)
    return msgspec.json.encode(_Line(str(identity), base64.b64encode(numbers.tobytes()).decode())) + b"\n"


def failed_line_of(identity: Identity, error: VLLMError) -> bytes:
    """The line of a text that failed."""
    message, code = (error.message, error.status) if isinstance(error, RequestError) else (str(error), None)
    return msgspec.json.encode(_Line(str(identity), error=_Error(message, type(error).__name__, code))) + b"\n"


class VectorFile(Sequence[list[float]]):
    """The vectors of a file that ``Engine.embed_file`` has written, by the positions of their texts.

    They are read when they are asked for: in memory are 8 bytes for each text. None stands for a text that failed, and
    for one that was not embedded yet. The values are those that the server sent, in 32 bits.

    Attributes:
        failures: the texts that failed, in order.
        indices: of the texts that have a vector, in order.

    Raises:
        InvalidInputError: there is no such file, or it holds something else.
    """

    def __init__(self, path: str | PathLike[str]) -> None:
        self.path = Path(path)
        self._offsets = array("Q")
        failures: dict[int, VLLMError] = {}
        try:
            with self.path.open("rb") as file:
                self._read(file, failures)
        except OSError as exc:
            raise InvalidInputError(f"{self.path} can't be read: {exc.strerror or exc}") from exc
        self.failures = tuple(ItemFailure(index, failures[index]) for index in sorted(failures))

    def _read(self, file: Any, failures: dict[int, VLLMError]) -> None:
        offset = 0
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                return  # half written: whoever writes the file sees to it
            read = read_written(line)
            if read is None:
                raise InvalidInputError(f"{self.path} is not a file of vectors: see its line {number}")
            index = read[0].number - 1
            self._offsets.extend(array("Q", bytes(8 * max(0, index + 1 - len(self._offsets)))))
            if read[1]:
                failures[index] = _error_of(_decoder.decode(line).error)
            else:
                self._offsets[index] = offset + 1
            offset += len(line)

    @property
    def indices(self) -> list[int]:
        return [index for index, offset in enumerate(self._offsets) if offset]

    def __len__(self) -> int:
        return len(self._offsets)

    @overload
    def __getitem__(self, index: int) -> list[float]: ...
    @overload
    def __getitem__(self, index: slice) -> list[list[float]]: ...
    def __getitem__(self, index: int | slice) -> Any:
        offsets = self._offsets[index] if isinstance(index, slice) else [self._offsets[index]]
        vectors = list(self._vectors(offsets))
        return vectors if isinstance(index, slice) else vectors[0]

    def __iter__(self) -> Iterator[Any]:
        return self._vectors(self._offsets)

    def _vectors(self, offsets: Sequence[int]) -> Iterator[list[float] | None]:
        with self.path.open("rb") as file:
            for offset in offsets:
                if not offset:
                    yield None
                    continue
                file.seek(offset - 1)
                numbers = array("f", base64.b64decode(_decoder.decode(file.readline()).vector or ""))
                yield numbers.tolist()


def _error_of(error: _Error | None) -> VLLMError:
    """The error of a line, of the class that it had."""
    assert error is not None, "it has been seen"
    kind = getattr(errors, error.type, VLLMError) if error.type in errors.__all__ else VLLMError
    return kind(error.message, error.code) if issubclass(kind, RequestError) else kind(error.message)
