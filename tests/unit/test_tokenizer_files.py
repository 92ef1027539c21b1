"""The files beside tokenizer.json: whether it is what vLLM uses, and which templates and special tokens there are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from shared_engine import EngineSettings
from shared_engine.token_count.tokens import count_locally, tokenize_request
from tests.support.small_tokenizers import (
    HELLO,
    SHOUT,
    TEXT,
    TOOL,
    counted,
    declared,
    make_folder,
    tokenizer_of,
    tokens_of,
)

TOOLS_FIRST = "{{ (tools or []) | length }} tools {% for message in messages %}{{ message.content }}{% endfor %}"
TWO_TEMPLATES = [{"name": "default", "template": SHOUT}, {"name": "tool_use", "template": TOOLS_FIRST}]


# ---- is it the one?


@pytest.mark.parametrize(
    ("kind", "model_type", "tokenizer_class"),
    [
        ("llama3", "llama", "PreTrainedTokenizerFast"),
        ("llama3", "smollm3", "TokenizersBackend"),
        ("llama3", "deepseek_v3", "LlamaTokenizerFast"),
        ("llama2", "phi3", "LlamaTokenizer"),
        ("gpt2", "granite", "GPT2Tokenizer"),
        ("gpt2", "gpt2", "GPT2TokenizerFast"),
        ("qwen2", "qwen2", "Qwen2Tokenizer"),
        ("qwen2", "qwen3", "Qwen2TokenizerFast"),
        ("qwen3_5", "qwen3_5", "Qwen2Tokenizer"),
        ("gemma", "gemma3_text", "GemmaTokenizerFast"),
    ],
)
def test_where_vllm_takes_tokenizer_json_as_it_is_it_is_counted_here(
    tmp_path: Path, kind: str, model_type: str, tokenizer_class: str
) -> None:
    for config in ({}, {"added_tokens_decoder": declared(kind)}):
        folder = make_folder(tmp_path, kind, model_type, tokenizer_class, config=config)
        assert counted(folder) == len(tokenizer_of(kind).encode(TEXT)), config


@pytest.mark.parametrize(
    ("kind", "model_type", "tokenizer_class"),
    [
        ("llama3", "qwen2", "PreTrainedTokenizerFast"),  # qwen2 gets the pre-tokenizer of its class, whatever the file
        ("llama3", "llama", "GPT2Tokenizer"),
        ("qwen3_5", "qwen3", "Qwen2Tokenizer"),
        ("llama2", "llama", "LlamaTokenizer"),
        ("llama3", "cohere2", "CohereTokenizerFast"),
        ("llama3", "llama", "NoSuchTokenizer"),
        ("llama3", "llama", None),
    ],
)
def test_a_class_that_makes_another_tokenizer_of_the_file_is_left_to_the_server(
    tmp_path: Path, kind: str, model_type: str, tokenizer_class: str | None
) -> None:
    assert counted(make_folder(tmp_path, kind, model_type, tokenizer_class)) is None


OF_KIND = {"gpt2": "GPT2Tokenizer", "qwen2": "Qwen2Tokenizer"}


def with_flag(state: dict[str, Any]) -> None:
    next(token for token in state["added_tokens"] if token["content"] == "<|im_end|>")["lstrip"] = True


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("gpt2", lambda state: state["model"].update(unk_token="<|endoftext|>")),
        ("gpt2", lambda state: state["model"].update(byte_fallback=True)),
        ("gpt2", lambda state: state["model"].update(ignore_merges=True)),
        ("gpt2", lambda state: state["pre_tokenizer"].update(use_regex=False)),
        ("qwen2", lambda state: state.update(normalizer=None)),
        ("gpt2", with_flag),
    ],
)
def test_a_class_that_brings_its_own_must_find_all_of_it_in_the_file(tmp_path: Path, kind: str, changes: Any) -> None:
    state = json.loads(tokenizer_of(kind).to_str())
    changes(state)
    for tokenizer_class, is_counted in (("PreTrainedTokenizerFast", True), (OF_KIND[kind], False)):
        folder = make_folder(
            tmp_path / tokenizer_class, kind, "llama", tokenizer_class, files={"tokenizer.json": state}
        )
        assert (counted(folder) is not None) is is_counted


@pytest.mark.parametrize(
    "config", [{"add_prefix_space": True}, {"added_tokens_decoder": dict(list(declared("gpt2").items())[1:])}]
)
def test_what_only_changes_a_class_that_brings_its_own(tmp_path: Path, config: dict[str, Any]) -> None:
    for tokenizer_class, is_counted in (("PreTrainedTokenizerFast", True), ("GPT2Tokenizer", False)):
        folder = make_folder(tmp_path / tokenizer_class, "gpt2", "llama", tokenizer_class, config=config)
        assert (counted(folder) is not None) is is_counted


def test_a_tokenizer_that_draws_lots_is_left_to_the_server(tmp_path: Path) -> None:
    state = json.loads(tokenizer_of("llama3").to_str())
    state["model"]["dropout"] = 0.1
    assert counted(make_folder(tmp_path, files={"tokenizer.json": state})) is None


NEW = {"content": "<new>", "lstrip": False, "rstrip": False, "single_word": False, "normalized": False, "special": True}


@pytest.mark.parametrize(
    "config",
    [
        {"added_tokens_decoder": {**declared("llama3"), "5000": NEW}},
        {"added_tokens_decoder": {index: {**token, "lstrip": True} for index, token in declared("llama3").items()}},
        {"pad_token": "the"},
        {"image_token": "<image>"},
        {"additional_special_tokens": ["<fresh>"]},
        {"extra_special_tokens": {"image_token": "<image>"}},
        {"auto_map": {"AutoTokenizer": ["tokenization_x.X", None]}},
        {"split_special_tokens": True},
        {"fix_mistral_regex": True},
        {"fast_tokenizer_files": ["tokenizer.4.0.0.json"]},
    ],
)
def test_a_config_that_changes_the_tokenizer_is_left_to_the_server(tmp_path: Path, config: dict[str, Any]) -> None:
    assert counted(make_folder(tmp_path / "as it is")) is not None
    assert counted(make_folder(tmp_path / "changed", config=config)) is None


@pytest.mark.parametrize(
    ("model", "files"),
    [
        ({"model_type": None}, {}),
        ({"is_encoder_decoder": True}, {}),
        ({"architectures": ["DeepseekV32ForCausalLM"]}, {}),
        ({}, {"tekken.json": {}}),
        ({}, {"sentence_bert_config.json": {"do_lower_case": True}}),
        ({}, {"special_tokens_map.json": {"eos_token": "engine"}}),
        ({}, {"added_tokens.json": {"engine": 5000}}),
        ({}, {"added_tokens.json": {"<|im_end|>": 5000}}),
        ({}, {"tokenizer.json": "{}"}),
    ],
)
def test_a_folder_that_says_something_unusual_is_left_to_the_server(
    tmp_path: Path, model: dict[str, Any], files: dict[str, Any]
) -> None:
    assert counted(make_folder(tmp_path, model=model, files=files)) is None


def test_a_downloaded_model_is_counted_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    for name, model_type in (("llama", "llama"), ("mistral", "mistral")):
        cached = tmp_path / f"models--org--{name}"
        make_folder(cached / "snapshots" / "0123abc", model_type=model_type)
        (cached / "refs").mkdir()
        (cached / "refs" / "main").write_text("0123abc")
    request = tokenize_request("Hello", None, None)
    assert count_locally(EngineSettings(model="org/llama"), request) == tokens_of("llama3", "Hello")
    # Its repository may have a tekken.json, which vLLM would fetch and prefer.
    assert count_locally(EngineSettings(model="org/mistral"), request) is None


# ---- templates and special tokens


@pytest.mark.parametrize(
    ("config", "files", "plain", "with_tools"),
    [
        ({"chat_template": SHOUT}, {}, "HELLO!", "HELLO!"),
        ({"chat_template": SHOUT}, {"chat_template.jinja": TOOLS_FIRST}, "0 tools Hello", "1 tools Hello"),
        (
            {"chat_template": TWO_TEMPLATES},
            {},
            "HELLO!",
            "1 tools Hello",
        ),
        (
            {"chat_template": TOOLS_FIRST},
            {"chat_template.jinja": SHOUT, "additional_chat_templates/tool_use.jinja": TOOLS_FIRST},
            "HELLO!",
            "1 tools Hello",
        ),
        ({"chat_template": SHOUT}, {"chat_template.json": {"chat_template": SHOUT}}, "HELLO!", "HELLO!"),
    ],
)
def test_the_template_is_the_one_vllm_takes(
    tmp_path: Path, config: dict[str, Any], files: dict[str, Any], plain: str, with_tools: str
) -> None:
    folder = make_folder(tmp_path, config=config, files=files)
    assert counted(folder, HELLO) == tokens_of("llama3", plain)
    assert counted(folder, HELLO, tools=[TOOL]) == tokens_of("llama3", with_tools)


@pytest.mark.parametrize(
    ("config", "files"),
    [
        ({"chat_template": None}, {}),
        ({"chat_template": [{"name": "rag", "template": SHOUT}]}, {}),
        ({"chat_template": SHOUT}, {"chat_template.json": {"chat_template": TOOLS_FIRST}}),
        ({"chat_template": TWO_TEMPLATES}, {"preprocessor_config.json": {}}),
    ],
)
def test_no_template_or_an_unclear_one_is_left_to_the_server(
    tmp_path: Path, config: dict[str, Any], files: dict[str, Any]
) -> None:
    folder = make_folder(tmp_path, config=config, files=files)
    assert counted(folder, HELLO) is None
    assert counted(folder, "Hello") is not None


def test_a_conversation_with_gpt_oss_needs_no_template_and_is_left_to_the_server(tmp_path: Path) -> None:
    folder = make_folder(tmp_path, model_type="gpt_oss")
    assert counted(folder, HELLO) is None
    assert counted(folder, HELLO, engine_args={"chat_template": SHOUT}) is None
    assert counted(folder, "Hello") is not None


def test_another_tokenizer_brings_its_own_template(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_folder(tmp_path / "model")
    other = make_folder(tmp_path / "other", "qwen2", "qwen2", config={"chat_template": SHOUT})
    assert counted(model, HELLO, tokenizer=str(other)) == tokens_of("qwen2", "HELLO!")
    monkeypatch.chdir(tmp_path)
    assert counted(model, HELLO, tokenizer="other") is None, "the engine runs in another directory"


def test_special_tokens_are_named_as_for_transformers(tmp_path: Path) -> None:
    template = "{{ bos_token }} {{ eos_token }} {{ image_token }} {{ mask_token }}"
    legacy = {"bos_token": {"content": "<|im_start|>", "lstrip": False}}
    cases: list[tuple[dict[str, Any], str]] = [
        ({"files": {"special_tokens_map.json": legacy}}, "<|im_start|> <|im_end|>  "),
        (
            {
                "config": {"added_tokens_decoder": declared("llama3"), "image_token": "<think>"},
                "files": {"special_tokens_map.json": legacy},
            },
            " <|im_end|> <think> ",
        ),
        (
            {
                "config": {
                    "eos_token": {"__type": "AddedToken", "content": "<|endoftext|>"},
                    "extra_special_tokens": {"mask_token": "</think>"},
                },
            },
            " <|endoftext|>  </think>",
        ),
    ]
    for index, (changes, prompt) in enumerate(cases):
        config = {**changes.get("config", {}), "chat_template": template}
        folder = make_folder(tmp_path / str(index), config=config, files=changes.get("files"))
        assert counted(folder, HELLO) == tokens_of("llama3", prompt), prompt
