"""Images, audio and video in requests: how many, how large, and from where; fetched here, and passed on as data."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from shared_engine.gateway.config import read_config
from shared_engine.gateway.config_fields import FileFields
from shared_engine.gateway.fetching import inlined, is_public
from shared_engine.gateway.media import check_media, may_have_media, media_in
from shared_engine.gateway.refusals import RefusedError
from tests.support.gateways import asking
from tests.support.remote_server import RemoteServer, running_app, running_server

CHAT = "/v1/chat/completions"
PICTURE = bytes(range(256))
DATA = base64.b64encode(PICTURE).decode()
REMEDY = ": the gateway's log says why; or send it as data:"
HERE = "127.0.0.0/8"
"""Where the tests' servers are."""


def rules(*domains: str, **more: Any) -> FileFields:
    return FileFields(models={}, media_domains=domains, **more)


ANY: tuple[dict[str, Any], ...] = (
    {"image_url": "http://10.0.0.1/"}, {"image": "http://10.0.0.1/"}, {"images": ["file:///etc/passwd"]},
    {"source": {"type": "url", "url": "http://10.0.0.1/"}}, {"a": [{"content": [{"video_url": {"url": "x"}}]}]},
)  # fmt: skip
"""What a tool may be called with, and other JSON that only looks like parts of a message."""


def parts_with(url: str) -> list[dict[str, Any]]:
    """All places in which vLLM takes a URL."""
    return [
        {"type": "image_url", "image_url": {"url": url}},
        {"type": "input_image", "image_url": url},
        {"image_url": url},
        {"image_url": {"url": url}, "uuid": "1"},
        {"type": "audio_url", "audio_url": {"url": url}},
        {"audio_url": url},
        {"type": "video_url", "video_url": {"url": url}},
        {"type": "image", "source": {"type": "url", "url": url}},
        {"type": "tool_result", "content": [{"type": "image", "source": {"type": "url", "url": url}}]},
    ]


def bodies_with(url: str) -> list[dict[str, Any]]:
    messages = [
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "?"}, part]}]} for part in parts_with(url)
    ]
    return [
        *messages,
        {"input": [{"role": "user", "content": parts_with(url)[1:2]}]},  # /v1/responses
        {"images": [url]}, {"inputs": [{"content": parts_with(url)[:1]}]},  # /v2/embed
        {"query": "?", "documents": {"content": parts_with(url)[:1]}},  # /v1/rerank
        {"query": {"content": parts_with(url)[:1]}, "documents": ["a", {"content": parts_with(url)[:1]}]},
        {"text_1": [{"content": parts_with(url)[:1]}], "text_2": "a"},  # /v1/score
        {"input": [{"type": "function_call_output", "output": parts_with(url)[1:2]}]},
        {"input": [{"type": "computer_call_output", "output": {"type": "computer_screenshot", "image_url": url}}]},
        {"messages": [{"role": "tool", "content": parts_with(url)[:1]}]},
        {"messages": [], "mm_processor_kwargs": {"image_url": url}},
        {"images": [url], "audio": [url], "videos": [url]},  # /v1/systemone
        {"conversations": [messages[0]["messages"]]},
    ]  # fmt: skip


def refused(body: dict[str, Any], rules: FileFields) -> tuple[int, str] | None:
    """How, without fetching anything."""
    assert may_have_media(json.dumps(body).encode())
    try:
        check_media((medium for name, value in body.items() for medium in media_in(name, value)[1]), rules)
    except RefusedError as refusal:
        return refusal.status, refusal.code
    return None


# ---- what may be


@pytest.mark.parametrize(
    ("url", "passes"),
    [
        ("data:image/png;base64,AA==", True), ("DATA:image/png;base64,AA==", True),
        ("https://img.example.com/a.png", True), ("HTTP://IMG.example.com/", True),
        ("https://img.example.com:8443/a", True), (" https://img.example.com/a", True), ("http://a.cdn.net/", True),
        ("https://img.example.com./a", True),
        ("file:///etc/passwd", False), ("FILE:///etc/passwd", False), ("file://img.example.com/etc/passwd", False),
        ("http://127.0.0.1/", False), ("http://169.254.169.254/latest", False), ("http://[::1]/", False),
        ("http://2130706433/", False), ("http://0x7f.1/", False), ("http://cdn.net/", False),
        ("http://acdn.net/", False),
        ("https://img.example.com.evil.com/", False), ("https://img.example.com@evil.com/", False),
        ("https://evil.com@img.example.com/", False), ("https://evil.com\\@img.example.com/", False),
        ("https://evil.com#@img.example.com/", False), ("https://img.example.com:x/", False),
        ("http://img.example.com\t.evil.com/", False), ("http://img.example.com\n/", False),
        ("ftp://img.example.com/a", False), ("gopher://img.example.com/a", False), ("http://", False), ("x:", False),
    ],
)  # fmt: skip
def test_from_where_may_be_fetched(url: str, passes: bool) -> None:
    for body in bodies_with(url):
        expected = None if passes or (set(body) & {"images"} and url == "x:") else (400, "url_not_allowed")
        assert refused(body, rules("img.example.com", "*.cdn.net")) == expected, body


@pytest.mark.parametrize("url", ["//img.example.com/a", "/etc/passwd", "a.png", "", "http://["])
def test_what_is_no_url_is_not_fetched(url: str) -> None:
    for part in parts_with(url):
        assert refused({"messages": [part]}, rules("*")) == (400, "url_not_allowed")


@pytest.mark.parametrize("url", ["https://img.example.com/a", "http://10.0.0.1/", "http://x/"])
def test_every_host_where_that_is_said(url: str) -> None:
    assert refused({"messages": parts_with(url)}, rules("*")) is None
    assert refused({"messages": parts_with("file:///etc/passwd")}, rules("*")) == (400, "url_not_allowed")


@pytest.mark.parametrize(
    "body",
    [
        {"messages": [{"role": "user", "content": "see http://10.0.0.1/ and image_url"}]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "http://10.0.0.1/image"}]}]},
        {"tools": [{"function": {"parameters": {"examples": [{"image_url": "http://10.0.0.1/"}]}}}]},
        {"tools": [{"function": {"parameters": {"properties": {"image_url": {"type": "string"}}}}}]},
        {"metadata": {"source": {"url": "http://10.0.0.1/"}}}, {"documents": [{"image": "a cat: asleep"}]},
        *({"messages": [{"role": "assistant", "content": [{"type": "tool_use", "input": given}]}]} for given in ANY),
        *({"messages": [{"tool_calls": [{"function": {"arguments": given}}]}]} for given in ANY),
        *({"messages": [{"role": "developer", "tools": [{"function": {"parameters": given}}]}]} for given in ANY),
        *({"messages": [{"content": [{"type": "document", "document": {"data": given}}]}]} for given in ANY),
        *({"input": [{"type": "function_call", "arguments": given}]} for given in ANY),
        *({"documents": [given]} for given in ANY), *({"chat_template_kwargs": given} for given in ANY),
        *({"state": given, "questions": {"a": {"type": "b", "criteria": given}}} for given in ANY),
        *({"text": {"format": {"schema": given}}, "output_config": {"format": {"schema": given}}} for given in ANY),
        {"input": "http://10.0.0.1/image"}, {"modalities": ["audio"], "audio": {"voice": "x", "format": "wav"}},
    ],
)  # fmt: skip
def test_what_only_looks_like_it_is_nothing_to_fetch(body: dict[str, Any]) -> None:
    assert refused(body, rules()) is None


def test_so_many_and_so_large() -> None:
    two = {
        "messages": [{"image_url": f"data:image/png;base64,{DATA}"}, {"input_audio": {"data": DATA, "format": "wav"}}]
    }
    assert refused(two, rules(max_media=2, max_media_bytes=256)) is None
    assert refused(two, rules(max_media=1)) == (400, "too_many_media")
    assert refused({"images": ["data:a"] * 3, "audio": ["data:b"]}, rules(max_media=3)) == (400, "too_many_media")
    for part in (
        *parts_with(f"data:image/png;base64,{DATA}"),
        {"source": {"type": "base64", "data": DATA}},
        two["messages"][1],
    ):
        assert refused({"messages": [part]}, rules(max_media_bytes=250)) == (413, "media_too_large")


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("93.184.216.34", True), ("2606:2800:220:1::1", True), ("::ffff:93.184.216.34", True),
        ("127.0.0.1", False), ("10.1.2.3", False), ("172.16.0.1", False), ("192.168.1.1", False), ("0.0.0.0", False),
        ("169.254.169.254", False), ("100.64.0.1", False), ("224.0.0.1", False), ("255.255.255.255", False),
        ("240.0.0.1", False), ("198.18.0.1", False), ("::1", False), ("::", False), ("fe80::1%eth0", False),
        ("fc00::1", False), ("fec0::1", False), ("ff02::1", False), ("::ffff:127.0.0.1", False), ("::127.0.0.1", False),
        ("64:ff9b::7f00:1", False), ("2002:7f00:1::", False), ("2001:0:4136:e378:8000:63bf:3fff:fdd2", False),
        ("2001:db8::1", False), ("2130706433", False), ("0x7f.1", False), ("localhost", False), ("", False),
    ],
)  # fmt: skip
def test_public_addresses(address: str, expected: bool) -> None:
    assert is_public(address) is expected


# ---- what is fetched


class Pictures:
    """A server of them.

    Attributes:
        asked: its paths, as they were asked for.
    """

    def __init__(self) -> None:
        self.url = ""
        self.asked: list[str] = []
        self.headers: dict[str, str] = {}

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.asked.append(request.path_qs)
        self.headers = dict(request.headers)
        name = request.path.strip("/")
        if name.startswith("to-"):
            return web.Response(status=302, headers={"Location": request.query["url"]})
        if name == "silent":
            await asyncio.Event().wait()
        if name == "drip":
            response = web.StreamResponse(headers={"Content-Type": "image/png"})
            await response.prepare(request)
            while True:
                await response.write(b"x" * 1000)
        if name == "missing":
            raise web.HTTPNotFound
        kinds = {"page": "text/html", "frames": "video/jpeg", "plain": "application/octet-stream"}
        headers = {"Content-Type": kinds.get(name, "image/png; a=b")}
        if name == "packed":
            headers["Content-Encoding"] = "gzip"
        return web.Response(body=PICTURE, headers=headers)

    def app(self) -> web.Application:
        app = web.Application()
        app.router.add_route("*", "/{name:.*}", self.answer)
        return app


@pytest.fixture
def pictures() -> Iterator[Pictures]:
    pictures = Pictures()
    with running_app(pictures.app()) as pictures.url:
        yield pictures


async def fetched(url: str, given: FileFields) -> Any:
    """The part of a message after it has been passed."""
    body = {"seed": 2**70, "messages": [{"image_url": {"url": url, "detail": "low"}}]}
    passed = json.loads(await inlined(json.dumps(body).encode(), given))
    assert passed["seed"] == 2**70
    return passed["messages"][0]["image_url"]


async def told(url: str, given: FileFields) -> tuple[int, str, str]:
    with pytest.raises(RefusedError) as caught:
        await fetched(url, given)
    return caught.value.status, caught.value.code, caught.value.message


async def test_a_url_becomes_data(pictures: Pictures) -> None:
    here = rules("127.0.0.1", media_networks=[HERE])
    assert await fetched(f"{pictures.url}/a.png?sig=a%2Fb+c", here) == {
        "url": f"data:image/png;base64,{DATA}",
        "detail": "low",
    }
    assert pictures.asked == ["/a.png?sig=a%2Fb+c"]  # as it was written: it may be signed
    assert not {"Cookie", "Authorization", "Referer"} & set(pictures.headers)
    assert (await fetched(f"{pictures.url}/plain", here))["url"].startswith("data:application/octet-stream;base64,")
    assert (await fetched(f"{pictures.url}/frames", here))["url"].startswith("data:application/octet-stream;base64,")


async def test_each_place_gets_it_in_its_form_and_one_url_is_fetched_once(pictures: Pictures) -> None:
    url, here = f"{pictures.url}/a.png", rules("127.0.0.1", media_networks=[HERE])
    data = f"data:image/png;base64,{DATA}"
    for body, expected in zip(bodies_with(url), bodies_with(data), strict=True):
        text = json.dumps(expected).replace(
            json.dumps({"type": "url", "url": data}),
            json.dumps({"type": "base64", "media_type": "image/png", "data": DATA}),
        )
        assert json.loads(await inlined(json.dumps(body).encode(), here)) == json.loads(text)
    before = len(pictures.asked)
    await inlined(json.dumps({"messages": parts_with(url)}).encode(), here)
    assert len(pictures.asked) == before + 1


async def test_what_has_nothing_to_fetch_is_passed_on_as_it_is() -> None:
    for body in (b'{"model": "a"}', b' {"messages": [{"image_url":"data:,"}], "a":1.50}', b'--x\r\n"image_url"', b""):
        assert await inlined(body, rules()) == body


async def test_an_address_that_is_not_public_is_not_connected_to(
    pictures: Pictures, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Whether it is written, or what a name means; the client is not told which."""
    port = pictures.url.rpartition(":")[2]
    lookup = socket.getaddrinfo

    def found(host: Any, *rest: Any, **more: Any) -> Any:
        return lookup("127.0.0.1" if host == "img.example.com" else host, *rest, **more)

    monkeypatch.setattr(socket, "getaddrinfo", found)
    caplog.set_level("INFO")
    hosts = ("127.0.0.1", "localhost", "2130706433", "127.1", "0x7f000001", "[::ffff:127.0.0.1]", "img.example.com")
    for host in hosts:
        url = f"http://{host}:{port}/a.png?secret"
        assert await told(url, rules("*")) == (400, "media_not_fetched", f"{url!r} could not be fetched{REMEDY}")
    closed = await told("http://127.0.0.1:1/", rules("127.0.0.1", media_networks=[HERE]))
    assert closed == (400, "media_not_fetched", f"'http://127.0.0.1:1/' could not be fetched{REMEDY}")
    assert pictures.asked == []
    assert "127.0.0.1 is not a public address; see media_networks" in caplog.text
    assert "secret" not in caplog.text
    assert (await fetched(f"http://img.example.com:{port}/a", rules("*", media_networks=[HERE])))["url"]


async def test_a_name_that_means_another_address_the_next_time_leads_nowhere_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What was checked is what is connected to, also after a redirect to the same name."""
    named, inner = Pictures(), Pictures()
    looked_up: list[str] = []
    lookup = socket.getaddrinfo
    with running_app(inner.app()) as inner.url:
        port = int(inner.url.rpartition(":")[2])
        runner = web.AppRunner(named.app())
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.2", port).start()

        def found(host: Any, *rest: Any, **more: Any) -> Any:
            if host == "img.example.com":
                looked_up.append(host)
                host = "127.0.0.2" if len(looked_up) == 1 else "127.0.0.1"
            return lookup(host, *rest, **more)

        monkeypatch.setattr(socket, "getaddrinfo", found)
        only = rules("img.example.com", media_networks=["127.0.0.2/32"])
        try:
            assert (await fetched(f"http://img.example.com:{port}/a", only))["url"]
            assert (len(named.asked), len(looked_up)) == (1, 1)
            looked_up.clear()
            url = f"http://img.example.com:{port}/to-b?url=http://img.example.com:{port}/b"
            with contextlib.suppress(RefusedError):  # on the connection that there is, or to an address that is refused
                await fetched(url, only)
        finally:
            await runner.cleanup()
    assert inner.asked == []


async def test_a_redirect_is_checked_like_its_url(pictures: Pictures, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    port = pictures.url.rpartition(":")[2]
    here = rules("127.0.0.1", media_networks=["127.0.0.1/32"])
    assert (await fetched(f"{pictures.url}/to-?url=/a.png", here))["url"] == f"data:image/png;base64,{DATA}"
    assert (await fetched(f"{pictures.url}/to-?url=/to-%3Furl=/a", here))["url"]
    pictures.asked.clear()
    for target in (
        f"http://localhost:{port}/a",
        "file:///etc/passwd",
        "//evil.com/a",
        "http://u@127.0.0.1/",
        "http://[",
    ):
        url = f"{pictures.url}/to-?url={target}"
        assert await told(url, here) == (400, "media_not_fetched", f"{url[:100]!r} could not be fetched{REMEDY}")
    assert "it redirects to localhost; see media_domains" in caplog.text
    assert all(path.startswith("/to-") for path in pictures.asked)
    wider = rules("*", media_networks=["127.0.0.1/32"])
    assert (await told(f"{pictures.url}/to-?url=http://127.0.0.2:{port}/a", wider))[1] == "media_not_fetched"
    assert (await told(f"{pictures.url}/to-?url=", here))[1] == "media_not_fetched"
    assert "more than 3 redirects" in caplog.text


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("missing", "it answered 404"), ("page", "it is not an image, a sound or a video"),
        ("packed", "it is not an image, a sound or a video"), ("to-?url=http://10.0.0.1/x", "it redirects to 10.0.0.1"),
    ],
)  # fmt: skip
async def test_the_log_says_why_nothing_was_fetched_and_the_client_is_not_told(
    pictures: Pictures, caplog: pytest.LogCaptureFixture, name: str, why: str
) -> None:
    caplog.set_level("INFO")
    url = f"{pictures.url}/{name}"
    found = await told(url, rules("127.0.0.1", media_networks=[HERE]))
    assert found == (400, "media_not_fetched", f"{url!r} could not be fetched{REMEDY}")
    assert why in caplog.text


@pytest.mark.parametrize(
    ("name", "more", "status", "code", "said"),
    [
        ("silent", {"media_timeout_s": 0.1}, 400, "media_not_fetched", "not fetched in media_timeout_s = 0.1"),
        ("drip", {"media_timeout_s": 0.1, "max_media_bytes": 1 << 40, "max_body_bytes": 1 << 40}, 400,
         "media_not_fetched", "not fetched in media_timeout_s = 0.1"),
        ("drip", {"max_media_bytes": 2000}, 413, "media_too_large", "larger than max_media_bytes = 2000"),
        ("a.png", {"max_media_bytes": 255}, 413, "media_too_large", "larger than max_media_bytes = 255"),
        ("drip", {"max_body_bytes": 2000}, 413, "body_too_long", "longer than max_body_bytes = 2000"),
    ],
)  # fmt: skip
async def test_what_is_too_slow_or_too_large_is_told(
    pictures: Pictures, name: str, more: dict[str, Any], status: int, code: str, said: str
) -> None:
    found = await told(f"{pictures.url}/{name}", rules("127.0.0.1", media_networks=[HERE], **more))
    assert found[:2] == (status, code)
    assert said in found[2]


# ---- through the gateway


@pytest.fixture
def server() -> Iterator[RemoteServer]:
    with running_server() as server:
        yield server


async def test_a_models_server_gets_data_and_fetches_nothing(
    tmp_path: Path, server: RemoteServer, pictures: Pictures
) -> None:
    fields = {"media_domains": ["127.0.0.1"], "media_networks": [HERE]}
    file = tmp_path / "models.yaml"
    file.write_text(json.dumps({"models": {"a": {"base_url": server.url, "max_retries": 0}}, **fields}))

    def asked(url: str) -> dict[str, Any]:
        return {"model": "a", "messages": [{"role": "user", "content": [{"image_url": {"url": url}}]}]}

    async with asking(read_config(file)) as client:
        assert (await client.post(CHAT, json=asked(f"{pictures.url}/a.png"))).status_code == 200
        _, body = server.requests[-1]
        assert body["messages"][0]["content"] == [{"image_url": {"url": f"data:image/png;base64,{DATA}"}}]
        for url, code in (("http://10.0.0.1/", "url_not_allowed"), (f"{pictures.url}/missing", "media_not_fetched")):
            answer = await client.post(CHAT, json=asked(url))
            assert (answer.status_code, answer.json()["error"]["code"]) == (400, code)
        escaped = json.dumps(asked("http://10.0.0.1/")).replace("image_url", "im\\u0061ge\\u005fur\\u006c")
        answer = await client.post(CHAT, content=escaped, headers={"Content-Type": "application/json"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "url_not_allowed")
    assert len(server.requests) == 1
