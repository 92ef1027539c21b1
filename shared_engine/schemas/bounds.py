"""Bounds for what a schema leaves without end: a model that repeats itself then ends all the same."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from shared_engine.schemas.keywords import malformed, parts_formed
from shared_engine.schemas.patterns import with_length


def bounded(schema: Any, max_length: int | None, max_items: int | None) -> Any:
    """A copy, in which strings have at most ``max_length`` characters, and arrays and dicts ``max_items`` entries,
    where the schema does not say how many. None: no bound. A pattern or format that can't be bounded stays as it is.

    Args:
        schema: in the form that is held (holding.py).
    """
    if not isinstance(schema, Mapping):
        return schema
    own = parts_formed(schema, "", lambda part, _: bounded(part, max_length, max_items))
    if own.keys() & {"enum", "const"} or malformed(own):
        return own
    given = own.get("type")
    types = given if isinstance(given, list) else [given]
    if max_length is not None and "string" in types and not own.keys() & {"maxLength", "format"}:
        if "pattern" in own:
            own["pattern"] = with_length(own["pattern"], 0, max_length) or own["pattern"]
        else:
            own["maxLength"] = max(max_length, own.get("minLength", 0))
    if max_items is not None and "array" in types and "maxItems" not in own:
        own["maxItems"] = max(max_items, own.get("minItems", 0), len(own.get("prefixItems", ())))
    if max_items is not None and "object" in types and not own.keys() & {"properties", "maxProperties"}:
        own["maxProperties"] = max(max_items, own.get("minProperties", 0))
    return own
