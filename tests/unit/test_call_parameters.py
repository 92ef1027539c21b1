"""What one call decides about its own requests: how often they are tried again, and headers that only they have."""

from __future__ import annotations

import asyncio
import logging
import pickle
from collections.abc import Iterator
from typing import Any

import pytest
from aiohttp import web
from langchain_core.runnables import ConfigurableField
from pydantic import SecretStr

from langchain_vllm_local import ChatVLLM
from llama_index_vllm_local import VLLM
from shared_engine import Engine, GenerationParams, InvalidInputError, ServerError, VLLMError
from shared_engine.request.http_options import header_pairs
from tests.support.calls import CALLS, HELLO, ask, requests_of
from tests.support.remote_server import RemoteServer, running_server

WORD = "hush-4711"


@pytest.fixture
def server(no_waiting: None) -> Iterator[RemoteServer]:
    with running_server() as server:
        yield server


# ---- how often


@pytest.mark.parametrize("way", CALLS)
@pytest.mark.parametrize(("setting", "of_call", "tries"), [(0, 1, 2), (2, 0, 1)])
def test_a_call_decides_how_often_it_is_tried_again(
    server: RemoteServer, way: str, setting: int, of_call: int, tries: int
) -> None:
    server.fails(503)
    is_one = requests_of(way) == 1
    with pytest.raises(VLLMError):
        ask(way, server.url, {"max_retries": setting}, max_retries=of_call)
    # Of a batch the first error ends the other request, whatever it was about to do.
    assert len(server.requests) == tries if is_one else tries <= len(server.requests) <= 2 * tries
    assert all("max_retries" not in body for _, body in server.requests)


def test_none_is_the_setting(server: RemoteServer) -> None:
    server.fails(503)
    with pytest.raises(ServerError):
        Engine(base_url=server.url, model="served", max_retries=1).chat(HELLO, max_retries=None)
    assert len(server.requests) == 2


@pytest.mark.parametrize(("keywords", "tries"), [({}, 2), ({"max_retries": 0}, 1)])
def test_it_may_be_among_the_parameters_and_the_keyword_wins(
    server: RemoteServer, keywords: dict[str, Any], tries: int
) -> None:
    server.fails(503)
    with pytest.raises(ServerError):
        Engine(base_url=server.url, max_retries=4).chat(HELLO, GenerationParams(max_retries=1), **keywords)
    assert len(server.requests) == tries


def test_with_config_can_choose_the_setting(server: RemoteServer) -> None:
    server.fails(503)
    llm = ChatVLLM(base_url=server.url, model="served", max_retries=3)
    chosen = llm.configurable_fields(max_retries=ConfigurableField("tries")).with_config(configurable={"tries": 0})
    with pytest.raises(ServerError):
        chosen.invoke("Hello")
    assert len(server.requests) == 1


# ---- headers


@pytest.mark.parametrize("way", CALLS)
def test_a_calls_headers_go_with_it_and_with_no_other(server: RemoteServer, way: str) -> None:
    server.fails(400)  # only the request matters
    settings = {"default_headers": {"X-Tenant": "a"}, "api_key": "k", "max_retries": 0}
    for call in ({"extra_headers": {"x-tenant": "b", "X-Number": 5}}, {}):
        with pytest.raises(VLLMError):
            ask(way, server.url, settings, **call)
    (own, body), (other, _) = server.requests[0], server.requests[-1]
    lowered = {name.lower(): value for name, value in own.items()}
    assert len(lowered) == len(own), "none is sent twice"
    assert (lowered["x-tenant"], lowered["x-number"], lowered["authorization"]) == ("b", "5", "Bearer k")
    assert "extra_headers" not in body
    assert (other["X-Tenant"], other.get("X-Number")) == ("a", None)


def test_a_call_may_bring_its_own_key(server: RemoteServer) -> None:
    """All that is asked for it goes with that key: the models' names and limits, and counts."""
    server.fails(401)
    engine = Engine(base_url=server.url, api_key="k", max_retries=0)
    with pytest.raises(VLLMError):
        engine.generate("Hello", extra_headers={"authorization": f"Bearer {WORD}"})
    asked = [headers for _, headers in server.looks] + [headers for headers, _ in server.requests]
    assert [path for path, _ in server.looks] == ["/v1/models", "/v1/models"], "its first model, and its limit"
    for headers in asked:
        sent = [value for name, value in headers.items() if name.lower() == "authorization"]
        assert sent == [f"Bearer {WORD}"]


def test_headers_are_tried_again_with_their_request(server: RemoteServer) -> None:
    server.fails(503, times=1)
    assert Engine(base_url=server.url).chat(HELLO, extra_headers={"X-A": "b"}).text == "Hi"
    assert [headers.get("X-A") for headers, _ in server.requests] == ["b", "b"]


async def test_calls_at_once_do_not_mix_their_headers(server: RemoteServer) -> None:
    engine = Engine(base_url=server.url, model="served")

    async def seen(request: web.Request) -> web.StreamResponse:
        await asyncio.sleep(0.01)
        return await server.answer(request)

    server.handler = seen
    calls = [
        engine.achat([{"role": "user", "content": str(number)}], extra_headers={"X-Number": number})
        for number in range(20)
    ]
    await asyncio.gather(*calls)
    assert len(server.requests) == 20
    for headers, body in server.requests:
        assert headers["X-Number"] == body["messages"][0]["content"]


def test_those_of_a_call_are_added_to_those_of_its_parameters(server: RemoteServer) -> None:
    params = GenerationParams(extra_headers={"X-A": "1", "X-B": "1"}, response_format={"type": "json_object"})
    Engine(base_url=server.url).chat(HELLO, params, extra_headers={"x-b": "2"}, extra_body={"n": 1})
    sent = {name.lower(): value for name, value in server.requests[0][0].items()}
    assert (sent["x-a"], sent["x-b"]) == ("1", "2")


def test_a_later_layer_wins_whatever_the_case() -> None:
    assert header_pairs({"X-A": SecretStr("1")}, None, {"x-a": SecretStr("2")}) == (("x-a", "2"),)


@pytest.mark.parametrize(
    "call",
    [
        {"max_retries": -1},
        {"max_retries": "often"},
        {"max_retries": 1.5},
        {"extra_headers": {"X Key": WORD}},
        {"extra_headers": {"X-Key": f"{WORD}\r\nX-Other: 1"}},
        {"extra_headers": {"X-Key": [WORD]}},
        {"extra_headers": [WORD]},
        {"extra_headers": WORD},
    ],
    ids=repr,
)
@pytest.mark.parametrize("way", ["chat", "stream_chat", "embed", "rerank", "invoke", "llama_chat"])
def test_what_can_not_be_meant_is_refused_before_anything_is_sent(
    server: RemoteServer, way: str, call: dict[str, Any]
) -> None:
    with pytest.raises(InvalidInputError, match=next(iter(call))) as caught:
        ask(way, server.url, {}, **call)
    assert WORD not in str(caught.value)
    assert not server.requests


def test_no_header_is_shown(server: RemoteServer, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    server.fails(503)
    params = GenerationParams(extra_headers={"Authorization": WORD})
    for kind in (Engine, ChatVLLM, VLLM):
        model: Any = kind(base_url=server.url, model="served", max_retries=1)
        with pytest.raises(ServerError) as caught:
            (model if kind is Engine else model.engine).chat(HELLO, params)
        assert WORD not in f"{caught.value!r} {caught.value.__cause__!r} {model!r}"
    assert server.requests[0][0]["Authorization"] == WORD
    assert WORD not in caplog.text
    assert WORD not in repr(params)
    assert pickle.loads(pickle.dumps(params)) == params


def test_a_secret_of_pydantics_is_sent_and_not_traced(server: RemoteServer) -> None:
    from langchain_core.tracers.base import BaseTracer

    class Traces(BaseTracer):
        seen = ""

        def _persist_run(self, run: Any) -> None:
            self.seen += repr(run.extra)

    traces = Traces()
    headers = {"Authorization": SecretStr(WORD)}
    ChatVLLM(base_url=server.url).invoke("Hello", {"callbacks": [traces]}, extra_headers=headers)
    assert server.requests[0][0]["Authorization"] == WORD
    assert "Authorization" in traces.seen and WORD not in traces.seen
