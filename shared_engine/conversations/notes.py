"""Words in place of what a model can't be shown. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

LONGEST_URL = 300


def media_note(part: Mapping[str, Any]) -> str:
    """For a content part in OpenAI's form that is no text."""
    if part.get("type") == "tool_reference":  # as Claude Code writes them
        return note("tool reference", part.get("tool_name") or part.get("name"))
    kind = str(part.get("type", "")).removeprefix("input_").partition("_")[0]
    value = part.get(str(part.get("type")))
    url = value.get("url") if isinstance(value, Mapping) else None
    if not isinstance(url, str):
        return note(kind)
    if url[:5].lower() == "data:":
        return note(kind, mime_type=url[5:].partition(",")[0].partition(";")[0])
    return note(kind, url=url)


def note(
    kind: str,
    name: object = None,
    mime_type: object = None,
    url: object = None,
    more: str = "",
    *,
    is_shown: bool = False,
) -> str:
    """``[image a.png (image/png) at https://... is not shown]``; where its content follows, without the last words."""
    named = f" {name}" if name else ""
    typed = f" ({mime_type})" if mime_type else ""
    located = f" at {str(url)[:LONGEST_URL]}" if url and str(url)[:5].lower() != "data:" else ""
    ending = f": {more}" if more else "" if is_shown else " is not shown"
    return f"[{kind}{named}{typed}{located}{ending}]"
