"""A conversation that `vllm-local chat` has saved, in LlamaIndex."""

from __future__ import annotations

from pathlib import Path

import pytest
from llama_index.core.llms import ChatMessage, ImageBlock, MessageRole

from llama_index_vllm_local import VLLM
from shared_engine.cli.asking.answer import Answer
from shared_engine.cli.chat.conversation import Conversation
from tests.support.chats import loaded_as_the_page_says, saved
from tests.support.remote_server import running_server


def test_messages_of_a_session_are_llama_indexs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    talk = Conversation("Be brief.")
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64,aGk="}}
    talk.add({"role": "user", "content": [picture, {"type": "text", "text": "What?"}]}, Answer(text="A dot."))
    talk.add({"role": "user", "content": "Sure?"}, Answer(text="Yes.", reasoning="Am I?"))
    messages = loaded_as_the_page_says("llama_index", saved(talk, tmp_path), monkeypatch)
    assert [message.role for message in messages] == [
        MessageRole.SYSTEM,
        MessageRole.USER,
        MessageRole.ASSISTANT,
        MessageRole.USER,
        MessageRole.ASSISTANT,
    ]
    assert [message.content for message in messages] == ["Be brief.", "What?", "A dot.", "Sure?", "Yes."]
    assert isinstance(messages[1].blocks[0], ImageBlock)
    with running_server() as server:
        VLLM(base_url=server.url).chat([*messages, ChatMessage("And now?")])
    sent = server.requests[0][1]["messages"]
    assert sent == talk.to_send({"role": "user", "content": "And now?"})
