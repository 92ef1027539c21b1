"""What a model's folder tells before anything starts."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shared_engine.model_files.changes import while_unchanged
from shared_engine.model_files.folder import (
    chat_template,
    context_window,
    efforts,
    inputs,
    lacks_chat_template,
    model_folder,
    shows_answer_schemas,
    text_prefixes,
)


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
    assert context_window(tmp_path) == expected


@pytest.mark.parametrize("way", ["written", "linked"])
@pytest.mark.parametrize(
    ("look", "before", "name", "content", "after"),
    [
        (context_window, None, "config.json", {"max_position_embeddings": 40960}, 40960),
        (inputs, frozenset(), "config.json", {"vision_config": {}}, {"image"}),
        (efforts, None, "config.json", {"model_type": "gpt_oss"}, (("low", "medium", "high"), "medium")),
        (lacks_chat_template, False, "tokenizer_config.json", {"bos_token": "<s>"}, True),
        (shows_answer_schemas, False, "tokenizer_config.json", {"chat_template": "{{ response_format }}"}, True),
    ],
)
def test_a_model_that_is_being_downloaded_is_looked_at_again(
    tmp_path: Path, way: str, look: Callable[[Path], Any], before: Any, name: str, content: dict[str, Any], after: Any
) -> None:
    folder, blob = tmp_path / "snapshot", tmp_path / "blob"
    assert look(folder) == before
    folder.mkdir()
    if way == "written":
        (folder / name).write_text('{"cut off": ')
        assert look(folder) == before
        (folder / name).write_text(json.dumps(content))
    else:
        blob.write_text(json.dumps(content))
        assert look(folder) == before
        os.utime(folder, (1, 1))  # nothing has come for long
        assert look(folder) == before
        (folder / name).symlink_to(blob)
    assert look(folder) == after


def test_a_folder_that_stays_as_it_is_is_read_once(tmp_path: Path) -> None:
    read: list[int] = []

    @while_unchanged
    def looked(_: Path, number: int) -> None:
        read.append(number)

    for settled, expected in ((False, [1, 1]), (True, [1, 1, 1])):
        if settled:
            os.utime(tmp_path, (1, 1))
        looked(tmp_path, 1)
        looked(tmp_path, 1)
        assert read == expected
    looked(tmp_path, 2)
    (tmp_path / "new").touch()
    looked(tmp_path, 1)
    assert read == [1, 1, 1, 2, 1]


def test_a_model_without_a_folder_says_nothing() -> None:
    assert model_folder("some-org/some-model") is None


@pytest.mark.parametrize("revision", [None, "main", "v1", "0123abc"])
def test_a_downloaded_model_is_found_in_the_hub_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, revision: str | None
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    cached = tmp_path / "hub" / "models--some-org--some-model"
    snapshot = cached / "snapshots" / "0123abc"
    snapshot.mkdir(parents=True)
    (cached / "refs").mkdir()
    for name in ("main", "v1"):
        (cached / "refs" / name).write_text("0123abc")
    assert model_folder("some-org/some-model", revision) == snapshot
    assert model_folder("some-org/some-model", "v2") is None
    monkeypatch.delenv("HF_HUB_CACHE")
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    assert model_folder("some-org/some-model", revision) == snapshot
    monkeypatch.delenv("HF_HOME")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "nothing"))
    assert model_folder("some-org/some-model", revision) is None
    assert model_folder("some-org/some-model", revision, str(tmp_path / "hub")) == snapshot


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"model_type": "llama", "hidden_size": 64}, set()),
        ({"vision_config": {"hidden_size": 64}, "image_token_id": 5}, {"image"}),
        ({"vision_config": None}, set()),
        ({"vision_config": {}, "video_token_id": 7}, {"image", "video"}),
        (
            {"thinker_config": {"audio_config": {}, "vision_config": {}, "video_token_index": 3}},
            {"image", "audio", "video"},
        ),
    ],
)
def test_inputs_are_read_from_the_config(tmp_path: Path, config: dict[str, Any], expected: set[str]) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert inputs(tmp_path) == expected


@pytest.mark.parametrize(
    ("file", "content", "expected"),
    [
        ("chat_template.jinja", "{{ a }}", "{{ a }}"),
        ("chat_template.json", '{"chat_template": "{{ b }}"}', "{{ b }}"),
        ("tokenizer_config.json", '{"chat_template": "{{ c }}"}', "{{ c }}"),
        (
            "tokenizer_config.json",
            '{"chat_template": [{"name": "default", "template": "d"}, {"name": "tool_use", "template": "t"}]}',
            "t",
        ),
        ("tokenizer_config.json", '{"chat_template": [{"name": "default", "template": "d"}]}', "d"),
        ("tokenizer_config.json", "{}", None),
    ],
)
def test_the_chat_template_is_found(tmp_path: Path, file: str, content: str, expected: str | None) -> None:
    (tmp_path / file).write_text(content)
    assert chat_template(tmp_path) == expected


def test_a_damaged_config_says_nothing(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{")
    (tmp_path / "tokenizer_config.json").write_text("[]")
    assert context_window(tmp_path) is None
    assert not lacks_chat_template(tmp_path)


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
    assert lacks_chat_template(tmp_path) is expected


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, {}),
        ({"prompts": {"query": "q: ", "document": "d: "}}, {"query": "q: ", "document": "d: "}),
        ({"prompts": {"query": "q: ", "passage": "p: ", "corpus": "c: "}}, {"query": "q: ", "document": "p: "}),
        ({"prompts": {"query": "q: ", "document": "", "passage": "p: "}}, {"query": "q: "}),
        ({"prompts": {"s": "s: "}}, {}),
        ({"prompts": {"s": "s: ", "query": "q: "}, "default_prompt_name": "s"}, {"query": "q: ", "document": "s: "}),
        ({"prompts": None, "default_prompt_name": None}, {}),
    ],
)
def test_prefixes_are_chosen_as_sentence_transformers_does(
    tmp_path: Path, config: dict[str, Any], expected: dict[str, str]
) -> None:
    assert text_prefixes(tmp_path) == {}
    (tmp_path / "config_sentence_transformers.json").write_text(json.dumps(config))
    assert text_prefixes(tmp_path) == expected
