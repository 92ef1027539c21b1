"""Models' life over HTTP, on the fake vLLM: what is shown, loaded, unloaded, pinned, cancelled, told and ended."""

from __future__ import annotations

import json
import math
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from shared_engine import Engine, EngineState
from tests.fake.conftest import MakeEngine
from tests.support.adapters import ADAPTERS
from tests.support.callers import ANSWER
from tests.support.gateways import CHAT, Gateway, chat, entry
from tests.support.waiting import wait_until

LIFE = "/api/v1/inference"
Serve = Callable[..., Any]


def status(client: httpx.Client, model: str = "one") -> dict[str, Any]:
    found = client.get(f"{LIFE}/status").json()["models"]
    return next(each for each in found if each["id"] == model)


def in_flight(client: httpx.Client) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = client.get(f"{LIFE}/requests").json()["requests"]
    return found


def events(answer: httpx.Response) -> Iterator[tuple[str, Any]]:
    name = ""
    for line in answer.iter_lines():
        if line.startswith("event: "):
            name = line[7:]
        elif line.startswith("data: "):
            yield name, json.loads(line[6:])


def test_a_model_is_loaded_shown_and_unloaded(fake_engine: MakeEngine, serve: Serve) -> None:
    engine = fake_engine({"start_delay_s": 0.3})
    models = {"one": entry(engine, aliases=["uno"], concurrency_limit=8, queue_limit=32)}
    with serve(models) as gate, gate.client() as client:
        cold = status(client)
        assert (cold["state"], cold["leaves_in_s"], cold["memory_bytes"], cold["progress"]) == (
            "stopped",
            None,
            None,
            None,
        )
        assert client.post(f"{LIFE}/load", json={"model": "uno", "wait": False}).status_code == 202
        wait_until(lambda: status(client)["progress"] is not None, 10, "progress of the load")
        loaded = client.post(f"{LIFE}/load", json={"model": "one"}).json()
        assert (loaded["state"], loaded["id"], loaded["devices"]) == ("ready", "one", ["cpu"])
        assert loaded["memory_bytes"] > 0
        assert 55 <= loaded["leaves_in_s"] <= 60
        assert loaded["requests"] == {"running": 0, "waiting": 0, "limit": 8, "queue_limit": 32}
        assert loaded["capabilities"] == engine_capabilities(client)
        told = client.get(f"{LIFE}/status").json()
        assert told["is_admin"]
        assert [each["id"] for each in told["devices"]][-1] == "cpu"
        assert told["devices"][-1]["memory_total_bytes"] > told["devices"][-1]["memory_used_bytes"] > 0
        gone = client.post(f"{LIFE}/unload", json={"model": "one"}).json()
        assert gone["state"] in ("standby", "stopped")
        assert gone["memory_bytes"] is None
        assert engine.status().starts == 1
        unknown = client.post(f"{LIFE}/load", json={"model": "two"})
        assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "model_not_found")


def engine_capabilities(client: httpx.Client) -> Any:
    return client.get("/v1/models/one").json()["capabilities"]


def test_what_does_not_load_says_why(fake_engine: MakeEngine, serve: Serve) -> None:
    with serve({"one": entry(fake_engine({"exit_at": "start", "exit_code": 1}))}) as gate, gate.client() as client:
        refused = client.post(f"{LIFE}/load", json={"model": "one"})
        assert (refused.status_code, refused.json()["error"]["code"]) == (500, "load_failed")
        assert status(client)["failure"]["message"]
        assert status(client)["state"] == "failed"


def test_a_busy_model_is_not_unloaded(fake_engine: MakeEngine, serve: Serve) -> None:
    engine = fake_engine({"token_delay_s": 0.2})
    engine.warmup()
    with serve({"one": entry(engine)}) as gate, gate.client() as client, ThreadPoolExecutor(1) as pool:
        running = pool.submit(client.post, CHAT, json=chat("one"))
        wait_until(lambda: status(client)["requests"]["running"] == 1, 10, "a request to run")
        refused = client.post(f"{LIFE}/unload", json={"timeout": 0})
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "engine_busy")
        assert running.result().status_code == 200


def test_a_model_that_is_to_leave_at_once_leaves_when_the_answer_is_there(
    fake_engine: MakeEngine, serve: Serve
) -> None:
    engine = fake_engine()
    ways: list[tuple[dict[str, Any], dict[str, str]]] = [
        ({"keep_alive": 0}, {}),
        ({"keep_alive": "0s", "stream": True}, {}),
        ({}, {"x-keep-alive": "0"}),
    ]
    with serve({"one": entry(engine)}) as gate, gate.client() as client:
        for given, headers in ways:
            answer = client.post(CHAT, json=chat("one", **given), headers=headers)
            assert answer.status_code == 200
            assert ("[DONE]" if given.get("stream") else ANSWER) in answer.text
            wait_until(lambda: engine.status().state is EngineState.STANDBY, 10, "the model to leave")
        assert client.post(CHAT, json=chat("one")).status_code == 200
        time.sleep(0.3)
        assert engine.is_ready()  # what was said for one load does not hold for the next


def test_how_long_a_model_stays_is_said_by_the_last_request_that_says_it(fake_engine: MakeEngine, serve: Serve) -> None:
    engine = fake_engine()
    with serve({"one": entry(engine)}) as gate, gate.client() as client:
        for keep_alive, ttl_s in (("5m", 300), (None, 300), (-1, math.inf), (10, 10)):
            body = chat("one") if keep_alive is None else chat("one", keep_alive=keep_alive)
            assert client.post(CHAT, json=body).status_code == 200
            assert engine.status().idle_ttl_s == ttl_s
        refused = client.post(CHAT, json=chat("one", keep_alive="soon"))
        assert (refused.status_code, refused.json()["error"]["code"]) == (400, "invalid_keep_alive")
        loaded = client.post(f"{LIFE}/load", json={"model": "one", "keep_alive": "1h"}).json()
        assert 3590 < loaded["leaves_in_s"] <= 3600


def test_a_pinned_model_stays_until_it_is_unpinned(fake_engine: MakeEngine, serve: Serve) -> None:
    engine = fake_engine(idle_ttl_s=0.3)
    with serve({"one": entry(engine)}) as gate, gate.client() as client:
        assert client.post(f"{LIFE}/pin", json={"model": "one"}).json()["pinned"]
        assert engine.status().state is EngineState.STOPPED  # pinning loads nothing
        loaded = client.post(f"{LIFE}/load", json={}).json()
        assert (loaded["pinned"], loaded["leaves_in_s"]) == (True, None)
        time.sleep(1.0)
        assert engine.status().state is EngineState.READY
        assert engine.status().pinned
        client.post(f"{LIFE}/unpin", json={})
        assert not status(client)["pinned"]
        wait_until(lambda: engine.status().state is EngineState.STANDBY, 10, "the model to leave")
        client.post(f"{LIFE}/pin", json={})
        client.post(CHAT, json=chat("one"))
        assert client.post(f"{LIFE}/unload", json={}).json()["state"] == "standby"


@pytest.mark.parametrize("is_admin", [False, True])
@pytest.mark.parametrize("by", ["file", "http"])
def test_no_request_has_a_pinned_model_leave(fake_engine: MakeEngine, serve: Serve, by: str, is_admin: bool) -> None:
    engine = fake_engine()
    keys: list[dict[str, Any]] = [
        {"name": "root", "key": "roots-secret", "admin": True},
        {"name": "bob", "key": "bobs-secret", "models": ["one"]},
    ]
    fields = {"pinned": True} if by == "file" else {"ttl": 60}
    with (
        serve({"one": kept(engine, **fields)}, api_keys=keys) as gate,
        gate.client(headers={"x-api-key": "roots-secret"}) as root,
        gate.client(headers={"x-api-key": "roots-secret" if is_admin else "bobs-secret"}) as client,
    ):
        if by == "http":
            root.post(f"{LIFE}/pin", json={})
        for path, body in (
            (CHAT, chat("one", keep_alive=0)),
            (CHAT, chat("one", keep_alive="5m")),
            ("/api/generate", {"model": "one", "keep_alive": 0}),
            (f"{LIFE}/load", {"model": "one", "keep_alive": 0}),
        ):
            assert client.post(path, json=body).status_code == 200
            assert (engine.status().idle_ttl_s, engine.status().pinned) == (math.inf, True)
        root.post(f"{LIFE}/unpin", json={})
        client.post(CHAT, json=chat("one", keep_alive=0))
        wait_until(lambda: engine.status().state is EngineState.STANDBY, 10, "the model to leave")


def test_a_request_may_have_a_pinned_model_stay_for_longer_than_its_ttl(fake_engine: MakeEngine, serve: Serve) -> None:
    engine = fake_engine()
    with serve({"one": kept(engine, pinned=True, ttl=60)}) as gate, gate.client() as client:
        for keep_alive, ttl_s in ((10, 60), ("5m", 300), (0, 300)):
            client.post(CHAT, json=chat("one", keep_alive=keep_alive))
            assert (engine.status().idle_ttl_s, engine.status().pinned) == (ttl_s, True)


def kept(engine: Engine, **fields: Any) -> dict[str, Any]:
    """Of models.yaml: this engine, kept so."""
    return {name: value for name, value in entry(engine).items() if name != "idle_ttl_s"} | fields


def told_again(gate: Gateway, models: dict[str, Any]) -> None:
    gate.write({"models": models})
    gate.reload()


@pytest.mark.parametrize(
    ("fields", "keep_alive"), [({"ttl": 0, "pinned": True}, None), ({"ttl": 60}, -1)], ids=["file", "request"]
)
def test_a_model_that_is_gone_from_the_file_no_longer_stays(
    fake_engine: MakeEngine, serve: Serve, fields: dict[str, Any], keep_alive: int | None
) -> None:
    one, two = fake_engine(), fake_engine()
    models = {"one": kept(one, **fields), "two": entry(two)}
    with serve(models) as gate, gate.client() as client:
        assert client.post(CHAT, json=chat("one", keep_alive=keep_alive)).status_code == 200
        assert (one.status().idle_ttl_s, one.status().pinned) == (math.inf, "pinned" in fields)
        told_again(gate, {"two": entry(two)})
        ttl_s = fields["ttl"] or 1800
        wait_until(lambda: (one.status().idle_ttl_s, one.status().pinned) == (ttl_s, False), 10, "it to be told")
        assert one.status().state is EngineState.READY  # and it may still be used by others


def test_a_model_that_was_changed_is_kept_as_the_file_says_now(fake_engine: MakeEngine, serve: Serve) -> None:
    engine = fake_engine()
    with serve({"one": kept(engine, ttl=0, pinned=True)}) as gate, gate.client() as client:
        client.post(CHAT, json=chat("one"))
        told_again(gate, {"renamed": kept(engine, ttl=0, pinned=True)})
        time.sleep(0.5)
        assert (engine.status().idle_ttl_s, engine.status().pinned) == (math.inf, True)
        told_again(gate, {"renamed": kept(engine, ttl=600), "again": kept(engine, ttl=900, aliases=["b"])})
        wait_until(lambda: engine.status().idle_ttl_s == 900, 10, "it to be told")
        assert not engine.status().pinned
        told_again(gate, {"renamed": kept(engine, ttl=0.3)})
        wait_until(lambda: engine.status().state is EngineState.STANDBY, 10, "the model to leave")


def test_a_model_that_the_file_pins_may_leave_once_it_is_unpinned(fake_engine: MakeEngine, serve: Serve) -> None:
    engine = fake_engine()
    with serve({"one": kept(engine, pinned=True)}) as gate, gate.client() as client:
        client.post(CHAT, json=chat("one"))
        assert (engine.status().idle_ttl_s, engine.status().pinned) == (math.inf, True)
        client.post(f"{LIFE}/unpin", json={})
        assert (engine.status().idle_ttl_s, engine.status().pinned) == (1800, False)
        client.post(f"{LIFE}/unload", json={})
        client.post(CHAT, json=chat("one"))
        assert (engine.status().idle_ttl_s, engine.status().pinned) == (1800, False)


@pytest.mark.parametrize(
    ("fields", "do", "loaded", "next_load"),
    [
        ({"ttl": 60}, "pin", (math.inf, True), (math.inf, True)),
        ({"pinned": True}, "unpin", (1800, False), (1800, False)),
        ({"ttl": 60}, "load", (900, False), (60, False)),
    ],
)
def test_what_was_said_by_http_holds_where_the_file_changes_something_else(
    fake_engine: MakeEngine,
    serve: Serve,
    fields: dict[str, Any],
    do: str,
    loaded: tuple[float, bool],
    next_load: tuple[float, bool],
) -> None:
    engine = fake_engine()

    def stays() -> tuple[float | None, bool]:
        return engine.status().idle_ttl_s, engine.status().pinned

    with serve({"one": kept(engine, **fields)}) as gate, gate.client() as client:
        client.post(CHAT, json=chat("one"))
        client.post(f"{LIFE}/{do}", json={"model": "one", "keep_alive": 900} if do == "load" else {"model": "one"})
        assert stays() == loaded
        for change in ({"description": "two"}, {"max_retries": 1}):
            told_again(gate, {"one": kept(engine, **fields, **change)})
            time.sleep(0.6)
            assert stays() == loaded
            client.post(CHAT, json=chat("one"))
            assert stays() == loaded
        client.post(f"{LIFE}/unload", json={})
        assert status(client)["pinned"] == next_load[1]
        client.post(CHAT, json=chat("one"))
        assert stays() == next_load
        told_again(gate, {"one": kept(engine, ttl=300)})
        wait_until(lambda: stays() == (300, False), 10, "it to be told")


def test_a_new_ttl_holds_though_a_request_said_the_same_of_an_earlier_load(
    fake_engine: MakeEngine, serve: Serve
) -> None:
    engine = fake_engine()
    with serve({"one": kept(engine, ttl=0)}) as gate, gate.client() as client:
        client.post(CHAT, json=chat("one", keep_alive=1800))
        client.post(f"{LIFE}/unload", json={})
        client.post(CHAT, json=chat("one"))
        assert engine.status().idle_ttl_s == math.inf
        told_again(gate, {"one": kept(engine, ttl=1800)})
        wait_until(lambda: engine.status().idle_ttl_s == 1800, 10, "it to be told")


def test_what_a_models_last_requests_say_does_not_outlive_its_place_in_the_file(
    fake_engine: MakeEngine, serve: Serve
) -> None:
    engine = fake_engine({"token_delay_s": 0.2})
    two = entry(fake_engine())
    with (
        serve({"one": kept(engine, ttl=0, pinned=True), "two": two}) as gate,
        gate.client() as client,
        ThreadPoolExecutor(1) as pool,
    ):
        running = pool.submit(client.post, CHAT, json=chat("one", keep_alive=-1))
        wait_until(lambda: status(client)["requests"]["running"] == 1, 10, "a request to run")
        told_again(gate, {"two": two})
        assert running.result().status_code == 200
        wait_until(lambda: not engine.status().pinned, 10, "it to be told")
        assert engine.status().idle_ttl_s == 1800


@pytest.mark.parametrize("stream", [False, True])
def test_a_request_that_is_cancelled_ends_in_vllm_and_its_client_is_told(
    fake_engine: MakeEngine, serve: Serve, stream: bool
) -> None:
    engine = fake_engine({"token_delay_s": 0.05})
    engine.warmup()
    with serve({"one": entry(engine)}) as gate, gate.client() as client, ThreadPoolExecutor(1) as pool:
        body = chat("one", stream=stream, max_tokens=2000, ignore_eos=True)
        running = pool.submit(client.post, CHAT, json=body, headers={"x-request-id": "mine"})
        wait_until(lambda: [each["state"] for each in in_flight(client)] == ["running"], 10, "a request to run")
        if stream:
            wait_until(lambda: in_flight(client)[0]["events"] > 2, 10, "events to be passed on")
        (found,) = in_flight(client)
        assert (found["model"], found["route"], found["key"]) == ("one", CHAT, None)
        assert (found["is_stream"], found["request_id"]) == (stream, "mine")
        assert client.post(f"{LIFE}/requests/{found['id']}/cancel").json() == {"id": found["id"], "cancelled": True}
        answer = running.result()
        error = json.loads(answer.text.split("data: ")[-1])["error"] if stream else answer.json()["error"]
        assert error["code"] == "cancelled"
        if not stream:
            assert answer.status_code == 499
            assert answer.headers["x-should-retry"] == "false"
        wait_until(lambda: engine.metrics()["num_requests_running"] == 0, 10, "the request to be aborted")
        assert in_flight(client) == []
        again = client.post(f"{LIFE}/requests/{found['id']}/cancel")
        assert (again.status_code, again.json()["error"]["code"]) == (404, "request_not_found")
        assert status(client)["requests"]["running"] == 0


def test_what_is_about_an_answer_loads_no_model(fake_engine: MakeEngine, serve: Serve) -> None:
    engine = fake_engine()
    asked = [("GET", "/v1/responses/7?model=one"), ("DELETE", "/v1/x"), ("POST", "/v1/responses/7/cancel?model=one")]
    with serve({"one": entry(engine)}) as gate, gate.client() as client:
        for method, path in asked:
            refused = client.request(method, path)
            assert (refused.status_code, refused.json()["error"]["code"]) == (404, "not_loaded")
            assert refused.json()["error"]["message"].endswith(
                "one is not loaded, and its answers left with it: ask again"
            )
        assert engine.status().state is EngineState.STOPPED
        engine.warmup()
        answers = [client.request(method, path) for method, path in asked]
        assert all(each.status_code in (404, 405) and "not_loaded" not in each.text for each in answers)  # vLLM's own


def test_a_request_that_waits_can_be_cancelled_and_its_load_goes_on(
    fake_engine: MakeEngine, serve: Serve, tmp_path: Path
) -> None:
    (held := tmp_path / "held").touch()
    engine = fake_engine({"held_by": str(held)})
    with serve({"one": entry(engine)}) as gate, gate.client() as client, ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(client.post, CHAT, json=chat("one"))
        wait_until(lambda: len(in_flight(client)) == 1, 10, "a request to wait")
        client.post(f"{LIFE}/requests/{in_flight(client)[0]['id']}/cancel")
        assert waiting.result().status_code == 499
        held.unlink()
        wait_until(engine.is_ready, 10, "the load to end")


def test_events_tell_of_a_load_and_of_requests(fake_engine: MakeEngine, serve: Serve) -> None:
    engine = fake_engine({"start_delay_s": 1.0, "token_delay_s": 0.1})
    with serve({"one": entry(engine)}) as gate, gate.client() as client, ThreadPoolExecutor(1) as pool:
        states: list[str] = []
        phases: set[str] = set()
        ran = 0
        with client.stream("GET", "/events") as answer:
            assert answer.headers["content-type"] == "text/event-stream"
            asked = None
            for name, told in events(answer):
                asked = asked or pool.submit(client.post, CHAT, json=chat("one"))
                if name == "requests":
                    ran = max(ran, told["total"])
                    continue
                (model,) = told["models"]
                states += [model["state"]] if states[-1:] != [model["state"]] else []
                phases |= {model["progress"]["phase"]} if model["progress"] else set()
                if model["tokens_per_s"] and model["tokens_per_s"]["completion"] > 0:
                    break
        assert asked is not None
        assert asked.result().status_code == 200
        assert states == ["stopped", "starting", "ready"]
        assert phases
        assert ran == 1


def test_an_engines_log_and_the_gateways_own_are_read_and_followed(fake_engine: MakeEngine, serve: Serve) -> None:
    engine = fake_engine()
    with serve({"one": entry(engine)}) as gate, gate.client() as client:
        assert client.get(f"{LIFE}/logs", params={"model": "one"}).json() == {"lines": []}
        engine.warmup()
        lines = client.get(f"{LIFE}/logs", params={"model": "one", "lines": 3}).json()["lines"]
        assert len(lines) == 3
        assert set(lines[0]) == {"time", "level", "source", "process", "message"}
        with client.stream("GET", f"{LIFE}/logs", params={"model": "one", "lines": 3, "follow": "true"}) as answer:
            followed = events(answer)
            assert [next(followed)[1] for _ in range(3)] == lines
            engine.evict()
            assert any("stopping" in told["message"] for _, told in followed)
        client.post(CHAT, json=chat("one", max_tokens=-1))
        client.post(f"{LIFE}/unload", json={})
        client.post(CHAT, json={"model": "one", "messages": [], "keep_alive": "1m"})
        assert client.get(f"{LIFE}/logs", params={"lines": "many"}).status_code == 400
        own = client.get(f"{LIFE}/logs").json()["lines"]
        assert all(line["source"] == "gateway" for line in own)


@pytest.mark.parametrize("unload", [False, True])
def test_it_is_shut_down_as_by_sigterm(fake_engine: MakeEngine, serve: Serve, unload: bool) -> None:
    engine = fake_engine({"token_delay_s": 0.1})
    engine.warmup()
    with serve({"one": entry(engine)}) as gate, gate.client() as client, ThreadPoolExecutor(2) as pool:
        running = pool.submit(client.post, CHAT, json=chat("one", stream=True))
        with client.stream("GET", "/events") as answer:
            assert next(events(answer))[0] == "status"
        listening = pool.submit(lambda: client.get("/events").text)
        wait_until(lambda: status(client)["requests"]["running"] == 1, 10, "a request to run")
        assert client.post("/shutdown", json={"unload": unload}).json() == {"status": "leaving"}
        assert running.result().text.endswith("data: [DONE]\n\n")
        assert listening.result().endswith("\n\n")
        assert gate.process.wait(10) == 0
    assert engine.is_ready() is not unload


@pytest.mark.parametrize("signals", [1, 2])
def test_models_are_unloaded_at_the_end_whatever_signals_come(
    fake_engine: MakeEngine, serve: Serve, signals: int
) -> None:
    busy, idle = fake_engine({"token_delay_s": 0.1 if signals == 1 else 2.0}), fake_engine()
    busy.warmup()
    idle.warmup()
    with (
        serve({"one": entry(busy), "two": entry(idle)}) as gate,
        gate.client() as client,
        ThreadPoolExecutor(1) as pool,
    ):
        running = pool.submit(client.post, CHAT, json=chat("one", stream=True))
        wait_until(lambda: status(client)["requests"]["running"] == 1, 10, "a request to run")
        client.post("/shutdown", json={"unload": True})
        wait_until(lambda: "leaving" in gate.told(), 10, "it to begin to leave")
        for _ in range(signals):
            gate.process.send_signal(signal.SIGTERM)
            time.sleep(0.3)
        last = running.result().text.split("data: ")[-1]
        assert last == "[DONE]\n\n" if signals == 1 else json.loads(last)["error"]["code"] == "shutting_down"
        assert gate.process.wait(10) == 0
        assert "Traceback" not in gate.told()
    assert not busy.is_ready()
    assert not idle.is_ready()


def test_a_key_for_an_adapter_is_shown_that_one_in_the_place_of_its_model(
    fake_engine: MakeEngine, serve: Serve
) -> None:
    name, other = ADAPTERS
    engine = fake_engine({"token_delay_s": 0.05}, lora_adapters=ADAPTERS)
    keys: list[dict[str, Any]] = [{"name": "bob", "key": "bobs-secret", "models": [name]}]
    with (
        serve({"one": entry(engine, aliases=["uno"])}, api_keys=keys) as gate,
        ThreadPoolExecutor(1) as pool,
        gate.client(headers={"x-api-key": "bobs-secret"}) as bob,
    ):
        loaded = bob.post(f"{LIFE}/load", json={"model": name}).json()
        found = [loaded, *bob.get(f"{LIFE}/status").json()["models"]]
        assert [(each["id"], each["aliases"], each["adapters"]) for each in found] == [(name, [], [])] * 2
        assert [each["name"] for each in bob.get("/api/ps").json()["models"]] == [name]
        assert [(each["id"], each["parent"]) for each in bob.get("/v1/models").json()["data"]] == [(name, None)]
        running = pool.submit(bob.post, CHAT, json=chat(name, max_tokens=2000, ignore_eos=True))
        wait_until(lambda: len(in_flight(bob)) == 1, 10, "a request to run")
        (asked,) = in_flight(bob)
        assert asked["model"] == name
        assert bob.post(f"{LIFE}/requests/{asked['id']}/cancel").status_code == 200
        assert running.result().status_code == 499
        assert bob.post(CHAT, json=chat(other)).status_code == 404


def test_a_key_does_to_others_only_what_it_may(fake_engine: MakeEngine, serve: Serve) -> None:
    one, two = fake_engine({"token_delay_s": 0.05}), fake_engine()
    keys: list[dict[str, Any]] = [
        {"name": "root", "key": "roots-secret", "admin": True},
        {"name": "alice", "key": "alices-secret"},
        {"name": "bob", "key": "bobs-secret", "models": ["two"]},
    ]
    with serve({"one": entry(one), "two": entry(two)}, api_keys=keys) as gate, ThreadPoolExecutor(1) as pool:
        root, alice, bob = (gate.client(headers={"x-api-key": each["key"]}) for each in keys)
        assert [each["id"] for each in bob.get(f"{LIFE}/status").json()["models"]] == ["two"]
        assert bob.post(f"{LIFE}/load", json={"model": "one"}).status_code == 404
        running = pool.submit(alice.post, CHAT, json=chat("one", max_tokens=2000, ignore_eos=True))
        wait_until(lambda: len(in_flight(alice)) == 1, 10, "a request to run")
        (found,) = in_flight(root)
        assert found["key"] == "alice"
        assert in_flight(bob) == []
        assert bob.post(f"{LIFE}/requests/{found['id']}/cancel").status_code == 404
        for path, body in (
            *((f"{LIFE}/{do}", {"model": "one"}) for do in ("unload", "pin", "unpin")),
            ("/shutdown", {}),
        ):
            refused = alice.post(path, json=body)
            assert (refused.status_code, refused.json()["error"]["code"]) == (403, "admin_only")
        assert alice.get(f"{LIFE}/logs", params={"model": "one"}).status_code == 403
        assert not alice.get(f"{LIFE}/status").json()["is_admin"]
        assert alice.post(f"{LIFE}/requests/{found['id']}/cancel").status_code == 200
        assert running.result().status_code == 499
        assert root.post(f"{LIFE}/unload", json={"model": "one"}).status_code == 200
        for client in (root, alice, bob):
            client.close()
