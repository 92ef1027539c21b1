"""A conversation that `vllm-local chat` has saved, in LangChain."""

from __future__ import annotations

from pathlib import Path

import pytest
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage

from langchain_vllm_local import ChatVLLM
from shared_engine.cli.asking.answer import Answer
from shared_engine.cli.chat.conversation import Conversation
from tests.support.chats import loaded_as_the_page_says, saved
from tests.support.remote_server import running_server


def test_messages_of_a_session_are_langchains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    talk = Conversation("Be brief.")
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64,aGk="}}
    talk.add({"role": "user", "content": [picture, {"type": "text", "text": "What?"}]}, Answer(text="A dot."))
    talk.add({"role": "user", "content": "Sure?"}, Answer(text="Yes.", reasoning="Am I?"))
    messages = loaded_as_the_page_says("langchain_core", saved(talk, tmp_path), monkeypatch)
    assert [type(message) for message in messages] == [
        SystemMessage,
        HumanMessage,
        AIMessage,
        HumanMessage,
        AIMessage,
    ]
    assert [message.text for message in messages] == ["Be brief.", "What?", "A dot.", "Sure?", "Yes."]
    assert messages[-1].additional_kwargs == {"reasoning_content": "Am I?"}
    with running_server() as server:
        ChatVLLM(base_url=server.url).invoke([*messages, HumanMessage("And now?")])
    sent = server.requests[0][1]["messages"]
    for part in sent[1]["content"]:  # LlamaIndex's fields, which vLLM leaves alone
        part.pop("block_type", None)
        part.pop("url", None)
    assert sent[4].pop("reasoning") == "Am I?"  # ChatVLLM shows templates that ask for it what was thought
    assert sent == talk.to_send({"role": "user", "content": "And now?"})
