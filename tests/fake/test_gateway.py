"""The gateway before models on the fake vLLM: what programs see while models come, work, break and go."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from shared_engine import Engine, EngineState, ModelNotFoundError
from tests.fake.conftest import MakeEngine
from tests.support.adapters import ADAPTERS
from tests.support.callers import ANSWER, HELLO
from tests.support.gateways import CHAT, Gateway, chat, entry
from tests.support.processes import process_exists
from tests.support.waiting import wait_until

ENDLESS = {"max_tokens": 2000, "ignore_eos": True}


def text_of(answer: httpx.Response) -> str:
    assert answer.status_code == 200, answer.text
    return str(answer.json()["choices"][0]["message"]["content"])


def events(answer: httpx.Response) -> list[str]:
    return [line for line in answer.iter_lines() if line]


def in_flight(gate: Gateway, model: str) -> tuple[int, int]:
    with gate.client() as client:
        told = client.get(f"/v1/models/{model}").json()["requests"]
    return told["running"], told["waiting"]


def test_each_of_two_models_is_started_by_the_first_request_that_names_it(
    fake_engine: MakeEngine, serve: Callable[..., Any]
) -> None:
    one, two = fake_engine(), fake_engine()
    models = {"one": entry(one, aliases=["uno"]), "two": entry(two, unlisted=True)}
    with serve(models) as gate, gate.client() as client:
        assert {each["id"]: each["status"]["value"] for each in client.get("/v1/models").json()["data"]} == {
            "one": "stopped"
        }
        assert text_of(client.post(CHAT, json=chat("uno"))) == ANSWER
        assert (one.status().state, two.status().state) == (EngineState.READY, EngineState.STOPPED)
        assert text_of(client.post(CHAT, json=chat("two"))) == ANSWER
        assert two.status().state is EngineState.READY
        assert client.get("/v1/models/uno").json() | {"created": 0} == {
            "id": "one",
            "object": "model",
            "created": 0,
            "owned_by": "vllm-local",
            "parent": None,
            "max_model_len": one.context_window,
            "status": {"value": "ready"},
            "capabilities": ["completions"],
            "pinned": False,
            "aliases": ["uno"],
            "requests": {"running": 0, "waiting": 0},
        }
        unknown = client.post(CHAT, json=chat("three"))
        assert unknown.status_code == 404
        assert unknown.json()["error"]["code"] == "model_not_found"
        assert "one" in unknown.json()["error"]["message"]
        assert "two" not in unknown.json()["error"]["message"]
        assert "vllm_local_requests_total{" in client.get("/metrics").text
        assert gate.end() == 0
    assert one.status().state is EngineState.READY  # it stays as its settings say


def test_a_stream_is_passed_on_byte_for_byte(fake_engine: MakeEngine, serve: Callable[..., Any]) -> None:
    engine = fake_engine()
    engine.warmup()
    with httpx.Client(transport=httpx.HTTPTransport(uds=engine.status().socket)) as direct:
        own = direct.post(f"http://engine{CHAT}", json=chat(engine.settings.model or "", stream=True))
    with serve({"one": entry(engine)}) as gate, gate.client() as client:
        passed = client.post(CHAT, json=chat("one", stream=True))
    assert without_id(passed.text) == without_id(own.text)
    assert passed.headers["content-type"] == own.headers["content-type"]
    assert passed.headers["x-accel-buffering"] == "no"


def without_id(stream: str) -> list[Any]:
    """Its events; id and time are each request's own."""
    found = [line.removeprefix("data: ") for line in stream.splitlines() if line]
    return [each if each == "[DONE]" else {**json.loads(each), "id": 0, "created": 0} for each in found]


def test_a_stream_that_waits_for_a_load_gets_comments_and_then_its_answer(
    fake_engine: MakeEngine, serve: Callable[..., Any]
) -> None:
    models = {"slow": entry(fake_engine({"start_delay_s": 1.0}))}
    with serve(models, comment_interval_s=0.1) as gate, gate.client() as client:
        with client.stream("POST", CHAT, json=chat("slow", stream=True)) as answer:
            assert answer.headers["x-accel-buffering"] == "no"
            lines = events(answer)
        comments = [line for line in lines if line.startswith(":")]
        assert comments[:1] == [": waiting for slow"]
        assert len(comments) > 3
        assert lines[: len(comments)] == comments
        assert lines[-1] == "data: [DONE]"
        # A client of openai's reads it as if nothing were there before.
        deltas = [json.loads(line[6:])["choices"][0]["delta"] for line in lines[len(comments) : -1]]
        assert "".join(each.get("content") or "" for each in deltas) == ANSWER


def test_a_client_that_leaves_does_not_end_the_load_that_it_has_begun(
    fake_engine: MakeEngine, serve: Callable[..., Any]
) -> None:
    engine = fake_engine({"start_delay_s": 1.0})
    with serve({"slow": entry(engine)}) as gate, gate.client() as client:
        with pytest.raises(httpx.ReadTimeout):
            client.post(CHAT, json=chat("slow"), timeout=0.5)
        wait_until(lambda: in_flight(gate, "slow") == (0, 0), 10, "the request to be gone")
        wait_until(lambda: engine.status().state is EngineState.READY, 20, "the load to end")
        assert engine.status().starts == 1


def leave_a_stream(client: httpx.Client) -> None:
    with client.stream("POST", CHAT, json=chat("one", stream=True, **ENDLESS)) as answer:
        next(answer.iter_lines())


def leave_an_answer(client: httpx.Client) -> None:
    with pytest.raises(httpx.ReadTimeout):
        client.post(CHAT, json=chat("one", **ENDLESS), timeout=0.5)


@pytest.mark.parametrize("leave", [leave_a_stream, leave_an_answer])
def test_a_client_that_leaves_ends_its_generation(
    fake_engine: MakeEngine, serve: Callable[..., Any], leave: Callable[[httpx.Client], None]
) -> None:
    engine = fake_engine({"token_delay_s": 0.05})
    engine.warmup()
    with serve({"one": entry(engine)}) as gate:
        with gate.client() as client:
            leave(client)
        wait_until(lambda: engine.metrics()["num_requests_running"] == 0, 10, "the request to be aborted")
        wait_until(lambda: in_flight(gate, "one") == (0, 0), 10, "its place to be free")


def test_who_comes_when_the_queue_is_full_is_told_when_to_come_again(
    fake_engine: MakeEngine, serve: Callable[..., Any]
) -> None:
    engine = fake_engine({"token_delay_s": 0.1})
    engine.warmup()
    models = {"one": entry(engine, concurrency_limit=1, queue_limit=1)}
    with serve(models) as gate, gate.client() as client, ThreadPoolExecutor(2) as pool:
        running = pool.submit(client.post, CHAT, json=chat("one"))
        wait_until(lambda: in_flight(gate, "one") == (1, 0), 10, "a request to run")
        waiting = pool.submit(client.post, CHAT, json=chat("one"))
        wait_until(lambda: in_flight(gate, "one") == (1, 1), 10, "a request to wait")
        refused = client.post(CHAT, json=chat("one", stream=True))
        assert refused.status_code == 429
        assert int(refused.headers["retry-after"]) > 0
        assert refused.json()["error"] | {"message": ""} == {
            "message": "",
            "type": "rate_limit_error",
            "param": None,
            "code": "queue_full",
        }
        assert [text_of(each.result()) for each in (running, waiting)] == [ANSWER, ANSWER]


@pytest.mark.parametrize(
    ("faults", "settings", "status", "code"),
    [
        ({"exit_at": "start", "exit_code": 1}, {}, 500, "load_failed"),
        ({"memory_error": "CUDA out of memory"}, {}, 503, "no_room"),
        ({"hang_at": "start"}, {"start_timeout_s": 1}, 504, "load_timeout"),
        ({"exit_at": "request"}, {"max_retries": 0}, 502, "engine_died"),
        ({"hang_mid_generation": True}, {"timeout": 1}, 504, "timeout"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_becomes_of_an_engine_has_a_status(
    fake_engine: MakeEngine,
    serve: Callable[..., Any],
    faults: dict[str, Any],
    settings: dict[str, Any],
    status: int,
    code: str,
) -> None:
    engine = fake_engine(faults, **settings)
    with serve({"one": entry(engine)}, comment_interval_s=0.2) as gate, gate.client() as client:
        body = chat("one", stream=code == "timeout")
        answer = client.post(CHAT, json=body)
        if answer.status_code == 200:  # comments have gone before: the error is an event
            error = json.loads([line for line in answer.text.splitlines() if line.startswith("data:")][-1][5:])["error"]
        else:
            error = answer.json()["error"]
            assert answer.status_code == status
            assert ("retry-after" in answer.headers) is (status == 503 or code == "load_timeout")
        assert error["code"] == code
        assert "Traceback" not in answer.text
        assert "  | " not in error["message"]  # lines of the engine's log


def test_an_engine_that_dies_in_a_stream_ends_it_with_an_error(
    fake_engine: MakeEngine, serve: Callable[..., Any]
) -> None:
    models = {"one": entry(fake_engine({"exit_at": "request", "exit_after_tokens": 3}))}
    with serve(models) as gate, gate.client() as client:
        lines = events(client.post(CHAT, json=chat("one", stream=True)))
        assert json.loads(lines[-1].removeprefix("data: "))["error"]["code"] == "engine_died"
        assert "data: [DONE]" not in lines


def test_vllms_refusal_of_a_request_that_was_told_to_wait_is_an_event(
    fake_engine: MakeEngine, serve: Callable[..., Any]
) -> None:
    models = {"one": entry(fake_engine({"start_delay_s": 0.6, "storm_503": 1}, max_retries=0))}
    with serve(models, comment_interval_s=0.1) as gate, gate.client() as client:
        lines = events(client.post(CHAT, json=chat("one", stream=True)))
        assert lines[0].startswith(": waiting")
        assert "overloaded" in json.loads(lines[-1].removeprefix("data: "))["error"]["message"]
        assert text_of(client.post(CHAT, json=chat("one"))) == ANSWER


def test_a_new_file_is_served_without_a_request_lost(fake_engine: MakeEngine, serve: Callable[..., Any]) -> None:
    one, two = fake_engine({"token_delay_s": 0.1}), fake_engine()
    one.warmup()
    with serve({"one": entry(one)}) as gate, gate.client() as client:
        answers: list[httpx.Response] = []

        def ask() -> None:
            answers.append(client.post(CHAT, json=chat("one", stream=True)))

        asking = threading.Thread(target=ask)
        asking.start()
        wait_until(lambda: in_flight(gate, "one")[0] == 1, 10, "a request to run")
        gate.write({"models": {"two": entry(two, aliases=["zwei"])}})
        gate.reload()
        assert client.post(CHAT, json=chat("one")).status_code == 404
        assert text_of(client.post(CHAT, json=chat("zwei"))) == ANSWER
        asking.join()
        assert answers[0].text.endswith("data: [DONE]\n\n")
        gate.write({"models": {"two": {"model": 7, "queue_limit": -1}}})
        gate.reload()
        assert "stays as it was: models.yaml, line 1: models.two.queue_limit = -1" in gate.told()
        assert text_of(client.post(CHAT, json=chat("zwei"))) == ANSWER


def test_a_file_that_is_watched_is_read_again_by_itself(fake_engine: MakeEngine, serve: Callable[..., Any]) -> None:
    engine = fake_engine()
    with serve({"one": entry(engine)}, "--watch") as gate, gate.client() as client:
        gate.write({"models": {"one": entry(engine, aliases=["new"])}})
        wait_until(lambda: client.get("/v1/models/new").status_code == 200, 10, "the new name")


def test_sigterm_lets_requests_end_and_leaves_no_process(fake_engine: MakeEngine, serve: Callable[..., Any]) -> None:
    engine = fake_engine({"token_delay_s": 0.1})
    engine.warmup()
    with serve({"one": entry(engine)}) as gate, gate.client() as client, ThreadPoolExecutor(1) as pool:
        running = pool.submit(client.post, CHAT, json=chat("one", stream=True))
        wait_until(lambda: in_flight(gate, "one")[0] == 1, 10, "a request to run")
        gate.process.send_signal(signal.SIGTERM)
        assert running.result().text.endswith("data: [DONE]\n\n")
        assert gate.process.wait(10) == 0
        assert not process_exists(gate.process.pid)
    assert engine.is_ready()


def test_a_preloaded_model_is_loaded_before_the_gateway_is_ready(
    fake_engine: MakeEngine, serve: Callable[..., Any]
) -> None:
    engine = fake_engine({"start_delay_s": 0.5})
    with serve({"one": entry(engine, preload=True)}) as gate, gate.client() as client:
        early = client.get("/ready")
        assert (early.status_code, early.json()["error"]["code"]) == (503, "not_ready")
        assert early.json()["error"]["message"] == "models with preload are not loaded yet; see /v1/models"
        assert "one" not in early.json()["error"]["message"]  # which needs no key
        wait_until(lambda: client.get("/ready").status_code == 200, 20, "the gateway to be ready")
        assert engine.is_ready()


def test_params_of_the_file_and_of_an_alias_are_the_requests(
    fake_engine: MakeEngine, serve: Callable[..., Any]
) -> None:
    short = {"short": {"max_tokens": 2}}
    models = {"one": entry(fake_engine(), set_params={"max_tokens": 4}, aliases=short)}
    with serve(models) as gate, gate.client() as client:
        answers = [client.post(CHAT, json=chat(name, max_tokens=9)).json() for name in ("one", "short")]
    lengths = [answer["usage"]["completion_tokens"] for answer in answers]
    assert lengths == [4, 2]


def test_an_engine_of_ours_reaches_it_as_any_server(fake_engine: MakeEngine, serve: Callable[..., Any]) -> None:
    with serve({"one": entry(fake_engine()), "two": entry(fake_engine())}) as gate:
        with Engine(base_url=gate.url, model="two") as far:
            assert far.chat(HELLO).text == ANSWER
            assert "".join(chunk.text for chunk in far.stream_chat(HELLO)) == ANSWER
            assert far.status().state is EngineState.READY
        with Engine(base_url=gate.url, model="three") as far, pytest.raises(ModelNotFoundError, match="one, two"):
            far.chat(HELLO)


def test_an_engine_that_is_killed_loses_no_request_that_had_not_begun_to_answer(
    fake_engine: MakeEngine, serve: Callable[..., Any]
) -> None:
    engine = fake_engine({"token_delay_s": 0.05}, max_retries=3)
    engine.warmup()
    with serve({"one": entry(engine)}) as gate, gate.client() as client, ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(client.post, CHAT, json=chat("one")) for _ in range(16)]
        wait_until(lambda: engine.metrics().get("num_requests_running", 0) >= 4, 10, "requests to run")
        os.kill(engine.status().server_pid or 0, signal.SIGKILL)
        assert {text_of(each.result()) for each in asked} == {ANSWER}
    assert engine.status().starts == 2


def test_an_adapter_is_a_model_and_is_loaded_by_the_first_request_that_names_it(
    fake_engine: MakeEngine, serve: Callable[..., Any]
) -> None:
    models = {"one": entry(fake_engine(lora_adapters=ADAPTERS)), "two": entry(fake_engine())}
    with serve(models) as gate, gate.client() as client:
        listed = client.get("/v1/models").json()["data"]
        parents = {each["id"]: each["parent"] for each in listed}
        assert parents == {"one": None, **dict.fromkeys(ADAPTERS, "one"), "two": None}
        for name in ADAPTERS:  # which the fake answers only once it has it
            answer = client.post(CHAT, json=chat(name))
            assert text_of(answer) == ANSWER
            assert answer.json()["model"].startswith(name)


def test_many_requests_at_once_are_all_answered(fake_engine: MakeEngine, serve: Callable[..., Any]) -> None:
    models = {"one": entry(fake_engine(), concurrency_limit=4), "two": entry(fake_engine())}
    began = time.monotonic()
    with serve(models) as gate, gate.client() as client, ThreadPoolExecutor(16) as pool:
        asked = [pool.submit(client.post, CHAT, json=chat("one" if n % 2 else "two")) for n in range(64)]
        assert {text_of(each.result()) for each in asked} == {ANSWER}
        assert in_flight(gate, "one") == (0, 0)
    assert time.monotonic() - began < 60
