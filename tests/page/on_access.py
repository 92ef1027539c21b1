"""Who may look, and what the page does when nobody answers or nobody looks."""

from __future__ import annotations

from contextlib import AsyncExitStack

import pytest

from tests.page.conftest import Open
from tests.support.chromium import Tab
from tests.support.page_scene import Scene, model, shown
from tests.support.waiting import until_it_is

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def test_a_key_is_asked_for_and_kept_in_the_tab(open_page: Open, scene: Scene) -> None:
    scene.key = "the-key"
    async with open_page(scene.url, may="401") as tab:
        await tab.until("document.querySelector('#key-dialog')?.open")
        await tab.press("Escape")
        await tab.shows("give an API key", "#live")
        await tab.click("#key-button")
        await tab.type("another")
        await tab.press("Enter")
        await tab.shows("does not know this key", "#key-error")
        await tab.type("the-key")
        await tab.press("Enter")
        await tab.shows("one", "#cards")
        await tab.go(scene.url)
        await tab.shows("one", "#cards")
        assert not await tab.js("document.querySelector('#key-dialog').open")
        assert "the-key" not in await tab.js("JSON.stringify(localStorage) + document.cookie + location.href")
        await tab.click("#key-button")
        await tab.click("#key-forget")
        await tab.until("document.querySelector('#key-dialog')?.open && sessionStorage.length === 0")


async def give_key(tab: Tab, key: str) -> None:
    if not await tab.js("document.querySelector('#key-dialog').open"):
        await tab.click("#key-button")
    await tab.type(key)
    await tab.press("Enter")


@pytest.mark.parametrize("view", ["chat", "logs"])
async def test_another_key_is_told_what_is_its_own_from_then_on(open_page: Open, scene: Scene, view: str) -> None:
    scene.key = "first"
    streams = {"events", "logs"} if view == "logs" else {"events"}
    async with open_page(f"{scene.url}#{view}", may="401") as tab:
        await tab.until("document.querySelector('#key-dialog')?.open")
        await give_key(tab, "first")
        await tab.until("document.querySelectorAll('#cards > li').length === 2")
        scene.key = "second"
        await give_key(tab, "third")
        await tab.shows("does not know this key", "#key-error")
        assert await tab.js("document.querySelectorAll('#cards > li').length") == 0
        scene.heard.clear()
        await give_key(tab, "second")
        await tab.until("document.querySelectorAll('#cards > li').length === 2")
        await until_it_is(lambda: set(scene.heard) == {(each, "second") for each in streams}, 5, "both to be asked for")
        await until_it_is(lambda: scene.listeners == 1, 5, "the stream of the first key to end")


async def test_no_key_is_asked_for_where_there_is_none(open_page: Open, scene: Scene) -> None:
    async with open_page(scene.url) as tab:
        await tab.shows("one", "#cards")
        assert not await tab.js("document.querySelector('#key-button').checkVisibility()")


async def test_a_gateway_that_is_gone_and_back(open_page: Open) -> None:
    async with AsyncExitStack() as stack:
        async with shown(Scene()) as first:
            tab = await stack.enter_async_context(open_page(first.url, may="ERR_"))
            await tab.shows("1 of 2 ready", "#live")
        await tab.shows("The gateway does not answer", "#live")
        async with shown(Scene(models=[model("three")]), int(first.url.rsplit(":", 1)[1].strip("/"))):
            await tab.shows("1 of 1 ready", "#live")
            await tab.shows("three", "#cards")


async def test_a_page_that_nobody_sees_does_not_ask(open_page: Open, scene: Scene) -> None:
    async with open_page(scene.url) as tab:
        await tab.shows("one", "#cards")
        assert scene.listeners == 1
        await tab.hide(True)
        await until_it_is(lambda: scene.listeners == 0, 5, "the page to leave")
        scene.models = [model("later")]
        await tab.hide(False)
        await tab.shows("later", "#cards")
