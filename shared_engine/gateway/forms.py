"""A form (multipart/form-data) whose ``model`` is read, and given in the words of the model's server.

Only what every reader takes alike is taken: else the server might find another model in it than the one that was
looked up here, and that the key allows.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from shared_engine.gateway.refusals import RefusedError

FORM = "multipart/form-data"
_VALUE = r'(?:"((?:[^"\\]|\\.)*)"|([^\s";,]+))'
_PARAMETER = re.compile(rf"; *([A-Za-z]+\*?)={_VALUE} *")
_BOUNDARY = re.compile(r"[0-9A-Za-z'()+_,./:=?-]{1,70}")
_HEADER = re.compile(rb"([A-Za-z0-9-]+):[ \t]*([^\r\n\0]*?)[ \t]*")
_MODEL, _DISPOSITION = b"model", b"content-disposition"


@dataclass(frozen=True)
class Form:
    """
    Attributes:
        model: the name that it gives, if it gives one.
    """

    model: str | None
    _mark: bytes
    _body: bytes = field(repr=False)
    _span: tuple[int, int]
    """Where the part with the name is, with the mark before it; where there is none, where it would be."""

    @classmethod
    def of(cls, content_type: str, body: bytes) -> Form:
        """
        Raises:
            RefusedError: it is not such a form, or could be read in more ways than one.
        """
        mark = b"--" + _boundary(content_type).encode()
        model, span = None, (0, 0)
        for start, end, content in _parts(mark, body):
            head, is_there, value = content.partition(b"\r\n\r\n")
            if not is_there:
                raise _invalid("a part has no end of its headers")
            parameters = _disposition(head)
            if parameters.get("name") != _MODEL.decode():
                continue
            if model is not None or "filename" in parameters:
                raise _invalid("give model once, as a text")
            model, span = value.decode("utf-8", "replace").strip(), (start, end)
        return cls(model, mark, body, span)

    def naming(self, model: str | None) -> bytes:
        """The form with this for its model; with none, as that then is the server's only model."""
        part = b""
        if model is not None:
            head = b'\r\nContent-Disposition: form-data; name="model"\r\n\r\n'
            part = self._mark + head + model.encode() + b"\r\n"
        start, end = self._span
        return self._body[:start] + part + self._body[end:]


def _parts(mark: bytes, body: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Each with where it begins, at its mark, and where the next mark does."""
    if not body.startswith(mark):
        raise _invalid("it does not begin with its boundary")
    start = 0
    while True:
        inner = start + len(mark)
        if body.startswith(b"--", inner) and not body[inner + 2 :].strip():
            return
        at = body.find(b"\r\n" + mark, inner)
        if at < 0 or not body.startswith(b"\r\n", inner):
            raise _invalid("it does not end with its boundary")
        yield start, at + 2, body[inner + 2 : at]
        start = at + 2


def _boundary(content_type: str) -> str:
    parameters = _parameters(content_type.partition(";")[2])
    boundary = parameters.pop("boundary", "")
    if not _BOUNDARY.fullmatch(boundary):
        raise _invalid("its Content-Type has no boundary")
    if parameters.pop("charset", "utf-8").lower() != "utf-8" or parameters:  # by which names are read
        raise _invalid("its Content-Type may have a boundary, and charset=utf-8")
    return boundary


def _disposition(head: bytes) -> dict[str, str]:
    """What the part's Content-Disposition says."""
    headers = [_HEADER.fullmatch(line) for line in head.split(b"\r\n")]
    found = [each[2] for each in headers if each is not None and each[1].lower() == _DISPOSITION]
    if not all(headers) or len(found) != 1:
        raise _invalid("a part needs headers, with one Content-Disposition")
    kind, _, rest = found[0].decode("latin-1").partition(";")
    parameters = _parameters(rest)
    if kind.strip().lower() != "form-data" or not parameters.keys() <= {"name", "filename", "filename*"}:
        raise _invalid("a part is form-data with a name, and a filename where it is a file")
    if "\\" in parameters.get("name", "\\"):
        raise _invalid("a part has no plain name")
    return parameters


def _parameters(text: str) -> dict[str, str]:
    """
    Raises:
        RefusedError: one is given twice, or can't be read.
    """
    text, found, at = f";{text}".rstrip(" ;"), {}, 0
    while at < len(text):
        match = _PARAMETER.match(text, at)
        if match is None or match[1].lower() in found:
            raise _invalid(f"parameters that can't be read: {text[1:]!r:.100}")
        found[match[1].lower()] = match[2] if match[2] is not None else match[3]
        at = match.end()
    return found


def _invalid(why: str) -> RefusedError:
    return RefusedError(400, f"not a valid form: {why}", "invalid_form")
