"""The page of the sample application: before a server that answers as told, and on real vLLM."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from tests.page.conftest import PHONE, Open
from tests.support.chromium import Tab
from tests.support.paths import REPOSITORY
from tests.support.rag_service import PASSWORD, QUESTION, embeds_too, listening, rag_app
from tests.support.remote_server import RemoteServer, running_server
from tests.support.scripted import answers

pytestmark = pytest.mark.asyncio(loop_scope="session")
START_S = 180.0
Served = Callable[..., AbstractContextManager[str]]


@pytest.fixture
def server() -> Iterator[RemoteServer]:
    with running_server() as running:
        answers(running, PASSWORD)
        embeds_too(running)
        yield running


@pytest.fixture
def served(server: RemoteServer, tmp_path: Path) -> Served:
    """The application, listening."""
    far = {"base_url": server.url, "max_retries": 0}
    return lambda chat=far, **more: listening(rag_app("langchain", tmp_path / "rag.sqlite", chat, far, **more))


async def ask(tab: Tab, question: str = QUESTION) -> None:
    await tab.js("document.querySelector('#question').select()")
    await tab.type(question)
    await tab.press("Enter")


async def with_samples(tab: Tab) -> None:
    await tab.click("#samples")
    await tab.shows("station.txt (1 chunk)", "#documents")


async def test_an_answer_with_its_sources_and_counts(open_page: Open, served: Served) -> None:
    with served() as url:
        async with open_page(url) as tab:
            await tab.shows("None yet.", "aside")
            await with_samples(tab)
            assert not await tab.js("document.querySelector('#no-documents').checkVisibility()")
            await ask(tab)
            await tab.shows(PASSWORD, "#answer")
            await tab.shows("11 tokens in, 1 out", "#usage")
            assert "archive.txt · 0." in await tab.text("#sources li")
            await tab.shows("1 answer; 11 tokens in, 1 out", "#totals")
            await tab.shows("ready", "#engines")
            await tab.click("#documents li button")
            await tab.until("document.querySelectorAll('#documents li').length === 2")
            await tab.go(url)
            await tab.until("document.querySelectorAll('#documents li').length === 2")


async def test_an_answer_that_is_stopped_ends_in_the_server(
    open_page: Open, served: Served, server: RemoteServer
) -> None:
    with served() as url:
        async with open_page(url) as tab:
            await with_samples(tab)
            server.streams("Once", " upon", then="hang")
            embeds_too(server)
            await ask(tab)
            await tab.shows("Once upon", "#answer")
            await tab.click("#stop")
            await tab.shows("Stopped", "#problem")
            assert server.aborted.wait(10)
            assert await tab.js("document.querySelector('#send').checkVisibility()")
            answers(server, PASSWORD)
            embeds_too(server)
            await ask(tab)
            await tab.shows(PASSWORD, "#answer")
            assert not await tab.js("document.querySelector('#problem').checkVisibility()")


async def test_what_fails_says_why(open_page: Open, served: Served, server: RemoteServer, tmp_path: Path) -> None:
    large, fine, image = tmp_path / "large.txt", tmp_path / "50% & <b>fine.txt", tmp_path / "image.txt"
    large.write_text("x" * 401)
    fine.write_text(f"<img src=x onerror=alert(1)> {PASSWORD}")
    image.write_bytes(b"\xff\xfe\x00")
    with served(max_document_bytes=400) as url:
        async with open_page(url, may="Failed to load resource") as tab:
            await ask(tab)
            await tab.shows("there are no documents yet", "#problem")
            await tab.choose_files("#files", large)
            await tab.shows("large.txt: the document has more than 400 bytes", "#problem")
            await tab.choose_files("#files", image)
            await tab.shows("image.txt: the document is not text", "#problem")
            await tab.choose_files("#files", fine)
            await tab.shows("50% & <b>fine.txt (1 chunk)", "#documents")
            server.fails(500, message="out of order")
            embeds_too(server)
            await ask(tab)
            await tab.shows("out of order", "#problem")
            server.streams("The password", then="cut")
            embeds_too(server)
            await ask(tab)
            await tab.shows("The answer broke off", "#problem")
            assert await tab.text("#answer") == "The password"
            assert "<img src=x" in await tab.text("#sources"), "documents are text, not HTML"
            await tab.click("#documents li button")
            await tab.shows("None yet.", "aside")


@pytest.mark.parametrize("size", [{}, PHONE], ids=["desktop", "phone"])
@pytest.mark.parametrize("is_dark", [False, True])
async def test_nothing_is_cut_off(
    open_page: Open, served: Served, size: dict[str, Any], is_dark: bool, tmp_path: Path
) -> None:
    with served() as url:
        async with open_page(url, is_dark=is_dark, **size) as tab:
            await with_samples(tab)
            await ask(tab)
            await tab.shows("11 tokens in", "#usage")
            await tab.shows("1 answer", "#totals")
            assert await tab.js("document.documentElement.scrollWidth <= innerWidth")
            names = ["phone" if size else "desktop", "dark" if is_dark else "light"]
            folder = REPOSITORY / "docs" / "screens" if "WRITE_SCREENS" in os.environ else tmp_path
            if names == ["desktop", "light"] or folder == tmp_path:
                await tab.picture(folder / f"rag-service{'' if folder != tmp_path else '-' + '-'.join(names)}.webp")


async def test_real_vllm(open_page: Open, tiny_chat: dict[str, Any], minilm: dict[str, Any], tmp_path: Path) -> None:
    chat = {**tiny_chat, "temperature": 0, "max_tokens": 64}
    with listening(rag_app("langchain", tmp_path / "rag.sqlite", chat, minilm)) as url:
        async with open_page(url) as tab:
            await tab.shows("tiny_chat: stopped", "#engines")
            await tab.click("#samples")
            await tab.shows("station.txt", "#documents", START_S)
            await ask(tab)
            await tab.shows(PASSWORD, "#answer", START_S)
            await tab.shows("tokens in", "#usage")
            assert PASSWORD in await tab.text("#sources li")
            await tab.shows("tiny_chat: ready", "#engines")
