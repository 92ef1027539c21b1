"""Ollama's protocol before the fake vLLM: what its clients see while a model loads, stays, leaves and breaks."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import ollama
import pytest

from shared_engine import Engine, EngineState
from tests.fake.conftest import MakeEngine
from tests.support.callers import ANSWER, HELLO
from tests.support.command import given_to
from tests.support.gateways import Gateway, gateway
from tests.support.waiting import wait_until

MESSAGES: Any = HELLO


@contextmanager
def before(engine: Engine, folder: Path, **fields: Any) -> Iterator[tuple[Gateway, ollama.Client]]:
    """A gateway before one engine, and a client of Ollama's."""
    with (
        gateway({"models": {"one": given_to(engine)}, **fields}, folder) as gate,
        ollama.Client(gate.url, timeout=60) as client,
    ):
        yield gate, client


def test_a_stream_that_waits_for_a_load_gets_blanks_and_then_its_answer(
    fake_engine: MakeEngine, tmp_path: Path
) -> None:
    with before(fake_engine({"start_delay_s": 1.0}), tmp_path, comment_interval_s=0.1) as (gate, client):
        with gate.client() as plain:
            told = plain.post("/api/chat", json={"model": "one", "messages": HELLO}).text
        assert told.startswith("   ")
        assert "".join(json.loads(line)["message"]["content"] for line in told.splitlines()) == ANSWER
        last = json.loads(told.splitlines()[-1])
        assert last["load_duration"] > 500_000_000
        assert last["load_duration"] + last["eval_duration"] <= last["total_duration"]
        client.generate("one", keep_alive=0)
        wait_until(lambda: not client.ps().models, 20, "the model to leave")
        # Ollama's client reads the same.
        parts = list(client.chat("one", MESSAGES, stream=True))
        assert "".join(part.message.content or "" for part in parts) == ANSWER


def test_a_model_is_loaded_kept_shown_and_sent_away(fake_engine: MakeEngine, tmp_path: Path) -> None:
    engine = fake_engine()
    with before(engine, tmp_path) as (_, client):
        assert client.ps().models == []
        assert client.chat("one", keep_alive="10m").done_reason == "load"
        assert engine.status().state is EngineState.READY
        (shown,) = client.ps().models
        assert shown.model == "one"
        assert isinstance(shown.expires_at, datetime)
        assert 500 < shown.expires_at.timestamp() - time.time() < 601
        assert client.chat("one", MESSAGES, keep_alive=-1).message.content == ANSWER
        (shown,) = client.ps().models
        assert isinstance(shown.expires_at, datetime)
        assert shown.expires_at.year > 2200
        assert client.generate("one", keep_alive=0).done_reason == "unload"
        wait_until(lambda: engine.status().state is not EngineState.READY, 20, "the model to leave")


@pytest.mark.parametrize(("ttl_s", "keep_alive"), [(60, "200000000h"), (60, 9e11), (1e13, None)])
def test_a_time_after_the_year_9999_is_shown_as_never(
    fake_engine: MakeEngine, tmp_path: Path, ttl_s: float, keep_alive: Any
) -> None:
    with before(fake_engine(idle_ttl_s=ttl_s), tmp_path) as (_, client):
        client.chat("one", MESSAGES, keep_alive=keep_alive)
        (shown,) = client.ps().models
        assert isinstance(shown.expires_at, datetime)
        assert 2200 < shown.expires_at.year < 2400


def test_what_becomes_of_an_engine_is_told(fake_engine: MakeEngine, tmp_path: Path) -> None:
    with before(fake_engine({"exit_at": "start", "exit_code": 1}), tmp_path) as (_, client):
        with pytest.raises(ollama.ResponseError) as caught:
            client.chat("one", MESSAGES)
        assert caught.value.status_code == 500
        # Once blanks were sent, and an error can only be a line.
        with pytest.raises(ollama.ResponseError, match="one: "):
            list(client.chat("one", MESSAGES, stream=True))


def test_an_engine_that_dies_in_a_stream_ends_it_with_an_error(fake_engine: MakeEngine, tmp_path: Path) -> None:
    with before(fake_engine({"exit_at": "request", "exit_after_tokens": 3}), tmp_path) as (gate, _):
        with gate.client() as plain:
            told = plain.post("/api/chat", json={"model": "one", "messages": HELLO}).text
        *parts, last = map(json.loads, told.splitlines())
        assert parts
        assert not any(part["done"] for part in parts)
        assert set(last) == {"error"}


def leave_a_stream(client: httpx.Client, endless: dict[str, Any]) -> None:
    with client.stream("POST", "/api/chat", json={**endless, "stream": True}) as answer:
        next(answer.iter_lines())


def leave_an_answer(client: httpx.Client, endless: dict[str, Any]) -> None:
    with pytest.raises(httpx.ReadTimeout):
        client.post("/api/chat", json={**endless, "stream": False}, timeout=0.5)


@pytest.mark.parametrize("leave", [leave_a_stream, leave_an_answer])
def test_a_client_that_leaves_ends_its_generation(
    fake_engine: MakeEngine, tmp_path: Path, leave: Callable[[httpx.Client, dict[str, Any]], None]
) -> None:
    engine = fake_engine({"token_delay_s": 0.4})  # nine tokens: longer than anybody waits here
    engine.warmup()
    with before(engine, tmp_path) as (gate, _):
        with gate.client() as plain:
            leave(plain, {"model": "one", "messages": HELLO, "options": {"num_predict": 2000}})
        wait_until(lambda: engine.metrics()["num_requests_running"] == 0, 10, "the request to be aborted")
