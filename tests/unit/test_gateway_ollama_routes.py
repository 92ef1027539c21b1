"""The routes of Ollama's protocol before a server that answers as told, asked by Ollama's own client and by hand."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import ollama
import pytest
from aiohttp import web

from shared_engine.gateway.app import gateway_app
from shared_engine.gateway.catalog import Catalog
from shared_engine.gateway.config import GatewayConfig, read_config
from tests.support.adapters import ADAPTERS
from tests.support.gateways import asking
from tests.support.paths import TINY_CHAT
from tests.support.pooling_server import embeds_and_reranks
from tests.support.remote_server import RemoteServer, running_server

HELLO = [{"role": "user", "content": "Hello"}]
ALICE, BOB = "alices-secret", "bobs-secret"
KEYS = [{"name": "alice", "key": ALICE}, {"name": "bob", "key": BOB, "models": ["b"]}]
JSON_LINES = "application/x-ndjson"


@pytest.fixture
def server() -> Iterator[RemoteServer]:
    with running_server() as server:
        yield server


def config(folder: Path, server: RemoteServer, **more: Any) -> GatewayConfig:
    """Two models of a server, and one of this machine that never starts here."""
    far = {"base_url": server.url, "model": "served", "max_retries": 0}
    models = {
        "a": {**far, "aliases": {"a:short": {"max_tokens": 3}}},
        "b": far,
        "tiny": {"model": str(TINY_CHAT), "lora_adapters": ADAPTERS, "set_params": {"temperature": 0.5, "stop": ["x"]}},
    }
    file = folder / "models.yaml"
    file.write_text(json.dumps({"models": models, **more}))
    return read_config(file)


@pytest.fixture
async def client(tmp_path: Path, server: RemoteServer) -> AsyncIterator[httpx.AsyncClient]:
    async with asking(config(tmp_path, server)) as client:
        yield client


@asynccontextmanager
async def ollamas_client(config: GatewayConfig) -> AsyncIterator[ollama.AsyncClient]:
    catalog = Catalog(config)
    transport = httpx.ASGITransport(gateway_app(catalog, is_loopback=True))
    async with ollama.AsyncClient("http://127.0.0.1:8000", transport=transport) as client:
        yield client
    await catalog.close()


def lines(answer: httpx.Response) -> list[dict[str, Any]]:
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == JSON_LINES
    return [json.loads(line) for line in answer.text.split("\n")[:-1]]


# ---- generation


async def test_a_chat_is_answered_whole(client: httpx.AsyncClient, server: RemoteServer) -> None:
    body = {"model": "a", "messages": HELLO, "stream": False, "options": {"temperature": 0, "num_ctx": 4096}}
    answer = await client.post("/api/chat", json=body, headers={"x-session-id": "7", "authorization": "Bearer mine"})
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/json")
    told = answer.json()
    assert told["message"] == {"role": "assistant", "content": "Hi"}
    assert (told["model"], told["done"], told["done_reason"]) == ("a", True, "stop")
    assert (told["prompt_eval_count"], told["eval_count"]) == (3, 1)
    ((headers, sent),) = server.requests
    assert sent == {"model": "served", "messages": HELLO, "temperature": 0}
    passed = {name.lower(): value for name, value in headers.items()}
    assert passed["x-session-id"] == "7"
    assert "authorization" not in passed


async def test_a_chat_is_streamed_unless_that_is_not_wanted(client: httpx.AsyncClient, server: RemoteServer) -> None:
    server.streams("Hi", " there")
    answer = await client.post("/api/chat", json={"model": "a", "messages": HELLO})
    assert answer.headers["x-accel-buffering"] == "no"
    found = lines(answer)
    assert [each["message"]["content"] for each in found] == ["Hi", " there", ""]
    assert [each["done"] for each in found] == [False, False, True]
    assert server.requests[0][1]["stream"] is True


async def test_a_server_that_makes_no_stream_is_told_as_one_line(client: httpx.AsyncClient) -> None:
    (line,) = lines(await client.post("/api/chat", json={"model": "a", "messages": HELLO}))
    assert (line["message"]["content"], line["done"]) == ("Hi", True)


@pytest.mark.parametrize("model", ["a", "a:latest"])
@pytest.mark.parametrize("kind", ["application/json", "application/x-www-form-urlencoded", "text/plain"])
async def test_neither_a_tag_nor_the_content_type_matters(
    client: httpx.AsyncClient, server: RemoteServer, model: str, kind: str
) -> None:
    body = json.dumps({"model": model, "prompt": "Hello", "stream": False})
    answer = await client.post("/api/generate", content=body, headers={"content-type": kind})
    assert (answer.json()["response"], answer.json()["model"]) == ("Hi", model)
    assert server.requests[0][0]["Content-Type"] == "application/json"


async def test_an_alias_sets_its_parameters(client: httpx.AsyncClient, server: RemoteServer) -> None:
    body = {"model": "a:short", "messages": HELLO, "stream": False, "options": {"num_predict": 9}}
    assert (await client.post("/api/chat", json=body)).json()["model"] == "a:short"
    assert server.requests[0][1]["max_tokens"] == 3


async def test_raw_text_is_sent_without_a_template(client: httpx.AsyncClient, server: RemoteServer) -> None:
    async def answer(_: web.Request) -> web.Response:
        choice = {"index": 0, "text": " world", "finish_reason": "stop"}
        return web.json_response({"id": "c", "model": "served", "choices": [choice]})

    server.handler = answer
    body = {"model": "a", "prompt": "Hello", "raw": True, "stream": False, "options": {"num_predict": 9}}
    asked = await client.post("/api/generate", json=body)
    assert asked.json()["response"] == " world"
    assert server.requests[0][1] == {"model": "served", "prompt": "Hello", "max_tokens": 9}


@pytest.mark.parametrize("path", ["/api/chat", "/api/generate"])
async def test_what_asks_nothing_loads_the_model_or_has_it_leave(
    client: httpx.AsyncClient, server: RemoteServer, path: str
) -> None:
    for more, reason in (({}, "load"), ({"keep_alive": "5m"}, "load"), ({"keep_alive": 0}, "unload")):
        answer = await client.post(path, json={"model": "a", "stream": False, **more})
        assert (answer.json()["done"], answer.json()["done_reason"]) == (True, reason)
    (line,) = lines(await client.post(path, json={"model": "a"}))
    assert line["done_reason"] == "load"
    assert server.requests == []


# ---- errors


@pytest.mark.parametrize(
    ("path", "body", "status", "says"),
    [
        ("/api/chat", {"model": "c", "messages": HELLO}, 404, "'c' does not exist; there are: a"),
        ("/api/show", {"model": "c"}, 404, "there are: a"),
        ("/api/chat", {"messages": HELLO}, 400, "model is required"),
        ("/api/chat", {"model": 7}, 400, r"Expected `str`, got `int` - at `\$.model`"),
        ("/api/chat", {"model": "a", "messages": "Hello"}, 400, "Expected `array"),
        ("/api/chat", {"model": "a", "messages": [{"content": "x"}]}, 400, "missing required field `role`"),
        ("/api/chat", {"model": "a", "messages": HELLO, "keep_alive": "soon"}, 400, "keep_alive = 'soon'"),
        ("/api/chat", {"model": "a", "messages": HELLO, "options": {"temperature": -1}}, 400, "temperature"),
        ("/api/chat", {"model": "a", "messages": HELLO, "options": {"top_k": "x"}}, 400, "option 'top_k'"),
        ("/api/chat", [], 400, "Expected `object`, got `array`"),
        ("/api/generate", {"model": "a", "prompt": "x", "suffix": "y"}, 400, '"a" does not support insert'),
        ("/api/embed", {"model": "a", "input": 3}, 400, "invalid input type"),
        ("/api/pull", {"model": "a"}, 404, "/api/pull"),
    ],
)  # fmt: skip
async def test_errors_have_ollamas_form(
    client: httpx.AsyncClient, server: RemoteServer, path: str, body: Any, status: int, says: str
) -> None:
    answer = await client.post(path, json=body)
    assert set(answer.json()) == {"error"}
    assert answer.status_code == status
    with pytest.raises(AssertionError, match=says):
        raise AssertionError(answer.json()["error"])
    assert server.requests == []


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    ("status", "told", "retry_after"), [(400, 400, None), (503, 503, "1"), (401, 502, None), (429, 429, "1")]
)
async def test_what_the_server_refuses_is_told_with_its_words(
    client: httpx.AsyncClient, server: RemoteServer, stream: bool, status: int, told: int, retry_after: str | None
) -> None:
    server.fails(status, message="not like that")
    answer = await client.post("/api/chat", json={"model": "a", "messages": HELLO, "stream": stream})
    assert answer.status_code == told
    assert ("not like that" in answer.json()["error"]) is (status != 401)
    assert answer.headers.get("retry-after") == retry_after


async def test_a_stream_that_is_cut_ends_with_an_error(client: httpx.AsyncClient, server: RemoteServer) -> None:
    server.streams("Hi", then="cut")
    *before, last = lines(await client.post("/api/chat", json={"model": "a", "messages": HELLO}))
    assert [each["message"]["content"] for each in before] == ["Hi"]
    assert set(last) == {"error"}


async def test_tools_and_thinking_need_a_model_that_has_them(tmp_path: Path, server: RemoteServer) -> None:
    plain = {"tool_call_parser": None, "reasoning_parser": None}
    models = {"tiny": {"model": str(TINY_CHAT), "engine_args": plain}}
    file = tmp_path / "models.yaml"
    file.write_text(json.dumps({"models": models}))
    async with asking(read_config(file)) as client:
        for path, more, says in (
            ("/api/chat", {"messages": HELLO, "tools": [{"type": "function"}]}, '"tiny" does not support tools'),
            ("/api/chat", {"messages": HELLO, "think": True}, '"tiny" does not support thinking'),
            ("/api/chat", {"messages": HELLO, "think": "low"}, '"tiny" does not support thinking'),
            ("/api/generate", {"prompt": "Hello", "think": True}, '"tiny" does not support thinking'),
        ):
            answer = await client.post(path, json={"model": "tiny", **more})
            assert answer.status_code == 400
            assert says in answer.json()["error"]


@pytest.mark.parametrize(("path", "body"), [("chat", {"messages": HELLO}), ("generate", {"prompt": "Hello"})])
async def test_a_model_that_embeds_does_not_answer(tmp_path: Path, path: str, body: dict[str, Any]) -> None:
    models = {"tiny": {"model": str(TINY_CHAT), "engine_args": {"runner": "pooling"}}}
    file = tmp_path / "models.yaml"
    file.write_text(json.dumps({"models": models}))
    async with asking(read_config(file)) as client:
        answer = await client.post(f"/api/{path}", json={"model": "tiny", **body})
    assert (answer.status_code, answer.json()) == (400, {"error": f'"tiny" does not support {path}'})


async def test_a_key_is_needed_and_opens_its_models_only(tmp_path: Path, server: RemoteServer) -> None:
    async with asking(config(tmp_path, server, api_keys=KEYS)) as client:
        for path in ("/api/tags", "/api/ps", "/api/version"):
            refused = await client.get(path)
            assert (refused.status_code, set(refused.json())) == (401, {"error"})
        bob = {"Authorization": f"Bearer {BOB}"}
        listed = (await client.get("/api/tags", headers=bob)).json()["models"]
        assert [each["name"] for each in listed] == ["b"]
        answer = await client.post("/api/chat", json={"model": "a", "messages": HELLO}, headers=bob)
        assert answer.status_code == 404
    assert server.requests == []


# ---- embeddings


async def test_texts_are_embedded(client: httpx.AsyncClient, server: RemoteServer) -> None:
    server.handler = embeds_and_reranks
    whole = (await client.post("/api/embed", json={"model": "a", "input": ["a", "b"]})).json()
    assert len(whole["embeddings"]) == 2
    assert whole["prompt_eval_count"] >= 0
    assert server.requests[0][1]["truncate_prompt_tokens"] == -1
    one = (await client.post("/api/embeddings", json={"model": "a", "prompt": "a"})).json()
    assert set(one) == {"embedding"}
    assert (await client.post("/api/embed", json={"model": "a", "input": []})).json()["embeddings"] == []
    assert (await client.post("/api/embeddings", json={"model": "a"})).json() == {"embedding": []}
    assert len(server.requests) == 2


# ---- models


async def test_models_are_listed_with_what_their_files_say(client: httpx.AsyncClient) -> None:
    listed = {each["name"]: each for each in (await client.get("/api/tags")).json()["models"]}
    assert list(listed) == ["a", "b", "tiny", *ADAPTERS]
    tiny = listed["tiny"]
    assert (tiny["model"], tiny["size"]) == ("tiny", (TINY_CHAT / "model.safetensors").stat().st_size)
    assert tiny["details"] == {
        "parent_model": "",
        "format": "safetensors",
        "family": "llama",
        "families": ["llama"],
        "parameter_size": "3.3M",
        "quantization_level": "BF16",
        "context_length": 2048,
        "embedding_length": 256,
    }
    assert tiny["capabilities"] == ["completion", "tools", "thinking"]
    assert listed["brief"]["details"]["parent_model"] == "tiny"
    assert listed["a"]["capabilities"] == ["completion"]
    digests = [each["digest"] for each in listed.values()]
    assert len(set(digests)) == len(digests)
    assert {len(each) for each in digests} == {64}
    assert (await client.get("/api/ps")).json() == {"models": []}


@pytest.mark.parametrize("asked", [{"model": "tiny"}, {"name": "tiny"}, {"model": "tiny:latest", "verbose": True}])
async def test_a_model_is_shown(client: httpx.AsyncClient, asked: dict[str, Any]) -> None:
    shown = (await client.post("/api/show", json=asked)).json()
    info = shown["model_info"]
    assert (info["general.architecture"], info["llama.context_length"]) == ("llama", 2048)
    assert (info["llama.embedding_length"], info["llama.attention.head_count_kv"]) == (256, 2)
    assert info["general.parameter_count"] > 3_000_000
    assert shown["template"] == (TINY_CHAT / "chat_template.jinja").read_text()
    assert [line.split() for line in shown["parameters"].splitlines()] == [["num_ctx", "2048"], ["temperature", "0.5"]]
    assert str(TINY_CHAT) not in json.dumps(shown)
    assert "brief" not in shown["modelfile"]


async def test_ollamas_own_client_reads_it_all(tmp_path: Path, server: RemoteServer) -> None:
    messages: Any = HELLO
    async with ollamas_client(config(tmp_path, server)) as client:
        assert [each.model for each in (await client.list()).models] == ["a", "b", "tiny", *ADAPTERS]
        assert (await client.show("tiny")).capabilities == ["completion", "tools", "thinking"]
        assert (await client.ps()).models == []
        assert (await client.chat("a", messages)).message.content == "Hi"
        assert (await client.generate("a", "Hello")).response == "Hi"
        server.streams("Hi", " there")
        parts = [part async for part in await client.chat("a", messages, stream=True)]
        assert "".join(part.message.content or "" for part in parts) == "Hi there"
        assert parts[-1].done
        server.fails(400, message="not like that")
        with pytest.raises(ollama.ResponseError, match="not like that") as caught:
            await client.chat("a", messages)
        assert caught.value.status_code == 400


async def test_the_version_is_one_that_programs_can_compare(client: httpx.AsyncClient) -> None:
    version = (await client.get("/api/version")).json()["version"]
    assert [part.isdecimal() for part in version.split(".")] == [True, True, True]
    assert (await client.head("/api/version")).status_code == 200
