"""What is known of a model before the first request: what a remote server, or the hub, says when it is asked once."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from shared_engine import Engine
from shared_engine.request import about_model
from shared_engine.request.about_model import AboutModel
from shared_engine.request.answers import window_of
from tests.support.hub import hub
from tests.support.interpreters import make_fetcher
from tests.support.paths import TINY_CHAT
from tests.support.remote_server import RemoteServer, running_app, running_server
from tests.support.waiting import wait_until

HELLO = [{"role": "user", "content": "Hello"}]
MODEL = "maintainers/tiny_chat"
NOTHING = AboutModel()


@pytest.fixture
def server() -> Iterator[RemoteServer]:
    with running_server() as server:
        yield server


@pytest.mark.parametrize(
    ("models", "name", "window"),
    [
        ([("a", 100), ("b", 200)], "b", 200),
        ([("a", 100), ("b", 200)], None, 100),  # requests go to the first one
        ([("a", 100), ("adapter", None)], "adapter", 100),  # vLLM's list has no limit of an adapter's
        ([("a", 100)], "known under another name", 100),
        ([("a", 100), ("b", 200), ("c", None)], "c", None),  # a gateway's: it may be anything
        ([("a", 100), ("b", 200)], "d", None),
        ([("a", None)], "a", None),
        ([], None, None),
    ],
)
def test_which_limit_is_a_models(models: list[tuple[str, int | None]], name: str | None, window: int | None) -> None:
    assert window_of(models, name) == window


@pytest.mark.parametrize("model", [None, "served"])
def test_a_server_is_asked_once_for_all_objects(server: RemoteServer, model: str | None) -> None:
    engines = [Engine(base_url=server.url, model=model, temperature=number / 10) for number in range(3)]
    assert [engine.context_window for engine in engines] == [None] * 3
    assert not server.looks
    assert [engine.about_model() for engine in engines] == [AboutModel(2048)] * 3
    assert [engine.context_window for engine in engines] == [2048] * 3
    assert [route for route, _ in server.looks] == ["/v1/models"]


def test_what_the_settings_say_is_not_asked_for(server: RemoteServer) -> None:
    assert Engine(base_url=server.url, max_model_len=99).about_model() == AboutModel(99)
    assert Engine(base_url=server.url, model=str(TINY_CHAT), max_model_len=99).about_model() == AboutModel(99)
    assert Engine(model=str(TINY_CHAT)).about_model() == AboutModel(2048, frozenset())
    assert not server.looks


def test_it_may_be_asked_on_an_event_loop(server: RemoteServer) -> None:
    async def ask() -> AboutModel:
        return Engine(base_url=server.url).about_model()

    assert asyncio.run(ask()) == AboutModel(2048)


def test_another_key_is_another_question(server: RemoteServer) -> None:
    async def of_whoever_has_the_key(request: web.Request) -> web.StreamResponse:
        if request.headers.get("Authorization") != "Bearer right":
            return web.json_response({"error": {"message": "no", "code": 401}}, status=401)
        return web.json_response({"data": server.models})

    app = web.Application()
    app.router.add_get("/v1/models", of_whoever_has_the_key)
    with running_app(app) as url:
        assert Engine(base_url=url, api_key="wrong").about_model() == NOTHING
        assert Engine(base_url=url, api_key="right").about_model() == AboutModel(2048)


def test_of_a_fleet_counts_what_all_of_its_servers_take() -> None:
    with ExitStack() as stack:
        servers = [stack.enter_context(running_server()) for _ in range(3)]
        for server, length in zip(servers, (4096, 1024, 2048), strict=True):
            server.models = [{"id": "served", "max_model_len": length}]
        urls = [server.url for server in servers]
        assert Engine(base_url=[*urls, "http://127.0.0.1:9"]).about_model() == AboutModel(1024)


def test_a_server_that_is_down_is_soon_asked_again(server: RemoteServer, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        engine = Engine(base_url=url)
        assert engine.about_model() == NOTHING
    monkeypatch.setattr(about_model, "KEPT_S", 0.0)
    engine = Engine(base_url=server.url)
    server.models = []
    assert engine.about_model() == NOTHING
    server.models = [{"id": "served", "max_model_len": 2048}]
    assert engine.about_model() == AboutModel(2048)


def test_a_silent_server_holds_nobody_up_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    speaks = asyncio.Event()

    async def late(request: web.Request) -> web.StreamResponse:
        await speaks.wait()
        return web.json_response({"data": [{"id": "a", "max_model_len": 512}]})

    async def speak(request: web.Request) -> web.StreamResponse:
        speaks.set()
        return web.json_response({"choices": [{"message": {"content": "Hi"}, "finish_reason": "stop"}]})

    app = web.Application()
    app.router.add_get("/v1/models", late)
    app.router.add_post("/v1/chat/completions", speak)
    monkeypatch.setattr(about_model, "SERVER_WAIT_S", 0.1)
    with running_app(app) as url:
        engine = Engine(base_url=url, model="a")
        begin = time.monotonic()
        assert [engine.about_model() for _ in range(100)] == [NOTHING] * 100
        assert time.monotonic() - begin < 5
        assert engine.chat(HELLO).text == "Hi"  # what was asked is still being waited for, by nobody
        wait_until(lambda: engine.about_model() == AboutModel(512), 5, "its answer")


def test_a_server_that_does_not_say_its_limit(server: RemoteServer) -> None:
    server.models = [{"id": "gpt-4o"}]
    engine = Engine(base_url=server.url)
    assert engine.about_model() == NOTHING
    assert engine.about_model() == NOTHING
    assert len(server.looks) == 1


@pytest.mark.slow
def test_a_forked_child_asks_for_itself(server: RemoteServer, monkeypatch: pytest.MonkeyPatch) -> None:
    stays = asyncio.Event()

    async def silent(request: web.Request) -> web.StreamResponse:
        await stays.wait()
        return web.Response()

    app = web.Application()
    app.router.add_get("/v1/models", silent)
    with running_app(app) as url:
        monkeypatch.setattr(about_model, "SERVER_WAIT_S", 0.05)
        assert Engine(base_url=url, model="served").about_model() == NOTHING
        assert about_model._questions
        about_model._forget_in_child()  # what a fork would have it do
        assert all(question.answer.done() for question in about_model._questions.values())


# ---- the hub


@pytest.fixture
def hub_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of a model on a hub, and nothing of it on this machine."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setattr(about_model, "_questions", {})
    folder = tmp_path / "model"
    folder.mkdir()
    config: dict[str, Any] = {"text_config": {"max_position_embeddings": 777}, "vision_config": {"depth": 1}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").write_text("not asked for")
    with hub(folder, MODEL) as url:
        monkeypatch.setenv("HF_ENDPOINT", url)
        yield folder


@pytest.mark.slow
def test_of_a_model_that_was_not_downloaded_the_config_is_asked_for(hub_model: Path, tmp_path: Path) -> None:
    engine = Engine(model=MODEL, python=make_fetcher(tmp_path / "env"))
    assert engine.about_model() == AboutModel(777, frozenset({"image"}))
    assert Engine(model=MODEL, max_model_len=99).about_model() == AboutModel(99, frozenset({"image"}))
    assert engine.settings.model_folder() is None, "what looks like a download would be one"
    assert not [path for path in (tmp_path / "hub").rglob("*") if path.is_file()]


@pytest.mark.slow
def test_a_model_that_the_hub_does_not_have(hub_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="shared_engine")
    engine = Engine(model="nobody/nothing", python=make_fetcher(tmp_path / "env"))
    assert engine.about_model() == NOTHING
    assert "nobody/nothing was not to be had before it is downloaded" in caplog.text


@pytest.mark.parametrize(
    ("model", "variables"),
    [
        (MODEL, {"HF_HUB_OFFLINE": "1"}),
        (MODEL, {"VLLM_USE_MODELSCOPE": "1"}),
        ("org/model:Q4_K_M", {}),
    ],
)
def test_where_the_hub_is_not_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str, variables: dict[str, str]
) -> None:
    monkeypatch.setattr(about_model, "_questions", {})
    for name, value in {"HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path), **variables}.items():
        monkeypatch.setenv(name, value)
    assert Engine(model=model, python="/nowhere/python").about_model() == NOTHING
    assert not about_model._questions
