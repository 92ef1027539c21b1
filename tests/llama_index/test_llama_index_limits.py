"""What LlamaIndex plans with: the context window of a server that is asked for it once, and the room for an answer."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from llama_index.core import Document, PromptTemplate, Settings, SummaryIndex
from llama_index.core.constants import DEFAULT_CONTEXT_WINDOW, DEFAULT_NUM_OUTPUTS
from llama_index.core.llms import ChatMessage

from llama_index_vllm_local import VLLM
from tests.support.hub import hub
from tests.support.interpreters import make_fetcher
from tests.support.paths import TINY_CHAT
from tests.support.remote_server import RemoteServer, running_server
from tests.support.scripted import answers

WINDOW = 2000
LONG = "word " * 5000
WAYS: dict[str, Callable[[Any], Any]] = {
    "query": lambda engine: engine.query("What is said?"),
    "aquery": lambda engine: asyncio.run(engine.aquery("What is said?")),
    "stream": lambda engine: "".join(engine.query("What is said?").response_gen),
}


def words_sent(server: RemoteServer) -> list[int]:
    return [sum(len(message["content"].split()) for message in body["messages"]) for _, body in server.requests]


@pytest.mark.parametrize("mode", ["compact", "refine", "tree_summarize"])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.slow
def test_a_remote_servers_window_is_filled_and_kept_from_the_first_line(
    server: RemoteServer, monkeypatch: pytest.MonkeyPatch, way: str, mode: str
) -> None:
    monkeypatch.setattr(Settings, "tokenizer", str.split)
    server.models = [{"id": "served", "max_model_len": WINDOW}]
    answers(server, "Words.")
    llm = VLLM(base_url=server.url, model="served")
    index = SummaryIndex.from_documents([Document(text=LONG)])
    WAYS[way](index.as_query_engine(llm=llm, response_mode=mode, streaming=way == "stream"))
    lengths = words_sent(server)
    assert max(lengths) <= WINDOW - llm.metadata.num_output
    assert lengths[0] > WINDOW * 0.4
    assert len(lengths) > 1
    assert [route for route, _ in server.looks] == ["/v1/models"]


def test_nobody_is_asked_for_a_call(server: RemoteServer) -> None:
    llm = VLLM(base_url=server.url, model="served")
    llm.complete("Hi")
    list(llm.stream_chat([ChatMessage(role="user", content="Hi")]))
    assert not server.looks
    assert llm.metadata.context_window == 2048
    assert VLLM(base_url=server.url, model="served").predict(PromptTemplate("Hi")) == "Hi"
    assert len(server.looks) == 1


@pytest.mark.parametrize("settings", [{"context_window": 700}, {"max_model_len": 700}])
def test_a_window_that_was_given_is_not_asked_for(server: RemoteServer, settings: dict[str, Any]) -> None:
    assert VLLM(base_url=server.url, **settings).metadata.context_window == 700
    assert not server.looks


@pytest.mark.parametrize(
    ("settings", "room"),
    [
        ({"model": "Qwen/Qwen3-4B", "max_model_len": 40960}, 10240),  # it thinks first
        ({"model": "Qwen/Qwen3-4B", "max_model_len": 1 << 20}, 32768),
        ({"model": "Qwen/Qwen3-4B", "max_model_len": 40960, "enable_thinking": False}, 1024),
        ({"model": "Qwen/Qwen3-4B", "max_model_len": 40960, "reasoning_effort": "none"}, 1024),
        ({"model": "Qwen/Qwen3-4B", "max_model_len": 40960, "chat_template_kwargs": {"enable_thinking": False}}, 1024),
        ({"model": "Qwen/Qwen3-4B", "max_model_len": 40960, "max_tokens": 99}, 99),
        ({"model": "a/b", "max_model_len": 8192, "max_tokens": 8192}, 6144),  # a prompt has to have some room, too
        ({"model": "a/b", "max_tokens": 8192}, 8192),
        ({"model": "Qwen/Qwen3-4B", "max_model_len": 40960, "is_chat_model": False}, 1024),
        ({"model": "meta-llama/Llama-3.1-8B-Instruct", "max_model_len": 131072}, 1024),
        ({"model": "meta-llama/Llama-3.1-8B-Instruct", "max_model_len": 131072, "enable_thinking": True}, 32768),
        ({"model": "meta-llama/Llama-3.1-8B-Instruct", "max_model_len": 131072, "reasoning_effort": "low"}, 32768),
        ({"model": "a/b", "max_model_len": 512}, 128),
        ({"model": "a/b", "context_window": 512}, 128),
        ({"model": "a/b", "context_window": 2}, 1),
        ({"model": "a/b"}, DEFAULT_NUM_OUTPUTS),
        ({"model": str(TINY_CHAT)}, 512),
        ({"base_url": "http://127.0.0.1:9", "model": "Qwen/Qwen3-4B", "max_model_len": 40960}, 10240),
        ({"base_url": "http://127.0.0.1:9", "max_model_len": 40960}, 1024),
    ],
)
def test_prompts_leave_room_for_an_answer(settings: dict[str, Any], room: int) -> None:
    assert VLLM(**settings).metadata.num_output == room


def test_the_room_follows_what_is_assigned() -> None:
    llm = VLLM(model="Qwen/Qwen3-4B", max_model_len=40960)
    llm.enable_thinking = False
    assert llm.metadata.num_output == 1024
    llm.max_tokens = 5
    assert llm.metadata.num_output == 5


@pytest.mark.slow
def test_a_filled_prompt_leaves_a_thinking_model_its_thought(
    server: RemoteServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Settings, "tokenizer", str.split)
    server.models = [{"id": "Qwen/Qwen3-4B", "max_model_len": 4096}]
    answers(server, "Words.")
    llm = VLLM(base_url=server.url, model="Qwen/Qwen3-4B")
    SummaryIndex.from_documents([Document(text=LONG)]).as_query_engine(llm=llm).query("What is said?")
    assert max(words_sent(server)) <= 3072
    assert all("max_tokens" not in body for _, body in server.requests)


@pytest.mark.slow
def test_of_a_model_on_the_hub_the_config_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    (tmp_path / "model").mkdir()
    (tmp_path / "model/config.json").write_text(json.dumps({"max_position_embeddings": 8888}))
    with hub(tmp_path / "model", "org/eight") as url:
        monkeypatch.setenv("HF_ENDPOINT", url)
        metadata = VLLM(model="org/eight", python=make_fetcher(tmp_path / "env")).metadata
        assert (metadata.context_window, metadata.num_output) == (8888, 1024)


def test_a_server_that_is_down_leaves_llama_indexs_default() -> None:
    assert VLLM(base_url="http://127.0.0.1:9").metadata.context_window == DEFAULT_CONTEXT_WINDOW


def test_a_fleet_is_planned_for_its_smallest_server() -> None:
    with running_server() as one, running_server() as other:
        other.models = [{"id": "served", "max_model_len": 512}]
        assert VLLM(base_url=[one.url, other.url], model="served").metadata.context_window == 512
