"""The keywords of JSON schemas: which hold schemas, and what values they may have. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

_SCHEMAS = frozenset((
    "items", "prefixItems", "additionalItems", "contains", "additionalProperties", "propertyNames",
    "unevaluatedProperties", "unevaluatedItems", "allOf", "anyOf", "oneOf", "not", "if", "then", "else",
))  # fmt: skip
# Under names of the user's choice.
_NAMED_SCHEMAS = frozenset(("properties", "patternProperties", "dependentSchemas", "$defs", "definitions"))
_COUNTS = frozenset(("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties"))
_KINDS: dict[str, Any] = {
    **dict.fromkeys(("pattern", "format"), str),
    **dict.fromkeys(("properties", "patternProperties", "$defs", "definitions"), Mapping),
    **dict.fromkeys(("enum", "allOf", "anyOf", "oneOf", "prefixItems", "required"), (list, tuple)),
}


def parts_formed(own: Mapping[str, Any], path: str, form: Callable[[Any, str], Any]) -> dict[str, Any]:
    """A copy of a schema, each part of which that is a schema is what ``form`` makes of it and its path."""
    return {keyword: _part(keyword, value, f"{path}.{keyword}", form) for keyword, value in own.items()}


def _part(keyword: str, value: Any, path: str, form: Callable[[Any, str], Any]) -> Any:
    if keyword in _NAMED_SCHEMAS and isinstance(value, Mapping):
        return {name: form(each, f"{path}.{name}") for name, each in value.items()}
    if keyword not in _SCHEMAS:
        return value
    if isinstance(value, list):
        return [form(each, f"{path}[{index}]") for index, each in enumerate(value)]
    return form(value, path)


def malformed(own: Mapping[str, Any], but: Iterable[str] = ()) -> list[str]:
    """The keywords whose values are of a kind that the standard does not allow them: ``{"minLength": "3"}``."""
    return [keyword for keyword, value in own.items() if keyword not in but and not _is_well_formed(keyword, value)]


def _is_well_formed(keyword: str, value: Any) -> bool:
    if keyword in _COUNTS:
        is_whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
        return is_whole and not isinstance(value, bool) and value >= 0
    if keyword == "type":
        return isinstance(value, str) or (isinstance(value, list) and all(isinstance(each, str) for each in value))
    return isinstance(value, _KINDS.get(keyword, object))
