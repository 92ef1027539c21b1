"""Who may ask the gateway, and for what: hosts, pages, keys, bodies, paths and URLs."""

from __future__ import annotations

import asyncio
import ipaddress
import json
import re
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import httpx
import pytest
from aiohttp import web
from starlette.datastructures import Headers
from starlette.routing import Route

from shared_engine.gateway.app import gateway_app
from shared_engine.gateway.catalog import Catalog
from shared_engine.gateway.config import GatewayConfig, Key, read_config
from shared_engine.gateway.guard import check_host, check_origin, check_page, key_of
from shared_engine.gateway.limits import Places
from shared_engine.gateway.page.files import FILES
from shared_engine.gateway.refusals import RefusedError
from tests.support.gateways import asking
from tests.support.remote_server import RemoteServer, running_app, running_server

CHAT = "/v1/chat/completions"
HELLO = [{"role": "user", "content": "Hello"}]
ALICE, BOB = "alices-secret", "bobs-secret"
KEYS = [{"name": "alice", "key": ALICE}, {"name": "bob", "key": BOB, "models": ["b"]}]


@pytest.fixture
def server() -> Iterator[RemoteServer]:
    with running_server() as server:
        yield server


def config(folder: Path, server: RemoteServer, **more: Any) -> GatewayConfig:
    models = {name: {"base_url": server.url, "api_key": "the-servers-own", "max_retries": 0} for name in ("a", "b")}
    models["b"] |= {"aliases": ["b:cold"], "unlisted": False}
    file = folder / "models.yaml"
    file.write_text(json.dumps({"models": models, **more}))
    return read_config(file)


def code_of(answer: httpx.Response) -> tuple[int, str]:
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return answer.status_code, error["code"]


# ---- hosts and pages


@pytest.mark.parametrize(
    ("host", "allowed", "is_loopback", "passes"),
    [
        ("127.0.0.1:8000", [], True, True), ("localhost", [], True, True), ("[::1]:8000", [], True, True),
        ("LOCALHOST:1", [], True, True), ("localhost.", [], True, True), ("", [], True, False), (None, [], True, True),
        ("evil.com", [], True, False), ("127.0.0.1.evil.com", [], True, False), ("localhost@evil.com", [], True, False),
        ("127.0.0.2:8000", [], True, True), ("app.localhost:8000", [], True, True), ("[::2]", [], True, False),
        ("10.0.0.1", [], True, False), ("0.0.0.0", [], True, False), ("localhost.evil.com", [], True, False),
        ("notlocalhost", [], True, False),
        ("gate.lan:8000", ["gate.lan"], True, True), ("localhost", ["gate.lan"], True, True),
        ("anything", [], False, True), ("anything", ["gate.lan"], False, False),
        ("Gate.lan", ["gate.lan"], False, True), (None, ["gate.lan"], False, True),
    ],
)  # fmt: skip
def test_the_host_that_is_named(host: str | None, allowed: list[str], is_loopback: bool, passes: bool) -> None:
    if passes:
        check_host(host, allowed, is_loopback=is_loopback)
        return
    with pytest.raises(RefusedError) as caught:
        check_host(host, allowed, is_loopback=is_loopback)
    assert caught.value.status == 403


def test_an_address_that_is_named_with_each_request_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    read = Mock(wraps=ipaddress.ip_address)
    monkeypatch.setattr(ipaddress, "ip_address", read)
    for _ in range(3):
        check_host("127.7.7.7:8000", [], is_loopback=True)
    read.assert_called_once_with("127.7.7.7")


@pytest.mark.parametrize(
    ("origin", "passes"),
    [
        ("http://localhost:8000", True), ("https://localhost:8000", True), ("http://localhost:9000", False),
        ("http://evil.com", False), ("null", False), ("file://localhost:8000", False), ("http://[", False),
    ],
)  # fmt: skip
def test_the_page_that_asks(origin: str, passes: bool) -> None:
    if passes:
        check_origin(origin, "localhost:8000")
        return
    with pytest.raises(RefusedError):
        check_origin(origin, "localhost:8000")


@pytest.mark.parametrize(
    ("method", "path", "sent", "passes"),
    [
        ("GET", "/v1/responses/1?model=a", {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"}, False),
        ("GET", "/v1/models", {"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "no-cors"}, False),
        ("GET", "/v1/models", {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}, False),
        ("GET", "/", {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}, True),
        ("GET", "/docs", {"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "navigate"}, True),
        ("POST", "/", {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}, False),
        ("GET", "/", {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"}, False),
        ("GET", "/v1/models", {"Sec-Fetch-Site": "none", "Sec-Fetch-Mode": "navigate"}, True),
        ("GET", "/v1/models", {"Sec-Fetch-Site": "same-origin"}, True),
        ("GET", "/v1/models", {}, True),
        ("GET", "/v1/models", {"Sec-Fetch-Site": "same-origin", "Origin": "http://evil.com"}, False),
    ],
)  # fmt: skip
def test_a_page_of_another_place_has_nothing_asked_by_an_address_in_it(
    method: str, path: str, sent: dict[str, str], passes: bool
) -> None:
    headers = Headers({"Host": "localhost:8000", **sent})
    if passes:
        check_page(method, path, headers)
        return
    with pytest.raises(RefusedError) as caught:
        check_page(method, path, headers)
    assert (caught.value.status, caught.value.code) == (403, "origin_not_allowed")


async def test_a_page_that_is_named_may_ask_and_others_may_not(tmp_path: Path, server: RemoteServer) -> None:
    page = "https://app.example.com"
    async with asking(config(tmp_path, server, cors_origins=[page], api_keys=KEYS)) as client:
        asked = {
            "Origin": page,
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "authorization",
        }
        preflight = await client.options(CHAT, headers=asked)
        assert preflight.status_code == 204
        assert preflight.headers["access-control-allow-origin"] == page
        assert preflight.headers["access-control-allow-headers"] == "authorization"
        answer = await client.get("/v1/models", headers={"Origin": page, "Authorization": f"Bearer {ALICE}"})
        assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (200, page)
        unkeyed = await client.get("/v1/models", headers={"Origin": page})
        assert (code_of(unkeyed), unkeyed.headers["access-control-allow-origin"]) == ((401, "invalid_api_key"), page)
        for path, headers in (("/v1/models", {"Origin": "https://evil.com"}), ("/health", {"Host": "evil.com"})):
            refused = await client.get(path, headers={**headers, "Authorization": f"Bearer {ALICE}"})
            assert refused.status_code == 403
            assert "access-control-allow-origin" not in refused.headers


# ---- keys


@pytest.mark.parametrize(
    ("headers", "name"),
    [
        ({"Authorization": f"Bearer {ALICE}"}, "alice"), ({"authorization": f"bearer {BOB}"}, "bob"),
        ({"x-api-key": BOB}, "bob"), ({"Authorization": f"Bearer {ALICE}", "x-api-key": BOB}, "alice"),
        ({}, None), ({"Authorization": "Bearer "}, None), ({"Authorization": ALICE}, None),
        ({"Authorization": f"Basic {ALICE}"}, None), ({"Authorization": f"Bearer {ALICE}x"}, None),
        ({"Authorization": f"Bearer {ALICE[:-1]}"}, None), ({"Authorization": "Bearer \xff"}, None),
    ],
)  # fmt: skip
def test_the_key_that_is_given(headers: dict[str, str], name: str | None) -> None:
    keys = [Key("alice", ALICE), Key("bob", BOB)]
    if name is not None:
        found = key_of(Headers(headers), keys)
        assert found is not None
        assert found.name == name
        return
    with pytest.raises(RefusedError) as caught:
        key_of(Headers(headers), keys)
    assert caught.value.status == 401
    assert not any(secret in caught.value.message for secret in (ALICE, BOB))


@pytest.mark.slow
async def test_every_route_but_two_and_the_pages_files_wants_a_key(tmp_path: Path, server: RemoteServer) -> None:
    configured = config(tmp_path, server, api_keys=KEYS)
    app = gateway_app(Catalog(configured), is_loopback=True)
    paths = {re.sub(r"\{.*\}", "a", route.path) for route in app.routes if isinstance(route, Route)}
    assert paths >= {"/ready", "/metrics", "/v1/models", "/v1/models/a", "/v1/a", "/tokenize"}
    async with asking(configured) as client:
        for path in sorted(
            paths
            | {CHAT, "/nothing", "/health/", "/page", "/page/", "/page/main.js/a", "/health/../v1/models", "/health//"}
        ):
            for method in ("GET", "HEAD", "POST", "DELETE", "PUT", "OPTIONS"):
                answer = await client.request(method, path, json={"model": "a"})
                if path in ("/health", "/ready", *FILES):
                    assert answer.status_code == (200 if method in ("GET", "HEAD") else 405)
                    continue
                assert answer.status_code == 401, (method, path)
                assert answer.headers["www-authenticate"] == "Bearer"
    assert server.requests == []


async def test_a_key_opens_its_models_only(tmp_path: Path, server: RemoteServer) -> None:
    async with asking(config(tmp_path, server, api_keys=KEYS), headers={"x-api-key": BOB}) as client:
        listed = (await client.get("/v1/models")).json()["data"]
        assert [each["id"] for each in listed] == ["b"]
        for name in ("b", "b:cold"):
            assert (await client.post(CHAT, json={"model": name, "messages": HELLO})).status_code == 200
        for name in ("a", "none"):
            refused = await client.post(CHAT, json={"model": name, "messages": HELLO})
            assert code_of(refused) == (404, "model_not_found")
            assert refused.json()["error"]["message"].endswith("does not exist; there are: b")
            assert code_of(await client.get(f"/v1/models/{name}")) == (404, "model_not_found")


async def seen_by(client: httpx.AsyncClient) -> dict[str, Any]:
    """Names in everything that shows models."""
    entries = (await client.get("/api/v1/inference/status")).json()["models"]
    loaded = (await client.post("/api/v1/inference/load", json={"model": entries[0]["id"]})).json()
    assert {name: loaded[name] for name in ("id", "aliases")} == {name: entries[0][name] for name in ("id", "aliases")}
    return {
        "listed": [each["id"] for each in (await client.get("/v1/models")).json()["data"]],
        "status": [(each["id"], each["aliases"]) for each in entries],
        "tags": [each["name"] for each in (await client.get("/api/tags")).json()["models"]],
        "metrics": (await client.get("/metrics")).status_code,
    }


@pytest.mark.slow
async def test_what_is_shown_to_a_key_has_the_names_that_it_opens_and_no_others(
    tmp_path: Path, server: RemoteServer
) -> None:
    ways: dict[str, dict[str, Any]] = {
        "all": {},
        "model": {"models": ["b"]},
        "alias": {"models": ["b:cold"]},
        "root": {"models": ["a"], "admin": True},
    }
    keys = [{"name": name, "key": f"{name}s-secret", **way} for name, way in ways.items()]
    told = {}
    async with asking(config(tmp_path, server, api_keys=keys)) as client:
        for name in ways:
            client.headers["x-api-key"] = f"{name}s-secret"
            told[name] = await seen_by(client)
        client.headers["x-api-key"] = "aliass-secret"
        named = (await client.get("/v1/models/b:cold")).json()
        assert (named["id"], named["parent"], named["aliases"]) == ("b:cold", None, [])
    assert told == {
        "all": {"listed": ["a", "b"], "status": [("a", []), ("b", ["b:cold"])], "tags": ["a", "b"], "metrics": 200},
        "model": {"listed": ["b"], "status": [("b", ["b:cold"])], "tags": ["b"], "metrics": 403},
        "alias": {"listed": ["b:cold"], "status": [("b:cold", [])], "tags": ["b:cold"], "metrics": 403},
        "root": {"listed": ["a"], "status": [("a", [])], "tags": ["a"], "metrics": 200},
    }


async def test_a_key_without_the_only_models_own_name_is_not_told_it(tmp_path: Path, server: RemoteServer) -> None:
    models = {"hidden": {"base_url": server.url, "aliases": ["shown"]}}
    keys = [{"name": "bob", "key": BOB, "models": ["shown"]}]
    file = tmp_path / "models.yaml"
    file.write_text(json.dumps({"models": models, "api_keys": keys}))
    async with asking(read_config(file), headers={"x-api-key": BOB}) as client:
        refused = await client.post(CHAT, json={"messages": HELLO})
        assert code_of(refused) == (404, "model_not_found")
        assert "hidden" not in refused.text
        assert (await client.post(CHAT, json={"model": "shown", "messages": HELLO})).status_code == 200


async def test_the_gateways_key_is_not_sent_to_a_models_server_and_nothing_of_its_own_is_shown(
    tmp_path: Path, server: RemoteServer
) -> None:
    headers = {"x-api-key": ALICE, "Cookie": "a=b", "X-Request-Id": "me", "X-Forwarded-For": "1.2.3.4"}
    async with asking(config(tmp_path, server, api_keys=KEYS), headers=headers) as client:
        await client.post(CHAT, json={"model": "a", "messages": HELLO})
        headers_sent, body = server.requests[-1]
        sent = {name.lower(): value for name, value in headers_sent.items()}
        assert sent["authorization"] == "Bearer the-servers-own"
        assert sent["x-request-id"] == "me"
        assert not {"cookie", "x-api-key", "x-forwarded-for"} & set(sent)
        assert body["model"] == "served"
        server.fails(401, message="no such key: the-servers-own")
        refused = await client.post(CHAT, json={"model": "a", "messages": HELLO})
        assert code_of(refused) == (502, "server_refuses_key")
        assert "the-servers-own" not in refused.text


async def test_a_models_server_makes_no_rules_for_browsers_here(tmp_path: Path, server: RemoteServer) -> None:
    """Nor a page, in which a script of its could read what the gateway's own page keeps."""

    async def page(request: web.Request) -> web.StreamResponse:
        rules = {
            "Access-Control-Allow-Origin": "*", "Access-Control-Allow-Credentials": "true", "Set-Cookie": "a=b",
            "Clear-Site-Data": '"*"', "Strict-Transport-Security": "max-age=1", "Alt-Svc": 'h3=":1"', "Refresh": "0",
            "Content-Security-Policy": "default-src *", "WWW-Authenticate": "Basic", "X-Kept": "1",
        }  # fmt: skip
        return web.Response(text="<script>alert(1)</script>", content_type="text/html", headers=rules)

    server.handler = page
    async with asking(config(tmp_path, server)) as client:
        answer = await client.post(CHAT, json={"model": "a", "messages": HELLO})
    assert answer.text == "<script>alert(1)</script>"
    assert set(answer.headers) == {"content-type", "x-kept", "x-content-type-options", "content-security-policy"}
    assert answer.headers["content-security-policy"] == "default-src 'none'; sandbox"
    assert answer.headers["x-content-type-options"] == "nosniff"


# ---- bodies and paths


async def test_what_is_no_request_for_a_model_is_refused_in_openais_form(tmp_path: Path, server: RemoteServer) -> None:
    plain = {"Content-Type": "text/plain"}
    kind = {"Content-Type": "application/json"}
    cases: list[tuple[dict[str, Any], tuple[int, str]]] = [
        ({"content": b"{", "headers": kind}, (400, "invalid_json")),
        ({"content": b"[]", "headers": kind}, (400, "invalid_json")),
        ({"content": b"\xff\xfe", "headers": kind}, (400, "invalid_json")),
        ({"content": b'{"model": "a", "messages": [{"content": "\xff"}]}', "headers": kind}, (400, "invalid_json")),
        ({"content": b'{"model": "a", "messages": "\\ud800"}', "headers": kind}, (400, "invalid_json")),
        ({"content": b'{"a": ' + b"[" * 9**5 + b"]" * 9**5 + b"}", "headers": kind}, (400, "invalid_json")),
        ({"content": b'{"a": ' + b"[" * 900, "headers": kind}, (400, "invalid_json")),
        ({"content": b'{"model": "a"}', "headers": plain}, (415, "unsupported_media_type")),
        ({"json": {"model": 7}}, (400, "invalid_model")),
        ({"json": {"messages": HELLO}}, (404, "model_not_found")),
        ({"json": {"model": None, "messages": HELLO}}, (404, "model_not_found")),
        ({"content": b"x" * 200_000, "headers": kind}, (413, "body_too_long")),
    ]
    async with asking(config(tmp_path, server, max_body_bytes=150_000)) as client:
        for request, told in cases:
            answer = await client.post(CHAT, **request)
            assert code_of(answer) == told

        async def pieces() -> AsyncIterator[bytes]:
            for _ in range(3):
                yield b"x" * 60_000

        assert code_of(await client.post(CHAT, content=pieces(), headers=kind)) == (413, "body_too_long")
        assert server.requests == []


@pytest.mark.parametrize(
    "path",
    [
        "/v1/load_lora_adapter", "/v1/unload_lora_adapter", "/v1/load%5Flora_adapter", "/v1//load_lora_adapter",
        "/v1/./load_lora_adapter", "/v1/x/../load_lora_adapter", "/v1/x/%2e%2e/load_lora_adapter",
        "/v1/load_lora_adapter/", "/v1/load_lora_adapter%00", "/v1/%e2%80%a6", "/sleep", "/collective_rpc", "/v1",
    ],
)  # fmt: skip
async def test_a_path_that_is_not_for_everybody_is_not_passed_on(
    tmp_path: Path, server: RemoteServer, path: str
) -> None:
    async with asking(config(tmp_path, server)) as client:
        url = httpx.URL("http://127.0.0.1:8000").copy_with(raw_path=path.encode())
        assert code_of(await client.post(url, json={"model": "a", "lora_name": "x", "lora_path": "/"}))[0] == 404
    assert server.requests == []


async def test_anthropics_clients_get_errors_in_their_form(tmp_path: Path, server: RemoteServer) -> None:
    async with asking(config(tmp_path, server, api_keys=KEYS)) as client:
        for headers, kind, status in (({}, "authentication_error", 401), ({"x-api-key": BOB}, "not_found_error", 404)):
            answer = await client.post("/v1/messages", json={"model": "a"}, headers=headers)
            assert (answer.status_code, answer.json()["type"], answer.json()["error"]["type"]) == (
                status,
                "error",
                kind,
            )
            assert set(answer.json()["error"]) == {"type", "message"}


def test_an_error_in_a_stream_is_an_event_of_its_protocol() -> None:
    refusal = RefusedError(502, "it died", "engine_died")
    # An empty line before it ends whatever was cut off; but in lines of JSON none may be empty.
    assert refusal.event("/v1/messages").startswith(b'\n\nevent: error\ndata: {"type": "error"')
    assert json.loads(refusal.event(CHAT).removeprefix(b"\n\ndata: "))["error"]["code"] == "engine_died"
    assert refusal.event("/api/chat") == b'{"error": "it died"}\n'
    assert json.loads(refusal.event("/api/v1/inference/generate")[8:])["error"]["code"] == "engine_died"


async def test_methods_that_are_not_there_have_their_error(tmp_path: Path, server: RemoteServer) -> None:
    async with asking(config(tmp_path, server)) as client:
        assert code_of(await client.put(CHAT, json={"model": "a"})) == (405, "method_not_allowed")
        assert code_of(await client.get("/nothing")) == (404, "not_found")


async def test_head_is_answered_by_the_gateway_itself(tmp_path: Path, server: RemoteServer) -> None:
    async with asking(config(tmp_path, server)) as client, asyncio.timeout(5):
        for path in (CHAT, "/v1/anything", "/v2/anything", "/tokenize"):
            refused = await client.head(path)
            assert refused.status_code == 405
            assert "HEAD" not in refused.headers["allow"]
        for path in ("/health", "/v1/models", "/events", "/api/v1/inference/logs?follow=true"):  # GET of two has no end
            assert (await client.head(path)).status_code == 200
    assert not server.requests


async def test_a_fault_of_the_gateways_own_shows_nothing_of_it(
    tmp_path: Path, server: RemoteServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(*_: object) -> None:
        raise RuntimeError("inside")

    monkeypatch.setattr(Catalog, "listed", broken)
    catalog = Catalog(config(tmp_path, server))
    transport = httpx.ASGITransport(gateway_app(catalog, is_loopback=True), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        answer = await client.get("/v1/models")
    assert code_of(answer) == (500, "internal_error")
    assert "inside" not in answer.text


async def test_a_form_goes_to_its_model_under_the_servers_own_name(tmp_path: Path, server: RemoteServer) -> None:
    forms: list[dict[str, Any]] = []

    async def transcribe(request: web.Request) -> web.StreamResponse:
        form = await request.post()
        forms.append({n: each.file.read() if isinstance(each, web.FileField) else each for n, each in form.items()})
        return web.json_response({"text": "hi"})

    async def list_models(request: web.Request) -> web.StreamResponse:
        return web.json_response({"data": [{"id": "served"}]})

    app = web.Application()
    app.router.add_post("/v1/audio/transcriptions", transcribe)
    app.router.add_get("/v1/models", list_models)
    sound = bytes(range(256)) + b"\r\n\r\nmodel\r\n"
    with running_app(app) as url:
        file = tmp_path / "models.yaml"
        models = {"a": {"base_url": url, "model": "whisper-1", "mode": "remote"}, "b": {"base_url": url}}
        file.write_text(json.dumps({"models": models}))
        async with asking(read_config(file)) as client:
            for name in ("a", "b"):
                answer = await client.post(
                    "/v1/audio/transcriptions", data={"model": name, "language": "en"}, files={"file": ("a.wav", sound)}
                )
                assert answer.json() == {"text": "hi"}
            unknown = await client.post(
                "/v1/audio/transcriptions", data={"model": "c"}, files={"file": ("a.wav", sound)}
            )
            assert code_of(unknown) == (404, "model_not_found")
            two = [("model", (None, name)) for name in ("a", "secret")]  # a server would take the other one
            answer = await client.post("/v1/audio/transcriptions", files=two)
            assert code_of(answer) == (400, "invalid_form")
    assert forms == [
        {"model": "whisper-1", "language": "en", "file": sound},
        {"language": "en", "file": sound},
    ]


# ---- another configuration


async def test_a_model_that_stays_as_it_was_is_not_touched(tmp_path: Path, server: RemoteServer) -> None:
    def configured(limit: int) -> GatewayConfig:
        models = {"a": {"base_url": server.url}, "b": {"base_url": server.url, "concurrency_limit": limit}}
        file = tmp_path / "models.yaml"
        file.write_text(json.dumps({"models": models}))
        return read_config(file)

    catalog = Catalog(configured(2))
    before = dict(catalog.models)
    catalog.replace(configured(3))
    assert catalog.models["a"] is before["a"]
    assert catalog.models["b"] is not before["b"]
    before["b"].is_open.clear()  # it is to make room for another one
    catalog.replace(configured(4))
    assert not catalog.models["b"].is_open.is_set()
    before["b"].is_open.set()
    assert catalog.models["b"].is_open.is_set()
    await catalog.close()


# ---- places


async def test_places_are_given_in_the_order_of_asking() -> None:
    places, order = Places("m", 1, 5), list[int]()

    async def take(number: int) -> None:
        await places.take(10)
        order.append(number)
        await asyncio.sleep(0)
        places.give_back()

    await places.take(10)
    tasks = []
    for number in range(5):
        tasks.append(asyncio.create_task(take(number)))
        await asyncio.sleep(0)
    assert (places.taken, places.waiting) == (1, 5)
    with pytest.raises(RefusedError) as caught:
        await take(9)
    assert caught.value.status == 429
    tasks[2].cancel()  # whoever leaves makes room for others
    await asyncio.gather(tasks[2], return_exceptions=True)
    assert places.waiting == 4
    places.give_back()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert order == [0, 1, 3, 4]
    assert (places.taken, places.waiting) == (0, 0)


@pytest.mark.slow
async def test_what_a_request_names_is_not_fetched_before_it_has_a_place(tmp_path: Path, server: RemoteServer) -> None:
    fetched = asyncio.Event()

    async def picture(request: web.Request) -> web.StreamResponse:
        fetched.set()
        return web.Response(body=b"x", content_type="image/png")

    app = web.Application()
    app.router.add_get("/a.png", picture)
    server.streams("a", "b", then="hang")
    models = {"a": {"base_url": server.url, "concurrency_limit": 1}}
    file = tmp_path / "models.yaml"
    file.write_text(json.dumps({"models": models, "media_domains": ["127.0.0.1"], "media_networks": ["127.0.0.0/8"]}))
    with running_app(app) as url:
        content = [{"type": "image_url", "image_url": {"url": f"{url}/a.png"}}]
        body = {"model": "a", "messages": [{"role": "user", "content": content}]}
        async with asking(read_config(file)) as client:
            running = asyncio.create_task(client.post(CHAT, json={"model": "a", "messages": HELLO, "stream": True}))
            while not server.requests:
                await asyncio.sleep(0.01)
            waiting = asyncio.create_task(client.post(CHAT, json=body))
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(fetched.wait(), 0.3)
            server.handler = server.answer
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
            assert (await waiting).status_code == 200
            assert fetched.is_set()


async def test_nobody_waits_for_a_place_for_ever() -> None:
    places = Places("m", 1, 5)
    await places.take(10)
    with pytest.raises(RefusedError, match=r"none ended in 0\.01 s"):
        await places.take(0.01)
    places.give_back()
    assert (places.taken, places.waiting) == (0, 0)


async def test_other_limits_hold_from_the_next_place_on() -> None:
    places = Places("m", 1, 5)
    await places.take(10)
    tasks = [asyncio.create_task(places.take(10)) for _ in range(4)]
    await asyncio.sleep(0)
    places.limit_to(3, 5)
    await asyncio.sleep(0)
    assert (places.taken, places.waiting) == (3, 2)
    places.limit_to(1, 2)
    with pytest.raises(RefusedError, match=r"1 requests at once, and 2 wait"):
        await places.take(10)
    for left in (2, 1):
        places.give_back()
        assert (places.taken, places.waiting) == (left, 2)
    for _ in range(3):
        places.give_back()
    await asyncio.gather(*tasks)
    assert (places.taken, places.waiting) == (0, 0)


async def test_who_is_given_a_place_as_it_leaves_gives_it_back() -> None:
    places = Places("m", 1, 5)
    await places.take(10)
    leaving, next_one = (asyncio.create_task(places.take(10)) for _ in range(2))
    await asyncio.sleep(0)
    places.give_back()
    leaving.cancel()
    await asyncio.gather(leaving, return_exceptions=True)
    await next_one
    assert (places.taken, places.waiting) == (1, 0)


async def test_a_model_that_is_changed_has_no_more_requests_at_once(tmp_path: Path, server: RemoteServer) -> None:
    """However often the file is read again while they run."""

    def configured(description: str) -> GatewayConfig:
        models = {"a": {"base_url": server.url, "concurrency_limit": 1, "description": description}}
        file = tmp_path / "models.yaml"
        file.write_text(json.dumps({"models": models}))
        return read_config(file)

    server.streams("Hi", then="hang")
    catalog = Catalog(configured("0"))
    transport = httpx.ASGITransport(gateway_app(catalog, is_loopback=True))
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
        tasks = []
        for number in range(1, 4):
            tasks.append(asyncio.create_task(client.post(CHAT, json={"model": "a", "messages": HELLO, "stream": True})))
            while len([*catalog.in_flight]) < number:
                await asyncio.sleep(0.01)
            catalog.replace(configured(str(number)))
        while not server.requests:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)
        assert len(server.requests) == 1
        assert (catalog.models["a"].places.taken, catalog.models["a"].places.waiting) == (1, 2)
        assert len(catalog._handing_on) == 3
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        while catalog._handing_on:  # what was replaced is forgotten once its requests have ended
            await asyncio.sleep(0.01)
    await catalog.close()
