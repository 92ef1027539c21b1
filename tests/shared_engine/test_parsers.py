"""The chat template decides the parser, unless the user does."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from shared_engine.parsers import choose_parsers

HERMES = "{{ '<tool_call>' }}{{ tool_call.arguments | tojson }}"


@pytest.mark.parametrize("place", ["chat_template.jinja", "tokenizer_config.json"])
def test_a_hermes_template_gets_the_hermes_parser(tmp_path: Path, place: str) -> None:
    text = HERMES if place.endswith("jinja") else json.dumps({"chat_template": HERMES})
    (tmp_path / place).write_text(text)
    assert choose_parsers(str(tmp_path), {}) == {"enable_auto_tool_choice": True, "tool_call_parser": "hermes"}


@pytest.mark.parametrize("text", [None, "{", json.dumps({"chat_template": "{{ messages }}"}), json.dumps({})])
def test_an_unknown_format_gets_none(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "tokenizer_config.json").write_text(text)
    assert choose_parsers(str(tmp_path), {}) == {}


def test_the_users_parser_wins(tmp_path: Path) -> None:
    (tmp_path / "chat_template.jinja").write_text(HERMES)
    assert choose_parsers(str(tmp_path), {"tool_call_parser": "mistral"}) == {"enable_auto_tool_choice": True}
    chosen = {"tool_call_parser": "mistral", "enable_auto_tool_choice": False}
    assert choose_parsers(str(tmp_path), chosen) == {}
