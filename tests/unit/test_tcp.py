"""TCP beside the Unix socket: addresses, what is let through, and the lease that a request holds."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import pickle
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from shared_engine import Engine, EngineSettings, SettingsError
from shared_engine.launch.keeping import keep_policy
from shared_engine.launcher import tcp
from shared_engine.launcher.tcp import Entrance, Guard, bound, refusal_of
from shared_engine.runtime.keep_policy import KeepPolicy, TcpAddress
from shared_engine.runtime.lease import ExclusiveLease
from shared_engine.runtime.messages import EnsureReady, decode, encode
from shared_engine.runtime.record import EngineState, Failure, FailureKind, Record, write_record

KEY = "s3cret"

# ---- the setting


@pytest.mark.parametrize(
    ("given", "address"),
    [
        (True, "127.0.0.1:0"),
        ("true", "127.0.0.1:0"),
        (8000, "127.0.0.1:8000"),
        ("8000", "127.0.0.1:8000"),
        ("localhost:8000", "localhost:8000"),
        ("[::1]:8000", "[::1]:8000"),
        (False, None),
        (None, None),
    ],
)
def test_addresses_as_users_write_them(given: Any, address: str | None) -> None:
    assert EngineSettings(model="org/name", serve_tcp=given).serve_tcp == address


@pytest.mark.parametrize("given", ["host", "host:", ":8000", "host:port", "127.0.0.1:70000", "127.0.0.1:-1"])
def test_what_is_no_address_is_refused(given: str) -> None:
    with pytest.raises(SettingsError, match=r"serve_tcp = '.*': must be an address such as 127.0.0.1:8000, or True"):
        EngineSettings(model="org/name", serve_tcp=given)


@pytest.mark.parametrize("host", ["0.0.0.0", "192.0.2.7", "[::]", "gpu-host"])
def test_another_machine_is_let_in_with_a_key_only(host: str) -> None:
    with pytest.raises(SettingsError, match=r"lets other machines in: pass api_key"):
        EngineSettings(model="org/name", serve_tcp=f"{host}:8000")
    EngineSettings(model="org/name", serve_tcp=f"{host}:8000", api_key=KEY)


def test_only_a_local_engine_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere: tuple[dict[str, Any], ...] = ({"base_url": "http://h/v1"}, {"model": "org/name", "mode": "direct"})
    for settings in elsewhere:
        with pytest.raises(SettingsError, match=r"serve_tcp = .* is of a local engine"):
            EngineSettings(**settings, serve_tcp=8000)
    EngineSettings(model="org/name", mode="auto", serve_tcp=8000)
    urls, keys = ["http://a/v1", "http://b/v1"], ["k", "l"]
    with pytest.raises(SettingsError, match="takes one api_key, not 2"):
        EngineSettings(model="m", base_url=urls, api_key=keys, mode="auto", serve_tcp=8000)
    monkeypatch.setenv("VLLM_SERVE_TCP", "8000")
    EngineSettings(base_url="http://h/v1")  # of the environment: for the local ones


def test_a_flag_that_would_do_it_names_the_setting() -> None:
    with pytest.raises(SettingsError, match=r"'port' is chosen by vllm-local .*; serve_tcp has it listen on TCP too"):
        EngineSettings(model="org/name", engine_args={"port": 8000})


def test_the_supervisor_is_told_address_and_key_and_nobody_sees_the_key() -> None:
    policy = keep_policy(EngineSettings(model="org/name", serve_tcp="[::1]:8000", api_key=KEY))
    assert policy.serve_tcp == TcpAddress("::1", 8000, KEY)
    assert decode(encode(EnsureReady(policy, {}))).policy == policy
    assert KEY not in repr(policy)
    assert keep_policy(EngineSettings(model="org/name", api_key=KEY)).serve_tcp is None


def test_whoever_unpickles_an_object_opens_no_port() -> None:
    engine = Engine(model="org/name", serve_tcp=8000, api_key=KEY)
    for pickled in (pickle.dumps(engine), pickle.dumps(engine.settings)):
        assert KEY.encode() not in pickled
        loaded = pickle.loads(pickled)
        assert (loaded.settings if isinstance(loaded, Engine) else loaded).serve_tcp is None


def test_each_caller_has_a_port_of_its_own_wish() -> None:
    one, other = KeepPolicy(serve_tcp=TcpAddress("::1", 1)), KeepPolicy(idle_ttl_s=9e9)
    assert one.merged_with(other) == KeepPolicy(idle_ttl_s=9e9)


# ---- one request


def scope(path: str = "/v1/models", method: str = "GET", **headers: str) -> dict[str, Any]:
    pairs = [(name.encode(), value.encode()) for name, value in headers.items()]
    return {"type": "http", "path": path, "method": method, "headers": pairs}


@pytest.mark.parametrize(
    ("request_", "key", "status"),
    [
        (scope(), "", None),
        (scope(host="127.0.0.1:8000"), "", None),
        (scope(host="localhost:8000", origin="http://localhost:3000"), "", None),
        (scope(host="[::1]:8000"), "", None),
        (scope(origin="https://evil.example"), "", 403),
        (scope(origin="null"), "", 403),
        (scope(host="evil.example:8000"), "", 403),
        (scope(host="127.0.0.1.evil.example"), "", 403),
        (scope("/v1/chat/completions", "OPTIONS", origin="https://evil.example"), "", 403),
        (scope(), KEY, 401),
        (scope(authorization="Bearer wrong"), KEY, 401),
        (scope(authorization=KEY), KEY, 401),
        (scope(authorization=f"Bearer {KEY}"), KEY, None),
        (scope(authorization=f"bearer {KEY}"), KEY, None),
        (scope(authorization=f"Bearer {KEY}", origin="https://app.example", host="gpu:8000"), KEY, None),
        (scope("/v1/chat/completions", "OPTIONS", origin="https://app.example"), KEY, None),
        (scope("/health"), KEY, None),
        (scope("/metrics"), KEY, 401),
        (scope("/tokenize"), KEY, 401),
        (scope("/tokenize"), "", None),
        (scope("/sleep", "POST"), "", 404),
        (scope("/docs"), "", 404),
        (scope("/scale_elastic_ep", "POST"), "", 404),
        (scope("/vllm-local/open", "POST"), "", 404),
        (scope("/v1/load_lora_adapter", "POST"), "", 404),
        (scope("/v1/unload_lora_adapter", "POST", authorization=f"Bearer {KEY}"), KEY, 404),
        (scope("/sleep", "POST"), KEY, 401),
    ],
)
def test_what_is_let_through(request_: dict[str, Any], key: str, status: int | None) -> None:
    refusal = refusal_of(request_, key)
    assert (None if refusal is None else refusal.status) == status


class App:
    """Stands in for vLLM's; counts, and may wait."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.goes_on = asyncio.Event()
        self.goes_on.set()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.asked.append(scope["path"])
        await self.goes_on.wait()
        await send({"type": "http.response.start", "status": 200, "headers": []})


async def asked(app: Any, request_: dict[str, Any], body: bytes = b"") -> tuple[Any, Any]:
    """Status and JSON of the answer."""
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    await app(request_, receive, send)
    content = sent[1]["body"] if len(sent) > 1 else b"null"
    return sent[0].get("status", sent[0]["type"]), json.loads(content)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_record(tmp_path / "record.json", Record(EngineState.READY))
    return tmp_path


async def test_a_request_holds_the_lease_while_it_runs_and_counts_as_use(folder: Path) -> None:
    app = App()
    guard, eviction = Guard(app, "", folder), ExclusiveLease(folder / "lease")
    app.goes_on.clear()
    running = asyncio.create_task(asked(guard, scope()))
    while not app.asked:
        await asyncio.sleep(0)
    assert not eviction.try_take(), "a request runs"
    assert eviction.last_use() == 0.0
    app.goes_on.set()
    assert (await running)[0] == 200
    assert eviction.last_use() > 0.0
    assert eviction.try_take()
    status, answer = await asked(guard, scope())
    assert (status, answer["error"]["code"]) == (503, 503)
    assert await asked(guard, scope("/health")) == (200, None), "which says nothing of the model"
    assert app.asked == ["/v1/models", "/health"]


@pytest.mark.parametrize(
    "record",
    [
        Record(EngineState.ASLEEP),
        Record(EngineState.STOPPING),
        Record(EngineState.READY, failure=Failure(FailureKind.DIED, "it hung")),
        None,
    ],
    ids=["asleep", "stopping", "dying", "gone"],
)
async def test_an_engine_that_is_not_ready_says_so(folder: Path, record: Record | None) -> None:
    app = App()
    guard = Guard(app, "", folder)
    assert (await asked(guard, scope()))[0] == 200
    if record is None:
        (folder / "record.json").unlink()
    else:
        write_record(folder / "record.json", record)
    assert (await asked(guard, scope()))[0] == 503
    assert ExclusiveLease(folder / "lease").try_take(), "and holds no lease"


async def test_a_failing_request_gives_the_lease_back(folder: Path) -> None:
    async def fails(*_: Any) -> None:
        raise RuntimeError("the client has gone")

    with pytest.raises(RuntimeError, match="the client has gone"):
        await asked(Guard(fails, "", folder), scope())
    assert ExclusiveLease(folder / "lease").try_take()


async def test_a_websocket_is_refused_alike(folder: Path) -> None:
    app = App()
    kind = {**scope("/v1/realtime"), "type": "websocket"}
    assert (await asked(Guard(app, KEY, folder), kind))[0] == "websocket.close"
    assert app.asked == []


# ---- sockets


@pytest.fixture
def taken() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


def test_the_next_free_port_is_taken(taken: int) -> None:
    with bound("127.0.0.1", taken) as one, bound("127.0.0.1", taken) as other, bound("127.0.0.1", 0) as free:
        ports = [listener.getsockname()[1] for listener in (one, other, free)]
    assert taken < ports[0] < ports[1]
    assert ports[2] not in (0, taken)


def test_no_free_port_and_no_such_address_are_told(taken: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tcp, "TRIED_PORTS", 1)
    with pytest.raises(OSError, match="all taken") as caught:
        bound("127.0.0.1", taken)
    assert caught.value.errno == errno.EADDRINUSE
    with pytest.raises(OSError, match=os.strerror(errno.EADDRNOTAVAIL)):
        bound("192.0.2.77", 8000)


class Opened(Entrance):
    async def _listen(self, listener: socket.socket, app: Any) -> int:
        with listener:
            return int(listener.getsockname()[1])


async def test_equal_wishes_share_a_port_and_others_have_their_own(tmp_path: Path) -> None:
    app = App()
    entrance = Opened(app, server=None)

    async def port(**changes: Any) -> Any:
        wish = {"host": "127.0.0.1", "port": 0, "key": "", "folder": str(tmp_path), **changes}
        return await asked(entrance, scope("/vllm-local/open", "POST"), json.dumps(wish).encode())

    one, same, keyed = await port(), await port(), await port(key=KEY)
    assert one == same
    assert one[0] == 200
    assert keyed != one
    status, answer = await port(host="192.0.2.77")
    assert (status, answer["error"]) == (409, os.strerror(errno.EADDRNOTAVAIL))
    assert app.asked == []
    assert (await asked(entrance, scope("/v1/models")))[0] == 200
