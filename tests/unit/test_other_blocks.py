"""Blocks that no model is shown, as text."""

from __future__ import annotations

from datetime import date
from typing import Any

import pytest

from shared_engine.adapting.other_blocks import MAX_REST, block_as_text


@pytest.mark.parametrize(
    ("block", "said"),
    [
        # MCP's
        (
            {"type": "resource_link", "uri": "demo://r/1", "name": "r1", "mimeType": "text/plain"},
            "[resource_link r1 (text/plain) at demo://r/1 is not shown]",
        ),
        (
            {"type": "resource", "resource": {"uri": "demo://r/1", "mimeType": "text/plain", "text": "Hello"}},
            "[resource (text/plain) at demo://r/1]\nHello",
        ),
        (
            {"type": "resource", "resource": {"uri": "demo://r/1", "mimeType": "application/zip", "blob": "AAAA"}},
            "[resource (application/zip) at demo://r/1 is not shown]",
        ),
        # LangChain's
        (
            {"type": "file", "base64": "AAAA", "mime_type": "application/pdf", "filename": "a.pdf"},
            "[file a.pdf (application/pdf) is not shown]",
        ),
        ({"type": "server_tool_call", "name": "run", "args": {"x": 1}}, '[server_tool_call run: {"args": {"x": 1}}]'),
        ({"type": "server_tool_result", "output": {"sum": 2}}, '[server_tool_result]\n{"sum": 2}'),
        ({"type": "non_standard", "value": {"type": "executable_code", "code": "1"}}, "[executable_code]\n1"),
        ({"type": "non_standard"}, "[non_standard is not shown]"),
        # Anthropic's
        (
            {"type": "server_tool_use", "id": "s1", "name": "web_search", "input": {"query": "cats"}},
            '[server_tool_use web_search: {"input": {"query": "cats"}}]',
        ),
        (
            {
                "type": "web_search_tool_result",
                "tool_use_id": "s1",
                "content": [
                    {"type": "web_search_result", "url": "https://e.org", "title": "E", "encrypted_content": "x"}
                ],
            },
            "[web_search_tool_result]\n[web_search_result E at https://e.org is not shown]",
        ),
        (
            {
                "type": "search_result",
                "source": "https://e.org",
                "title": "E",
                "content": [{"type": "text", "text": "Hi"}],
            },
            "[search_result E at https://e.org]\nHi",
        ),
        (
            {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "Hi"}, "title": "D"},
            "[document D (text/plain)]\nHi",
        ),
        (
            {"type": "document", "source": {"type": "base64", "media_type": "application/pdf", "data": "AAAA"}},
            "[document (application/pdf) is not shown]",
        ),
        # OpenAI's
        ({"type": "file_search_call", "status": "completed"}, '[file_search_call: {"status": "completed"}]'),
        ({"type": "output_text", "text": "Hi", "annotations": []}, "Hi"),
        # Bedrock's, and what a tool has returned by itself
        ({"type": "json", "json": {"a": [1]}}, '{"a": [1]}'),
        ({"a": date(2026, 1, 2), "é": None}, '{"a": "2026-01-02", "é": null}'),
        ({"a": b"\xff"}, '{"a": "_w=="}'),
        ({"a": object}, '{"a": "<class \'object\'>"}'),
        (5, "5"),
        (None, "None"),
        ({"type": "image", "url": "data:image/png;base64,AAAA"}, "[image is not shown]"),
        ({"type": "x", "url": "https://e.org/" + "a" * 900}, "[x at https://e.org/" + "a" * 286 + " is not shown]"),
    ],
)
def test_a_block_says_what_it_was_and_the_text_in_it(block: Any, said: str) -> None:
    assert block_as_text(block) == said


def test_what_is_unknown_is_told_in_part() -> None:
    said = block_as_text({"type": "x", "values": list(range(10_000))})
    assert said.startswith('[x: {"values": [0, 1, 2')
    assert len(said) == len("[x: ]") + MAX_REST


def test_arrays_are_told_too() -> None:
    import numpy as np

    assert block_as_text({"type": "thing", "pixels": np.array([1, 2])}) == '[thing: {"pixels": "[1 2]"}]'
