"""A content block that no model of vLLM's is shown, as the text that takes its place: files, links, and what other
providers put into their answers. Pure.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic_core import to_jsonable_python

from shared_engine.conversations.notes import note

_NAMES = ("title", "name", "filename", "file_name")
_MIME_TYPES = ("mime_type", "mimeType", "media_type", "mimetype")
_URLS = ("url", "uri", "path", "file_id")
_WRAPPERS = ("source", "resource", "file", "value", "document")
_TEXTS = ("text", "content", "output", "cited_text", "results", "stdout", "stderr", "code")
# Of no use to a model: what the block is known by, how it is cached, its bytes.
_LEFT_OUT = frozenset((
    "type", "id", "index", "extras", "data", "base64", "blob", "cache_control", "annotations", "source_type",
    "encrypted_content", "signature", "tool_use_id", *_NAMES, *_MIME_TYPES, *_URLS, *_WRAPPERS, *_TEXTS,
))  # fmt: skip
_PLAIN = ("text", "input_text", "output_text")
MAX_REST = 500
"""Characters."""


def block_as_text(block: object) -> str:
    """What the block is, by name, type and URL; and the text in it.

    A block without a type is what a tool has returned: its JSON.
    """
    if not isinstance(block, Mapping):
        return str(block)
    if block.get("type") == "non_standard" and isinstance(block.get("value"), Mapping):  # core's wrapper
        return block_as_text(block["value"])
    kind = block.get("type")
    if kind is None:
        return _json(block)
    if kind in _PLAIN and isinstance(block.get("text"), str):
        return str(block["text"])
    if kind == "json" and "json" in block:
        return _json(block["json"])
    fields = {str(name): value for name, value in block.items()}
    for name in _WRAPPERS:
        inside = fields.get(name)
        if isinstance(inside, Mapping):
            fields = {**inside, **fields}
    if isinstance(fields.get("source"), str):  # Anthropic's search results
        fields.setdefault("url", fields["source"])
    given = [fields.get(name) for name in _TEXTS]
    if str(_first(fields, _MIME_TYPES)).startswith("text/") and _is_plain(block):
        given.append(fields.get("data"))
    text = "\n".join(part for value in given for part in _texts(value))
    rest = {name: value for name, value in fields.items() if name not in _LEFT_OUT and not _is_empty(value)}
    described = note(
        str(kind),
        name=_first(fields, _NAMES),
        mime_type=_first(fields, _MIME_TYPES),
        url=_first(fields, _URLS),
        more=_json(rest)[:MAX_REST] if rest else "",
        is_shown=bool(text or rest),
    )
    return f"{described}\n{text}" if text else described


def _is_empty(value: Any) -> bool:
    return value is None or (isinstance(value, (str, list, dict)) and not value)


def _is_plain(block: Mapping[Any, Any]) -> bool:
    """Of Anthropic's documents, whether the data are the text itself."""
    source = block.get("source")
    return isinstance(source, Mapping) and source.get("type") == "text"


def _first(fields: Mapping[str, Any], names: tuple[str, ...]) -> Any:
    return next((fields[name] for name in names if fields.get(name)), None)


def _texts(value: Any) -> Iterator[str]:
    """The texts in a value: itself, or those of the blocks in it."""
    if isinstance(value, str):
        if value:
            yield value
    elif isinstance(value, Mapping):
        yield from ([block_as_text(value)] if "type" in value else [_json(value)])
    elif isinstance(value, list):
        for each in value:
            yield from _texts(each)


def _json(value: Any) -> str:
    """What has no form in JSON is written as Python does."""
    return json.dumps(to_jsonable_python(value, fallback=str, bytes_mode="base64"), ensure_ascii=False)
