"""Dataclasses from JSON that may be anything: what is not as declared is refused here, not where it is used."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from enum import Enum
from types import NoneType, UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

T = TypeVar("T")


def parse(data: bytes | str) -> dict[str, Any]:
    """The JSON object in a text.

    Raises:
        ValueError: there is none.
    """
    try:
        parsed = json.loads(data)
    except RecursionError as exc:
        raise ValueError("nested too deep") from exc
    if not isinstance(parsed, dict):
        raise ValueError(f"not an object: {parsed!r:.80}")
    return parsed


def typed(kind: type[T], fields: object, *, ignore_unknown: bool = False) -> T:
    """The dataclass ``kind`` with these fields.

    Args:
        ignore_unknown: leave out fields that it does not have, here and below: a newer release wrote them.

    Raises:
        ValueError: a field is missing, unknown, or not of its type.
    """
    if not isinstance(fields, dict):
        raise ValueError(f"not the fields of {kind.__name__}: {fields!r:.80}")
    types = _types(kind)
    try:
        return kind(
            **{
                name: _value(types[name], value, ignore_unknown)
                for name, value in fields.items()
                if name in types or not ignore_unknown
            }
        )
    except (KeyError, TypeError) as exc:
        raise ValueError(f"not the fields of {kind.__name__}: {exc}") from exc


_known_types: dict[Any, dict[str, Any]] = {}


def _types(kind: Any) -> dict[str, Any]:
    if kind not in _known_types:
        _known_types[kind] = get_type_hints(kind)
    return _known_types[kind]


def _value(kind: Any, value: object, ignore_unknown: bool) -> Any:
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is UnionType:
        if value is None and NoneType in arguments:
            return None
        (kind,) = (each for each in arguments if each is not NoneType)
        return _value(kind, value, ignore_unknown)
    if origin is tuple and isinstance(value, list):
        return tuple(_value(arguments[0], item, ignore_unknown) for item in value)
    if origin is Mapping and isinstance(value, dict):
        return {name: _value(arguments[1], item, ignore_unknown) for name, item in value.items()}
    if origin is None and hasattr(kind, "__dataclass_fields__"):
        return typed(kind, value, ignore_unknown=ignore_unknown)
    if origin is None and issubclass(kind, Enum):
        return kind(value)
    if kind is float and type(value) in (int, float):
        return _number(value)
    if type(value) is not kind:
        raise ValueError(f"not a {kind}: {value!r:.80}")
    return value


def _number(value: Any) -> float:
    try:
        number = float(value)
    except OverflowError as exc:
        raise ValueError(f"too large: {value!r:.80}") from exc
    if math.isnan(number):
        raise ValueError("not a number")
    return number
