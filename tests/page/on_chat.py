"""The chat: what is sent, and what is shown of an answer."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from tests.page.conftest import CARD, Open, answered, asked, say
from tests.support.page_scene import DONE, END, USAGE, Scene, delta, model
from tests.support.vision_model import png

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def test_an_answer_as_it_comes(open_page: Open, scene: Scene) -> None:
    gate = asyncio.Event()
    scene.pieces = [delta(role="assistant", content=""), delta(reasoning="Let me "), delta(reasoning="see."), gate,
                    delta(content="It is **4"), delta(content="2**."), gate, END, USAGE, DONE]  # fmt: skip
    async with open_page(scene.url) as tab:
        await say(tab, "What is it?")
        assert await asked(scene) == ("chat/completions", {
            "model": "one", "messages": [{"role": "user", "content": "What is it?"}], "stream": True,
            "stream_options": {"include_usage": True},
        })  # fmt: skip
        await tab.shows("Let me see.", ".answer .reasoning")
        assert await tab.js("document.querySelector('.reasoning').open")
        gate.set()
        await tab.shows("It is 42.", ".answer .text")
        assert await tab.text(".answer .text strong") == "42"
        assert not await tab.js("document.querySelector('.reasoning').open")
        assert (await tab.text(".reasoning summary")).startswith("Thought for")
        gate.set()
        await answered(tab)
        await tab.shows("12 tokens in, 5 out", ".answer footer")
        await say(tab, "Sure?")
        _, body = await asked(scene, 2)
        assert body["messages"] == [
            {"role": "user", "content": "What is it?"}, {"role": "assistant", "content": "It is **42**."},
            {"role": "user", "content": "Sure?"},
        ]  # fmt: skip


@pytest.mark.parametrize("way", ["button", "key"])
async def test_an_answer_that_is_stopped(open_page: Open, scene: Scene, way: str) -> None:
    endless: list[Any] = [delta(content=" upon a time"), 0.05] * 600
    scene.pieces = [delta(content="Once"), *endless]
    async with open_page(scene.url) as tab:
        await say(tab, "A story")
        await tab.shows("upon", ".answer .text")
        await (tab.click("#stop") if way == "button" else tab.press("Escape"))
        async with asyncio.timeout(5):
            await scene.left.wait()
        await answered(tab)
        await tab.shows("Stopped", ".answer .problem")
        assert await tab.js("document.querySelector('#send').checkVisibility()")
        scene.pieces = [delta(content="Yes"), END, DONE]
        await say(tab, "Go on")
        _, body = await asked(scene, 2)
        assert [each["role"] for each in body["messages"]] == ["user", "assistant", "user"]


async def test_a_wait_for_a_model_says_what_it_waits_for(open_page: Open, scene: Scene) -> None:
    gate = asyncio.Event()
    scene.models = [model("qwen", "stopped")]
    scene.pieces = [": waiting for qwen", gate, delta(content="Here"), END, DONE]
    async with open_page(scene.url) as tab:
        await say(tab, "Hello")
        scene.models[0].update(state="starting", progress={"text": "loading weights 1/2", "done": 1, "total": 2})
        await tab.shows("loading weights 1/2", ".answer")
        assert await tab.js("document.querySelector('.answer progress').position") == 0.5
        gate.set()
        await tab.shows("Here", ".answer .text")
        assert not await tab.js("document.querySelector('.answer progress').checkVisibility()")


@pytest.mark.parametrize(
    ("pieces", "refusal", "told"),
    [
        ([], (429, {"error": {"message": "the model 'one' is busy", "code": "queue_full"}}), "the model 'one' is busy"),
        ([": waiting for one", {"error": {"message": "one: no room", "code": "no_room"}}], None, "one: no room"),
        ([delta(content="Onc")], None, "The answer broke off"),
    ],
)
async def test_an_answer_that_fails(open_page: Open, scene: Scene, pieces: list[Any], refusal: Any, told: str) -> None:
    scene.pieces, scene.refusal = pieces, refusal
    async with open_page(scene.url, may="429") as tab:
        await say(tab, "Hello")
        await tab.shows(told, ".answer .problem")
        scene.refusal, scene.pieces = None, [delta(content="Now"), END, DONE]
        await tab.click(".answer footer [title='Another answer']")
        await tab.shows("Now", ".answer .text")
        assert await tab.js("document.querySelectorAll('.answer').length") == 1
        assert scene.asked[-1][1]["messages"] == [{"role": "user", "content": "Hello"}]


async def test_another_answer_that_ends_one_that_comes_can_be_stopped_too(open_page: Open, scene: Scene) -> None:
    endless: list[Any] = [delta(content=" upon a time"), 0.05] * 600
    async with open_page(scene.url) as tab:
        await say(tab, "Hello")
        await answered(tab)
        scene.pieces = [delta(content="Once"), *endless]
        await say(tab, "A story")
        await tab.shows("upon", ".answer:last-child .text")
        await tab.click(".answer footer [title='Another answer']")
        async with asyncio.timeout(5):
            await scene.left.wait()
        scene.left.clear()
        await tab.until("document.querySelectorAll('.answer').length === 1")
        await tab.shows("upon", ".answer .text")
        assert await tab.js("document.querySelector('#stop').checkVisibility()")
        await tab.click("#stop")
        async with asyncio.timeout(5):
            await scene.left.wait()
        await tab.shows("Stopped", ".answer .problem")
        assert await tab.js("document.querySelector('#send').checkVisibility()")


async def test_an_answer_stays_where_another_can_not_be_asked_for(open_page: Open, scene: Scene) -> None:
    async with open_page(scene.url) as tab:
        await say(tab, "Hello")
        await answered(tab)
        await tab.click("#chat-settings-button")
        await tab.js("document.querySelector('.field textarea.mono').focus()")
        await tab.type("{oops")
        await tab.click(".answer footer [title='Another answer']")
        await tab.shows("More fields:", "#notes")
        await tab.js("document.querySelector('.field textarea.mono').value = ''")
        await tab.js(
            "document.querySelector('.field textarea.mono').dispatchEvent(new Event('input', { bubbles: true }))"
        )
        await say(tab, "Sure?")
        _, body = await asked(scene, 2)
        assert [each["role"] for each in body["messages"]] == ["user", "assistant", "user"]


async def test_a_question_is_edited_and_asked_again(open_page: Open, scene: Scene) -> None:
    async with open_page(scene.url) as tab:
        await say(tab, "Helo")
        await answered(tab)
        await tab.js("document.querySelector('.question > button').focus()")
        await tab.press("Enter")
        assert await tab.js("document.querySelector('#message').value") == "Helo"
        assert await tab.focused() == "message"
        await tab.type("!")
        await tab.press("Enter")
        _, body = await asked(scene, 2)
        assert body["messages"] == [{"role": "user", "content": "Helo!"}]


async def test_images_go_with_a_message(open_page: Open, scene: Scene, tmp_path: Path) -> None:
    red, text = tmp_path / "red.png", tmp_path / "note.txt"
    red.write_bytes(png(255, 0, 0))
    text.write_text("no image")
    async with open_page(scene.url) as tab:
        await tab.choose_files("#picture-files", red, red, text)
        await tab.shows("note.txt is not an image", "#notes")
        await tab.until("document.querySelectorAll('#pictures li').length === 2")
        await tab.click("#pictures li button")
        await tab.until("document.querySelectorAll('#pictures li').length === 1")
        await say(tab, "What is it?")
        _, body = await asked(scene)
        image, question = body["messages"][0]["content"]
        assert question == {"type": "text", "text": "What is it?"}
        assert image["image_url"]["url"].startswith("data:image/png;base64,iVBOR")
        assert not await tab.js("document.querySelector('#pictures').checkVisibility()")
        await tab.until("document.querySelector('.question img').naturalWidth > 0")


async def test_settings_are_sent_and_kept(open_page: Open, scene: Scene) -> None:
    async with open_page(scene.url) as tab:
        await tab.click("#chat-settings-button")
        await tab.type("Be brief.")
        for label, value in (("Temperature", "0.2"), ("Longest answer", "64"), ("More fields, as JSON", '{"n": 1}')):
            await tab.js(
                f"[...document.querySelectorAll('.field')].find((f) => f.innerText.includes({label!r})).control.focus()"
            )
            await tab.type(value)
        await tab.js(
            """(() => { const select = document.querySelector('.field select');
            select.value = 'off'; select.dispatchEvent(new Event('input', { bubbles: true })); })()"""
        )
        await tab.go(scene.url)
        await say(tab, "Hello")
        _, body = await asked(scene)
        assert body["messages"][0] == {"role": "system", "content": "Be brief."}
        assert body | {"messages": 0} == {
            "model": "one", "messages": 0, "stream": True, "stream_options": {"include_usage": True},
            "temperature": 0.2, "max_tokens": 64, "n": 1, "chat_template_kwargs": {"enable_thinking": False},
        }  # fmt: skip


async def test_fields_that_are_no_json_are_not_sent(open_page: Open, scene: Scene) -> None:
    async with open_page(scene.url) as tab:
        await tab.click("#chat-settings-button")
        await tab.js("document.querySelector('.field textarea.mono').focus()")
        await tab.type("{oops")
        await tab.until("document.querySelector('.field:last-child .error').innerText")
        await say(tab, "Hello")
        await tab.shows("More fields:", "#notes")
        assert scene.asked == []
        assert await tab.js("document.querySelector('#message').value") == "Hello"


async def test_a_call_of_a_tool_is_shown(open_page: Open, scene: Scene) -> None:
    call = {"index": 0, "id": "1", "function": {"name": "weather", "arguments": '{"city": '}}
    rest = {"index": 0, "function": {"arguments": '"Oslo"}'}}
    scene.pieces = [delta(tool_calls=[call]), delta(tool_calls=[rest]), END, DONE]
    async with open_page(scene.url) as tab:
        await say(tab, "Weather?")
        await answered(tab)
        assert await tab.text(".calls figcaption") == "calls weather"
        assert json.loads(await tab.text(".calls pre")) == {"city": "Oslo"}


async def test_the_chosen_model_is_asked_and_remembered(open_page: Open, scene: Scene) -> None:
    scene.models = [
        model("one"),
        model("vectors", capabilities=["embeddings"]),
        model("two", "stopped", aliases=["deux"]),
    ]
    async with open_page(scene.url) as tab:
        await tab.click(f"{CARD.format(3)} .title")
        assert await tab.focused() == "message"
        await tab.until(f"document.querySelector('{CARD.format(3)}').matches('.chosen')")
        names = await tab.js("[...document.querySelectorAll('#chat-model option')].map((each) => each.value)")
        assert names == ["one", "vectors", "two", "deux"]
        await tab.go(scene.url)
        await tab.until("document.querySelector('#chat-model').value === 'two'")
        await say(tab, "Hello")
        assert (await asked(scene))[1]["model"] == "two"


async def test_a_request_for_a_terminal(open_page: Open, scene: Scene) -> None:
    async with open_page(scene.url) as tab:
        await tab.js("navigator.clipboard.writeText = async (text) => { window.copied = text; }")
        await tab.click("#message")
        await tab.type("It's me")
        await tab.click("#copy-curl")
        copied = await tab.until("window.copied")
        assert copied.startswith(f"curl -N '{scene.url}v1/chat/completions' ")
        assert "It'\\''s me" in copied


RANKED = {"results": [{"index": 1, "relevance_score": 0.9}, {"index": 0, "relevance_score": 0.1}], "usage": {}}


@pytest.mark.parametrize(
    ("can", "text", "whole", "path", "body", "shown"),
    [
        ("completions", "Once", None, "completions", {"prompt": "Once", "stream": True}, "upon a time"),
        ("embeddings", "a", {"data": [{"embedding": [0.6, 0.8]}], "usage": {"prompt_tokens": 1, "total_tokens": 1}},
         "embeddings", {"input": "a"}, "A vector of 2 numbers and length 1.000"),
        ("embeddings", "q\n\n a|b \n*c*", RANKED, "rerank", {"query": "q", "documents": ["a|b", "*c*"]}, "0.9000\t*c*"),
        ("rerank", "q\nd\n<e>", RANKED, "rerank", {"query": "q", "documents": ["d", "<e>"]}, "0.9000\t<e>"),
        ("rerank", "a", {"data": [{"label": "good", "probs": [0.25, 0.75]}]}, "classify", {"input": "a"},
         "good: 0.2500, 0.7500"),
    ],
)  # fmt: skip
async def test_models_that_do_not_chat(
    open_page: Open, scene: Scene, can: str, text: str, whole: Any, path: str, body: dict[str, Any], shown: str
) -> None:
    scene.models, scene.whole = [model("one", capabilities=[can])], whole
    scene.pieces = [{"choices": [{"text": "upon "}]}, {"choices": [{"text": "a time", "finish_reason": "stop"}]}, DONE]
    async with open_page(scene.url) as tab:
        await tab.until("document.querySelector('#message').placeholder !== 'Message'")
        assert not await tab.js("document.querySelector('[title=\"Add images\"]').checkVisibility()")
        await say(tab, text)
        await answered(tab)
        asked_path, asked_body = await asked(scene)
        assert (asked_path, {name: asked_body[name] for name in body}) == (path, body)
        await tab.shows(shown, ".answer .text")
