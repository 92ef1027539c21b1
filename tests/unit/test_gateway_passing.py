"""What the gateway makes of a model's answers, and tells of models, at moments that are rare."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from aiohttp import web

from shared_engine.gateway.config import read_config
from tests.support.callers import HELLO
from tests.support.gateways import CHAT, asking, running_gateway
from tests.support.remote_server import chat_answer, running_server

MESSAGES = "/v1/messages"
MESSAGE: Any = HELLO
REFUSED = {"type": "error", "error": {"type": "invalid_request_error", "message": "max_tokens: too\nlarge"}}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("route", "status", "body", "name", "expected"),
    [
        (MESSAGES, 400, json.dumps(REFUSED), "event: error\n", REFUSED),
        (MESSAGES, 400, json.dumps(REFUSED, indent=2), "event: error\n", REFUSED),
        (CHAT, 400, json.dumps(REFUSED, indent=2), "", REFUSED),
        (CHAT, 200, json.dumps(chat_answer(), indent=2), "", chat_answer()),
    ],
    ids=["messages", "messages in lines", "chat in lines", "answer in lines"],
)
def test_an_answer_in_one_piece_after_a_comment_is_one_event_that_its_clients_read(
    tmp_path: Path, route: str, status: int, body: str, name: str, expected: dict[str, Any]
) -> None:
    async def late(request: web.Request) -> web.StreamResponse:
        await asyncio.sleep(0.3)
        return web.Response(status=status, text=body, content_type="application/json")

    found, data = last_event(tmp_path, late, route)
    assert (found, json.loads(data)) == (name, expected)


@pytest.mark.slow
@pytest.mark.parametrize(("route", "name"), [(MESSAGES, "event: error\n"), (CHAT, "")])
def test_an_error_that_is_no_json_after_a_comment_is_told_in_form(tmp_path: Path, route: str, name: str) -> None:
    async def late(request: web.Request) -> web.StreamResponse:
        await asyncio.sleep(0.3)
        return web.Response(status=413, text="<html>\n<h1>Too large</h1>\n</html>", content_type="text/html")

    found, data = last_event(tmp_path, late, route)
    assert found == name
    assert "Too large" in json.loads(data)["error"]["message"]


def last_event(folder: Path, handler: Any, route: str) -> tuple[str, str]:
    """Its name, and its data in one line, of a stream that began with comments."""
    with running_gateway(folder, handler, comment_interval_s=0.05) as (host, port):
        answer = httpx.post(
            f"http://{host}:{port}{route}", json={"model": "a", "messages": [], "stream": True}, trust_env=False
        )
    assert (answer.status_code, answer.headers["content-type"]) == (200, "text/event-stream")
    *comments, event = answer.text.strip().split("\n\n")
    assert {each.strip() for each in comments if each.strip()} == {": waiting for a"}
    name, found, data = event.lstrip("\n").rpartition("data: ")
    assert found
    assert "\n" not in data
    return name, data


@pytest.mark.parametrize(
    ("route", "body"),
    [
        (CHAT, {"messages": HELLO}),
        ("/api/chat", {"messages": HELLO}),
        ("/api/chat", {"messages": HELLO, "stream": False}),
        ("/api/v1/inference/generate", {"messages": HELLO}),
        ("/api/v1/inference/generate", {"messages": HELLO, "stream": True}),
        ("/generate", {"prompts": ["Hello"]}),
    ],
)
async def test_when_to_ask_again_is_told_as_the_models_server_says_it(
    tmp_path: Path, route: str, body: dict[str, Any]
) -> None:
    with running_server() as far:
        file = tmp_path / "models.yaml"
        file.write_text(json.dumps({"models": {"a": {"base_url": far.url, "max_retries": 0}}}))
        async with asking(read_config(file)) as client:
            for headers in ({"Retry-After": "7", "x-should-retry": "false"}, {}):
                far.fails(429, headers=headers)
                answer = await client.post(route, json={"model": "a", **body})
                told = {name: answer.headers.get(name) for name in ("Retry-After", "x-should-retry")}
                assert answer.status_code == 429
                assert told == {"Retry-After": "1", "x-should-retry": None, **headers}


@pytest.mark.parametrize("begun", [b"", b"da", b"data: ", b'data: {"id"', b'data: {"id": 1}\n'])
def test_a_stream_that_is_cut_within_an_event_ends_with_the_error_for_openais_client(
    tmp_path: Path, begun: bytes
) -> None:
    choice = {"index": 0, "delta": {"content": "hi"}, "finish_reason": None}
    chunk = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]}

    async def cut(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(b"data: " + json.dumps(chunk).encode() + b"\n\n" + begun)
        assert request.transport is not None
        request.transport.close()
        return response

    with (
        running_gateway(tmp_path, cut) as (host, port),
        openai.OpenAI(base_url=f"http://{host}:{port}/v1", api_key="x", max_retries=0) as client,
    ):
        stream = client.chat.completions.create(model="a", messages=MESSAGE, stream=True)
        assert next(stream).choices[0].delta.content == "hi"
        with pytest.raises(openai.APIError, match="a: "):
            next(stream)


@pytest.mark.parametrize("route", [CHAT, "/api/chat"])
async def test_a_server_that_redirects_is_at_fault_not_the_gateway(tmp_path: Path, route: str) -> None:
    async def redirect(request: web.Request) -> web.StreamResponse:
        raise web.HTTPFound("http://elsewhere.example/v1")

    with running_server() as far:
        far.handler = redirect
        file = tmp_path / "models.yaml"
        file.write_text(json.dumps({"models": {"a": {"base_url": far.url, "max_retries": 0}}}))
        async with asking(read_config(file)) as client:
            answer = await client.post(route, json={"model": "a", "messages": HELLO})
    assert (answer.status_code, answer.headers["x-should-retry"]) == (502, "false")
    assert "redirects to http://elsewhere.example/v1" in answer.text


@pytest.mark.parametrize("route", [CHAT, "/api/chat", "/generate"])
async def test_a_header_that_only_tells_who_asks_refuses_no_request(tmp_path: Path, route: str) -> None:
    body = {"model": "a", **({"prompts": ["Hello"]} if route == "/generate" else {"messages": HELLO, "stream": False})}
    with running_server() as far:
        file = tmp_path / "models.yaml"
        file.write_text(json.dumps({"models": {"a": {"base_url": far.url, "max_retries": 0}}}))
        async with asking(read_config(file)) as client:
            for name, statuses in ((b"User-Agent", {200}), (b"traceparent", {400})):
                header = (name, "App/1 (Z\u00fcrich)".encode())
                answer = await client.post(route, json=body, headers=[header])
                assert answer.status_code in statuses
            ((headers, _),) = far.requests
            assert "App/1" not in str(headers)


@pytest.mark.slow
async def test_a_model_that_is_looked_at_while_it_is_downloaded_is_told_as_it_is_afterwards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    cached = tmp_path / "hub" / "models--some-org--some-model"
    snapshot = cached / "snapshots" / "0123abc"
    for folder in (snapshot, cached / "refs", cached / "blobs"):
        folder.mkdir(parents=True)
    (cached / "refs" / "main").write_text("0123abc")
    times = itertools.count(1)

    async def arrives(name: str, content: bytes) -> None:
        os.utime(snapshot, (next(times), next(times)))  # nothing has come for long
        await told()
        (cached / "blobs" / name).write_bytes(content)
        (snapshot / name).symlink_to(cached / "blobs" / name)

    async def told() -> tuple[Any, ...]:
        (status,) = (await client.get("/api/v1/inference/status")).json()["models"]
        (entry,) = (await client.get("/v1/models")).json()["data"]
        (tag,) = (await client.get("/api/tags")).json()["models"]
        assert status["capabilities"] == entry["capabilities"]
        return status["capabilities"], status["max_model_len"], tag["capabilities"], tag["size"]

    file = tmp_path / "models.yaml"
    file.write_text(json.dumps({"models": {"a": {"model": "some-org/some-model"}}}))
    async with asking(read_config(file)) as client:
        assert await told() == (None, None, ["completion"], 0)
        await arrives("config.json", b'{"architectures": ["LlamaForCausalLM"], "max_position_embeddings": 512}')
        assert await told() == (["completions"], 512, ["completion"], 0)
        await arrives("tokenizer_config.json", b'{"chat_template": "{{ messages }}"}')
        await arrives("model-00001-of-00002.safetensors", bytes(10))
        assert (await told())[0] == ["chat", "completions"]
        assert (await told())[3] == 10
        await arrives("model-00002-of-00002.safetensors", bytes(10))
        assert (await told())[3] == 20
