"""What /openapi.json says of the gateway is all that there is, and true: schemathesis asks it everything it says."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from starlette.routing import Match, Route

from shared_engine.gateway.app import gateway_app
from shared_engine.gateway.catalog import Catalog
from shared_engine.gateway.config import read_config
from shared_engine.gateway.reference.openapi import document
from shared_engine.gateway.reference.operations import OPERATIONS
from tests.support.gateways import asking, running_gateway
from tests.support.remote_server import chat_answer, running_app

ENDLESS = ("/events", "/shutdown")
"""What does not come back, or ends the gateway."""
EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "0"))
"""How many of each operation, in all phases; 0: those that CI has time for."""
# What vLLM checks is told loosely; which methods it has, it says itself.
EXCLUDED = "positive_data_acceptance,negative_data_rejection,unsupported_method,allow_header_conformance"


def described(**more: Any) -> dict[str, Any]:
    return document(OPERATIONS, has_keys=False, **more)


def catalog(folder: Path, **more: Any) -> Catalog:
    file = folder / "models.yaml"
    file.write_text(json.dumps({"models": {"a": {"base_url": "http://127.0.0.1:1", "max_retries": 0}}, **more}))
    return Catalog(read_config(file))


def test_every_route_is_described_and_everything_described_is_a_route(tmp_path: Path) -> None:
    routes = [
        each
        for each in gateway_app(catalog(tmp_path), is_loopback=True).routes
        if isinstance(each, Route) and each.include_in_schema
    ]
    there = {
        (method, each.path.replace(":path", "")) for each in routes for method in (each.methods or set()) - {"HEAD"}
    }
    told = {(each.method, each.path) for each in OPERATIONS}
    assert there <= told, "describe it in reference/operations.py"
    assert len(told) == len(OPERATIONS)
    for method, path in told:
        scope = {"type": "http", "method": method, "path": re.sub(r"{\w+}", "x", path)}
        assert any(each.matches(scope)[0] is Match.FULL for each in routes), f"{method} {path} is not a route"


def test_every_reference_leads_somewhere_and_every_name_is_one_operations() -> None:
    whole = described()
    references = set(re.findall(r'"#/components/schemas/(\w+)"', json.dumps(whole)))
    assert references <= set(whole["components"]["schemas"])
    ids = [each["operationId"] for path in whole["paths"].values() for each in path.values()]
    assert len(set(ids)) == len(ids)
    tags = {each["name"] for each in whole["tags"]}
    assert all(set(each["tags"]) <= tags for path in whole["paths"].values() for each in path.values())


async def test_it_needs_a_key_like_all_else_and_says_so(tmp_path: Path) -> None:
    keyed = catalog(tmp_path, api_keys=[{"name": "me", "key": "12345678"}]).config
    async with asking(keyed) as client:
        assert (await client.get("/openapi.json")).status_code == 401
        told = (await client.get("/openapi.json", headers={"x-api-key": "12345678"})).json()
    assert "12345678" not in json.dumps(told)
    assert told["paths"]["/health"]["get"]["security"] == []
    assert {*told["components"]["securitySchemes"]} == {"bearer", "x-api-key"}
    chat = told["paths"]["/v1/chat/completions"]["post"]
    assert chat["security"] == [{"bearer": []}, {"x-api-key": []}]
    async with asking(catalog(tmp_path).config) as client:
        told = (await client.get("/openapi.json")).json()
    assert "securitySchemes" not in told["components"]


@pytest.mark.parametrize("what", ["unload", "pin", "unpin"])
async def test_another_machines_model_is_not_this_ones_to_keep(tmp_path: Path, what: str) -> None:
    async with asking(catalog(tmp_path).config) as client:
        answer = await client.post(f"/api/v1/inference/{what}", json={"model": "a"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "remote_model")


@pytest.mark.slow
async def test_no_secret_is_in_any_answer_or_in_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Of all that can be asked, well or badly, by a key that may do everything."""
    caplog.set_level("DEBUG")
    caplog.set_level("WARNING", "httpx")  # the client's
    secrets = {name: f"{name}-that-nobody-sees" for name in ("mine", "others", "servers", "header", "query")}
    servers = {
        "base_url": "http://127.0.0.1:1", "max_retries": 0, "api_key": secrets["servers"],
        "default_headers": {"x-token": secrets["header"]}, "default_query": {"sig": secrets["query"]},
    }  # fmt: skip
    keys = [
        {"name": "me", "key": secrets["mine"], "admin": True, "requests_per_minute": 1000},
        {"name": "other", "key": secrets["others"], "requests_per_minute": 1},
    ]
    texts: list[str] = []
    async with asking(catalog(tmp_path, models={"a": servers}, api_keys=keys).config) as client:
        for each in OPERATIONS:
            if each.path in ENDLESS:
                continue
            for key in secrets.values():
                path = re.sub(r"{\w+}", "a", each.path) + f"?model=a&api_key={key}"
                answer = await client.request(each.method, path, json={"model": "a"}, headers={"x-api-key": key})
                texts += [answer.text, str(answer.headers)]
    assert len(texts) > 300
    assert [text for text in (*texts, caplog.text) for secret in secrets.values() if secret in text] == []


def completion_answer() -> dict[str, Any]:
    whole = chat_answer()
    return whole | {"choices": [{"index": 0, "text": "Hi", "finish_reason": "stop"}]}


async def answer(request: web.Request) -> web.StreamResponse:
    """Whatever a model's server is asked: vLLM's answer where the gateway reads it, and an empty one elsewhere."""
    if request.path == "/v1/models":
        return web.json_response({"data": [{"id": "m"}]})
    if request.path == "/tokenize":
        return web.json_response({"count": 1, "tokens": [1], "max_model_len": 100})
    try:
        body = json.loads(await request.read())
    except ValueError:
        body = None
    if not isinstance(body, dict):
        return web.json_response(
            {"type": "error", "error": {"message": "no JSON object", "type": "BadRequestError", "code": 400}},
            status=400,
        )
    if request.path == "/v1/embeddings":
        texts = body.get("input")
        count = len(texts) if isinstance(texts, list) else 1
        return web.json_response({"data": [{"index": index, "embedding": [1.0]} for index in range(count)]})
    if request.path not in ("/v1/chat/completions", "/v1/completions"):
        return web.json_response({})
    whole = chat_answer() if "chat" in request.path else completion_answer()
    if not body.get("stream"):
        return web.json_response(whole)
    for each in whole["choices"]:
        each["delta"] = each.pop("message", None)
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    await response.write(b"data: " + json.dumps(whole).encode() + b"\n\ndata: [DONE]\n\n")
    return response


@pytest.mark.slow
def test_schemathesis_finds_it_as_described(tmp_path: Path) -> None:
    """``make test-api`` asks more."""
    whole = described()
    for path in ENDLESS:
        del whole["paths"][path]
    logs = whole["paths"]["/api/v1/inference/logs"]["get"]
    logs["parameters"] = [each for each in logs["parameters"] if each["name"] != "follow"]
    for path in whole["paths"].values():  # which of two models, or none, is nothing to find out again and again
        for each in path.values():
            for content in each.get("requestBody", {}).get("content", {}).values():
                content["schema"]["properties"]["model"] = {"enum": ["a", "none"]}
    file = tmp_path / "openapi.json"
    file.write_text(json.dumps(whole))
    app = web.Application(client_max_size=1 << 30)
    app.router.add_route("*", "/{rest:.*}", answer)
    few = ["--phases", "examples,fuzzing", "-n", "3", "--no-shrink", "--generation-deterministic"]
    some = ["-n", str(EXAMPLES)] if EXAMPLES else few
    with running_app(app) as url, running_gateway(tmp_path, url=url) as (host, port):
        words = [
            sys.executable, "-m", "schemathesis.cli", "run", str(file), "--url", f"http://{host}:{port}", *some,
            "--exclude-checks", EXCLUDED, "--request-timeout", "20", "--no-color", "--suppress-health-check", "all",
        ]  # fmt: skip
        done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
