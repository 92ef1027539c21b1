"""An answer that goes on with the conversation's last message: vLLM's two switches, and what they need."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from langchain_vllm_local import ChatVLLM
from shared_engine import Engine, InvalidInputError
from tests.support.conversations import WAYS, langchains, openais
from tests.support.remote_server import RemoteServer, running_server
from tests.support.scripted import answers
from tests.support.strict_templates import TEMPLATES, StrictServer

ROLES = [("user", "Name a river"), ("assistant", "The river is the")]
MESSAGES = openais(ROLES)
ON: Any = {"continue_final_message": True}


@pytest.fixture
def server() -> Iterator[RemoteServer]:
    with running_server() as server:
        yield server


@pytest.mark.parametrize("way", WAYS)
def test_the_last_message_is_continued_and_stays_the_last(way: str, server: RemoteServer) -> None:
    answers(server, " Rhine.")
    strict = StrictServer(server, TEMPLATES["mistral-common"])
    WAYS[way](ROLES, {"base_url": server.url}, ON)
    ((_, body),) = server.requests
    assert (body["continue_final_message"], body["add_generation_prompt"]) == (True, False)
    assert body["messages"][-1]["content"] == "The river is the"
    assert strict.refused == 0


@pytest.mark.parametrize(
    "messages",
    [
        MESSAGES[:1],
        [*MESSAGES, MESSAGES[0]],
        [MESSAGES[0], {"role": "assistant", "content": ""}],
        [MESSAGES[0], {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}],
    ],
)
def test_what_can_t_be_continued_is_refused_with_its_position(messages: Any) -> None:
    engine = Engine(model="org/name")
    with pytest.raises(InvalidInputError, match=rf"continue_final_message: messages\[{len(messages) - 1}\], the last"):
        engine.chat(messages, **ON)
    with pytest.raises(InvalidInputError, match=r"continue_final_message: messages"):
        engine.count_tokens(messages, **ON)


def test_a_text_has_no_last_message() -> None:
    with pytest.raises(InvalidInputError, match="continue_final_message is for the chat template"):
        Engine(model="org/name").generate("Hello", **ON)
    with pytest.raises(InvalidInputError, match="go with messages, not with a text"):
        Engine(model="org/name").count_tokens("Hello", **ON)


def test_off_is_not_sent(server: RemoteServer) -> None:
    Engine(base_url=server.url).chat(MESSAGES, continue_final_message=False)
    assert not {"continue_final_message", "add_generation_prompt"} & server.requests[0][1].keys()


def test_it_can_be_bound(server: RemoteServer) -> None:
    ChatVLLM(base_url=server.url).bind(**ON).invoke(langchains(ROLES))
    assert server.requests[0][1]["continue_final_message"] is True
