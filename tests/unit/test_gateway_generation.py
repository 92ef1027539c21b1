"""``/api/v1/inference/generate``, ``/generate`` and ``/chat``: what is sent of what is asked, and what comes back."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from aiohttp import web

from shared_engine.gateway.config import read_config
from tests.support.gateways import asking
from tests.support.remote_server import RemoteServer, chat_answer, running_server

GENERATE = "/api/v1/inference/generate"
HELLO = [{"role": "user", "content": "Hello"}]


@pytest.fixture
def server() -> Iterator[RemoteServer]:
    with running_server() as server:
        yield server


@pytest.fixture
async def client(tmp_path: Path, server: RemoteServer) -> AsyncIterator[httpx.AsyncClient]:
    model = {"base_url": server.url, "max_retries": 0, "concurrency_limit": 4, "set_params": {"seed": 7}}
    file = tmp_path / "models.yaml"
    file.write_text(json.dumps({"models": {"a": model}}))
    async with asking(read_config(file)) as client:
        yield client


def answers(server: RemoteServer, *texts: str, **more: Any) -> None:
    """All requests are answered so: a choice for each text, or what was asked where there is none."""

    async def handler(request: web.Request) -> web.StreamResponse:
        body = await request.json()
        asked = body["messages"][-1]["content"] if "messages" in body else body["prompt"]
        choices = [
            {"index": at, "finish_reason": "stop", **more, **_said(body, text)}
            for at, text in enumerate(texts or (f"re: {asked}",))
        ]
        return web.json_response({**chat_answer(), "choices": choices})

    server.handler = handler


def _said(body: dict[str, Any], text: str) -> dict[str, Any]:
    return {"text": text} if "prompt" in body else {"message": {"role": "assistant", "content": text}}


def texts_of(answer: httpx.Response) -> list[list[str]]:
    assert answer.status_code == 200, answer.text
    return [[each["text"] for each in outputs] for outputs in answer.json()]


async def test_one_answer_has_its_outputs_and_usage(client: httpx.AsyncClient, server: RemoteServer) -> None:
    answers(server, "one", "two", logprobs={"tokens": ["one"]})
    asked = {"model": "a", "prompt": "Say", "params": {"n": 2, "logprobs": 1, "temperature": 0.5, "stop": ["x"]}}
    answer = await client.post(GENERATE, json=asked)
    assert answer.json() == {
        "outputs": [
            {
                "index": at, "text": text, "finish_reason": "stop", "stop_reason": None, "reasoning": None,
                "tool_calls": [], "logprobs": {"tokens": ["one"]},
            }
            for at, text in enumerate(("one", "two"))
        ],
        "model": "a",
        "usage": {
            "prompt_tokens": 3, "completion_tokens": 1, "cached_tokens": None, "reasoning_tokens": None,
        },
        "request_id": "chatcmpl-1",
    }  # fmt: skip
    _, body = server.requests[-1]
    wanted = {"n": 2, "logprobs": 1, "temperature": 0.5, "stop": ["x"], "seed": 7, "model": "served", "prompt": "Say"}
    assert {name: body[name] for name in wanted} == wanted


async def test_a_chat_goes_through_the_chat_template(client: httpx.AsyncClient, server: RemoteServer) -> None:
    answers(server)
    answer = await client.post(GENERATE, json={"messages": HELLO, "params": {"logprobs": 2, "enable_thinking": False}})
    assert answer.json()["outputs"][0]["text"] == "re: Hello"
    _, body = server.requests[-1]
    assert (body["logprobs"], body["top_logprobs"]) == (True, 2)
    assert body["chat_template_kwargs"]["enable_thinking"] is False


async def test_a_stream_is_events_and_ends_with_the_usage(client: httpx.AsyncClient, server: RemoteServer) -> None:
    server.streams("Hel", "lo")
    answer = await client.post(GENERATE, json={"messages": HELLO, "stream": True})
    assert answer.headers["content-type"] == "text/event-stream"
    *events, last = [line.removeprefix("data: ") for line in answer.text.split("\n\n") if line]
    assert last == "[DONE]"
    told = [json.loads(each) for each in events]
    assert "".join(each.get("text", "") for each in told) == "Hello"
    assert set(told[-1]) == {"model", "usage", "request_id"}
    server.streams("Hel", then="cut")
    cut = await client.post(GENERATE, json={"messages": HELLO, "stream": True})
    assert "error" in json.loads(cut.text.split("data: ")[-1])


async def test_many_are_answered_in_their_order_a_list_of_outputs_each(
    client: httpx.AsyncClient, server: RemoteServer
) -> None:
    in_flight, most = 0, 0

    async def slower_and_slower(request: web.Request) -> web.StreamResponse:
        nonlocal in_flight, most
        in_flight += 1
        most = max(most, in_flight)
        body = await request.json()
        text = body["messages"][-1]["content"] if "messages" in body else body["prompt"]
        await asyncio.sleep(0.02 / (1 + int(text)))
        in_flight -= 1
        choices = [{"index": at, "finish_reason": "stop", **_said(body, f"{text}{at}")} for at in range(2)]
        return web.json_response({**chat_answer(), "choices": choices})

    server.handler = slower_and_slower
    wanted = [[f"{number}0", f"{number}1"] for number in range(9)]
    prompts = [str(number) for number in range(9)]
    assert texts_of(await client.post("/generate", json={"prompts": prompts, "params": {"n": 2}})) == wanted
    assert most == 4  # as concurrency_limit says: the rest of a batch is not what fills a queue
    conversations = [[{"role": "user", "content": prompt}] for prompt in prompts]
    assert texts_of(await client.post("/chat", json={"conversations": conversations, "params": {"n": 2}})) == wanted
    assert texts_of(await client.post("/generate", json={"prompts": []})) == []
    assert texts_of(await client.post("/chat", json={"conversations": [], "model": "a"})) == []


async def test_a_refusal_of_one_is_that_of_all_and_names_it(client: httpx.AsyncClient, server: RemoteServer) -> None:
    async def refuses_the_third(request: web.Request) -> web.StreamResponse:
        body = await request.json()
        if body["prompt"] == "c":
            return web.json_response({"error": {"message": "too long", "code": 400}}, status=400)
        if body["prompt"] == "d":
            await asyncio.sleep(30)  # which is not waited for
        return web.json_response({**chat_answer(), "choices": [{"index": 0, "text": "", "finish_reason": "stop"}]})

    server.handler = refuses_the_third
    refused = await client.post("/generate", json={"prompts": ["a", "b", "c", "d", "e"]})
    assert refused.status_code == 400
    error = refused.json()["error"]
    assert error["param"] == "prompts[2]"
    assert error["message"].startswith("prompts[2]: ")
    assert "too long" in error["message"]


@pytest.mark.parametrize(
    ("path", "body", "place"),
    [
        ("/generate", {"prompts": ["a", 7]}, "prompts[1]"),
        ("/chat", {"conversations": [HELLO, [{"content": "a"}]]}, "conversations[1]"),
        ("/generate", {"prompts": ["a"], "params": {"n": 0}}, None),
    ],
)
async def test_what_is_refused_before_it_is_sent_has_its_place_too(
    client: httpx.AsyncClient, path: str, body: dict[str, Any], place: str | None
) -> None:
    assert (await client.post(path, json=body)).json()["error"]["param"] == place


@pytest.mark.parametrize(
    ("path", "body", "why"),
    [
        (GENERATE, {}, "prompt or messages"),
        (GENERATE, {"prompt": "a", "messages": HELLO}, "prompt or messages"),
        (GENERATE, {"prompt": "a", "params": {"temperatur": 1}}, "temperature"),
        (GENERATE, {"prompt": "a", "params": {"temperature": -1}}, "temperature"),
        (GENERATE, {"prompt": "a", "params": {"extra_body": {"model": "b"}}}, "extra_body"),
        (GENERATE, {"prompt": "a", "params": {"lora": "b"}}, "as model"),
        (GENERATE, {"prompt": "a", "params": {"timeout": 5}}, "timeout"),
        (GENERATE, {"prompt": "a", "params": {"enable_thinking": True}}, "chat template"),
        (GENERATE, {"prompt": "a", "temperature": 0}, "temperature"),
        (GENERATE, {"prompt": "a", "tools": [{"type": "function"}]}, "tools"),
        (GENERATE, {"prompt": "a", "keep_alive": "soon"}, "keep_alive"),
        (GENERATE, {"messages": []}, "messages"),
        ("/generate", {}, "prompts"),
        ("/generate", {"prompts": "a"}, "array"),
        ("/generate", {"prompts": ["a", 7]}, r"prompts[1]"),
        ("/generate", {"prompts": [], "params": {"n": 0}}, "n = 0"),
        ("/chat", {"conversations": [HELLO, [{"content": "a"}]]}, r"conversations[1]"),
        ("/chat", {"conversations": [HELLO], "stream": True}, "stream"),
    ],
)
async def test_what_is_wrong_is_said_before_anything_is_sent(
    client: httpx.AsyncClient, server: RemoteServer, path: str, body: dict[str, Any], why: str
) -> None:
    refused = await client.post(path, json=body)
    assert refused.status_code == 400
    assert why in refused.json()["error"]["message"]
    assert server.requests == []


async def test_a_batch_has_an_end(client: httpx.AsyncClient, server: RemoteServer) -> None:
    refused = await client.post("/generate", json={"prompts": ["a"] * 10_001})
    assert (refused.status_code, refused.json()["error"]["code"]) == (413, "too_many_items")
    assert (await client.post("/chat", json={"conversations": [HELLO], "model": "b"})).status_code == 404
    assert server.requests == []
