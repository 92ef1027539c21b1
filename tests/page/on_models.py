"""What the page shows of models, and what is done with them there."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.page.conftest import CARD, Open, asked
from tests.support.page_scene import GIB, Scene, model, request

pytestmark = pytest.mark.asyncio(loop_scope="session")


@pytest.mark.parametrize(
    ("state", "word", "button"),
    [
        ("ready", "ready", "Unload"), ("starting", "loading", "Unload"), ("stopping", "unloading", "Load"),
        ("asleep", "asleep", "Unload"), ("standby", "standby", "Load"), ("stopped", "not loaded", "Load"),
        ("failed", "failed", "Load"), (None, "no answer", "Load"),
    ],
)  # fmt: skip
async def test_a_model_in_each_state(open_page: Open, scene: Scene, state: str | None, word: str, button: str) -> None:
    scene.models = [model("qwen", state)]
    async with open_page(scene.url) as tab:
        await tab.shows(word, ".card .state")
        assert (await tab.text(".card .actions button")) == button


async def test_what_a_model_is_and_uses(open_page: Open, scene: Scene) -> None:
    scene.models = [
        model(
            "qwen", model="Qwen/Qwen3-4B", max_model_len=40960, capabilities=["chat", "tools", "reasoning"],
            memory_bytes=9 * GIB, devices=["cuda:0"], requests={"running": 2, "waiting": 1},
            tokens_per_s={"prompt": 3.0, "completion": 184.2}, adapters=["sql"],
        )
    ]  # fmt: skip
    scene.devices = [{"id": "cuda:0", "name": "NVIDIA H200", "memory_used_bytes": 70 * GIB,
                      "memory_total_bytes": 140 * GIB, "utilization_percent": 45}]  # fmt: skip
    async with open_page(scene.url) as tab:
        await tab.shows("Qwen/Qwen3-4B · 40K context", ".card")
        await tab.shows("2 running · 1 waiting · 184 tok/s", ".card")
        await tab.shows("9.0 GiB on cuda:0", ".card")
        assert (await tab.text(".abilities")).split("\n") == ["tools", "reasoning", "1 adapter"]
        await tab.shows("cuda:0 · NVIDIA H200", "#devices")
        await tab.shows("70.0 GiB of 140 GiB · 45 %", "#devices")
        assert await tab.js("document.querySelector('.device progress').value") == 0.5
        await tab.shows("1 of 1 ready · 184 tok/s", "#live")


async def test_a_start_shows_how_far_it_is_and_a_failure_why(open_page: Open, scene: Scene) -> None:
    scene.models = [model("qwen", "starting", progress={"text": "loading weights 3/8", "done": 3, "total": 8})]
    async with open_page(scene.url) as tab:
        await tab.shows("loading weights 3/8", ".card")
        assert await tab.js("document.querySelector('.card progress').position") == 3 / 8
        scene.models[0].update(progress={"text": "importing vLLM", "done": None, "total": None})
        await tab.shows("importing vLLM", ".card")
        assert await tab.js("document.querySelector('.card progress').position") == -1  # it moves, and says nothing
        scene.models[0].update(state="failed", progress=None, failure={"message": "no room on cuda:0"})
        await tab.shows("no room on cuda:0", ".card .failure")
        assert not await tab.js("document.querySelector('.card progress').checkVisibility()")


async def test_the_time_until_a_model_leaves_counts_down(open_page: Open, scene: Scene) -> None:
    scene.models = [model("qwen", leaves_at=1e12), model("pinned", leaves_at=1e12, pinned=True)]
    async with open_page(scene.url) as tab:
        await tab.shows("leaves in")
        scene.models[0]["leaves_at"] = await tab.js("Date.now() / 1000 + 30.5")
        await tab.shows("leaves in 30 s")
        await tab.shows("leaves in 28 s")
        assert "leaves" not in await tab.text(CARD.format(2))


@pytest.mark.parametrize(
    ("state", "button", "what", "body"),
    [
        ("stopped", 1, "load", {"model": "qwen", "wait": False}), ("ready", 1, "unload", {"model": "qwen"}),
        ("ready", 2, "pin", {"model": "qwen"}),
    ],
)  # fmt: skip
async def test_what_is_done_with_a_model(
    open_page: Open, scene: Scene, state: str, button: int, what: str, body: dict[str, Any]
) -> None:
    scene.models = [model("other"), model("qwen", state)]
    async with open_page(scene.url) as tab:
        await tab.click(f"{CARD.format(2)} .actions button:nth-child({button})")
        assert await asked(scene) == (what, body)


async def test_what_is_being_done_is_not_asked_for_twice(open_page: Open, scene: Scene) -> None:
    scene.models, scene.held = [model("qwen")], {"unload": asyncio.Event()}
    button = "document.querySelector('.actions button').disabled"
    async with open_page(scene.url) as tab:
        await tab.click(".actions button")
        await asked(scene)
        await tab.until(button)
        await tab.click(".actions [aria-pressed]")
        assert await asked(scene, 2) == ("pin", {"model": "qwen"})
        scene.models[0]["pinned"] = True
        await tab.shows("Pinned", ".actions")
        assert await tab.js(button)
        scene.held["unload"].set()
        await tab.until(f"!{button}")


async def test_a_pinned_model_can_be_let_go(open_page: Open, scene: Scene) -> None:
    scene.models = [model("qwen", pinned=True)]
    async with open_page(scene.url) as tab:
        await tab.shows("Pinned", ".actions")
        await tab.click(".actions [aria-pressed=true]")
        assert await asked(scene) == ("unpin", {"model": "qwen"})
        scene.models[0]["pinned"] = False
        await tab.until("document.querySelectorAll('.actions [aria-pressed=false]').length")


async def test_a_busy_model_is_unloaded_only_by_who_means_it(open_page: Open, scene: Scene) -> None:
    scene.models = [model("qwen", requests={"running": 2, "waiting": 1})]
    async with open_page(scene.url) as tab:
        await tab.click(".actions button")
        await tab.shows("3 requests in flight", "#ask-dialog")
        await tab.press("Escape")
        await tab.until("!document.querySelector('#ask-dialog').open")
        assert scene.asked == []
        await tab.click(".actions button")
        await tab.click("#ask-yes")
        assert await asked(scene) == ("unload", {"model": "qwen"})


async def test_what_could_not_be_done_is_said_until_it_is_closed(open_page: Open, scene: Scene) -> None:
    scene.refusal = (503, {"error": {"message": "qwen: requests ran all the while", "code": "engine_busy"}})
    async with open_page(scene.url, may="503") as tab:
        await tab.click(".actions button")
        await tab.shows("requests ran all the while", "#notes")
        await tab.click(".note button")
        assert await tab.text("#notes") == ""


async def test_who_may_not_is_not_shown_how(open_page: Open, scene: Scene) -> None:
    scene.models, scene.is_admin = [model("up"), model("down", "stopped"), model("far", is_remote=True)], False
    async with open_page(scene.url) as tab:
        await tab.shows("far", CARD.format(3))
        seen = "[...document.querySelectorAll('.actions button')].filter((b) => b.innerText && b.checkVisibility())"
        assert await tab.js(f"{seen}.map((b) => [b.innerText, b.disabled])") == [["Unload", True], ["Load", False]]


async def test_a_model_is_found_by_a_part_of_its_name(open_page: Open, scene: Scene) -> None:
    scene.models = [model(f"model-{number}", aliases=[f"alias-{number}"]) for number in range(8)]
    async with open_page(scene.url) as tab:
        await tab.click("#models-search input")
        await tab.type("S-3")
        assert await tab.js("[...document.querySelectorAll('.card .title')].map((each) => each.innerText)") == [
            "model-3"
        ]
        await tab.type("33")
        await tab.shows("No model has this in its name", "#models-empty")


async def test_changes_leave_the_focus_where_it_is(open_page: Open, scene: Scene) -> None:
    scene.models = [model("b"), model("c", "stopped")]
    async with open_page(scene.url) as tab:
        await tab.shows("c", CARD.format(2))
        await tab.js(f"document.querySelector('{CARD.format(2)} .actions button').focus()")
        scene.models = [model("a"), model("b", "starting"), model("c", "failed")]
        await tab.shows("failed", CARD.format(3))
        assert await tab.js("document.activeElement.closest('.card').querySelector('.title').innerText") == "c"


async def test_requests_in_flight_are_listed_and_one_is_cancelled(open_page: Open, scene: Scene) -> None:
    scene.requests = [request("a", key="alice"), request("b", state="waiting", is_stream=False, events=0)]
    async with open_page(f"{scene.url}#requests") as tab:
        await tab.shows("alice", "#requests-rows")
        assert (await tab.text("#requests-count")) == "2"
        cells = await tab.js(
            "[...document.querySelectorAll('#requests-rows tr:last-child td')].map((e) => e.innerText)"
        )
        assert cells[:4] == ["one", "/v1/chat/completions", "-", "waiting"]
        assert cells[5] == "-"
        await tab.click("#requests-rows tr:last-child button")
        assert await asked(scene) == ("requests/b/cancel", {})
        scene.requests = []
        await tab.shows("No request is in flight", "#view-requests")


async def test_a_log_is_followed_and_searched(open_page: Open, scene: Scene) -> None:
    scene.log = [{"time": "12:00:01", "level": "INFO", "source": "engine", "process": "core", "message": "<b>up</b>"}]
    async with open_page(scene.url) as tab:
        await tab.click(f"{CARD.format(2)} .actions button:nth-child(3)")
        await tab.shows("<b>up</b>", "#lines")
        assert await tab.js("document.querySelector('#logs-model').value") == "two"
        scene.log.append({"time": "12:00:02", "level": "ERROR", "source": None, "process": None, "message": "It broke"})
        await tab.shows("It broke", "#lines .error")
        await tab.click("#logs-filter")
        await tab.type("BROKE")
        await tab.until("!document.querySelector('#lines').innerText.includes('up')")


async def test_a_log_stays_where_its_reader_is(open_page: Open, scene: Scene) -> None:
    def line(number: int) -> dict[str, Any]:
        return {"time": None, "level": "INFO", "source": None, "process": None, "message": f"line {number}"}

    scene.log = [line(number) for number in range(200)]
    async with open_page(f"{scene.url}#logs") as tab:
        await tab.shows("line 199", "#lines")
        below = (
            "((lines) => lines.scrollHeight - lines.scrollTop - lines.clientHeight)(document.querySelector('#lines'))"
        )
        assert await tab.js(below) < 2
        await tab.js("document.querySelector('#lines').scrollTop = 100")
        scene.log.append(line(200))
        await tab.shows("line 200", "#lines")
        assert await tab.js("document.querySelector('#lines').scrollTop") == 100
