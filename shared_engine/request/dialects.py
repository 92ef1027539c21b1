"""JSON of other servers with OpenAI's protocol, and of older vLLM -> the form that answers.py reads. Pure.

Only what its typed reader refuses comes here: a value that is null, of another type or elsewhere. What a field means is
taken from the sources of SGLang, llama.cpp, TGI, LiteLLM, Ollama and OpenRouter's documentation; the servers of
tests/support/dialects.py speak as they do.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any

import msgspec

Json = Mapping[str, Any]
_TGI = re.compile(r"\d+\.\d+\.\d+(-dev\d*)?-(native|sha-)")


def answer_of(data: Any) -> dict[str, Any]:
    """An answer or a chunk of one, in the form of ``answers._Answer``."""
    raw = _mapping(data)
    return {
        "id": text_of(raw.get("id")) or "",
        "model": text_of(raw.get("model")) or "",
        "choices": [_choice_of(_mapping(each), position) for position, each in enumerate(_list(raw.get("choices")))],
        "usage": _usage_of(raw.get("usage")),
    }


def error_of(data: Any) -> tuple[str, str | None] | None:
    """Message and code of the error that stands in an answer's place: an object, a text, or all of it; else None."""
    raw = _mapping(data)
    error = raw.get("error")
    if not error:
        choices = [_mapping(each) for each in _list(raw.get("choices"))]
        error = next((each["error"] for each in choices if each.get("error")), None)
    if not error and (raw.get("object") == "error" or (not raw.get("choices") and raw.get("message"))):
        error = raw
    if not error:
        return None
    if not isinstance(error, Mapping):
        return text_of(error) or "", text_of(raw.get("code") or raw.get("error_type"))
    code = next((error[name] for name in ("code", "status", "status_code", "type") if error.get(name)), None)
    return said_in(error), text_of(code)


def said_in(error: Any) -> str:
    """What a server says in an error: OpenAI's object, FastAPI's detail, a text; empty where it says nothing."""
    if not isinstance(error, Mapping):
        return text_of(error) or ""
    said = next((error[name] for name in ("error", "message", "detail", "errors") if error.get(name)), None)
    if isinstance(said, Mapping):
        return said_in(said)
    if isinstance(said, list):
        return "; ".join(_complaint(each) for each in said)
    message = text_of(said) or ""
    upstream = _mapping(error.get("metadata"))  # OpenRouter's: what the provider behind it said
    raw = text_of(upstream.get("raw"))
    return f"{message} ({upstream.get('provider_name') or 'upstream'}: {raw[:500]})" if raw else message


def _complaint(each: Any) -> str:
    """One of FastAPI's: the place and what is wrong there."""
    if isinstance(each, Mapping) and each.get("msg"):
        place = ".".join(str(part) for part in _list(each.get("loc")))
        return f"{place}: {each['msg']}" if place else str(each["msg"])
    return said_in(each)


_REASONS = {
    "eos": "stop", "eos_token": "stop", "end_turn": "stop", "stop_sequence": "stop", "max_tokens": "length",
    "max_length": "length", "function_call": "tool_calls", "tool_use": "tool_calls",
}  # fmt: skip


def reason_of(finish_reason: str | None) -> str | None:
    """A finish reason by OpenAI's name; None for an empty one, which some servers send before the end."""
    return _REASONS.get(finish_reason.lower(), finish_reason) if finish_reason else None


def ends_calls_silently(data: Any) -> bool:
    """True for a chunk of TGI, whose streams of a tool call end without a finish reason, with ``[DONE]`` only."""
    fingerprint = _mapping(data).get("system_fingerprint")
    return isinstance(fingerprint, str) and _TGI.match(fingerprint) is not None


def _choice_of(raw: Json, position: int) -> dict[str, Any]:
    reason = raw.get("finish_reason")
    if isinstance(reason, Mapping):
        reason = reason.get("type")
    stop = raw.get("stop_reason")
    message, delta = raw.get("message"), raw.get("delta")
    logprobs = raw.get("logprobs")
    return {
        "index": whole_of(raw.get("index"), position),
        "text": text_of(raw.get("text")),
        "message": None if message is None else _message_of(message),
        "delta": None if delta is None else _message_of(delta),
        "finish_reason": reason if isinstance(reason, str) else None,
        "stop_reason": stop if isinstance(stop, (str, int)) and not isinstance(stop, bool) else None,
        "logprobs": logprobs if isinstance(logprobs, dict) else None,
    }


def _message_of(value: Any) -> dict[str, Any]:
    raw = {"content": value} if isinstance(value, str) else _mapping(value)
    calls = raw.get("tool_calls")
    if isinstance(calls, Mapping):  # TGI streams one call, without a list around it
        calls = [calls]
    return {
        "content": text_of(raw.get("content")),
        "reasoning": text_of(raw.get("reasoning")) or _thinking_in(raw.get("content")),
        "reasoning_content": text_of(raw.get("reasoning_content")),
        "reasoning_text": raw.get("reasoning_text") or raw.get("thinking") or raw.get("reasoning_details"),
        "tool_calls": [_call_of(_mapping(each)) for each in _list(calls)],
    }


def _call_of(raw: Json) -> dict[str, Any]:
    function = _mapping(raw.get("function") or raw)
    arguments = function.get("arguments")
    if arguments is not None and not isinstance(arguments, str):
        arguments = msgspec.json.encode(arguments).decode()
    index = whole_of(raw.get("index"), -1)
    return {
        "id": text_of(raw.get("id")),
        "index": None if index < 0 else index,
        "function": {"name": text_of(function.get("name")), "arguments": arguments},
    }


def _usage_of(value: Any) -> dict[str, Any] | None:
    if not isinstance(value, Mapping):
        return None
    prompt, completion = (_mapping(value.get(f"{part}_tokens_details")) for part in ("prompt", "completion"))
    return {
        "prompt_tokens": whole_of(value.get("prompt_tokens"), 0),
        "completion_tokens": whole_of(value.get("completion_tokens"), 0),
        "prompt_tokens_details": {"cached_tokens": _whole_or_none(prompt.get("cached_tokens"))},
        "completion_tokens_details": {"reasoning_tokens": _whole_or_none(completion.get("reasoning_tokens"))},
        "reasoning_tokens": _whole_or_none(value.get("reasoning_tokens")),
    }


_ESCAPES = re.compile(
    rb"""\\(?:u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|(u[dD][89a-fA-F][0-9a-fA-F]{2})|.)""", re.DOTALL
)


def without_half_pairs(data: bytes) -> bytes:
    """JSON; half of an escaped surrogate pair, as servers send it that cut a text by UTF-16, is U+FFFD."""
    if b"\\ud" not in data and b"\\uD" not in data:
        return data
    return _ESCAPES.sub(lambda found: found[0] if found[1] is None else rb"\ufffd", data)


def with_nan(data: bytes) -> Any:
    """JSON with NaN and Infinity in it, as Python's own json writes them, which is not JSON; None where it is not."""
    if not any(mark in data for mark in (b"NaN", b"Infinity")):
        return None
    try:
        return json.loads(data)
    except ValueError:
        return None


def embeddings_of(data: Any) -> dict[str, Any]:
    """Vectors, in the form of ``answers._Embeddings``: also as a bare list, or each within a list of its own."""
    raw = {"data": data} if isinstance(data, list) else _mapping(data)
    vectors = []
    for position, each in enumerate(_list(raw.get("data") or raw.get("embeddings"))):
        item = each if isinstance(each, Mapping) else {"embedding": each}
        vector = item.get("embedding")
        while isinstance(vector, list) and len(vector) == 1 and isinstance(vector[0], list):
            vector = vector[0]
        if vector is None:
            vector = []
        elif isinstance(vector, list):
            vector = _numbers(vector)
        vectors.append({"embedding": vector, "index": whole_of(item.get("index"), position)})
    return {**_head(raw), "data": vectors}


def tokenwise_of(data: Any) -> dict[str, Any]:
    """What is given for each token, in the form of ``answers._Tokens``: null is NaN."""
    raw = _mapping(data)
    items = []
    for position, each in enumerate(_list(raw.get("data"))):
        item = _mapping(each)
        given = [_numbers(value) if isinstance(value, list) else _number(value) for value in _list(item.get("data"))]
        items.append({"data": given, "index": whole_of(item.get("index"), position)})
    return {**_head(raw), "data": items}


def _numbers(values: list[Any]) -> list[Any]:
    return [_number(value) for value in values]


def _number(value: Any) -> Any:
    """orjson, which vLLM uses where it is there, writes null for NaN."""
    return math.nan if value is None else value


def reranked_of(data: Any) -> dict[str, Any]:
    """Scores, in the form of ``answers._Reranked``: also as a bare list, or under the name ``score``."""
    raw = {"results": data} if isinstance(data, list) else _mapping(data)
    results = []
    for each in _list(raw.get("results") or raw.get("data")):
        item = _mapping(each)
        given = [item[name] for name in ("relevance_score", "score") if name in item]
        score = math.nan if given and given[0] is None else _float_of(given[0] if given else None)
        results.append({"index": whole_of(item.get("index"), -1), "relevance_score": score})
    return {**_head(raw), "results": results}


def models_of(data: Any) -> list[tuple[str, int | None]]:
    """Names and limits of a server's models, from any of the forms in which servers list them."""
    raw = {"data": data} if isinstance(data, list) else _mapping(data)
    models = []
    for each in _list(raw.get("data") or raw.get("models")):
        item = {"id": each} if isinstance(each, str) else _mapping(each)
        name = next((text_of(item[key]) for key in ("id", "name", "model") if item.get(key)), None)
        if name:
            models.append((name, _limit_of(item)))
    return models


def _limit_of(model: Json) -> int | None:
    places = (model, _mapping(model.get("meta")), _mapping(model.get("metadata")))  # llama.cpp's; Ray Serve LLM's
    names = ("max_model_len", "context_length", "max_context_length", "n_ctx", "max_request_context_length")
    limits = (whole_of(place.get(name), 0) for place in places for name in names)
    return next((limit for limit in limits if limit > 0), None)


def _head(raw: Json) -> dict[str, Any]:
    return {"model": text_of(raw.get("model")) or "", "usage": _usage_of(raw.get("usage"))}


# ---- values


def text_of(value: Any) -> str | None:
    """A text: of a number its digits, of a list of content parts the text in them; None for what is none."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, list):
        return "".join(_text_in(part) for part in value)
    if isinstance(value, Mapping):
        return _text_in(value) or msgspec.json.encode(value).decode()
    return str(value)


def _text_in(part: Any) -> str:
    if isinstance(part, str):
        return part
    raw = _mapping(part)
    text = raw.get("text") or raw.get("summary")
    return text if isinstance(text, str) else ""


def _thinking_in(content: Any) -> str | None:
    """The reasoning among content parts, which have it as ``{"type": "thinking", "thinking": ...}``."""
    parts = [_mapping(part).get("thinking") for part in content] if isinstance(content, list) else []
    return "".join(text_of(part) or "" for part in parts) or None


def whole_of(value: Any, otherwise: int) -> int:
    """A whole number, also from a text; ``otherwise`` for what is none."""
    number = _whole_or_none(value)
    return otherwise if number is None else number


def _whole_or_none(value: Any) -> int | None:
    number = _float_of(value)
    return int(number) if number is not None and number == number // 1 else None


def _float_of(value: Any) -> float | None:
    if value is None or isinstance(value, bool):
        return None
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


def _mapping(value: Any) -> Json:
    return value if isinstance(value, Mapping) else {}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
