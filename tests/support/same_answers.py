"""What two answers of vLLM to the same request have alike."""

from __future__ import annotations

import re

_ITS_OWN = re.compile(rb'"(id|created|request_id|item_id|created_at|completed_at|sequence_number)":("[^"]*"|[0-9.]+)')
"""What each request has of its own."""
_TEXT = re.compile(rb'(?s)(.*"(?:content|text|arguments|partial_json|delta)":")((?:[^"\\]|\\.)+)(".*)')


def without_its_own(answer: bytes) -> tuple[bytes, list[bytes]]:
    """A stream's text, and what stands around it.

    vLLM sends what there is whenever it comes to it: two tokens are one event or two, as the clock has it. Events that
    follow each other and differ only in their text are one here.
    """
    text, around = b"", [b""]
    for event in _ITS_OWN.sub(b"", answer).split(b"\n\n"):
        found = _TEXT.fullmatch(event) if event.startswith((b"data:", b"event:")) else None
        if found:
            text += found[2]
            event = found[1] + found[3]
        if event != around[-1]:
            around.append(event)
    return text, around
