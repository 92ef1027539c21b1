"""openai's clients, Python's and JavaScript's, and curl: what the gateway answers is what vLLM itself does.

`make test-clients`; named so that pytest finds it only when it is asked. Run with openai 2 and with openai 3.
"""

from __future__ import annotations

import asyncio
import json
import operator
import subprocess
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import openai
import pytest

from shared_engine import Engine
from tests.clients.calls import CALLS, CAPITAL, PICTURE
from tests.clients.conftest import KEY, Server, run_node, same
from tests.support.in_flight import ATTEMPTS, LONG, is_cut_short
from tests.support.same_answers import without_its_own

PATHS = {
    "chat.completions": "/v1/chat/completions",
    "completions": "/v1/completions",
    "embeddings": "/v1/embeddings",
    "responses": "/v1/responses",
}
Call = tuple[str, str, dict[str, Any]]
each_call = pytest.mark.parametrize("name", CALLS)
OPTIONS: dict[str, Any] = {"api_key": KEY, "max_retries": 0, "timeout": 600}


def sync_answer(server: Server, call: Call) -> Any:
    method, model, params = call
    with openai.OpenAI(base_url=server.v1, **OPTIONS) as client:
        try:
            answer = operator.attrgetter(method)(client).create(model=server.models[model], **params)
            return [each.model_dump() for each in answer] if params.get("stream") else answer.model_dump()
        except openai.APIStatusError as exc:
            return failure(exc)


def async_answer(server: Server, call: Call) -> Any:
    method, model, params = call

    async def ask() -> Any:
        async with openai.AsyncOpenAI(base_url=server.v1, **OPTIONS) as client:
            try:
                answer = await operator.attrgetter(method)(client).create(model=server.models[model], **params)
                return [each.model_dump() async for each in answer] if params.get("stream") else answer.model_dump()
            except openai.APIStatusError as exc:
                return failure(exc)

    return asyncio.run(ask())


def failure(error: openai.APIStatusError) -> Any:
    return {"raised": type(error).__name__, "status": error.status_code, "body": error.body}


@each_call
@pytest.mark.parametrize("answer", [sync_answer, async_answer], ids=["sync", "async"])
def test_pythons_client_gets_the_same(
    through: Server, itself: Callable[[str], Server], name: str, answer: Callable[[Server, Call], Any]
) -> None:
    call = CALLS[name]
    assert same(answer(through, call)) == same(answer(itself(call[1]), call))


def test_a_picture_is_seen_as_by_vllm_itself(seeing: Server, itself: Callable[[str], Server]) -> None:
    assert same(sync_answer(seeing, PICTURE)) == same(sync_answer(itself("vision"), PICTURE))


@pytest.fixture(scope="module")
def in_javascript(through: Server, itself: Callable[[str], Server]) -> dict[str, tuple[Any, Any]]:
    """What JavaScript's client gets for each call: from the gateway, and from vLLM itself."""

    def answers(server: Server, calls: Mapping[str, Call]) -> dict[str, Any]:
        asked = {
            name: {"method": method, "body": {"model": server.models[model], **params}}
            for name, (method, model, params) in calls.items()
        }
        found: dict[str, Any] = run_node("ask_openai.mjs", {"url": server.v1, "key": KEY, "calls": asked})
        return found

    passed = answers(through, CALLS)
    own: dict[str, Any] = {}
    for model in sorted({call[1] for call in CALLS.values()}):
        own |= answers(itself(model), {name: call for name, call in CALLS.items() if call[1] == model})
    return {name: (passed[name], own[name]) for name in CALLS}


@each_call
def test_javascripts_client_gets_the_same(in_javascript: dict[str, tuple[Any, Any]], name: str) -> None:
    passed, own = in_javascript[name]
    assert same(passed) == same(own)


def curl(server: Server, path: str, body: Any, *options: str) -> tuple[int, bytes]:
    done = subprocess.run(
        [
            "curl", "-sN", "-w", "%{http_code}", server.url + path, "-H", f"Authorization: Bearer {KEY}",
            "-H", "Content-Type: application/json", "-d", "@-", *options,
        ],
        input=json.dumps(body).encode(),
        capture_output=True,
        timeout=60,
        check=True,
    )  # fmt: skip
    return int(done.stdout[-3:]), done.stdout[:-3]


@each_call
def test_curl_gets_the_same_bytes(through: Server, itself: Callable[[str], Server], name: str) -> None:
    method, model, params = CALLS[name]
    found = []
    for server in (through, itself(model)):
        status, answer = curl(server, PATHS[method], {"model": server.models[model], **params})
        found.append((status, without_its_own(answer)))
    assert found[0] == found[1]


def test_a_stream_that_is_left_is_aborted_in_vllm(through: Server, lora_chat: dict[str, Any]) -> None:
    engine = Engine(**lora_chat)
    messages: Any = CAPITAL

    def in_python() -> None:
        with (
            openai.OpenAI(base_url=through.v1, **OPTIONS) as client,
            client.chat.completions.create(model="chat", messages=messages, stream=True, **LONG) as chunks,
        ):
            next(iter(chunks))

    def in_javascript() -> None:
        body = {"model": "chat", "messages": CAPITAL, "stream": True, "max_tokens": 400, "ignore_eos": True}
        call = {"method": "chat.completions", "body": body, "leaves": True}
        assert run_node("ask_openai.mjs", {"url": through.v1, "key": KEY, "calls": {"left": call}})["left"] == "left"

    for leave in (in_python, in_javascript):
        assert any(is_cut_short(engine, leave) for _ in range(ATTEMPTS))


@pytest.fixture
def client(through: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=through.v1, **OPTIONS) as client:
        yield client


def test_what_the_gateway_itself_says_has_openais_classes(client: openai.OpenAI) -> None:
    messages: Any = CAPITAL
    with pytest.raises(openai.NotFoundError, match="there are: chat"):
        client.chat.completions.create(model="gpt-4o", messages=messages)
    with pytest.raises(openai.AuthenticationError):
        client.with_options(api_key="another").models.list()
    content: Any = [{"type": "image_url", "image_url": {"url": "http://169.254.169.254/"}}]
    with pytest.raises(openai.BadRequestError, match="media_domains"):
        client.chat.completions.create(model="chat", messages=[{"role": "user", "content": content}])
    assert [each.id for each in client.models.list()] == ["chat", "brief", "polite", "minilm"]
    assert client.models.retrieve("brief").id == "brief"
