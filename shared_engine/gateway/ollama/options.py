"""``options`` of Ollama's protocol -> parameters of a request. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from shared_engine.gateway.refusals import RefusedError

_NUMBERS = {
    "temperature": "temperature",
    "top_p": "top_p",
    "min_p": "min_p",
    "repeat_penalty": "repetition_penalty",
    "presence_penalty": "presence_penalty",
    "frequency_penalty": "frequency_penalty",
}
_WHOLE_NUMBERS = {"top_k": "top_k", "seed": "seed", "num_predict": "max_tokens"}
"""What has no counterpart in vLLM, or is fixed when an engine starts (``num_ctx``, ``num_gpu``, ``mirostat``,
``typical_p``, ...), changes nothing, as Ollama ignores what it does not know."""


def parameters_of(options: Mapping[str, Any]) -> dict[str, Any]:
    """Those that are given, under the names of ``GenerationParams``.

    Raises:
        RefusedError: one has not the type that it has in Ollama.
    """
    given = {name: value for name, value in options.items() if value is not None}
    found: dict[str, Any] = {own: _number(name, given[name]) for name, own in _NUMBERS.items() if name in given}
    found |= {own: int(_number(name, given[name])) for name, own in _WHOLE_NUMBERS.items() if name in given}
    if found.get("seed", 0) < 0:  # another one each time
        del found["seed"]
    if found.get("max_tokens", 1) <= 0:  # -1: without end; -2: until the context is full
        del found["max_tokens"]
    if found.get("top_k", 0) < 0:
        found["top_k"] = -1
    if given.get("repeat_last_n") == 0:  # penalises nothing
        found.pop("repetition_penalty", None)
    if "stop" in given:
        stop = [given["stop"]] if isinstance(given["stop"], str) else given["stop"]
        if not isinstance(stop, list) or not all(isinstance(each, str) for each in stop):
            raise _mistyped("stop", "an array of strings")
        found["stop"] = stop
    return found


def _number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value or abs(value) > 1 << 53:
        raise _mistyped(name, "a number")
    return value


def _mistyped(name: str, kind: str) -> RefusedError:
    return RefusedError(400, f"option {name!r} must be {kind}", "invalid_request")
