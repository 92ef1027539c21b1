"""Which proxy is used: one that was set, else the environment's, by curl's rules."""

from __future__ import annotations

import base64
import traceback
from collections.abc import Iterator
from typing import Any

import pytest

from shared_engine import Engine, RequestRejectedError, ServerError, ServerUnreachableError, SettingsError
from shared_engine.request.proxies import is_excluded, proxy_of, shown
from tests.support.raw_server import Conversation, RawServer, raw_server, whole

HELLO = [{"role": "user", "content": "Hello"}]
ANSWER = b'{"choices": [{"message": {"content": "Hi"}, "finish_reason": "stop"}]}'
WORD = "w0rd-x"
VARIABLES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.mark.parametrize(
    ("rules", "host", "port", "excluded"),
    [
        ("", "a.example.com", 80, False),
        ("*", "a.example.com", 80, True),
        ("example.com", "example.com", 80, True),
        ("example.com", "a.example.com", 80, True),
        ("example.com", "notexample.com", 80, False),
        (".example.com", "example.com", 80, True),
        (".example.com", "a.b.example.com", 80, True),
        ("example.com.", "example.com", 80, True),
        ("example.com", "example.com.", 80, True),
        ("EXAMPLE.com", "a.Example.COM", 80, True),
        ("other.org,example.com", "example.com", 80, True),
        ("other.org example.com", "example.com", 80, True),
        (" other.org , example.com ,", "example.com", 80, True),
        ("example.com:8000", "example.com", 8000, True),
        ("example.com:8000", "example.com", 80, False),
        ("com", "example.com", 80, True),
        (".", "example.com", 80, False),
        ("10.0.0.5", "10.0.0.5", 80, True),
        ("10.0.0.5:80", "10.0.0.5", 80, True),
        ("10.0.0.5:81", "10.0.0.5", 80, False),
        ("10.0.0.0/8", "10.9.8.7", 80, True),
        ("10.0.0.0/8", "11.0.0.1", 80, False),
        ("10.0.0.5/8", "10.9.8.7", 80, True),
        ("10.0.0", "10.0.0.5", 80, False),
        ("0.0.5", "10.0.0.5", 80, False),
        ("10.0.0.0/8", "ten.example.com", 80, False),
        ("10.0.0.0/99", "10.0.0.1", 80, False),
        ("fe80::/10", "fe80::1", 80, True),
        ("2001:db8::1", "2001:db8:0::1", 80, True),
        ("[2001:db8::1]", "2001:db8::1", 80, True),
        ("[2001:db8::1]:8000", "2001:db8::1", 8000, True),
        ("[2001:db8::1]:8000", "2001:db8::1", 80, False),
        ("2001:db8::/32", "10.0.0.1", 80, False),
    ],
)
def test_no_proxy_is_read_as_curl_reads_it(rules: str, host: str, port: int, excluded: bool) -> None:
    assert is_excluded(host, port, rules) is excluded


@pytest.mark.parametrize(
    ("variables", "url", "proxy"),
    [
        ({}, "http://host", None),
        ({"http_proxy": "http://proxy:3128"}, "http://host", "http://proxy:3128"),
        ({"HTTP_PROXY": "http://proxy:3128"}, "http://host", "http://proxy:3128"),
        ({"http_proxy": "proxy:3128"}, "http://host", "http://proxy:3128"),
        ({"http_proxy": "http://proxy:3128"}, "https://host", None),
        ({"https_proxy": "http://proxy:3128"}, "https://host", "http://proxy:3128"),
        ({"ALL_PROXY": "http://proxy:3128"}, "https://host", "http://proxy:3128"),
        ({"all_proxy": "http://all:1", "https_proxy": "http://proxy:3128"}, "https://host", "http://proxy:3128"),
        ({"http_proxy": "http://proxy:3128", "no_proxy": "host"}, "http://host", None),
        ({"http_proxy": "http://proxy:3128", "no_proxy": "host:80"}, "http://host", None),
        ({"https_proxy": "http://proxy:3128", "no_proxy": "host:443"}, "https://host", None),
        ({"http_proxy": "http://proxy:3128", "NO_PROXY": "*"}, "http://host", None),
        *(
            ({"http_proxy": "http://proxy:3128"}, f"http://{here}:8000", None)
            for here in ("localhost", "LOCALHOST", "127.0.0.1", "127.9.9.9", "[::1]", "a.localhost")
        ),
    ],
)
def test_the_environments_proxy(
    variables: dict[str, str], url: str, proxy: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert proxy_of(url) == proxy
    assert proxy_of(url, "none") is None
    assert proxy_of(url, "http://own:1") == "http://own:1"


def test_a_kind_of_proxy_that_is_not_supported_is_refused_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_PROXY", "socks5h://user:w0rd-x@proxy:1080")
    with pytest.raises(SettingsError, match=r"socks5h://proxy:1080 is not supported") as caught:
        Engine(base_url="http://host", model="m").chat(HELLO)
    assert WORD not in str(caught.value)
    with pytest.raises(SettingsError, match="is a SOCKS proxy"):
        Engine(base_url="http://host", proxy="socks5://proxy:1080")


def test_a_proxy_is_shown_without_its_password() -> None:
    assert shown("http://user:p@ss@proxy:3128") == "http://proxy:3128"
    assert shown("http://proxy:3128") == "http://proxy:3128"


class Proxy:
    """An HTTP proxy that answers itself, and notes what it was asked."""

    def __init__(self, answer: bytes) -> None:
        self.answer = answer
        self.heads: list[str] = []

    async def __call__(self, conversation: Conversation) -> None:
        while True:
            head, _ = await conversation.request()
            self.heads.append(head)
            await conversation.send(self.answer)


@pytest.fixture
def proxy() -> Iterator[tuple[RawServer, Proxy]]:
    script = Proxy(whole(ANSWER))
    with raw_server(script) as server:
        yield server, script


def ask(**settings: Any) -> str:
    return (
        Engine(**{"base_url": "http://model.example:8000", "model": "m", "max_retries": 0, **settings}).chat(HELLO).text
    )


def test_requests_go_through_the_proxy_that_was_set(proxy: tuple[RawServer, Proxy]) -> None:
    server, script = proxy
    assert ask(proxy=server.url.replace("://", f"://us%40er:{WORD}@")) == "Hi"
    assert script.heads[0].startswith("POST http://model.example:8000/v1/chat/completions HTTP/1.1")
    assert f"Proxy-Authorization: Basic {base64.b64encode(f'us@er:{WORD}'.encode()).decode()}" in script.heads[0]


def test_requests_go_through_the_environments_proxy(
    proxy: tuple[RawServer, Proxy], monkeypatch: pytest.MonkeyPatch
) -> None:
    server, script = proxy
    monkeypatch.setenv("HTTP_PROXY", server.url.replace("://", f"://us%40er:{WORD}@"))
    assert ask() == "Hi"
    assert f"Proxy-Authorization: Basic {base64.b64encode(f'us@er:{WORD}'.encode()).decode()}" in script.heads[0]


@pytest.mark.parametrize(
    ("status", "kind"),
    [("407 Proxy Authentication Required", RequestRejectedError), ("502 Bad Gateway", ServerError)],
)
def test_an_error_names_the_proxy(proxy: tuple[RawServer, Proxy], status: str, kind: type[Exception]) -> None:
    server, script = proxy
    script.answer = whole(b"no", f"HTTP/1.1 {status}\r\n".encode())
    with pytest.raises(kind, match=f"no through the proxy {server.url}") as caught:
        ask(proxy=server.url.replace("://", f"://us%40er:{WORD}@"))
    assert WORD not in "".join(traceback.format_exception(caught.value))


def test_a_refused_tunnel_names_the_proxy(proxy: tuple[RawServer, Proxy]) -> None:
    server, script = proxy
    script.answer = whole(b"no", b"HTTP/1.1 403 Forbidden\r\n")
    with pytest.raises(ServerUnreachableError, match=f"through the proxy {server.url}.*403") as caught:
        ask(base_url="https://model.example", proxy=server.url.replace("://", f"://us%40er:{WORD}@"))
    assert WORD not in "".join(traceback.format_exception(caught.value))
    assert script.heads[0].startswith("CONNECT model.example:443")


def test_a_proxy_that_is_not_there_is_named() -> None:
    with pytest.raises(ServerUnreachableError, match=r"through the proxy http://127\.0\.0\.1:1 ") as caught:
        ask(proxy=f"http://us%40er:{WORD}@127.0.0.1:1")
    assert WORD not in "".join(traceback.format_exception(caught.value))
