"""Keys, colours and widths: that everybody can use the page, whatever with."""

from __future__ import annotations

import pytest

from tests.page.conftest import CARD, PHONE, Open, answered, say
from tests.support.page_scene import DONE, END, USAGE, Scene, delta, model, request

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def test_the_keys(open_page: Open, scene: Scene) -> None:
    async with open_page(scene.url) as tab:
        for key, view in (("r", "requests"), ("l", "logs"), ("c", "chat"), ("m", "models")):
            await tab.press(key)
            await tab.until(f"document.body.dataset.view === {view!r}")
        await tab.press("/")
        assert await tab.focused() == "message"
        await tab.press("r")  # a letter, in a field
        assert await tab.js("document.querySelector('#message').value") == "r"
        await tab.press("Enter", shift=True)
        assert await tab.js("document.querySelector('#message').value") == "r\n"
        await tab.js("document.activeElement.blur()")
        await tab.press("s")
        assert await tab.js("!document.querySelector('#chat-settings').hidden")
        await tab.press("Escape")
        assert await tab.js("document.querySelector('#chat-settings').hidden")
        await tab.js("document.activeElement.blur()")
        await tab.press("?", shift=True)
        await tab.until("document.querySelector('#help-dialog').open")
        await tab.click("#help-single")
        await tab.press("Escape")
        await tab.until("!document.querySelector('#help-dialog').open")
        await tab.press("l")
        assert await tab.js("document.body.dataset.view") == "chat"


async def test_everything_is_reached_with_the_tab_key(open_page: Open, scene: Scene) -> None:
    async with open_page(scene.url) as tab:
        await tab.shows("two", "#cards")
        wanted = await tab.js(
            """[...document.querySelectorAll('a, button, input, select, textarea, summary, [tabindex="0"]')]
            .filter((each) => each.checkVisibility() && !each.disabled && each.tabIndex >= 0).length"""
        )
        reached = set()
        for _ in range(wanted + 3):
            await tab.press("Tab")
            reached.add(
                await tab.js(
                    """(() => { const node = document.activeElement;
                    const at = [...document.querySelectorAll('*')].indexOf(node);
                    return node.tagName + at + '|' + getComputedStyle(node).outlineStyle
                      + getComputedStyle(node.closest('.button') ?? node).outlineStyle
                      + getComputedStyle(node.closest('.composer') ?? node).borderTopStyle; })()"""
                )
            )
        stops = {each for each in reached if not each.startswith("BODY")}
        assert len({each.partition("|")[0] for each in stops}) >= wanted
        unseen = [each for each in stops if each.partition("|")[2].startswith("nonenone") and "solid" not in each]
        assert unseen == []


@pytest.mark.parametrize("view", ["models", "chat", "requests", "logs"])
async def test_every_control_has_a_name(open_page: Open, scene: Scene, view: str) -> None:
    scene.requests = [request("a")]
    async with open_page(f"{scene.url}#{view}", **PHONE) as tab:
        await tab.shows("one", "#cards") if view == "models" else None
        await tab.send("Accessibility.enable")
        nodes = (await tab.send("Accessibility.getFullAXTree"))["nodes"]
        roles = {"button", "link", "textbox", "combobox", "checkbox", "searchbox", "spinbutton", "progressbar", "img"}
        controls = [node for node in nodes if not node["ignored"] and node["role"]["value"] in roles]
        assert len(controls) > 5
        assert [node for node in controls if not node.get("name", {}).get("value")] == []


@pytest.mark.parametrize("is_dark", [False, True])
@pytest.mark.parametrize("view", ["chat", "requests", "logs"])
async def test_text_stands_out(open_page: Open, scene: Scene, view: str, is_dark: bool) -> None:
    """By 4.5 to 1, as WCAG has it, in both sets of colours."""
    states = ["ready", "starting", "asleep", "stopped", "failed"]
    scene.models = [model(each, each, failure={"message": "why"}) for each in states]
    scene.requests = [request("a"), request("b", state="waiting")]
    scene.log = [
        {"time": "1", "level": each, "source": "s", "process": "p", "message": "m"}
        for each in ("INFO", "WARNING", "ERROR")
    ]
    scene.pieces = [delta(reasoning="Hm"), delta(content="A [l](https://x.example) `c`\n```\nd\n```"), END, USAGE, DONE]
    async with open_page(f"{scene.url}#{view}", is_dark=is_dark) as tab:
        await tab.shows("failed", "#cards")
        if view == "chat":
            await say(tab, "Hello")
            await answered(tab)
        assert await tab.js(CONTRASTS) == []


CONTRASTS = """(() => {
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const rgb = (colours) => { // one over the other
    canvas.clearRect(0, 0, 1, 1);
    for (const colour of colours) { canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1); }
    return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3);
  };
  const light = (colour) => {
    const linear = (part) => (part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4);
    const [r, g, b] = colour.map((each) => linear(each / 255));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const weak = [];
  for (const node of document.querySelectorAll("body *")) {
    const hasText = [...node.childNodes].some((child) => child.nodeType === 3 && child.data.trim());
    const isSeen = node.checkVisibility({ opacityProperty: true });
    if (!hasText || !isSeen || node.closest(".hidden, .skip, option, :disabled")) continue;
    const backs = [];
    for (let at = node; at; at = at.parentElement) backs.unshift(getComputedStyle(at).backgroundColor);
    const back = rgb(["Canvas", ...backs]);
    const text = rgb([`rgb(${back})`, getComputedStyle(node).color]);
    const [high, low] = [light(back), light(text)].sort((a, b) => b - a);
    const ratio = (high + 0.05) / (low + 0.05);
    if (ratio < 4.5) weak.push([node.className || node.tagName, node.textContent.slice(0, 30), ratio.toFixed(2)]);
  }
  return weak;
})()"""


async def test_colours_follow_the_system_until_one_is_chosen(open_page: Open, scene: Scene) -> None:
    back = "getComputedStyle(document.body).backgroundColor"
    async with open_page(scene.url) as tab:
        light = await tab.js(back)
        await tab.likes("dark")
        dark = await tab.js(back)
        assert light != dark
        await tab.click("#theme-button")  # light
        assert await tab.js(back) == light
        await tab.click("#theme-button")  # dark
        await tab.likes("light")
        assert await tab.js(back) == dark
        await tab.go(scene.url)
        assert await tab.js(back) == dark
        await tab.click("#theme-button")  # as the system
        assert await tab.js(back) == light


@pytest.mark.parametrize("width", [320, 390, 768, 899, 900, 1280, 1920])
async def test_no_width_cuts_anything_off(open_page: Open, scene: Scene, width: int) -> None:
    scene.models = [
        model("a-model-with-a-name-that-is-longer-than-most-and-has-no-space", "starting", model="/very/long" * 12,
              description="What it is for, in many words", capabilities=["chat", "tools", "image", "reasoning"],
              progress={"text": "loading weights 3/8 " * 3, "done": 3, "total": 8}),
        model("b", "failed", failure={"message": "x" * 400}),
    ]  # fmt: skip
    scene.requests = [request("a", model=scene.models[0]["id"], key="somebody-with-a-long-name")]
    scene.pieces = [
        delta(content="w" * 300 + "\n```\n" + "c" * 300 + "\n```\n|" + "t|" * 40 + "\n|" + "-|" * 40),
        END,
        DONE,
    ]
    async with open_page(scene.url, width=width, height=700, is_phone=width < 500) as tab:
        await say(tab, "y" * 300)
        await answered(tab)
        for view in ("chat", "requests", "logs", "models"):
            await tab.js(f"location.hash = {view!r}")
            await tab.until(f"document.body.dataset.view === {view!r}")
            await tab.shows("a-model", "#cards") if view == "models" else None
            wide = await tab.js(
                """[...document.querySelectorAll(
                  'body, .view, .card, .composer, .messages, .answer, .requests tr, .tabs'
                )].filter((each) => each.checkVisibility() && each.scrollWidth > each.clientWidth + 1)
                .map((each) => [each.id || each.className, each.scrollWidth, each.clientWidth])"""
            )
            assert wide == [], view
            outside = await tab.js(
                """[...document.querySelectorAll('button, a, select, input, textarea')].filter((each) => {
                  const { left, right } = each.getBoundingClientRect();
                  return each.checkVisibility() && !each.closest('.hidden, .skip, pre, .table')
                    && (left < 0 || right > innerWidth + 1); }).map((each) => each.id || each.innerText)"""
            )
            assert outside == [], view


async def test_a_thumb_finds_what_it_wants_on_a_phone(open_page: Open, scene: Scene) -> None:
    async with open_page(scene.url, **PHONE) as tab:
        await tab.click(".tabs [data-view=models]")
        await tab.shows("one", "#cards")
        small = await tab.js(
            """[...document.querySelectorAll('.actions button, .tabs a, .tools button')].filter((each) =>
            each.checkVisibility() && Math.min(each.offsetHeight, each.offsetWidth) < 40)
            .map((each) => each.innerText)"""
        )
        assert small == []
        await tab.click(f"{CARD.format(1)} .title")
        await tab.until("document.body.dataset.view === 'chat'")
        await tab.click("#chat-settings-button")
        await tab.shows("Temperature", "#chat-settings")
        await tab.click("#chat-settings header button:last-child")
        await say(tab, "Hello")
        await tab.shows("Hello", ".answer")
