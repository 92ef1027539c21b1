"""How many tokens an answer says that it cost, on any route and of any server; of what is passed on unread. Pure."""

from __future__ import annotations

import re

import msgspec

from shared_engine.results import TokenUsage


class _Details(msgspec.Struct):
    cached_tokens: int | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    total_tokens: int | None = None
    input_tokens: int | None = None
    """This and the next are the names of /v1/responses and /v1/messages."""
    output_tokens: int | None = None
    prompt_tokens_details: _Details | None = None


class Told(msgspec.Struct):
    """What an answer says of itself, beside its content."""

    id: str | None = None
    said: _Usage | None = msgspec.field(default=None, name="usage")

    @property
    def usage(self) -> TokenUsage | None:
        said = self.said
        if said is None:
            return None
        details = said.prompt_tokens_details
        return TokenUsage(
            prompt_tokens=said.prompt_tokens
            or said.input_tokens
            or said.total_tokens
            or 0,  # scores have only the total
            completion_tokens=said.completion_tokens or said.output_tokens or 0,
            cached_tokens=None if details is None else details.cached_tokens,
        )


_decoder = msgspec.json.Decoder(Told)

LARGE = 1 << 20
"""Such as embeddings: reading all of it would hold up the event loop."""
END = 4096
_USAGE = re.compile(rb'"usage"\s*:\s*(\{(?:[^{}]|\{[^{}]*\})*\})')  # a string has \" in place of "


def told_by_ends(body: bytes) -> Told | None:
    """As ``told_by``; of a large answer only the usage, which servers put at its end, or before what is large."""
    if len(body) <= LARGE:
        return told_by(body)
    found = _USAGE.findall(body, len(body) - END) or _USAGE.findall(body, 0, END)
    return told_by(b'{"usage":' + found[-1] + b"}") if found else Told()


def told_by(body: bytes) -> Told | None:
    """Nothing where an answer has a form of its own, such as a list; None where it is not JSON."""
    try:
        body.decode()  # msgspec does not look into what it passes over
        try:
            return _decoder.decode(body)
        except msgspec.ValidationError:
            msgspec.json.decode(body, type=msgspec.Raw)
            return Told()
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
