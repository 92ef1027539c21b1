"""Results of tools: what is no text becomes text, and what is too long is cut."""

from __future__ import annotations

import asyncio
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from llama_index.core.llms import ChatMessage

from langchain_vllm_local import ChatVLLM
from llama_index_vllm_local import VLLM
from shared_engine import Engine, InvalidInputError, SettingsError
from tests.support.remote_server import running_server
from tests.support.small_tokenizers import make_folder

CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
ASKED: list[dict[str, Any]] = [
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
]


def sent_result(content: Any, **settings: Any) -> Any:
    with running_server() as server:
        Engine(base_url=server.url, **settings).chat(
            [*ASKED, {"role": "tool", "tool_call_id": "1", "content": content}]
        )
    return server.requests[0][1]["messages"][2]["content"]


PART = {"type": "text", "text": "a"}


@pytest.mark.parametrize(
    ("content", "sent"),
    [
        ("a", "a"),
        ([PART], [PART]),
        (["a", PART], ["a", PART]),
        (None, ""),
        (5, "5"),
        (1.5, "1.5"),
        (True, "true"),
        ({"a": date(2026, 1, 2)}, '{"a": "2026-01-02"}'),
        ([1, {"b": "é"}], '[1, {"b": "é"}]'),
        ([{"a": 1}], '[{"a": 1}]'),
        (b"caf\xc3\xa9", "café"),
        (b"\xff\xfe", "[2 bytes are not shown]"),
        (("a", "b"), '["a", "b"]'),
        (Path("/a/b"), '"/a/b"'),
        ([], []),
        ("caf\udce9.txt", "caf\\udce9.txt"),  # a file's name as Python reads it
        (["caf\udce9", {"type": "text", "text": "\udce9"}], ["caf\\udce9", {"type": "text", "text": "\\udce9"}]),
    ],
)  # fmt: skip
def test_what_a_tool_returns_is_sent_as_text(content: Any, sent: Any) -> None:
    assert sent_result(content) == sent


def test_what_others_say_is_text_as_ever() -> None:
    with pytest.raises(InvalidInputError, match=r"messages\[0\].content must be a string or a list"):
        Engine(base_url="http://127.0.0.1:9").chat([{"role": "user", "content": 5}])


LONG = "a" * 700 + "b" * 100_000 + "c" * 300


def test_a_result_that_is_longer_than_wanted_is_cut_and_says_so() -> None:
    cut = sent_result(LONG, max_tool_result_chars=1000)
    assert cut == "a" * 700 + "b" * 50 + "\n[... 100000 characters of the tool's result are left out ...]\n" + "c" * 250
    assert sent_result([{"type": "text", "text": LONG}, PART], max_tool_result_chars=1000) == [
        {"type": "text", "text": cut},
        PART,
    ]
    assert sent_result(LONG[:1000], max_tool_result_chars=1000) == LONG[:1000]
    assert sent_result(LONG, max_tool_result_chars=None) == LONG


def test_by_default_what_can_not_fit_is_cut(tmp_path: Path) -> None:
    model = str(make_folder(tmp_path, model={"max_position_embeddings": 1000}))

    def checked(content: str, **settings: Any) -> Any:
        engine = Engine(model=model, **settings)
        return engine._checked([*ASKED, {"role": "tool", "content": content}])[2]["content"]

    assert checked("x" * 4000) == "x" * 4000
    assert len(checked("x" * 4001)) < 600
    assert checked("x" * 4001, max_model_len=2000) == "x" * 4001
    assert checked("x" * 4001, max_tool_result_chars=None) == "x" * 4001
    assert sent_result(LONG) == LONG  # of a server whose window is not known


def test_only_results_are_cut() -> None:
    messages = [{"role": "user", "content": LONG}]
    assert Engine(base_url="http://127.0.0.1:9", max_tool_result_chars=10)._checked(messages) is messages


@pytest.mark.parametrize("value", [0, -1, "many", True, 1.5])
def test_a_limit_is_a_number_of_characters(value: Any) -> None:
    with pytest.raises(SettingsError, match=r"max_tool_result_chars.*number of characters greater than 0"):
        Engine(base_url="http://127.0.0.1:9", max_tool_result_chars=value)


def test_both_adapters_cut_in_every_form() -> None:
    langchain = [
        HumanMessage("Hi"),
        AIMessage("", tool_calls=[{"name": "f", "args": {}, "id": "1"}]),
        ToolMessage(LONG, tool_call_id="1"),
    ]
    llama_index = [ChatMessage("Hi"), ChatMessage(role="tool", content=LONG, additional_kwargs={"tool_call_id": "1"})]
    with running_server() as server:
        own: dict[str, Any] = {"base_url": server.url, "max_tool_result_chars": 1000}
        ChatVLLM(**own).invoke(langchain)
        ChatVLLM(**own).batch([langchain])
        asyncio.run(ChatVLLM(**own).ainvoke(langchain))
        VLLM(**own).chat(llama_index)
        VLLM(**own).chat_batch([llama_index])
        asyncio.run(VLLM(**own).achat(llama_index))
    lengths = {len(body["messages"][-1]["content"]) for _, body in server.requests}
    assert len(server.requests) == 6
    assert max(lengths) < 1100
