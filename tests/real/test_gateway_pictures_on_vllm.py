"""Pictures by their address, through the gateway to real vLLM: what it makes of them is what it makes of the data."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import httpx
from aiohttp import web

from tests.support.gateways import gateway
from tests.support.remote_server import running_app
from tests.support.vision_model import png

GREEN = png(0, 200, 0)
TEXT = {"type": "text", "text": "What is this?"}
SHORT = {"model": "eyes", "temperature": 0, "max_tokens": 4}


async def picture(request: web.Request) -> web.StreamResponse:
    return web.Response(body=GREEN, content_type="image/png")


def asked(url: str) -> dict[str, dict[str, Any]]:
    """Each route that takes a picture, asked about this one."""
    answers = [{"type": "input_text", "text": "What is this?"}, {"type": "input_image", "image_url": url}]
    source = {"type": "url", "url": url}
    if url.startswith("data:"):
        source = {"type": "base64", "media_type": "image/png", "data": url.partition(",")[2]}
    seen = [{"role": "user", "content": [TEXT, {"type": "image", "source": source}]}]
    chat = [{"role": "user", "content": [TEXT, {"type": "image_url", "image_url": {"url": url}}]}]
    return {
        "/v1/chat/completions": {**SHORT, "messages": chat},
        "/tokenize": {"model": "eyes", "messages": chat},
        "/v1/responses": {"model": "eyes", "temperature": 0, "max_output_tokens": 4,
                          "input": [{"role": "user", "content": answers}]},
        "/v1/messages": {**SHORT, "messages": seen},
    }  # fmt: skip


def said(answer: httpx.Response) -> Any:
    """Of an answer in any protocol what does not differ from time to time."""
    assert answer.status_code == 200, answer.text
    told = answer.json()
    return {name: told[name] for name in ("usage", "count", "tokens", "content") if name in told} or told


def test_a_picture_by_its_address_is_the_picture(vision: dict[str, Any], tmp_path: Path) -> None:
    app = web.Application()
    app.router.add_get("/green.png", picture)
    fields = {"media_domains": ["127.0.0.1"], "media_networks": ["127.0.0.0/8"]}
    with (
        running_app(app) as url,
        gateway({"models": {"eyes": vision}, **fields}, tmp_path) as gate,
        gate.client() as client,
    ):
        data = f"data:image/png;base64,{base64.b64encode(GREEN).decode()}"
        for path, with_data in asked(data).items():
            by_address = client.post(path, json=asked(f"{url}/green.png")[path])
            assert said(by_address) == said(client.post(path, json=with_data)), path
        refused = client.post("/v1/chat/completions", json=asked("http://localhost:1/")["/v1/chat/completions"])
        assert (refused.status_code, refused.json()["error"]["code"]) == (400, "url_not_allowed")
