"""The page of requests: what there is to ask, found, read and tried, before a gateway with a server that answers."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.page.conftest import PHONE, Open
from tests.support.gateways import running_gateway

pytestmark = pytest.mark.asyncio(loop_scope="session")
KEY = "the-key-of-alice"


async def test_a_request_is_found_and_tried(open_page: Open, tmp_path: Path) -> None:
    with running_gateway(tmp_path) as (host, port):
        async with open_page(f"http://{host}:{port}/docs") as tab:
            await tab.shows("/v1/chat/completions", "#groups")
            await tab.press("/")
            await tab.type("chat completions")
            await tab.until(
                "[...document.querySelectorAll('#groups a')].filter((a) => a.checkVisibility()).length === 1"
            )
            await tab.click("#groups a:not([hidden])")
            section = "#post_v1_chat_completions"
            await tab.shows("messages", section)
            assert '"model": "a"' in await tab.js(f"document.querySelector('{section} textarea').value")
            await tab.click(f"{section} button[type=submit]")
            await tab.shows("200 · application/json", section)
            await tab.shows('"content": "Hi"', section)
            await tab.js(f"document.querySelector('{section} textarea').value = '{{\"model\": \"none\"}}'")
            tab.errors.clear()
            await tab.click(f"{section} button[type=submit]")
            await tab.shows("404 · model_not_found", section)
            assert [error for error in tab.errors if "404" not in error] == []
            tab.errors.clear()
            assert {*tab.answers} & {f"http://{host}:{port}/page/docs.js", f"http://{host}:{port}/openapi.json"}
            assert all(
                address.startswith(f"http://{host}:{port}/") for address in tab.answers
            )  # nothing from elsewhere


async def test_what_takes_parameters_and_what_never_ends(open_page: Open, tmp_path: Path) -> None:
    with running_gateway(tmp_path) as (host, port):
        async with open_page(f"http://{host}:{port}/docs#get_events") as tab:
            await tab.click("#get_events button[type=submit]")
            await tab.shows("event: status", "#get_events")
            await tab.click("#get_events button[type=button]")
            await tab.shows("Stopped", "#get_events")
            await tab.click("#get_v1_models_name input")
            await tab.type("a")
            await tab.press("Enter")
            await tab.shows('"id": "a"', "#get_v1_models_name")


async def test_it_asks_for_a_key_where_one_is_needed(open_page: Open, tmp_path: Path) -> None:
    with running_gateway(tmp_path, api_keys=[{"name": "alice", "key": KEY}]) as (host, port):
        async with open_page(f"http://{host}:{port}/docs", may="401") as tab:
            await tab.until("document.querySelector('#key-dialog').open")
            await tab.type("another")
            await tab.press("Enter")
            await tab.until("document.querySelector('#key-dialog').open")
            await tab.js("document.querySelector('#key').value = ''")
            await tab.type(KEY)
            await tab.press("Enter")
            await tab.shows("/v1/chat/completions", "#groups")
            await tab.shows("needs no key", "#get_health")
            assert KEY not in await tab.js("JSON.stringify(localStorage) + document.cookie + document.body.innerText")


@pytest.mark.parametrize("is_dark", [False, True])
async def test_on_a_phone_nothing_is_wider_than_it(open_page: Open, tmp_path: Path, is_dark: bool) -> None:
    with running_gateway(tmp_path) as (host, port):
        async with open_page(f"http://{host}:{port}/docs", is_dark=is_dark, **PHONE) as tab:
            await tab.shows("/v1/chat/completions", "#operations")
            assert await tab.js("document.documentElement.scrollWidth") <= PHONE["width"]
