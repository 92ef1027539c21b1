"""What a model's folder tells before anything starts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llama_index_vllm_local._model_folder import context_window, lacks_chat_template


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"max_position_embeddings": 40960}, 40960),
        ({"n_positions": 1024}, 1024),
        ({"text_config": {"max_position_embeddings": 131072}}, 131072),
        ({"max_position_embeddings": None}, None),
        ({}, None),
    ],
)
def test_context_window_is_read_from_the_config(tmp_path: Path, config: dict[str, Any], expected: int | None) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert context_window(str(tmp_path)) == expected


def test_a_model_without_a_folder_says_nothing() -> None:
    assert context_window("some-org/some-model") is None
    assert not lacks_chat_template("some-org/some-model")


def test_a_damaged_config_says_nothing(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{")
    (tmp_path / "tokenizer_config.json").write_text("[]")
    assert context_window(str(tmp_path)) is None
    assert not lacks_chat_template(str(tmp_path))


@pytest.mark.parametrize(
    ("tokenizer_config", "other_file", "expected"),
    [
        ({"eos_token": "</s>"}, None, True),
        ({"eos_token": "</s>"}, "chat_template.jinja", False),
        ({"eos_token": "</s>"}, "chat_template.json", False),
        ({"eos_token": "</s>"}, "tekken.json", False),
        ({"chat_template": "{{ messages }}"}, None, False),
        ({"chat_template": [{"name": "default", "template": "{{ messages }}"}]}, None, False),
    ],
)
def test_a_missing_chat_template_is_noticed(
    tmp_path: Path, tokenizer_config: dict[str, Any], other_file: str | None, expected: bool
) -> None:
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(tokenizer_config))
    if other_file:
        (tmp_path / other_file).write_text("x")
    assert lacks_chat_template(str(tmp_path)) is expected
