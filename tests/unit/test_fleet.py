"""Several servers behind one object: who gets a request, and what becomes of it when a server fails."""

from __future__ import annotations

import asyncio
import os
import pickle
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from shared_engine import (
    Engine,
    EngineSettings,
    EngineState,
    ModelNotFoundError,
    RequestError,
    RequestRejectedError,
    ServerConnectionError,
    ServerUnreachableError,
    SettingsError,
)
from shared_engine.request import fleet, fleet_endpoint, retry, tally
from shared_engine.request.fleet_sources import DnsSource, FileSource
from tests.support.remote_server import RemoteServer, chat_answer, running_server

HELLO = [{"role": "user", "content": "Hello"}]
NOBODY = "http://127.0.0.1:9"  # the discard port: nothing listens

ENOUGH = 60
"""Conversations, of which each of three servers is the preferred one of some. Which is chance, as their ports are."""


def ask(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "FIRST_WAIT_WHERE_REFUSED_S", 0.01)
    monkeypatch.setattr(fleet_endpoint, "LONGEST_WAIT_S", 0.05)
    monkeypatch.setattr(fleet, "_fleets", {})
    monkeypatch.setattr(tally, "_tallies", {})  # a port may have been another test's


@pytest.fixture
def servers() -> Iterator[list[RemoteServer]]:
    with ExitStack() as stack:
        made = [stack.enter_context(running_server()) for _ in range(3)]
        for server in made:
            named(server)
        yield made


def named(server: RemoteServer) -> None:
    """It answers with its own address."""

    async def answer(_: web.Request) -> web.StreamResponse:
        return web.json_response(chat_answer(server.url))

    server.handler = answer
    server.answer = answer  # type: ignore[method-assign,assignment]


def fleet_of(servers: list[RemoteServer], **settings: Any) -> Engine:
    return Engine(base_url=[server.url for server in servers], model="served", **settings)


def counts(servers: list[RemoteServer]) -> list[int]:
    return [len(server.requests) for server in servers]


def answers(engine: Engine, count: int) -> Counter[str]:
    return Counter(engine.chat(ask(f"question {number}")).text for number in range(count))


# ---- who gets what


@pytest.mark.slow
def test_requests_are_shared_and_a_conversation_stays_with_one_server(servers: list[RemoteServer]) -> None:
    engine = fleet_of(servers)
    assert len(answers(engine, ENOUGH)) == 3
    conversation = [{"role": "system", "content": "Be brief."}, *ask("What is the capital of France?")]
    homes = set()
    for _ in range(8):
        text = engine.chat(conversation).text
        homes.add(text)
        conversation += [{"role": "assistant", "content": text}, *ask("And of Spain?")]
    assert len(homes) == 1
    other = {engine.chat([conversation[0], *ask(f"Question {number}")]).text for number in range(ENOUGH)}
    assert len(other) == 3, "the same system message is no conversation"


def test_a_session_stays_with_one_server_whatever_it_asks(servers: list[RemoteServer]) -> None:
    engine = fleet_of(servers)
    assert len({engine.chat(ask(f"question {number}"), session="a").text for number in range(12)}) == 1
    homes = {engine.generate("x", session=f"session {number}") and counts_changed(servers) for number in range(ENOUGH)}
    assert len(homes) == 3
    assert all("session" not in body for server in servers for _, body in server.requests)


@pytest.mark.parametrize(
    ("session", "header"), [("a b", "a b"), ("Müller\n", "e0b9"), (" a", "46b9"), (None, None), ("two", "mine")]
)
def test_a_session_is_a_header_for_routers(
    servers: list[RemoteServer], session: str | None, header: str | None
) -> None:
    extra = {"X-Session-ID": "mine"} if header == "mine" else None
    for engine in (Engine(base_url=servers[0].url), fleet_of(servers)):
        engine.chat(ask("Hello"), session=session, extra_headers=extra)
        list(engine.stream_chat(ask("Hello"), session=session, extra_headers=extra))
    sent = {headers.get("X-Session-ID") for server in servers for headers, _ in server.requests}
    assert len(sent) == 1
    assert (sent.pop() or "").startswith(header or "")


def counts_changed(servers: list[RemoteServer], before: list[int] = [0, 0, 0]) -> int:  # noqa: B006
    now = counts(servers)
    changed = next(index for index in range(3) if now[index] != before[index])
    before[:] = now
    return changed


@pytest.mark.slow
def test_a_batch_goes_by_completion_so_that_a_slow_server_gets_less(servers: list[RemoteServer]) -> None:
    async def slowly(_: web.Request) -> web.StreamResponse:
        await asyncio.sleep(0.25)
        return web.json_response(chat_answer("slow"))

    servers[0].handler = slowly
    engine = fleet_of(servers, engine_args={"max_num_seqs": 4})
    results = engine.chat_batch([ask(f"question {number}") for number in range(150)])
    assert len(results) == 150
    first, *others = counts(servers)
    assert sum((first, *others)) == 150
    assert first < min(others) / 2
    assert {member.in_flight for member in engine.status().members} == {0}


@pytest.mark.slow
def test_weights_share_the_requests(servers: list[RemoteServer]) -> None:
    engine = fleet_of(servers[:2], member_weights=[3, 1])
    for _ in range(80):
        engine.count_tokens("a b")  # which has no conversation that prefers a server
    looks = [len(server.looks) for server in servers[:2]]
    assert looks[0] == pytest.approx(60, abs=4), looks


def test_objects_of_one_fleet_count_together(servers: list[RemoteServer]) -> None:
    first, second = fleet_of(servers), fleet_of(list(reversed(servers)))
    for server in servers:
        server.streams("Hello", then="hang")
    streams = [first.stream_chat(HELLO), second.stream_chat(ask("another")), first.stream_chat(ask("a third"))]
    for stream in streams:
        next(stream)
    assert sum(member.in_flight or 0 for member in second.status().members) == 3
    for stream in streams:
        stream.close()
    assert sum(member.in_flight or 0 for member in second.status().members) == 0


# ---- failures


@pytest.mark.parametrize("way", ["chat", "stream", "async", "batch", "generate"])
@pytest.mark.parametrize("fault", ["gone", "500", "503", "429", "cut", "silent"])
@pytest.mark.slow
def test_a_request_that_has_shown_nothing_goes_to_another_server(
    servers: list[RemoteServer], way: str, fault: str
) -> None:
    if fault == "cut":

        async def cut(request: web.Request) -> web.StreamResponse:
            assert request.transport is not None
            request.transport.close()
            return web.Response()

        servers[0].handler = cut
    elif fault == "silent":

        async def silent(_: web.Request) -> web.StreamResponse:
            await asyncio.sleep(30)
            return web.Response()

        servers[0].handler = silent
    elif fault != "gone":
        servers[0].fails(int(fault))
    urls = [NOBODY if fault == "gone" else servers[0].url, servers[1].url, servers[2].url]
    for server in servers[1:]:
        if way == "stream":
            server.streams("Hel", "lo")
    engine = Engine(base_url=urls, model="served", max_retries=1, timeout=0.3 if fault == "silent" else 20)
    for number in range(12):
        messages = ask(f"question {number}")
        if way == "chat":
            assert engine.chat(messages).text
        elif way == "stream":
            assert "".join(chunk.text for chunk in engine.stream_chat(messages)) == "Hello"
        elif way == "async":
            assert asyncio.run(engine.achat(messages)).text
        elif way == "batch":
            assert len(engine.chat_batch([messages] * 4)) == 4
        else:
            assert engine.generate(f"text {number}") is not None
    assert engine.stats().requests.errors == {}
    if fault == "gone":
        assert engine.stats().requests.retries <= 4, "after the first failure it is left out for a while"


def test_what_is_wrong_with_a_request_is_told_at_once_and_no_servers_fault(servers: list[RemoteServer]) -> None:
    for server in servers:
        server.fails(400, message="temperature must be below 2")
    engine = fleet_of(servers)
    for _ in range(5):
        with pytest.raises(RequestRejectedError, match="temperature must be below 2"):
            engine.chat(HELLO)
    assert sum(counts(servers)) == 5
    assert [member.last_error for member in engine.status().members] == [None] * 3


def test_a_stream_that_has_shown_something_does_not_move(servers: list[RemoteServer]) -> None:
    for server in servers:
        server.streams("Hello", then="cut")
    stream = fleet_of(servers).stream_chat(HELLO)
    assert next(stream).text == "Hello"
    with pytest.raises(ServerConnectionError):
        list(stream)
    assert sum(counts(servers)) == 1


def test_when_all_fail_the_error_tells_what_each_said(servers: list[RemoteServer]) -> None:
    for number, server in enumerate(servers):
        server.fails(500, message=f"server {number} is broken")
    began = time.monotonic()
    with pytest.raises(RequestError) as raised:
        fleet_of(servers).chat(HELLO)
    assert time.monotonic() - began < 5
    assert all(f"server {number} is broken" in str(raised.value) for number in range(3))
    assert type(pickle.loads(pickle.dumps(raised.value))) is type(raised.value)


def test_without_retries_the_first_failure_is_the_callers() -> None:
    engine = Engine(base_url=[NOBODY, "http://127.0.0.1:19"], model="served", max_retries=0)
    with pytest.raises(ServerUnreachableError) as raised:
        engine.chat(HELLO)
    assert "also tried" not in str(raised.value)


def ask_openais_client(engine: Engine, messages: Any) -> None:
    client: Any = engine.openai_client(max_retries=0)
    client.chat.completions.create(model="served", messages=messages)


ASKING: dict[str, Callable[[Engine, Any], object]] = {
    "chat": Engine.chat,
    "fallback": Engine.chat,
    "stream": lambda engine, messages: list(engine.stream_chat(messages)),
    "openai": ask_openais_client,
}


@pytest.mark.parametrize("way", ASKING)
@pytest.mark.parametrize(
    ("status", "headers"), [(409, {}), (408, {}), (422, {"x-should-retry": "true"})], ids=["409", "408", "422"]
)
def test_what_every_server_answers_is_the_callers_error_after_as_many_tries(
    servers: list[RemoteServer], way: str, status: int, headers: dict[str, str]
) -> None:
    for server in servers:
        server.fails(status, message="not now", headers=headers)
    engine = fleet_of(servers, **({"mode": "remote", "fallback": ["local"]} if way == "fallback" else {}))
    if way == "openai":
        pytest.importorskip("openai")
    with pytest.raises(Exception, match="not now"):
        ASKING[way](engine, HELLO)
    retries = 0 if way == "openai" else 2  # whose client has retries of its own
    assert sum(counts(servers)) == 3 + retries, "each of them, then as often as max_retries"


def test_a_server_without_its_own_model_is_not_asked_for_ever(servers: list[RemoteServer]) -> None:
    for server in servers:
        server.fails(404, message="The model `served` does not exist.")
    with pytest.raises(ModelNotFoundError, match="does not exist"):
        Engine(base_url=[server.url for server in servers]).chat(HELLO)
    assert sum(counts(servers)) == 3 + 2


@pytest.mark.slow
def test_a_server_that_comes_back_gets_requests_again(servers: list[RemoteServer]) -> None:
    servers[0].fails(503, times=1)
    engine = fleet_of(servers)
    for number in range(9):
        engine.chat(ask(f"question {number}"))
    before = counts(servers)[0]
    assert before <= 1
    time.sleep(1.1)
    answers(engine, ENOUGH)
    assert counts(servers)[0] > before


def test_a_model_goes_to_those_that_serve_it(servers: list[RemoteServer]) -> None:
    async def lacks(_: web.Request) -> web.StreamResponse:
        message = "The model `served` does not exist."
        return web.json_response({"error": {"message": message, "type": "NotFoundError", "code": 404}}, status=404)

    servers[0].handler = servers[1].handler = lacks
    engine = fleet_of(servers)
    assert set(answers(engine, ENOUGH)) == {servers[2].url}
    assert counts(servers)[:2] == [1, 1], "each is asked once"
    servers[2].handler = lacks
    with pytest.raises(ModelNotFoundError, match=r"none of http.* serves 'served'"):
        engine.chat(HELLO)


def lacks_embeddings(servers: list[RemoteServer]) -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        if request.path == "/v1/embeddings":
            return web.json_response({"detail": "Not Found"}, status=404)
        if (await request.json())["model"] == "typo":
            error = {"message": "The model `typo` does not exist.", "type": "NotFoundError", "code": 404}
            return web.json_response({"error": error}, status=404)
        return web.json_response(chat_answer("Hi"))

    for server in servers:
        server.handler = handler


MISSED: dict[str, Callable[[Engine, Any], object]] = {
    "count_tokens": lambda engine, _: engine.count_tokens("Hello"),
    "embed": lambda engine, _: engine.embed(["Hello"]),
    "other model": lambda engine, _: engine.chat(HELLO, model="typo"),
    "openai embeddings": lambda _, client: client.embeddings.create(model="served", input="Hello"),
    "openai other model": lambda _, client: client.chat.completions.create(model="typo", messages=HELLO),
    "openai no such route": lambda _, client: client.get("/nowhere", cast_to=object),
}


@pytest.mark.parametrize("way", MISSED)
def test_a_route_or_another_model_that_no_server_has_costs_the_fleets_own_model_nothing(
    servers: list[RemoteServer], way: str
) -> None:
    openai = pytest.importorskip("openai")
    lacks_embeddings(servers)
    for server in servers:
        server.counts_tokens = False
    engine = fleet_of(servers)
    with engine.openai_client() as client:
        for _ in range(4):
            with pytest.raises((ModelNotFoundError, openai.NotFoundError)):
                MISSED[way](engine, client)
    assert answers(engine, 6) == {"Hi": 6}
    assert engine.generate("Hello", check_context=True).text == "Hi"
    assert not any("served" in member.lacks for member in engine.fleet.pool.members.values())


@pytest.mark.slow
def test_a_model_that_a_client_names_goes_to_those_that_serve_it(servers: list[RemoteServer]) -> None:
    pytest.importorskip("openai")
    lacks_embeddings(servers[:2])
    with fleet_of(servers).openai_client() as client:
        talks: list[Any] = [ask(f"question {number}") for number in range(ENOUGH)]
        asked = [client.chat.completions.create(model="typo", messages=messages) for messages in talks]
    assert {answer.choices[0].message.content for answer in asked} == {servers[2].url}
    assert counts(servers) == [1, 1, ENOUGH]


@pytest.mark.parametrize("way", ["engine", "openai"])
def test_a_model_that_all_servers_lacked_is_asked_for_again_without_a_wait(
    servers: list[RemoteServer], way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As an adapter that is loaded there meanwhile; one server is asked each time."""
    openai = pytest.importorskip("openai")
    monkeypatch.setattr(retry, "FIRST_WAIT_WHERE_REFUSED_S", 60)
    lacks_embeddings(servers)
    engine = fleet_of(servers)
    with engine.openai_client() as client:
        ask_for = MISSED["other model" if way == "engine" else "openai other model"]
        for total in (3, 4, 5):
            with pytest.raises((ModelNotFoundError, openai.NotFoundError), match=r"`typo` does not exist"):
                ask_for(engine, client)
            assert sum(counts(servers)) == total
        for server in servers:
            named(server)
        for _ in range(4):
            ask_for(engine, client)
    assert sum(counts(servers)) == 9


@pytest.mark.parametrize("way", ["engine", "openai"])
def test_a_server_that_does_not_list_its_models_is_passed_over_by_who_names_one(
    servers: list[RemoteServer], way: str
) -> None:
    pytest.importorskip("openai")
    servers[0].lists_models = servers[1].lists_models = False
    engine = Engine(base_url=[server.url for server in servers])
    with engine.openai_client() as client:
        for number in range(ENOUGH):
            if way == "engine":
                engine.chat(ask(f"question {number}"), model="served")
            else:
                messages: Any = ask(f"question {number}")
                client.chat.completions.create(model="served", messages=messages)
    assert counts(servers) == [0, 0, ENOUGH]
    assert [len(server.looks) for server in servers] == [1, 1, 1]
    servers[2].lists_models = False
    with pytest.raises(ModelNotFoundError, match=r"does not list its models: name one"):
        Engine(base_url=[servers[0].url, servers[2].url]).chat(HELLO, model="served")


@pytest.mark.slow
def test_a_deadline_holds_over_all_servers(servers: list[RemoteServer]) -> None:
    async def never(_: web.Request) -> web.StreamResponse:
        await asyncio.sleep(2)
        return web.Response()

    for server in servers:
        server.handler = never
    began = time.monotonic()
    with pytest.raises(TimeoutError):
        fleet_of(servers).chat(HELLO, timeout=0.5)
    assert time.monotonic() - began < 1.5


# ---- members


def test_members_come_are_drained_and_go(servers: list[RemoteServer]) -> None:
    engine = fleet_of(servers[:2])
    engine.fleet.add(f"{servers[2].url}/v1", api_key="third")
    assert len(answers(engine, ENOUGH)) == 3
    assert servers[2].requests[0][0]["Authorization"] == "Bearer third"
    assert "Authorization" not in servers[0].requests[0][0]
    servers[0].streams("Hello", then="hang")
    engine.fleet.drain(servers[1].url)
    engine.fleet.drain(servers[2].url)
    stream = engine.stream_chat(HELLO)
    next(stream)
    engine.fleet.drain(servers[0].url)
    with pytest.raises(RequestError, match="all servers of the fleet are being drained"):
        engine.chat(HELLO)
    assert [member.in_flight for member in engine.status().members] == [1, 0, 0]
    stream.close()
    engine.fleet.remove(servers[0].url)
    assert [member.base_url for member in engine.status().members] == [servers[1].url, servers[2].url]


def test_a_server_that_comes_back_with_another_key_is_asked_with_that(servers: list[RemoteServer]) -> None:
    engine = fleet_of(servers[:2], api_key="old", default_headers={"X-Tenant": "a"})
    engine.fleet.remove(servers[1].url)
    keys = ["old", "new", None, "newest"]
    for key in keys[1:]:
        engine.chat(HELLO)
        engine.fleet.remove(servers[0].url)
        engine.fleet.add(servers[0].url, api_key=key)
    engine.chat(HELLO)
    sent = [headers for headers, _ in servers[0].requests]
    assert [each.get("Authorization") for each in sent] == [key and f"Bearer {key}" for key in keys]
    assert {each["X-Tenant"] for each in sent} == {"a"}


def test_what_is_no_member_is_told(servers: list[RemoteServer]) -> None:
    engine = fleet_of(servers[:2])
    with pytest.raises(SettingsError, match="http://nowhere is not a member of the fleet"):
        engine.fleet.drain("http://nowhere")
    with pytest.raises(SettingsError, match="is a member already"):
        engine.fleet.add(servers[0].url)
    with pytest.raises(SettingsError, match="this is no fleet"):
        Engine(base_url=servers[0].url, model="m").fleet.add("http://x")


@pytest.mark.slow
def test_each_server_has_its_own_key_user_and_password(servers: list[RemoteServer]) -> None:
    answers(fleet_of(servers, api_key=["a", "b", "c"]), ENOUGH)
    assert [server.requests[0][0]["Authorization"] for server in servers] == ["Bearer a", "Bearer b", "Bearer c"]
    urls = [server.url.replace("//", f"//user{number}:word@") for number, server in enumerate(servers)]
    engine = Engine(base_url=",".join(urls), model="other")
    answers(engine, ENOUGH)
    assert {server.requests[-1][0]["Authorization"].split()[0] for server in servers} == {"Basic"}
    assert len({server.requests[-1][0]["Authorization"] for server in servers}) == 3
    assert "word" not in repr(engine) + repr(engine.settings) + str(pickle.dumps(engine))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"base_url": []}, ["base_url", "empty list"]),
        ({"base_url": ["http://a", "http://a/v1"]}, ["names http://a twice"]),
        ({"base_url": ["http://a", "b:8000"]}, ["must start with http://"]),
        ({"base_url": ["http://a", "http://b"], "api_key": ["x"]}, ["api_key has 1 values for 2 base_url"]),
        ({"base_url": ["http://a", "http://b"], "member_weights": [1, 0]}, ["member_weights", "greater than 0"]),
        ({"base_url": ["http://a", "http://b"], "member_weights": [1, 2, 3]}, ["member_weights has 3 values for 2"]),
    ],
)
def test_wrong_settings_are_told(settings: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(SettingsError) as raised:
        EngineSettings(**settings)
    assert all(word in str(raised.value) for word in words), raised.value


def test_a_fleet_may_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_API_URL", "http://a:8000/v1, http://b:8000/v1")
    monkeypatch.setenv("VLLM_API_KEY", "x,y")
    monkeypatch.setenv("VLLM_MEMBER_WEIGHTS", "2,1")
    settings = EngineSettings()
    assert settings.base_url == ("http://a:8000", "http://b:8000")
    assert settings.member_weights == (2.0, 1.0)
    keys = [member.api_key for member in settings.members()]
    assert [key.get_secret_value() for key in keys if not isinstance(key, tuple) and key is not None] == ["x", "y"]
    monkeypatch.delenv("VLLM_MEMBER_WEIGHTS")
    monkeypatch.setenv("VLLM_API_URL", "http://a:8000/v1,")
    assert EngineSettings(api_key="x").base_url == "http://a:8000"


def test_status_tells_of_each_and_metrics_add_up(servers: list[RemoteServer]) -> None:
    async def metrics(_: web.Request) -> web.StreamResponse:
        return web.Response(text='vllm:generation_tokens_total{engine="0"} 5.0\n')

    for server in servers[:2]:
        server.metrics = metrics
    engine = Engine(base_url=[servers[0].url, servers[1].url, NOBODY], model="served")
    status = engine.status()
    assert status.state is EngineState.READY
    assert [member.state for member in status.members] == [EngineState.READY, EngineState.READY, EngineState.FAILED]
    assert NOBODY in (status.last_error or "")
    engine.warmup()
    engine.fleet.remove(NOBODY)
    assert engine.metrics() == {"generation_tokens": 10.0}


def test_stats_tell_of_each_and_add_up(servers: list[RemoteServer]) -> None:
    async def metrics(_: web.Request) -> web.StreamResponse:
        return web.Response(text='vllm:generation_tokens_total{engine="0"} 5.0\n')

    servers[0].metrics = metrics
    engine = Engine(base_url=[servers[0].url, servers[1].url, NOBODY], model="served")
    answers(engine, 20)
    stats = engine.stats()
    assert [member.member for member in stats.members] == [servers[0].url, servers[1].url, NOBODY]
    assert [member.requests.successes for member in stats.members] == [*counts(servers[:2]), 0]
    assert stats.requests.successes == stats.requests.latency.count == 20
    assert [member.counters for member in stats.members] == [{"generation_tokens": 5.0}, {}, {}]
    assert stats.counters == {"generation_tokens": 5.0}
    assert stats.life is None
    assert Engine(base_url=servers[0].url, model="served").stats().requests == stats.members[0].requests
    assert stats.to_json()["members"][1]["requests"]["successes"] == counts(servers)[1]
    engine.fleet.remove(servers[1].url)
    assert engine.stats().requests.successes == 20, "of servers that have left, too"
    engine.reset_stats()
    assert engine.stats().requests.requests == 0


@pytest.mark.slow
def test_many_that_fail_with_a_server_send_it_out_no_longer_than_one(servers: list[RemoteServer]) -> None:
    async def break_together(request: web.Request) -> web.StreamResponse:
        await asyncio.sleep(0.3)
        assert request.transport is not None
        request.transport.close()
        return web.Response()

    servers[0].handler = break_together
    engine = fleet_of(servers[:2])
    with ThreadPoolExecutor(ENOUGH) as pool:
        list(pool.map(lambda number: engine.chat(ask(f"question {number}")), range(ENOUGH)))
    member = engine.fleet.pool.members[servers[0].url]
    assert member.faults > 5
    assert member.out_s == 1.0


@pytest.mark.slow
def test_threads_loops_and_forks_keep_their_counts(servers: list[RemoteServer]) -> None:
    engine = fleet_of(servers)
    for server in servers:
        server.streams("Hello", then="hang")
    stream = engine.stream_chat(HELLO)
    next(stream)
    pid = os.fork()
    if pid == 0:
        os._exit(sum(member.in_flight for member in engine.fleet.pool.members.values()))
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    stream.close()
    for server in servers:
        named(server)
    with ThreadPoolExecutor(8) as pool:
        found = list(
            pool.map(lambda number: answers(engine, 10) if number % 2 else asyncio.run(several(engine)), range(8))
        )
    assert sum(sum(each.values()) for each in found) == 80
    assert {member.in_flight for member in engine.status().members} == {0}


async def several(engine: Engine) -> Counter[str]:
    results = await asyncio.gather(*(engine.achat(ask(f"question {number}")) for number in range(10)))
    return Counter(result.text for result in results)


# ---- lists that are elsewhere


@pytest.mark.slow
def test_a_file_that_is_watched_lists_the_servers(
    servers: list[RemoteServer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(FileSource, "look_s", 0.0)
    file = tmp_path / "servers"
    file.write_text(f"# ours\n{servers[0].url}/v1\n\n{servers[1].url} 2  # the large one\n")
    engine = Engine(base_url=f"file://{file}", model="served", api_key="secret")
    assert set(answers(engine, ENOUGH)) == {servers[0].url, servers[1].url}
    assert servers[0].requests[0][0]["Authorization"] == "Bearer secret"
    file.write_text(f"{servers[1].url} 2\n{servers[2].url}\n")
    assert set(answers(engine, ENOUGH)) == {servers[1].url, servers[2].url}
    file.write_text("http//broken\n")
    assert set(answers(engine, ENOUGH)) == {servers[1].url, servers[2].url}, "what it had stays"
    assert "the fleet keeps its servers" in caplog.text
    assert "line 1: 'http//broken'" in caplog.text
    file.unlink()
    assert len(engine.chat_batch([HELLO] * 3)) == 3


@pytest.mark.parametrize("text", [None, "", "# nobody\n", "http://a b c\n", "http://a -1\n", "http://a,http://b\n"])
def test_a_list_that_never_was_one_is_told(tmp_path: Path, text: str | None) -> None:
    file = tmp_path / "servers"
    if text is not None:
        file.write_text(text)
    with pytest.raises(RequestError, match=str(file)):
        Engine(base_url=f"file://{file}", model="served").chat(HELLO)


def test_all_addresses_of_a_name_are_servers(servers: list[RemoteServer], monkeypatch: pytest.MonkeyPatch) -> None:
    port = int(servers[0].url.rpartition(":")[2])
    addresses = ["127.0.0.1"]

    async def getaddrinfo(_: object, host: str, of_port: int, **__: object) -> list[Any]:
        if host == "nowhere":
            raise socket.gaierror(-2, "Name or service not known")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, of_port)) for address in addresses]

    monkeypatch.setattr(DnsSource, "look_s", 0.0)
    monkeypatch.setattr(asyncio.BaseEventLoop, "getaddrinfo", getaddrinfo)
    engine = Engine(base_url=f"dns+http://vllm-headless:{port}/v1", model="served")
    assert engine.chat(HELLO).text == servers[0].url
    addresses.append("127.0.0.2")  # which reaches nobody: the server listens on one address
    assert [member.base_url for member in engine.status().members] == [
        f"http://127.0.0.1:{port}",
        f"http://127.0.0.2:{port}",
    ]
    with pytest.raises(RequestError, match="the name nowhere has no address"):
        Engine(base_url="dns+http://nowhere:8000", model="served").chat(HELLO)


@pytest.mark.parametrize(
    ("url", "words"),
    [("file://servers", "whole path"), ("dns+https://host:8000", r"dns\+http://"), ("dns+host", "http")],
)
def test_wrong_names_of_lists_are_told(url: str, words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        EngineSettings(base_url=url)
