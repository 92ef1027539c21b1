"""The page before real gateways: a model is started there, answers, is stopped, cancelled and unloaded."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shared_engine import Engine, EngineState
from tests.fake.conftest import MakeEngine
from tests.page.conftest import CARD, Open, answered, say
from tests.support.callers import ANSWER, wait_for
from tests.support.chromium import Tab
from tests.support.gateways import entry, gateway

pytestmark = pytest.mark.asyncio(loop_scope="session")
START_S = 180.0
KEYS: list[dict[str, Any]] = [
    {"name": "boss", "key": "key-of-the-boss", "admin": True},
    {"name": "bob", "key": "key-of-bob", "models": ["b"]},
]
Serve = Callable[..., Any]


@pytest.fixture
def serve(tmp_path: Path) -> Serve:
    return lambda models, **fields: gateway({"models": models, **fields}, tmp_path)


async def test_a_model_is_started_talked_to_and_unloaded(
    open_page: Open, fake_engine: MakeEngine, serve: Serve
) -> None:
    engine = fake_engine({"start_delay_s": 0.5})
    with serve({"one": entry(engine)}) as gate:
        async with open_page(gate.url) as tab:
            await tab.shows("not loaded", ".card .state")
            await tab.click(".actions button")
            await tab.shows("loading", ".card .state", START_S)
            await tab.shows("ready", ".card .state", START_S)
            assert engine.status().state is EngineState.READY
            await tab.shows("on cpu · leaves in", ".card .where")
            await say(tab, "Hello")
            await tab.shows(ANSWER, ".answer .text")
            await answered(tab)
            await tab.shows("out · first after", ".answer footer")
            await tab.click(".actions button:nth-child(3)")
            await tab.shows("Starting vLLM server", "#lines")
            await tab.click(".actions button")
            await tab.shows("standby", ".card .state", START_S)
            wait_for(engine, EngineState.STANDBY)


async def test_a_message_starts_the_model_that_it_is_for(
    open_page: Open, fake_engine: MakeEngine, serve: Serve
) -> None:
    with serve({"one": entry(fake_engine()), "two": entry(fake_engine({"start_delay_s": 1}))}) as gate:
        async with open_page(gate.url) as tab:
            await tab.click(f"{CARD.format(2)} .title")
            await say(tab, "Hello")
            await tab.shows("loading", CARD.format(2), START_S)
            await tab.shows(ANSWER, ".answer .text", START_S)
            assert await tab.text(f"{CARD.format(1)} .state") == "not loaded"


async def test_an_answer_is_stopped_where_it_is_made(open_page: Open, fake_engine: MakeEngine, serve: Serve) -> None:
    engine = fake_engine({"token_delay_s": 0.1})
    engine.warmup()
    with serve({"one": entry(engine)}) as gate:
        async with open_page(gate.url) as tab, open_page(f"{gate.url}#requests") as other:
            for way in ("stop", "cancel"):
                await endless(tab)
                await other.shows("/v1/completions", "#requests-rows")
                await (tab.click("#stop") if way == "stop" else other.click("#requests-rows button"))
                await answered(tab)
                assert ("cancelled" if way == "cancel" else "Stopped") in await tab.text(".answer:last-child .problem")
                await other.shows("No request is in flight", "#view-requests")
                await tab.shows("idle", ".card .use")


async def endless(tab: Tab) -> None:
    """Ask for an answer that does not end soon, and return when it has begun."""
    settings = json.dumps({"max_tokens": "1500", "extra": '{"ignore_eos": true}'})
    await tab.js(f"localStorage.setItem('vllm-local settings', {json.dumps(settings)})")
    await tab.go(await tab.js("location.href"))
    await say(tab, "Hello")
    await tab.until("document.querySelector('.answer:last-child .text')?.innerText")


async def test_a_start_that_fails_says_why(open_page: Open, fake_engine: MakeEngine, serve: Serve) -> None:
    with serve({"one": entry(fake_engine({"exit_at": "start", "exit_code": 3}))}) as gate:
        async with open_page(gate.url, may="500") as tab:
            await say(tab, "Hello")
            await tab.until("document.querySelector('.answer .problem')?.innerText", START_S)
            await tab.shows("failed", ".card .state")
            assert await tab.text(".card .failure") != ""


async def test_each_key_sees_what_it_may(open_page: Open, fake_engine: MakeEngine, serve: Serve) -> None:
    engine = fake_engine()
    engine.warmup()
    with serve({"a": entry(engine), "b": entry(engine)}, api_keys=KEYS) as gate:
        for key, cards, buttons in ((KEYS[0], 2, ["Unload", "Pin", "Log"]), (KEYS[1], 1, ["Unload"])):
            async with open_page(gate.url, may="401") as tab:
                await tab.until("document.querySelector('#key-dialog')?.open")
                assert await tab.text("#cards") == ""
                await tab.type(key["key"])
                await tab.press("Enter")
                await tab.until(f"document.querySelectorAll('.card').length === {cards}")
                of_it = "[...document.querySelectorAll('.card:last-child .actions button:not(.icon-only)')]"
                seen = f"{of_it}.filter((each) => each.checkVisibility()).map((each) => each.innerText)"
                assert await tab.js(seen) == buttons
                await say(tab, "Hello")
                await tab.shows(ANSWER, ".answer .text")
        assert "key-of" not in gate.told()


async def test_real_vllm(open_page: Open, tiny_chat: dict[str, Any], serve: Serve) -> None:
    engine = Engine(**tiny_chat)
    engine.shutdown(force=True)
    with serve({"tiny": entry(engine)}) as gate:
        async with open_page(gate.url) as tab:
            await tab.shows("2K context", ".card .about")
            await say(tab, "What is the capital of France?")
            await tab.until("document.querySelector('.card progress').checkVisibility()", START_S)
            await tab.shows("Paris", ".answer .text", START_S)
            await answered(tab)
            await tab.shows("tok/s", ".answer footer")
            await endless(tab)
            await tab.shows("1 running", ".card .use")
            await tab.press("Escape")
            await tab.shows("Stopped", ".answer .problem")
            await tab.shows("idle", ".card .use")
            await tab.click(".actions button")
            await tab.shows("standby", ".card .state", START_S)
