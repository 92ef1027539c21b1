"""One Chromium for all tests of the page, each with a profile of its own in it; and what they do all the time."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import pytest
import pytest_asyncio

from tests.fake.conftest import fake_engine, fake_model, fake_python
from tests.support.chromium import Browser, Tab, chromium
from tests.support.page_scene import Scene, shown
from tests.support.waiting import until_it_is

__all__ = ["fake_engine", "fake_model", "fake_python"]  # fixtures here too

Open = Callable[..., AbstractAsyncContextManager[Tab]]
PHONE = {"width": 390, "height": 844, "is_phone": True}
CARD = "#cards > li:nth-child({})"
ASK_S = 5.0


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def browser(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Browser]:
    async with chromium(tmp_path_factory.mktemp("chromium")) as browser:
        yield browser


@pytest.fixture
def open_page(browser: Browser) -> Open:
    """Opens a page. At the end it has complained of nothing, but of what ``may`` be."""

    @asynccontextmanager
    async def open_(url: str, *, may: str | None = None, **options: Any) -> AsyncIterator[Tab]:
        tab = await browser.tab(url, **options)
        try:
            yield tab
            assert [error for error in tab.errors if may is None or may not in error] == []
        finally:
            await tab.close()

    return open_


@pytest_asyncio.fixture(loop_scope="session")
async def scene() -> AsyncIterator[Scene]:
    async with shown(Scene()) as scene:
        yield scene


async def say(tab: Tab, text: str) -> None:
    """In the chat, once there is somebody to say it to."""
    await tab.until("!document.querySelector('#send').disabled")
    await tab.click("#message")
    await tab.type(text)
    await tab.press("Enter")


async def answered(tab: Tab) -> None:
    await tab.until("document.querySelector('.answer:last-child')?.ariaBusy === 'false'")


async def asked(scene: Scene, count: int = 1) -> tuple[str, Any]:
    """The last of so many requests."""
    await until_it_is(lambda: len(scene.asked) >= count, ASK_S, f"{count} requests")
    assert len(scene.asked) == count
    return scene.asked[-1]
