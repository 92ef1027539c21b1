"""mode="auto" and fallback=...: the next one is used when an engine can't start; shutdown begins again."""

from __future__ import annotations

import logging
import pickle
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from langchain_vllm_local import ChatVLLM
from llama_index_vllm_local import VLLM
from shared_engine import AuthenticationError, Engine, EngineNotInstalledError, EngineState
from tests.support.interpreters import make_interpreter
from tests.support.remote_server import RemoteServer, running_app, running_server

HELLO = [{"role": "user", "content": "Hello"}]


@pytest.fixture
def server() -> Iterator[RemoteServer]:
    with running_server() as server:
        yield server


@pytest.fixture
def settings(tmp_path: Path, server: RemoteServer) -> dict[str, Any]:
    """Of an engine that only a remote server can answer for: no Python here has vLLM."""
    python = make_interpreter(tmp_path, None)
    return {"model": "org/name", "mode": "auto", "python": python, "base_url": server.url, "show_progress": False}


def test_what_can_not_start_is_left_for_the_next_with_its_reason(
    settings: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    engine = Engine(**settings)
    assert engine.chat(HELLO).text
    assert "".join(chunk.text for chunk in engine.stream_chat(HELLO))
    assert len(engine.chat_batch([HELLO] * 3)) == 3
    assert Engine(**settings).chat(HELLO).text, "another object of the same settings begins where this one is"
    told = [record.getMessage() for record in caplog.records if "in place of" in record.getMessage()]
    assert [line.partition(":")[0] for line in told] == [
        "mode 'local' is used in place of 'direct'",
        "mode 'remote' is used in place of 'local'",
    ]
    assert f"needs vLLM in this Python ({sys.executable})" in told[0]
    assert "pip install" in told[0]
    assert settings["python"] in told[1]
    assert (engine.status().mode, engine.status().state) == ("remote", EngineState.READY)


def test_the_order_is_a_setting(settings: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    assert Engine(**settings, fallback=("remote", "local")).chat(HELLO).text
    assert "mode 'remote' is used in place of 'direct'" in caplog.text
    assert "'local'" not in caplog.text


def test_the_last_ones_error_is_the_callers(settings: dict[str, Any]) -> None:
    engine = Engine(**{**settings, "base_url": None, "seed": 1})
    with pytest.raises(EngineNotInstalledError, match="has no vLLM"):
        engine.chat(HELLO)
    with pytest.raises(EngineNotInstalledError, match="needs vLLM in this Python"):
        Engine(model="org/name", mode="direct").chat(HELLO)


def test_a_server_that_does_not_answer_is_left_for_an_engine(
    settings: dict[str, Any], server: RemoteServer, caplog: pytest.LogCaptureFixture
) -> None:
    gone = {**settings, "mode": "remote", "base_url": "http://127.0.0.1:9", "fallback": ["local"], "max_retries": 0}
    with pytest.raises(EngineNotInstalledError):
        Engine(**gone).chat(HELLO)
    assert "mode 'local' is used in place of 'remote'" in caplog.text
    assert "can't be reached" in caplog.text


@pytest.mark.parametrize("is_fleet", [False, True])
@pytest.mark.parametrize(
    "secret", [{"api_key": "wrong"}, {"default_headers": {"X-Key": "wrong"}}, {"basic_auth": "a:b"}]
)
def test_a_key_that_is_refused_is_the_callers_error_and_no_others_step(
    settings: dict[str, Any], server: RemoteServer, secret: dict[str, Any], is_fleet: bool
) -> None:
    wrong = {"Authorization": ("Bearer wrong", "Basic YTpi"), "X-Key": ("wrong",)}

    async def models(request: web.Request) -> web.StreamResponse:
        is_refused = any(request.headers.get(name) in values for name, values in wrong.items())
        return web.json_response({"data": server.models}, status=401 if is_refused else 200)

    server._models = models  # type: ignore[method-assign]
    with running_app(server.app()) as url:
        urls = ["http://127.0.0.1:9", url] if is_fleet else url
        shared = {**settings, "mode": "remote", "base_url": urls, "fallback": ["local"]}
        with pytest.raises(AuthenticationError):
            Engine(**shared, **secret).chat(HELLO)
        assert Engine(**shared, api_key="right").chat(HELLO).text
        assert Engine(**shared).chat(HELLO).text


def test_the_step_of_one_object_is_not_that_of_one_with_another_key(
    settings: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    gone = {**settings, "mode": "remote", "base_url": "http://127.0.0.1:9", "fallback": ["local"], "max_retries": 0}
    for key in ("a", "b", "a"):
        with pytest.raises(EngineNotInstalledError):
            Engine(**gone, api_key=key).chat(HELLO)
    assert caplog.text.count("mode 'local' is used in place of 'remote'") == 2


def test_a_fleet_is_left_only_when_none_of_it_answers(
    settings: dict[str, Any], server: RemoteServer, caplog: pytest.LogCaptureFixture
) -> None:
    urls = ["http://127.0.0.1:9", "http://127.0.0.1:19", server.url]
    engine = Engine(**{**settings, "mode": "remote", "base_url": urls, "fallback": ["local"], "max_retries": 2})
    for number in range(6):
        assert engine.chat([{"role": "user", "content": f"question {number}"}]).text
    assert "in place of" not in caplog.text
    assert engine.chat(HELLO, session="a").text
    members = {member.base_url: member for member in engine.status().members}
    assert members[server.url].state is EngineState.READY
    assert members[server.url].in_flight == 0
    assert "can't be reached" in (members[urls[0]].last_error or "")


def test_shutdown_begins_with_the_first_one_again(settings: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    engine = Engine(**{**settings, "fallback": ["local", "remote"], "seed": 2})
    assert engine.chat(HELLO).text
    with pytest.raises(Exception, match="never stops a remote server"):
        engine.shutdown()
    caplog.set_level(logging.INFO)
    assert engine.chat(HELLO).text
    assert "mode 'local' is used in place of 'direct'" in caplog.text


def test_both_adapters_take_it_and_a_pickle_keeps_it(settings: dict[str, Any]) -> None:
    chat = pickle.loads(pickle.dumps(ChatVLLM(**settings)))
    assert chat.invoke("Hello").text
    assert str(VLLM(**settings).complete("Hello"))
    assert pickle.loads(pickle.dumps(Engine(**settings, seed=3))).chat(HELLO).text
