"""Conversations that a server's chat template refuses: by the engine, and by both adapters in every way to ask."""

from __future__ import annotations

import asyncio
import json
import logging
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from langchain_core.messages import AIMessage, HumanMessage
from llama_index.core.llms import ChatMessage, ImageBlock

from langchain_vllm_local import ChatVLLM
from llama_index_vllm_local import VLLM
from shared_engine import Engine, InvalidInputError, RequestError, RequestRejectedError
from shared_engine.errors import ContextLengthError, ServerError
from shared_engine.params import GenerationParams
from shared_engine.request.bodies import chat_request
from shared_engine.request.refused_traits import refusable
from tests.support.conversations import WAYS, openais
from tests.support.remote_server import RemoteServer, running_server
from tests.support.scripted import answers
from tests.support.small_tokenizers import make_folder
from tests.support.strict_templates import TEMPLATES, StrictServer, strict_server

ROLES = [("user", "one"), ("assistant", "two"), ("system", "late"), ("user", "three")]
MESSAGES = openais(ROLES)
SOME_WAYS = ("chat", "stream", "llama_achat")
MERGED = "<system>late\n<user>one\n<assistant>two\n<user>three\n"


def own(server: StrictServer, **more: Any) -> dict[str, Any]:
    return {"base_url": server.url, "model": "served", **more}


@pytest.mark.parametrize("way", WAYS)
def test_what_the_server_refuses_is_sent_in_a_form_that_it_takes(way: str) -> None:
    with strict_server(TEMPLATES["qwen 3.5"]) as server:
        WAYS[way](ROLES, own(server), {})
        assert (server.prompts, server.refused) == ([MERGED], 1)
        WAYS[way](ROLES, own(server), {})
        assert (server.prompts, server.refused) == ([MERGED] * 2, 1)  # remembered, by another object too


@pytest.mark.parametrize("way", SOME_WAYS)
def test_nothing_is_changed_where_that_was_not_wanted(way: str) -> None:
    with strict_server(TEMPLATES["qwen 3.5"]) as server:
        with pytest.raises(RequestRejectedError, match="System message must be at the beginning"):
            WAYS[way](ROLES, own(server, merge_messages="never"), {})
        assert (server.prompts, server.refused) == ([], 1)


@pytest.mark.parametrize("way", SOME_WAYS)
def test_always_means_before_anything_is_refused(way: str) -> None:
    with strict_server(TEMPLATES["qwen 3.5"]) as server:
        WAYS[way](ROLES, own(server, merge_messages="always"), {})
        assert (server.prompts, server.refused) == ([MERGED], 0)


def test_what_the_template_takes_is_sent_as_it_is() -> None:
    anything = "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}"
    with strict_server(anything) as server:
        Engine(**own(server)).chat(MESSAGES)
        assert server.prompts == ["<user>one\n<assistant>two\n<system>late\n<user>three\n"]


def test_it_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "shared_engine")
    with strict_server(TEMPLATES["qwen 3.5"]) as server:
        for _ in range(3):
            Engine(**own(server)).chat(MESSAGES)
    (said,) = [record.message for record in caplog.records if "does not take" in record.message]
    assert "served at http" in said
    assert "does not take a late or second system message (it is moved to the front): System message must" in said
    assert 'merge_messages="never"' in said


OFTEN_SENT = (
    ("system", "user"), ("system", "system", "user"), ("user", "system"), ("user", "user"), ("assistant", "user"),
    ("user", "assistant"), ("system",), ("user", "assistant", "assistant", "user"), ("developer", "user", "system"),
)  # fmt: skip


@pytest.mark.parametrize("family", TEMPLATES)
def test_every_family_takes_what_agents_and_memories_send(family: str) -> None:
    with strict_server(TEMPLATES[family]) as server:
        for roles in OFTEN_SENT:
            Engine(**own(server)).chat([{"role": role, "content": f"<{at}>"} for at, role in enumerate(roles)])
            if family != "drops":  # it refuses nothing: only who has the template knows what it leaves out
                assert all(f"<{at}>" in server.prompts[-1] for at in range(len(roles)))


@pytest.mark.parametrize("status", [400, 404, 422, 500])  # of vLLM; mlx_lm; others; llama.cpp
def test_other_servers_say_it_with_other_statuses(status: int) -> None:
    with strict_server(TEMPLATES["gemma 2"], status) as server:
        assert Engine(**own(server)).chat(MESSAGES).text == "Hi"


@pytest.mark.parametrize("way", ["chat", "stream_chat", "astream", "llama_stream"])
def test_some_say_it_in_an_answer_that_began_well(way: str) -> None:
    """As LocalAI does: status 200, and an error in the answer or as the stream's first event."""
    said = {"error": {"code": "server_error", "message": "Jinja Exception: System message must be at the beginning."}}

    async def handler(request: web.Request) -> web.StreamResponse:
        body = await request.json()
        if body["messages"][0]["role"] == "system":
            return await well(request)
        if body.get("stream"):
            event = b"data: " + json.dumps(said).encode() + b"\n\ndata: [DONE]\n\n"
            return web.Response(body=event, headers={"Content-Type": "text/event-stream"})
        return web.json_response(said)

    with running_server() as server:
        answers(server, "Hi")
        well, server.handler = server.handler, handler
        for _ in range(2):
            WAYS[way](ROLES, {"base_url": server.url, "model": "served"}, {})
    assert [body["messages"][0]["role"] for _, body in server.requests] == ["user", "system", "system"]


def test_what_no_form_helps_is_the_first_refusal() -> None:
    with strict_server("{{ raise_exception('The roles are wrong: ' ~ messages | length) }}") as server:
        with pytest.raises(RequestRejectedError, match="wrong: 4"):
            Engine(**own(server)).chat(MESSAGES)
        refused = server.refused
        with pytest.raises(RequestRejectedError, match="wrong: 4"):
            Engine(**own(server)).chat(MESSAGES)
        assert server.refused == 2 * refused  # nothing was learned
        with pytest.raises(RequestRejectedError, match="wrong: 4"):
            list(Engine(**own(server)).stream_chat(MESSAGES))
        assert server.refused == 3 * refused


@pytest.mark.parametrize(
    ("error", "is_about_traits"),
    [
        (RequestRejectedError("System message must be at the beginning.", 400), True),
        (RequestRejectedError("Conversation roles must alternate user/assistant/...", 400), True),
        (RequestRejectedError("System role not supported", 400), True),
        (RequestRejectedError("No user query found in messages.", 400), True),
        (RequestRejectedError("Tool call IDs should be alphanumeric strings with length 9!", 400), True),
        (RequestRejectedError("Expected last role User or Tool (or Assistant with prefix)", 400), True),
        (ServerError("Jinja Exception: no", 500), True),
        (RequestRejectedError("m is not a multimodal model", 400), True),
        (RequestRejectedError("Tool call id was call_1 but must be a-z, A-Z, 0-9, with a length of 9.", 400), True),
        (RequestRejectedError("tool_call_id is not found", 400), True),
        (RequestRejectedError("No tool output found for function call call_1", 400), True),
        (RequestRejectedError("Unexpected role 'tool' after role 'system'", 400), True),
        (RequestRejectedError("Unexpected item type in content", 400), True),
        (RequestRejectedError("temperature must be below 2", 400), False),
        (RequestRejectedError("At most 2 image(s) may be provided in one prompt.", 400), False),
        (ContextLengthError("the roles fill the maximum context length", 400, 10), False),
        (ServerError("the role of this server is over", 503), False),
        (RequestError("roles must alternate", None), False),
    ],
)
def test_which_errors_are_about_a_conversations_form(error: RequestError, is_about_traits: bool) -> None:
    assert bool(refusable(error)) is is_about_traits


# ---- images

IMAGE = {"type": "image_url", "image_url": {"url": "https://x.example/a.png"}}
NOTE = {"type": "text", "text": "[image at https://x.example/a.png is not shown]"}
CALL = {"id": "1", "type": "function", "function": {"name": "look", "arguments": "{}"}}
LOOKED: list[dict[str, Any]] = [
    {"role": "user", "content": "Look"},
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "1", "content": [IMAGE]},
]
TEXT_ONLY = "m is not a multimodal model"
EXPIRED = "403, message='Forbidden', url='https://x.example/a.png'"


def takes_no_image(server: RemoteServer, status: int, said: str) -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        if "image_url" in await request.text():
            return web.json_response({"error": {"message": said, "code": status}}, status=status)
        return await server.answer(request)

    server.handler = handler


@pytest.mark.parametrize(("status", "said", "is_remembered"), [(400, TEXT_ONLY, True), (500, EXPIRED, False)])
def test_an_image_of_a_tool_that_can_not_be_shown_becomes_a_note(status: int, said: str, is_remembered: bool) -> None:
    with running_server() as server:
        takes_no_image(server, status, said)
        for _ in range(2):
            Engine(base_url=server.url, model="served").chat(LOOKED)
    sent = [body["messages"][2]["content"] for _, body in server.requests]
    assert sent == [[IMAGE], [NOTE], *([[NOTE]] if is_remembered else [[IMAGE], [NOTE]])]


def test_an_image_that_is_asked_about_stays_an_error_which_names_it() -> None:
    image = {"type": "image", "url": "https://x.example/b.png"}
    earlier = [HumanMessage([image]), AIMessage("A cat."), HumanMessage("And now?")]
    with running_server() as server:
        takes_no_image(server, 400, TEXT_ONLY)
        llm = ChatVLLM(base_url=server.url, model="served")
        assert llm.invoke(earlier).text == "Hi"
        with pytest.raises(
            InvalidInputError, match=r"messages\[2\].content\[0\] is an image, and served takes text only"
        ):
            llm.invoke([*earlier[:2], HumanMessage([image])])
        own = VLLM(base_url=server.url, model="served")
        with pytest.raises(InvalidInputError, match=r"messages\[0\].blocks\[0\] is an image"):
            own.chat([ChatMessage(blocks=[ImageBlock(url="https://x.example/b.png")])])


# ---- a local engine's model


@pytest.fixture
def model(tmp_path: Path) -> str:
    return str(make_folder(tmp_path, files={"chat_template.jinja": TEMPLATES["gemma 2"]}))


async def sent(engine: Engine, messages: Any, **params: Any) -> Any:
    request = await engine._fit(chat_request(messages, GenerationParams(**params)))
    return json.loads(request.body)["messages"]


async def test_the_template_of_a_local_model_is_known_before_anything_starts(model: str) -> None:
    merged = [{"role": "user", "content": "late\n\none"}, *MESSAGES[1:2], MESSAGES[3]]
    assert await sent(Engine(model=model), MESSAGES) == merged
    assert await sent(Engine(model=model, merge_messages="never"), MESSAGES) == MESSAGES
    assert await sent(Engine(model=model, merge_messages="always"), MESSAGES) == merged
    assert await sent(Engine(model=model), MESSAGES[:1]) == MESSAGES[:1]


def test_what_is_counted_is_what_is_sent(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(model=model)
    counted: list[Any] = []

    def count(messages: Any, *_: object) -> int:
        counted.append(messages)
        return 5

    monkeypatch.setattr(engine._local_tokenizer, "chat_tokens", count)
    assert engine.count_tokens(MESSAGES) == 5
    assert asyncio.run(engine.acount_tokens(MESSAGES)) == 5
    assert counted == [[{"role": "user", "content": "late\n\none"}, *MESSAGES[1:2], MESSAGES[3]]] * 2
