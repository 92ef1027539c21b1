"""Where a server is, and how it is reached: every form of URL that people have, and no secret shown."""

from __future__ import annotations

import copy
import pickle
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from llama_index.core.llms import ChatMessage
from pydantic import SecretStr

from langchain_vllm_local import ChatVLLM
from llama_index_vllm_local import VLLM
from shared_engine import Engine, EngineSettings, SettingsError
from shared_engine.settings import SECRET
from tests.support.remote_server import RemoteServer, running_server

HELLO = [{"role": "user", "content": "Hello"}]
WORD = "hunter2-word"


@pytest.fixture
def server() -> Iterator[RemoteServer]:
    with running_server() as server:
        yield server


@pytest.mark.parametrize(
    ("given", "root"),
    [
        ("http://host:8000", "http://host:8000"),
        ("http://host:8000/", "http://host:8000"),
        ("http://host:8000/v1", "http://host:8000"),
        ("http://host:8000/v1/", "http://host:8000"),
        (" http://host:8000/v1\n", "http://host:8000"),
        ("HTTP://host:8000/v1", "http://host:8000"),
        ("http://host/v1/chat/completions", "http://host"),
        ("http://host/chat/completions/", "http://host"),
        ("http://host/v1/completions", "http://host"),
        ("http://host/v1/embeddings", "http://host"),
        ("http://host/v1/rerank", "http://host"),
        ("http://host/v1/models", "http://host"),
        ("https://openrouter.ai/api/v1", "https://openrouter.ai/api"),
        ("https://host/team/a/v1/chat/completions", "https://host/team/a"),
        ("https://host/team/a", "https://host/team/a"),
        ("https://host/models", "https://host/models"),
        ("http://[::1]:8000/v1", "http://[::1]:8000"),
        ("http://host/v1#part", "http://host"),
        ("http://name:word@host:8000/v1", "http://host:8000"),
    ],
)
def test_a_base_url_may_end_in_v1_in_a_route_or_in_neither(given: str, root: str) -> None:
    assert EngineSettings(base_url=given).base_url == root


def test_every_form_reaches_the_server(server: RemoteServer) -> None:
    for end in ("", "/", "/v1", "/v1/chat/completions", "/v1/completions"):
        assert Engine(base_url=server.url + end).chat(HELLO).text == "Hi"


def test_user_and_password_of_the_url_are_basic_auth(server: RemoteServer) -> None:
    url = server.url.replace("://", f"://us%40er:{WORD}%3A1@")
    Engine(base_url=url).chat(HELLO)
    sent = server.requests[-1][0]["Authorization"]
    assert sent == "Basic " + b64encode(f"us@er:{WORD}:1".encode()).decode()
    assert EngineSettings(base_url=server.url).basic_auth is None


@pytest.mark.parametrize("word", ["p@ss", "p/ss", "p%2Fss", "p:ss", "p?s#s"])
def test_a_password_may_have_any_character(server: RemoteServer, word: str) -> None:
    Engine(base_url=server.url.replace("://", f"://user:{word}@")).chat(HELLO)
    sent = server.requests[-1][0]["Authorization"]
    assert sent == "Basic " + b64encode(f"user:{word.replace('%2F', '/')}".encode()).decode()


def test_an_at_in_the_path_is_no_password() -> None:
    assert EngineSettings(base_url="http://host:8000/team@home/v1").base_url == "http://host:8000/team@home"
    assert EngineSettings(base_url="http://host/team@home").basic_auth is None


def test_a_user_without_a_password_is_sent_as_such(server: RemoteServer) -> None:
    Engine(base_url=server.url.replace("://", "://token@")).chat(HELLO)
    assert server.requests[-1][0]["Authorization"] == "Basic " + b64encode(b"token:").decode()


def test_two_authorizations_are_refused() -> None:
    with pytest.raises(SettingsError, match="leave one of them out") as caught:
        EngineSettings(base_url=f"http://user:{WORD}@host", api_key="k")
    assert WORD not in str(caught.value)


SECRETS: dict[str, Any] = {
    "base_url": f"http://user:{WORD}1@host:8000/v1",
    "default_headers": {"X-Key": f"{WORD}2"},
    "proxy": f"http://user:{WORD}3@proxy:3128",
}


@pytest.mark.parametrize("kind", [Engine, EngineSettings, ChatVLLM, VLLM])
def test_no_secret_is_shown_or_pickled(kind: Any) -> None:
    made = kind(**SECRETS)
    shown = [repr(made), str(made), str(pickle.dumps(made))]
    if hasattr(made, "model_dump_json"):
        shown += [made.model_dump_json(), str(made.model_dump())]
    if hasattr(made, "to_dict"):
        shown.append(str(made.to_dict()))
    if kind is ChatVLLM:
        from langchain_core.load import dumps

        shown += [dumps(made), str(made._identifying_params)]
    assert [text for text in shown if WORD in text] == []


@pytest.mark.parametrize("kind", [Engine, EngineSettings, ChatVLLM, VLLM])
@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda made: made.model_copy()])
def test_a_copy_in_this_process_keeps_the_secrets(kind: Any, copied: Any) -> None:
    made = kind(**SECRETS)
    if not hasattr(made, "model_copy"):
        copied = copy.copy
    for settings in (made, copied(made)):
        engine = getattr(settings, "engine", settings)
        found = getattr(engine, "settings", engine)
        assert found.basic_auth.get_secret_value() == f"user:{WORD}1"
        assert found.proxy_auth.get_secret_value() == f"user:{WORD}3"
        assert found.default_headers["X-Key"].get_secret_value() == f"{WORD}2"
        assert (found.base_url, found.proxy) == ("http://host:8000", "http://proxy:3128")


def test_another_process_reads_the_secrets_from_its_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    pickles = [pickle.dumps(kind(**SECRETS)) for kind in (Engine, ChatVLLM, VLLM)]
    monkeypatch.setenv("VLLM_BASIC_AUTH", "their:own")
    monkeypatch.setenv("VLLM_DEFAULT_HEADERS", '{"X-Key": "theirs"}')
    for data in pickles:
        made = pickle.loads(data)
        settings: EngineSettings = getattr(made, "engine", made).settings
        assert isinstance(settings.basic_auth, SecretStr)
        assert settings.basic_auth.get_secret_value() == "their:own"
        assert settings.default_headers is not None
        assert settings.default_headers["X-Key"].get_secret_value() == "theirs"
        assert settings.proxy_auth is None


@pytest.mark.parametrize(
    "values",
    [
        {"base_url": f"ftp://user:{WORD}@host"},
        {"base_url": f"user:{WORD}@host:8000"},
        {"base_url": f"http://user:a/{WORD}@host:99x"},
        {"base_url": f"ftp://user:a/{WORD}@host"},
        {"base_url": f"http://user:{WORD}@host:99x"},
        {"base_url": f"http://user:{WORD}@"},
        {"base_url": "http://host", "proxy": f"socks5://user:{WORD}@proxy"},
        {"base_url": "http://host", "proxy_auth": WORD},
        {"base_url": "http://host", "default_headers": {"X-Key": f"{WORD}\r\nX-Other: 1"}},
        {"base_url": "http://host", "default_headers": {"X Key": WORD}},
        {"base_url": "http://host", "default_headers": [WORD]},
        {"base_url": f"http://user:{WORD}@host", "mode": "local"},
        {"base_url": f"http://user:{WORD}@host", "max_model_leng": 5},
    ],
)
@pytest.mark.parametrize("kind", [EngineSettings, ChatVLLM, VLLM])
def test_a_refusal_shows_no_secret(values: dict[str, Any], kind: Any) -> None:
    with pytest.raises(SettingsError) as caught:
        kind(**values)
    assert WORD not in str(caught.value)


def test_a_variable_that_is_not_json_shows_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_DEFAULT_HEADERS", f"X-Key: {WORD}")
    with pytest.raises(SettingsError, match="VLLM_DEFAULT_HEADERS must be a JSON object") as caught:
        EngineSettings(base_url="http://host")
    assert WORD not in str(caught.value)


def test_an_error_of_a_request_shows_no_secret() -> None:
    with pytest.raises(Exception, match=r"http://127\.0\.0\.1:1 can't be reached") as caught:
        Engine(base_url=f"http://user:{WORD}@127.0.0.1:1", model="m", max_retries=0).chat(HELLO)
    assert WORD not in str(caught.value)


@pytest.mark.parametrize("kind", [Engine, ChatVLLM, VLLM])
def test_headers_and_query_go_with_every_request(server: RemoteServer, kind: Any) -> None:
    made = kind(
        base_url=server.url + "/v1?api-version=1",
        api_key="k",
        default_headers={"X-Tenant": "a", "X-Number": 5},
        default_query={"b": "c d"},
    )
    message = [ChatMessage(content="Hello")]
    match made:
        case Engine():
            made.chat(HELLO), list(made.stream_chat(HELLO))
        case ChatVLLM():
            made.invoke("Hello"), list(made.stream("Hello"))
        case VLLM():
            made.chat(message), list(made.stream_chat(message))
    assert len(server.requests) == 2
    for headers, _ in server.requests:
        assert (headers["X-Tenant"], headers["X-Number"], headers["Authorization"]) == ("a", "5", "Bearer k")
    assert server.queries == [{"api-version": "1", "b": "c d"}] * 2


def test_a_header_of_ones_own_wins(server: RemoteServer) -> None:
    Engine(base_url=server.url, api_key="k", default_headers={"authorization": "Token t"}).chat(HELLO)
    sent = [value for name, value in server.requests[-1][0].items() if name.lower() == "authorization"]
    assert sent == ["Token t"]


def test_headers_come_from_the_environment_as_json(server: RemoteServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_DEFAULT_HEADERS", '{"X-Tenant": "a"}')
    Engine(base_url=server.url).chat(HELLO)
    assert server.requests[-1][0]["X-Tenant"] == "a"


def test_objects_with_other_headers_share_no_connections(server: RemoteServer) -> None:
    for tenant in ("a", "b", "a"):
        Engine(base_url=server.url, default_headers={"X-Tenant": tenant}).chat(HELLO)
    assert [headers["X-Tenant"] for headers, _ in server.requests] == ["a", "b", "a"]


@pytest.mark.parametrize("name", ["ssl_ca_certs", "ssl_certfile"])
def test_a_file_that_is_not_there_is_refused_at_once(name: str, tmp_path: Path) -> None:
    files: dict[str, Any] = {name: tmp_path / "none.pem"}
    with pytest.raises(SettingsError, match=f"{name} = .*no such file"):
        EngineSettings(base_url="https://host", **files)


def test_every_secret_is_a_setting() -> None:
    assert set(SECRET) <= set(EngineSettings.model_fields)
