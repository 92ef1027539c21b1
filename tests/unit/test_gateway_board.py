"""What is shown of models, also to many at once."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

from shared_engine.gateway.catalog import Catalog
from shared_engine.gateway.config import read_config
from shared_engine.gateway.life.board import Board
from tests.support.gateways import asking
from tests.support.remote_server import running_server


async def test_many_may_look_while_a_model_is_looked_at_again_for_one(tmp_path: Path) -> None:
    with running_server() as server:
        file = tmp_path / "models.yaml"
        file.write_text(json.dumps({"models": {"a": {"base_url": server.url}}}))
        catalog = Catalog(read_config(file))
        board, model = Board(catalog), catalog.models["a"]
        looking = asyncio.gather(*(board.status(None, is_admin=True) for _ in range(4)))
        await asyncio.sleep(0)  # the first has begun
        entries = await asyncio.gather(*(board.entry(model, None) for _ in range(4)))
        states = [each["models"][0]["state"] for each in await looking] + [each["state"] for each in entries]
        assert states == ["ready"] * 8
        await catalog.close()


async def test_a_model_of_another_machine_is_shown_and_neither_kept_nor_unloaded(tmp_path: Path) -> None:
    with running_server() as server:
        file = tmp_path / "models.yaml"
        file.write_text(json.dumps({"models": {"a": {"base_url": server.url}}}))
        async with asking(read_config(file)) as client:
            (shown,) = (await client.get("/api/v1/inference/status")).json()["models"]
            assert (shown["state"], shown["is_remote"], shown["tokens"], shown["devices"]) == ("ready", True, None, [])
            body = {"messages": [{"role": "user", "content": "Hi"}], "keep_alive": 0}
            assert (await client.post("/v1/chat/completions", json=body)).status_code == 200
            assert "keep_alive" not in server.requests[-1][1]
            for what in ("unload", "pin", "unpin"):
                assert (await client.post(f"/api/v1/inference/{what}", json={})).status_code >= 400
