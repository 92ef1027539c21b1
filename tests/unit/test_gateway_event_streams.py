"""``/events`` and followed logs: they go on until their key no longer holds."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from starlette.types import Message, Scope

from shared_engine.gateway.app import gateway_app
from shared_engine.gateway.catalog import Catalog
from shared_engine.gateway.config import GatewayConfig, read_config
from shared_engine.logs import TREE

EVENTS, LOGS = "/events", "/api/v1/inference/logs"
ROOT: dict[str, Any] = {"name": "root", "key": "roots-secret", "admin": True}
OTHER = {"name": "other", "key": "others-secret", "admin": True}


def config(folder: Path, *keys: dict[str, Any], **more: Any) -> GatewayConfig:
    file = folder / "models.yaml"
    models = {name: {"base_url": "http://127.0.0.1:9/v1"} for name in "ab"}
    file.write_text(json.dumps({"models": models, "api_keys": keys, **more}))
    return read_config(file)


class Reader:
    """Of a stream: what has come of it."""

    def __init__(self) -> None:
        self.text = ""
        self.has_ended = asyncio.Event()
        self._changed = asyncio.Event()

    async def send(self, message: Message) -> None:
        assert message.get("status", 200) == 200, message
        self.text += message.get("body", b"").decode()
        if message["type"] == "http.response.body" and not message["more_body"]:
            self.has_ended.set()
        self._changed.set()

    async def until(self, text: str) -> None:
        while text not in self.text:
            self._changed.clear()
            await self._changed.wait()


@asynccontextmanager
async def reading(catalog: Catalog, path: str, secret: str | None) -> AsyncIterator[Reader]:
    async def receive() -> Message:
        await asyncio.Event().wait()
        raise AssertionError

    headers = [(b"host", b"localhost")]
    if secret is not None:
        headers.append((b"x-api-key", secret.encode()))
    scope: Scope = {
        "type": "http", "method": "GET", "path": path, "query_string": b"follow=true", "headers": headers,
    }  # fmt: skip
    reader = Reader()
    app = gateway_app(catalog, is_loopback=True)
    task = asyncio.create_task(app(scope, receive, reader.send))
    try:
        async with asyncio.timeout(10):
            yield reader
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await catalog.close()


@pytest.mark.parametrize("path", [EVENTS, LOGS])
@pytest.mark.parametrize(
    ("before", "after"),
    [
        ([ROOT, OTHER], [OTHER]),
        ([ROOT], [{**ROOT, "key": "roots-new-secret"}]),
        ([ROOT], [{**ROOT, "models": ["a"]}]),
        ([ROOT], [{**ROOT, "admin": False}]),
        ([ROOT], []),
        ([], [ROOT]),
    ],
    ids=["gone", "another secret", "fewer models", "no admin", "no keys", "keys"],
)
async def test_a_stream_ends_untold_when_its_key_no_longer_holds(
    tmp_path: Path, path: str, before: list[dict[str, Any]], after: list[dict[str, Any]]
) -> None:
    catalog = Catalog(config(tmp_path, *before, comment_interval_s=0.1))
    secret = ROOT["key"] if before else None
    with catalog.log.heard():
        async with reading(catalog, path, secret) as reader:
            await reader.until(": waiting")
            catalog.replace(config(tmp_path, *after, comment_interval_s=0.1, defaults={"description": "told later"}))
            logging.getLogger(f"{TREE}.test").warning("told later")
            await reader.has_ended.wait()
    assert "told later" not in reader.text


@pytest.mark.parametrize("path", [EVENTS, LOGS])
async def test_a_stream_goes_on_where_its_key_is_as_before(tmp_path: Path, path: str) -> None:
    catalog = Catalog(config(tmp_path, ROOT, OTHER, comment_interval_s=0.1))
    with catalog.log.heard():
        async with reading(catalog, path, ROOT["key"]) as reader:
            await reader.until(": waiting")
            catalog.replace(config(tmp_path, ROOT, comment_interval_s=0.1, defaults={"description": "told later"}))
            logging.getLogger(f"{TREE}.test").warning("told later")
            await reader.until("told later")
    assert not reader.has_ended.is_set()
