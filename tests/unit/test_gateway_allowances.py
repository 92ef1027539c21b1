"""What one API key may ask for: requests a minute and at once, told in the headers that clients know."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from shared_engine.gateway.allowances import Allowance, Allowances, is_counted
from shared_engine.gateway.config import GatewayConfig, Key, read_config
from shared_engine.gateway.refusals import RefusedError
from tests.support.gateways import asking
from tests.support.remote_server import RemoteServer, running_server

CHAT = "/v1/chat/completions"
SECRET = "alices-secret"
ALICE = {"Authorization": f"Bearer {SECRET}"}
BODY: dict[str, Any] = {"model": "a", "messages": []}


@pytest.fixture
def server() -> Iterator[RemoteServer]:
    with running_server() as server:
        yield server


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def config(folder: Path, server: RemoteServer, **limits: int) -> GatewayConfig:
    keys = [{"name": "alice", "key": SECRET, **limits}, {"name": "bob", "key": "bobs-secret"}]
    file = folder / "models.yaml"
    file.write_text(json.dumps({"models": {"a": {"base_url": server.url, "max_retries": 0}}, "api_keys": keys}))
    return read_config(file)


def test_a_minutes_requests_may_come_at_once_and_are_given_back_one_by_one(clock: list[float]) -> None:
    allowance, key = Allowance(), Key("k", "secret", requests_per_minute=3)
    left = [allowance.take(key)["x-ratelimit-remaining-requests"] for _ in range(3)]
    assert left == ["2", "1", "0"]
    for _ in range(2):  # who is refused has used nothing
        with pytest.raises(RefusedError) as caught:
            allowance.take(key)
        answer = caught.value.response()
        assert (answer.status_code, caught.value.code) == (429, "rate_limit_exceeded")
        assert answer.headers["retry-after"] == "20"
        assert answer.headers["x-ratelimit-limit-requests"] == "3"
        assert answer.headers["x-ratelimit-remaining-requests"] == "0"
        assert answer.headers["x-ratelimit-reset-requests"] == "60s"
    clock[0] += 19
    with pytest.raises(RefusedError):
        allowance.take(key)
    clock[0] += 1
    assert allowance.take(key)["x-ratelimit-remaining-requests"] == "0"
    clock[0] += 60
    assert allowance.take(key) == {
        "x-ratelimit-limit-requests": "3",
        "x-ratelimit-remaining-requests": "2",
        "x-ratelimit-reset-requests": "20s",
    }


@pytest.mark.parametrize("limit", [1, 7, 60, 1000, 10_000])
def test_neither_one_more_nor_one_less_in_any_minute(clock: list[float], limit: int) -> None:
    allowance, key = Allowance(), Key("k", "secret", requests_per_minute=limit)
    for _ in range(limit):
        allowance.take(key)
    with pytest.raises(RefusedError):
        allowance.take(key)
    clock[0] += 60
    assert allowance.take(key)["x-ratelimit-remaining-requests"] == str(limit - 1)


def test_a_limit_may_change_between_two_requests(clock: list[float]) -> None:
    allowance = Allowance()
    for _ in range(6):
        allowance.take(Key("k", "secret", requests_per_minute=6))
    with pytest.raises(RefusedError):
        allowance.take(Key("k", "secret", requests_per_minute=3))
    assert allowance.take(Key("k", "secret")) == {}


def test_so_many_at_once() -> None:
    allowance, key = Allowance(), Key("k", "secret", requests_per_minute=2, concurrency_limit=1)
    allowance.take(key)
    with pytest.raises(RefusedError) as caught:
        allowance.take(key)
    assert (caught.value.status, caught.value.code) == (429, "concurrency_limit_exceeded")
    assert caught.value.response().headers["retry-after"] == "1"
    allowance.give_back()
    assert allowance.take(key)["x-ratelimit-remaining-requests"] == "0"  # the refused one was not counted


@pytest.mark.parametrize(
    ("method", "path", "counts"),
    [
        ("POST", CHAT, True), ("POST", "/api/chat", True), ("POST", "/api/v1/inference/load", True),
        ("DELETE", "/v1/x", True), ("GET", "/v1/models", False), ("HEAD", "/", False), ("GET", "/events", False),
        ("POST", "/api/v1/inference/requests/7/cancel", False), ("POST", "/api/v1/inference/unload", False),
        ("POST", "/v1/responses/7/cancel", False), ("POST", "/v1/x/cancel", True), ("POST", "/v1/unload", True),
        ("POST", "/cancel", True), ("GET", "/v1/models/a/b", False), ("GET", "/v1/modelsx", True),
        ("GET", "/v1/responses/7", True), ("HEAD", "/v1/x", True), ("GET", "/v2/models2", True), ("GET", "/v1x", False),
    ],
)  # fmt: skip
def test_looks_at_the_gateway_and_what_ends_work_are_never_too_many(method: str, path: str, counts: bool) -> None:
    assert is_counted(method, path) is counts


async def test_a_key_that_has_used_up_its_minute_is_refused_and_others_are_not(
    tmp_path: Path, server: RemoteServer
) -> None:
    async with asking(config(tmp_path, server, requests_per_minute=2)) as client:
        answers = [await client.post(CHAT, json=BODY, headers=ALICE) for _ in range(3)]
        assert [each.status_code for each in answers] == [200, 200, 429]
        assert [each.headers["x-ratelimit-remaining-requests"] for each in answers] == ["1", "0", "0"]
        assert answers[2].json()["error"] == {
            "message": "the key 'alice' may send 2 requests a minute; try again in 30 s",
            "type": "rate_limit_error",
            "param": None,
            "code": "rate_limit_exceeded",
        }
        assert 0 < int(answers[2].headers["retry-after"]) <= 30
        assert len(server.requests) == 2
        assert (await client.get("/v1/models", headers=ALICE)).status_code == 200
        other = await client.post(CHAT, json=BODY, headers={"x-api-key": "bobs-secret"})
        assert other.status_code == 200
        assert not [name for name in other.headers if name.startswith("x-ratelimit")]
        messages = await client.post("/v1/messages", json=BODY, headers=ALICE)
        assert (messages.status_code, messages.json()["error"]["type"]) == (429, "rate_limit_error")


async def test_a_request_that_is_refused_counts_as_one_that_is_answered(tmp_path: Path, server: RemoteServer) -> None:
    async with asking(config(tmp_path, server, requests_per_minute=1)) as client:
        unknown = await client.post(CHAT, json={"model": "none"}, headers=ALICE)
        assert (unknown.status_code, unknown.headers["x-ratelimit-remaining-requests"]) == (404, "0")
        assert (await client.post(CHAT, json=BODY, headers=ALICE)).status_code == 429


async def test_a_stream_is_in_flight_to_its_end_and_a_client_that_leaves_ends_it(
    tmp_path: Path, server: RemoteServer
) -> None:
    server.streams("a", "b", then="hang")
    async with asking(config(tmp_path, server, concurrency_limit=1)) as client:
        streaming = asyncio.create_task(client.post(CHAT, json={**BODY, "stream": True}, headers=ALICE))
        while not server.requests:
            await asyncio.sleep(0.01)
        assert (await client.post(CHAT, json=BODY, headers=ALICE)).status_code == 429
        streaming.cancel()
        await asyncio.gather(streaming, return_exceptions=True)
        server.handler = server.answer
        assert [(await client.post(CHAT, json=BODY, headers=ALICE)).status_code for _ in range(2)] == [200, 200]


def test_what_a_key_has_used_is_its_own_and_stays_when_the_file_is_read_again() -> None:
    allowances = Allowances()
    assert allowances.of(Key("a", "one")) is allowances.of(Key("a", "two", requests_per_minute=1))
    assert allowances.of(Key("a", "one")) is not allowances.of(Key("b", "one"))
