"""The site in Chromium, as a person uses it: read, searched, copied from, on a phone, by night. After `make docs`."""

from __future__ import annotations

import functools
import http.server
import os
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from tests.site.made_site import SITE
from tests.support.chromium import Browser, Tab, chromium

PHONE: dict[str, Any] = {"width": 390, "height": 844, "is_phone": True}
PAGES = ("index", "start", "langchain", "gateway", "settings", "errors", "from-own-wrappers", "api-shared_engine")


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="session")
def address() -> Iterator[str]:
    handler = functools.partial(Quiet, directory=str(SITE))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join(10)


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def browser(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Browser]:
    async with chromium(tmp_path_factory.mktemp("chromium")) as browser:
        yield browser


async def looked_at(tab: Tab, address: str, name: str) -> None:
    """Nothing is wrong with it, nothing came from elsewhere, and it is not wider than the window."""
    if folder := os.environ.get("SITE_PICTURES"):
        await tab.picture(Path(folder) / f"{name}.png")
    assert tab.errors == []
    assert [url for url in tab.answers if not url.startswith((address, "data:"))] == []
    assert await tab.js("document.documentElement.scrollWidth <= innerWidth")


@pytest.mark.asyncio(loop_scope="session")
@pytest.mark.parametrize("is_dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("device", [{}, PHONE], ids=["desktop", "phone"])
@pytest.mark.parametrize("page", PAGES)
async def test_a_page_can_be_read(
    page: str, device: dict[str, Any], is_dark: bool, browser: Browser, address: str
) -> None:
    tab = await browser.tab(f"{address}/{page}.html", is_dark=is_dark, **device)
    kind = f"{'phone' if device else 'desktop'}-{'dark' if is_dark else 'light'}"
    await looked_at(tab, address, f"{page}-{kind}")
    paper = await tab.js("getComputedStyle(document.body).backgroundColor.match(/[0-9]+/g).map(Number)")
    assert (sum(paper) < 200) == is_dark
    assert len(await tab.text("article h1")) > 2
    await tab.close()


@pytest.mark.asyncio(loop_scope="session")
@pytest.mark.parametrize("words", ["idle_ttl_s", "RateLimitError", "structured output", "keep_alive"])
async def test_what_is_searched_for_is_found_without_a_network(words: str, browser: Browser, address: str) -> None:
    tab = await browser.tab(f"{address}/index.html")
    await tab.click("input.sidebar-search")
    await tab.type(words)
    await tab.press("Enter")
    await tab.until("document.querySelectorAll('#search-results li').length >= 2")
    await tab.until("document.querySelector('#search-results .search-summary')?.innerText.includes('found')")
    await looked_at(tab, address, f"search-{words.replace(' ', '-')}")
    first = await tab.js("document.querySelector('#search-results li a').href")
    await tab.go(first)
    assert words.lower() in (await tab.text("article")).lower()
    await tab.close()


@pytest.mark.asyncio(loop_scope="session")
async def test_the_search_works_in_files_without_a_server(browser: Browser) -> None:
    tab = await browser.tab((SITE / "index.html").as_uri())
    await tab.click("input.sidebar-search")
    await tab.type("idle_ttl_s")
    await tab.press("Enter")
    await tab.until("document.querySelectorAll('#search-results li').length >= 2")
    assert "Settings" in await tab.text("#search-results")
    await tab.close()


@pytest.mark.asyncio(loop_scope="session")
async def test_a_block_is_copied_without_its_prompts(browser: Browser, address: str) -> None:
    tab = await browser.tab(f"{address}/start.html")
    await tab.js(
        """window.copied = [];
        const selected = () => document.activeElement.value ?? String(getSelection());
        document.addEventListener("copy", () => copied.push(selected()), true);
        navigator.clipboard.writeText = async (text) => void copied.push(text)"""
    )
    await tab.until("!!document.querySelector('.highlight-console button.copybtn')")
    await tab.click(".highlight-console button.copybtn")
    assert await tab.until("copied[0]") == (
        "python3 -m venv .venv && . .venv/bin/activate\n"
        "pip install 'vllm-local[langchain,llama-index,cli]'\n"
        "vllm-local install"
    )
    await tab.close()


@pytest.mark.asyncio(loop_scope="session")
async def test_the_menu_opens_on_a_phone_and_leads_on(browser: Browser, address: str) -> None:
    tab = await browser.tab(f"{address}/index.html", **PHONE)
    await tab.click("header label[for=__navigation]")
    await tab.until("document.querySelector('#__navigation').checked")
    await tab.until("document.querySelector('.sidebar-drawer').getBoundingClientRect().left >= 0")
    await looked_at(tab, address, "menu-phone")
    await tab.js("[...document.querySelectorAll('.sidebar-tree a')].find(a => a.innerText === 'LangChain').click()")
    await tab.shows("LangChain", "article h1")
    await tab.close()


@pytest.mark.asyncio(loop_scope="session")
async def test_day_and_night_can_be_chosen(browser: Browser, address: str) -> None:
    tab = await browser.tab(f"{address}/index.html")
    seen = [await tab.js("document.body.dataset.theme")]
    for _ in range(2):
        await tab.click(".content .theme-toggle")
        seen.append(await tab.js("document.body.dataset.theme"))
    assert set(seen) == {"auto", "light", "dark"}
    await tab.close()
