"""Reproducible mode: what every request is held to, whatever its call says."""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping
from typing import Any

import msgspec

from shared_engine.params import GenerationParams
from shared_engine.request.routes import CHAT, COMPLETIONS, MESSAGES, RESPONSES
from shared_engine.settings import EngineSettings

SEED = 42
TEMPERATURE = 0.0

_log = logging.getLogger("shared_engine")


def seed_of(settings: EngineSettings) -> int:
    """Of all requests of an engine."""
    return SEED if settings.seed is None else settings.seed


def held(params: GenerationParams, seed: int) -> GenerationParams:
    """``params`` at temperature 0 and with this seed, also where ``extra_body`` says otherwise. Says once for each
    name that it was overruled.
    """
    fixed: dict[str, Any] = {"temperature": TEMPERATURE, "seed": seed}
    body = params.extra_body or {}
    for name, value in fixed.items():
        _note(name, value, getattr(params, name), body.get(name))
    rest = {name: value for name, value in body.items() if name not in fixed}
    return GenerationParams(**{**params.given, **fixed, "extra_body": rest or None})


def held_fields(route: str, seed: int | None, fields: Mapping[str, msgspec.Raw]) -> dict[str, Any]:
    """What a forwarded request's body is to have in place of its own fields; nothing without a ``seed``."""
    fixed: dict[str, Any] = {"temperature": TEMPERATURE, "seed": seed}
    if seed is None or route not in (CHAT, COMPLETIONS, RESPONSES, MESSAGES):
        return {}
    if route in (RESPONSES, MESSAGES):  # which know no seed
        del fixed["seed"]
    for name, value in fixed.items():
        _note(name, value, _read(fields[name]) if name in fields else None)
    return fixed


def _read(value: msgspec.Raw) -> object:
    try:
        return msgspec.json.decode(value)
    except msgspec.DecodeError:  # a number that is too large: overruled as well
        return value


def _note(name: str, value: object, *given: object) -> None:
    if any(each not in (None, value) for each in given):
        _say_overruled(name, value)


@functools.cache
def _say_overruled(name: str, value: object) -> None:
    _log.warning("reproducible: a request's %s is overruled: it is %s for all", name, f"{value:g}")
