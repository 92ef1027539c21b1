"""Ctrl-C in a notebook, at several moments: the cell ends, its requests with it, and the kernel goes on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from shared_engine import Engine, EngineState
from tests.fake.conftest import MakeEngine
from tests.support.callers import ANSWER, wait_for
from tests.support.engines import settings_of
from tests.support.in_flight import wait_quiet
from tests.support.notebooks import cell, interrupted, kernel

# Some hundredths of a second, but where others have the processor. What is not interrupted waits for ever here.
BACK_S = 4.0
MOMENTS_S = (0.0, 0.3)

# ipykernel cancels what a cell awaits, but a signal does not wake its loop: of itself, not even asyncio.sleep(20) ends.
SETUP = """
import asyncio, json
from shared_engine import Engine
from langchain_vllm_local import ChatVLLM
from llama_index_vllm_local import VLLM
HELLO = [{{"role": "user", "content": "Hello"}}]
settings = json.loads({settings!r})
engine = Engine(**settings)
async def tick():
    while True:
        await asyncio.sleep(0.05)
ticking = asyncio.ensure_future(tick())
"""
CELLS = [
    "engine.chat(HELLO)",
    "list(engine.stream_chat(HELLO))",
    "engine.chat_batch([HELLO] * 30)",
    "await engine.achat(HELLO)",
    "[chunk async for chunk in engine.astream_chat(HELLO)]",
    "await engine.achat_batch([HELLO] * 30)",
    "chain.invoke('Hello')",
    "chain.batch(['Hello'] * 30)",
    "await chain.abatch(['Hello'] * 30)",
    "index.complete('Hello')",
    "index.complete_batch(['Hello'] * 30)",
]
STARTS = ["engine.chat(HELLO)", "engine.warmup()", "await engine.achat(HELLO)", "engine.chat_batch([HELLO] * 3)"]


@pytest.fixture(scope="module")
def notebook(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, Any]]:
    with kernel(tmp_path_factory.mktemp("kernel")) as notebook:
        yield notebook


def opened(notebook: tuple[Any, Any], engine: Engine) -> tuple[Any, Any]:
    assert cell(notebook[1], SETUP.format(settings=settings_of(engine))) == ("", "")
    return notebook


@pytest.mark.long
def test_ctrl_c_ends_a_cell_and_its_requests(notebook: tuple[Any, Any], fake_engine: MakeEngine) -> None:
    engine = fake_engine({"token_delay_s": 0.4})
    engine.warmup()
    manager, client = opened(notebook, engine)
    adapters = "chain = ChatVLLM(**settings, streaming=False)\nindex = VLLM(**settings)"
    assert cell(client, adapters) == ("", "")
    slowest: dict[str, float] = {}
    for code in CELLS:
        for after_s in MOMENTS_S:
            error, took_s = interrupted(manager, client, code, after_s)
            assert error in ("KeyboardInterrupt", "CancelledError"), (code, after_s)
            slowest[code] = max(took_s, slowest.get(code, 0.0))
        assert cell(client, "print(1 + 1)") == ("", "2\n"), code
        wait_quiet(engine)
    assert max(slowest.values()) < BACK_S, slowest
    assert cell(client, "print(engine.chat(HELLO).text, (await engine.achat(HELLO)).text)") == (
        "",
        f"{ANSWER} {ANSWER}\n",
    )
    assert engine.status().starts == 1


@pytest.mark.long
def test_ctrl_c_leaves_a_start_which_goes_on(
    notebook: tuple[Any, Any], fake_engine: MakeEngine, tmp_path: Path
) -> None:
    engine = fake_engine({"hang_at": "weights"}, start_timeout_s=60, show_progress=False)
    manager, client = opened(notebook, engine)
    for code in STARTS:
        for after_s in MOMENTS_S:
            error, took_s = interrupted(manager, client, code, after_s)
            assert error in ("KeyboardInterrupt", "CancelledError"), (code, after_s)
            assert took_s < BACK_S, (code, after_s)
    assert cell(client, "print(1 + 1)") == ("", "2\n")
    wait_for(engine, EngineState.STARTING)
    assert engine.status().starts == 1
