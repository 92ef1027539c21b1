"""vLLM's answers -> Ollama's: a line of JSON for each piece, or one JSON for all of it.

Times are nanoseconds. ``load_duration`` is all that passed until the request was sent to the model's server: mostly
waiting for its start. How long the prompt took shows in streams alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from math import sqrt
from typing import Any

import msgspec

from shared_engine.errors import ServerError
from shared_engine.gateway.translation import Translation
from shared_engine.request.answers import parse_embeddings, parse_result
from shared_engine.request.client import split_events
from shared_engine.request.forwarded_answer import ForwardedAnswer
from shared_engine.request.streams import ChunkReader
from shared_engine.results import EmbeddingResult, GenerationChunk, TokenUsage, ToolCall

_DONE = b"[DONE]"


def said_in_chat(text: str, **more: Any) -> dict[str, Any]:
    """What a line of ``/api/chat`` has of the answer."""
    return {"message": {"role": "assistant", "content": text, **more}}


def said_in_text(text: str, **more: Any) -> dict[str, Any]:
    """The same of ``/api/generate``."""
    return {"response": text, **more}


class OllamaAnswer(Translation):
    """In lines, the first of which may have blanks before it.

    Args:
        model: as the client calls it.
    """

    stream_type = "application/x-ndjson"
    waiting = b" "  # before JSON it means nothing; an empty line would be an error to most clients

    def __init__(self, model: str) -> None:
        self._model = model
        self._began = time.monotonic()
        self._sent_at = self._began

    def begin(self, answer: ForwardedAnswer) -> None:
        self._sent_at = answer.sent_at

    def piece(self, piece: bytes) -> bytes:
        raise ServerError(f"the server sends a stream where none was asked for: {piece[:80]!r}")

    def end(self) -> bytes:
        return b""

    def _line(self, said: dict[str, Any], more: dict[str, Any], *, is_done: bool = True) -> bytes:
        head = {"model": self._model, "created_at": rfc3339(time.time())}
        return msgspec.json.encode({**head, **said, "done": is_done, **more}) + b"\n"

    def _times(self) -> dict[str, int]:
        return {
            "total_duration": _ns(time.monotonic() - self._began),
            "load_duration": _ns(self._sent_at - self._began),
        }


class Loaded(OllamaAnswer):
    """What is answered once a model is loaded, or has left, where nothing else was asked."""

    def __init__(self, model: str, said: Callable[..., dict[str, Any]], reason: str = "load") -> None:
        super().__init__(model)
        self._said = said
        self._reason = reason

    def whole(self, body: bytes = b"") -> bytes:
        del body
        return self._line(self._said(""), {"done_reason": self._reason})


class Generated(OllamaAnswer):
    """An answer of the model's.

    Args:
        said: how a line of this route has it.
    """

    def __init__(self, model: str, said: Callable[..., dict[str, Any]]) -> None:
        super().__init__(model)
        self._said = said
        self._buffer = bytearray()
        self._reader = ChunkReader()
        self._is_done = False
        self._first_at: float | None = None
        self._finish_reason: str | None = None
        self._usage: TokenUsage | None = None
        self._calls: dict[int, _Call] = {}

    def whole(self, body: bytes) -> bytes:
        result = parse_result(body)
        more: dict[str, Any] = {"thinking": result.reasoning} if result.reasoning else {}
        calls = _calls(result.tool_calls, result.finish_reason)
        said = self._said(result.text, **more, **calls)
        return self._last(said, result.finish_reason, result.usage, _logprobs(result.logprobs))

    def piece(self, piece: bytes) -> bytes:
        self._buffer += piece
        return b"".join(line for event in split_events(self._buffer) for line in self._lines(event))

    def _lines(self, event: bytes) -> Iterator[bytes]:
        if event == _DONE:
            self._is_done = True
            return
        for chunk in self._reader.chunks(event):
            if self._first_at is None:
                self._first_at = time.monotonic()
            if chunk.index == 0:
                yield from self._chunk(chunk)

    def _chunk(self, chunk: GenerationChunk) -> Iterator[bytes]:
        self._finish_reason = chunk.finish_reason or self._finish_reason
        for piece in chunk.tool_calls:
            self._calls.setdefault(piece.index, _Call()).add(piece.id, piece.name, piece.arguments)
        if chunk.text or chunk.reasoning or chunk.logprobs:
            more = {"thinking": chunk.reasoning} if chunk.reasoning else {}
            yield self._line(self._said(chunk.text, **more), _logprobs(chunk.logprobs), is_done=False)

    def end(self) -> bytes:
        for chunk in self._reader.end("the model's server", is_done=self._is_done, needs_done=False):
            self._usage = chunk.usage or self._usage
        calls = _calls(tuple(call.whole() for call in self._calls.values()), self._finish_reason)
        line = self._line(self._said("", **calls), {}, is_done=False) if calls else b""
        return line + self._last(self._said(""), self._finish_reason, self._usage, {})

    def _last(
        self, said: dict[str, Any], reason: str | None, usage: TokenUsage | None, logprobs: dict[str, Any]
    ) -> bytes:
        counted, now = usage or TokenUsage(), time.monotonic()
        first_at = self._first_at
        times = {
            "prompt_eval_count": counted.prompt_tokens,
            **({} if first_at is None else {"prompt_eval_duration": _ns(first_at - self._sent_at)}),
            "eval_count": counted.completion_tokens,
            "eval_duration": _ns(now - (first_at or self._sent_at)),
        }
        why = {"done_reason": "length" if reason == "length" else "stop"}
        return self._line(said, {**why, **self._times(), **times, **logprobs})


class Embedded(OllamaAnswer):
    """Vectors of length 1, as Ollama gives them.

    Args:
        count: of the texts; without any the model was only loaded.
        dimensions: so many numbers of each; 0 for all.
    """

    def __init__(self, model: str, count: int, dimensions: int = 0) -> None:
        super().__init__(model)
        self._count = count
        self._dimensions = dimensions

    def whole(self, body: bytes) -> bytes:
        result = _all_of(body, self._count) if self._count else None
        vectors = [] if result is None else [_unit(vector[: self._dimensions or None]) for vector in result.embeddings]
        tokens = 0 if result is None else result.usage.prompt_tokens
        told = {"model": self._model, "embeddings": vectors, **self._times(), "prompt_eval_count": tokens}
        return msgspec.json.encode(told)


class EmbeddedOne(OllamaAnswer):
    """The vector of one text in the older form, as the model makes it.

    Args:
        count: 0 without a text.
    """

    def __init__(self, model: str, count: int) -> None:
        super().__init__(model)
        self._count = count

    def whole(self, body: bytes) -> bytes:
        return msgspec.json.encode({"embedding": _all_of(body, self._count).embeddings[0] if self._count else []})


def _all_of(body: bytes, count: int) -> EmbeddingResult:
    """
    Raises:
        ServerError: there are not as many as texts.
    """
    result = parse_embeddings(body)
    if len(result.embeddings) != count:
        raise ServerError(f"the server has answered {count} texts with {len(result.embeddings)} embeddings")
    return result


class _Call:
    """A tool call, as far as it came."""

    def __init__(self) -> None:
        self._id: str | None = None
        self._name = ""
        self._arguments = ""

    def add(self, id_: str | None, name: str | None, arguments: str | None) -> None:
        self._id = self._id or id_
        self._name = name or self._name
        self._arguments += arguments or ""

    def whole(self) -> ToolCall:
        return ToolCall(id=self._id, name=self._name, arguments=self._arguments)


def _calls(calls: tuple[ToolCall, ...], finish_reason: str | None) -> dict[str, Any]:
    """With their arguments as an object, as Ollama has them; one that the limit of tokens has cut off is left out.

    Raises:
        ServerError: the model wrote something else.
    """
    found: list[dict[str, Any]] = []
    for call in calls:
        try:
            arguments = msgspec.json.decode(call.arguments or "{}", type=dict[str, Any])
        except (msgspec.MsgspecError, RecursionError):
            if finish_reason == "length":
                continue
            raise ServerError(
                f"the model called the tool {call.name!r:.100} with arguments that are not a JSON object: "
                f"{call.arguments!r:.200}"
            ) from None
        function = {"index": len(found), "name": call.name, "arguments": arguments}
        found.append({"id": call.id, "function": function})
    return {"tool_calls": found} if found else {}


def _logprobs(sent: dict[str, Any] | None) -> dict[str, Any]:
    """Of chat, or of text, which says it otherwise."""
    if not sent:
        return {}
    if "content" in sent:
        return {"logprobs": [_token(each) for each in sent["content"] or ()]}
    tokens, values = sent.get("tokens") or (), sent.get("token_logprobs") or ()
    tops = sent.get("top_logprobs") or [None] * len(tokens)
    found = []
    for token, value, top in zip(tokens, values, tops, strict=False):
        others = [{"token": other, "logprob": each} for other, each in (top or {}).items()]
        found.append({"token": token, "logprob": value, **({"top_logprobs": others} if others else {})})
    return {"logprobs": found}


def _token(sent: dict[str, Any]) -> dict[str, Any]:
    top = [_token(each) for each in sent.get("top_logprobs") or ()]
    told = {"token": sent["token"], "logprob": sent["logprob"], "bytes": sent.get("bytes")}
    return {**told, **({"top_logprobs": top} if top else {})}


def _unit(vector: list[float]) -> list[float]:
    length = sqrt(sum(each * each for each in vector))
    return vector if abs(length - 1) < 1e-6 or not length else [each / length for each in vector]


def rfc3339(seconds: float) -> str:
    """A time since the epoch, as Go writes it."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def _ns(seconds: float) -> int:
    return max(0, round(seconds * 1e9))
