"""The pictures in docs/gateway.md: WRITE_SCREENS=1 draws them again. The models and their words are made up."""

from __future__ import annotations

import asyncio
import math
import os
import time
from pathlib import Path
from typing import Any

import pytest

from tests.page.conftest import CARD, PHONE, Open, answered, say
from tests.support.chromium import Tab
from tests.support.page_scene import DONE, END, GIB, Scene, delta, model, request
from tests.support.paths import REPOSITORY

pytestmark = pytest.mark.asyncio(loop_scope="session")
SCREENS = REPOSITORY / "docs" / "screens"
QUESTION = "How do I read a large CSV in Python without loading it all?"
THOUGHT = (
    "They want streaming. The csv module reads line by line; pandas has chunksize. Show the first, name the second."
)
ANSWER = """Read it **row by row**: the file object and `csv.reader` are both lazy, so memory stays flat.

```python
import csv

with open("orders.csv", newline="") as file:
    for row in csv.DictReader(file):
        if float(row["total"]) > 1000:
            print(row["customer"], row["total"])
```

| way | memory | when |
|---|--:|---|
| `csv.DictReader` | a row | filters, sums |
| `pandas.read_csv(chunksize=...)` | a chunk | group by, joins |
"""
LOG = """INFO api Starting to load model Qwen/Qwen3-VL-8B-Instruct...
INFO core Loading safetensors checkpoint shards: 40% Completed | 2/5
WARNING core Using default MoE config. Performance might be sub-optimal
INFO core Loading safetensors checkpoint shards: 100% Completed | 5/5
INFO core Loading weights took 11.84 seconds
INFO core Available KV cache memory: 41.62 GiB
INFO core GPU KV cache size: 303,072 tokens
ERROR api Invalid image in request: cannot identify image file
INFO api 127.0.0.1:51372 - "POST /v1/chat/completions HTTP/1.1" 200 OK
INFO api Avg generation throughput: 184.2 tokens/s, Running: 2 reqs, Waiting: 1 reqs"""


def dressed(scene: Scene) -> None:
    """As on a machine with work to do."""
    scene.devices = [
        {"id": "cuda:0", "name": "NVIDIA L40S", "memory_used_bytes": 31.4 * GIB, "memory_total_bytes": 45 * GIB,
         "utilization_percent": 71},
        {"id": "cpu", "name": "this machine", "memory_used_bytes": 38 * GIB, "memory_total_bytes": 128 * GIB,
         "utilization_percent": 12},
    ]  # fmt: skip
    scene.models = [
        model("qwen", model="Qwen/Qwen3-8B", max_model_len=40960, capabilities=["chat", "tools", "reasoning"],
              memory_bytes=19.2 * GIB, devices=["cuda:0"], pinned=True, requests={"running": 2, "waiting": 1},
              tokens_per_s={"prompt": 40.0, "completion": 184.2}),
        model("vision", "starting", model="Qwen/Qwen3-VL-8B-Instruct", max_model_len=32768,
              capabilities=["chat", "image", "tools"], devices=["cuda:0"],
              progress={"text": "loading weights 3/5", "done": 3, "total": 5}),
        model("embed", model="Qwen/Qwen3-Embedding-0.6B", max_model_len=8192, capabilities=["embeddings"],
              memory_bytes=1.9 * GIB, devices=["cuda:0"], leaves_at=time.time() + 540.2,
              tokens_per_s={"prompt": 0.0, "completion": 0.0}),
        model("coder", "stopped", model="Qwen/Qwen3-Coder-30B-A3B", max_model_len=131072,
              capabilities=["chat", "tools"], adapters=["sql", "docs"]),
        model("far", "ready", model=None, is_remote=True, description="The team's own server",
              capabilities=["chat", "tools", "reasoning"], max_model_len=131072),
    ]  # fmt: skip
    scene.requests = [
        request("a", model="qwen", key="alice", age_s=4.2, events=611),
        request("b", model="qwen", key="ci", age_s=1.3, events=142),
        request("c", model="qwen", key="ci", state="waiting", age_s=0.4, events=0),
        request("d", model="vision", key="bob", state="waiting", age_s=9.6, events=0),
        request("e", model="far", key="alice", route="/v1/messages", age_s=2.0, events=97),
    ]
    for number, line in enumerate(LOG.splitlines()):
        level, process, message = line.split(" ", 2)
        scene.log.append({"time": f"12:04:{11 + 3 * number:02}", "level": level, "source": "vllm", "process": process,
                          "message": message})  # fmt: skip
    usage = {"choices": [], "usage": {"prompt_tokens": 24, "completion_tokens": 203}}
    words = [delta(content=f"{word} ") for word in ANSWER.split(" ")]
    scene.pieces = [delta(reasoning=THOUGHT), 0.2, *words, 1.1, END, usage, DONE]


async def busy(scene: Scene) -> None:
    """Some seconds of work, for the lines that show it."""
    for number in range(40):
        speed = 184.2 + 38 * math.sin(number / 3.1) - 60 / (number + 1)
        scene["qwen"]["tokens_per_s"] = {"prompt": 40.0, "completion": speed}
        await asyncio.sleep(0.08)
    scene["qwen"]["tokens_per_s"]["completion"] = 184.2


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("page-chat", {"width": 1280, "height": 860}),
        ("page-requests", {"width": 1280, "height": 640, "is_dark": True}),
        ("page-logs", {"width": 1280, "height": 640, "is_dark": True}),
        ("page-phone-models", PHONE),
        ("page-phone-chat", {**PHONE, "is_dark": True}),
    ],
)
async def test_a_picture(open_page: Open, scene: Scene, tmp_path: Path, name: str, options: dict[str, Any]) -> None:
    dressed(scene)
    view = name.rpartition("-")[2]
    folder = SCREENS if os.environ.get("WRITE_SCREENS") else tmp_path
    async with open_page(f"{scene.url}#{view}", scale=2, **options) as tab:
        await tab.until("document.querySelectorAll('.card').length === 5")
        if view == "chat":
            await talked(tab)
        if view == "logs":
            await tab.click(f"{CARD.format(2)} .actions button:nth-child(3)")
        if view in ("chat", "models"):
            await busy(scene)
        await asyncio.sleep(0.3)  # what moves has come to rest
        file = folder / f"{name}.webp"
        await tab.picture(file)
        assert file.stat().st_size > 10_000


async def talked(tab: Tab) -> None:
    await say(tab, QUESTION)
    await answered(tab)
    await tab.js("document.activeElement.blur(); document.querySelector('#messages').scrollTop = 0")
