"""The chat template decides the parsers, unless the user does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from shared_engine.parsers import choose_parsers
from tests.conftest import TINY_CHAT

HERMES = "{{ '<tool_call>' }}{{ tool_call.arguments | tojson }}"
HERMES_FLAGS = {"enable_auto_tool_choice": True, "tool_call_parser": "hermes"}
# As Qwen3's template ends.
QWEN3 = (
    HERMES + "{%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}"
    "{%- endif %}"
)


@pytest.mark.parametrize("place", ["chat_template.jinja", "tokenizer_config.json"])
@pytest.mark.parametrize(
    ("template", "flags"),
    [
        (HERMES, HERMES_FLAGS),
        (QWEN3, {**HERMES_FLAGS, "reasoning_parser": "qwen3"}),
        ("{{ messages }}", {}),
        ("", {}),
    ],
)
def test_the_template_decides(tmp_path: Path, place: str, template: str, flags: dict[str, Any]) -> None:
    text = template if place.endswith("jinja") else json.dumps({"chat_template": template})
    (tmp_path / place).write_text(text)
    assert choose_parsers(str(tmp_path), {}) == flags


@pytest.mark.parametrize("text", [None, "{", json.dumps({}), json.dumps({"chat_template": [{"name": "default"}]})])
def test_a_model_without_a_readable_template_gets_none(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "tokenizer_config.json").write_text(text)
    assert choose_parsers(str(tmp_path), {}) == {}
    assert choose_parsers("org/name", {}) == {}


@pytest.mark.parametrize(
    ("model", "tools", "reasoning"),
    [
        ("Qwen/Qwen3-4B", "hermes", "qwen3"),
        ("Qwen/Qwen3-30B-A3B-FP8", "hermes", "qwen3"),
        ("Qwen/Qwen3-4B-Instruct-2507", "hermes", None),
        ("Qwen/Qwen2.5-7B-Instruct", "hermes", None),
        ("Qwen/Qwen3-Coder-30B-A3B-Instruct", None, None),
        ("org/other", None, None),
    ],
)
def test_a_hub_id_gets_its_familys(model: str, tools: str | None, reasoning: str | None) -> None:
    flags = choose_parsers(model, {})
    assert (flags.get("tool_call_parser"), flags.get("reasoning_parser")) == (tools, reasoning)


def test_tiny_chat_gets_the_parsers_its_readme_names() -> None:
    assert choose_parsers(str(TINY_CHAT), {}) == {**HERMES_FLAGS, "reasoning_parser": "deepseek_v3"}


def test_the_users_choice_wins(tmp_path: Path) -> None:
    (tmp_path / "chat_template.jinja").write_text(QWEN3)
    assert choose_parsers(str(tmp_path), {"tool_call_parser": "mistral", "reasoning_parser": None, "seed": 1}) == {
        "enable_auto_tool_choice": True,
        "tool_call_parser": "mistral",
        "reasoning_parser": None,
        "seed": 1,
    }
    assert choose_parsers(str(tmp_path), {"enable_auto_tool_choice": False})["enable_auto_tool_choice"] is False
