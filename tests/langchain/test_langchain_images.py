"""Images, on real vLLM with a tiny model that sees, and what it says of input that a model does not take."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator
from functools import reduce
from pathlib import Path
from typing import Any

import pytest
from langchain_core.exceptions import ModelInvalidRequestError
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage, ToolMessage

from langchain_vllm_local import ChatVLLM
from shared_engine import InvalidInputError
from tests.support.pictures import BLUE, RED, Pictures, running_pictures

pytestmark = pytest.mark.engine

WAV = base64.b64encode(b"RIFF$\0\0\0WAVEfmt \x10\0\0\0\1\0\1\0@\x1f\0\0\x80>\0\0\2\0\x10\0data\0\0\0\0").decode()
AUDIO = {"type": "audio", "base64": WAV, "mime_type": "audio/wav"}
VIDEO = {"type": "video", "base64": "AAAA", "mime_type": "video/mp4"}


def image(content: bytes) -> dict[str, Any]:
    return {"type": "image", "base64": base64.b64encode(content).decode(), "mime_type": "image/png"}


@pytest.fixture
def pictures() -> Iterator[Pictures]:
    with running_pictures() as server:
        yield server


@pytest.fixture
def llm(vision: dict[str, Any]) -> ChatVLLM:
    return ChatVLLM(**vision, temperature=0.0, max_tokens=8)


@pytest.fixture
def deaf_and_blind(tiny_chat: dict[str, Any]) -> ChatVLLM:
    return ChatVLLM(**tiny_chat, max_tokens=8)


def ask(*blocks: Any) -> list[BaseMessage]:
    return [HumanMessage(["What is this?", *blocks])]


def tokens(message: AIMessage) -> int:
    assert message.usage_metadata is not None
    return message.usage_metadata["input_tokens"]


def test_the_model_sees_each_image(llm: ChatVLLM) -> None:
    none, red, blue, both = (
        llm.invoke(ask(*blocks)) for blocks in ([], [image(RED)], [image(BLUE)], [image(RED), image(BLUE)])
    )
    assert len({message.content for message in (none, red, blue, both)}) == 4
    assert tokens(both) - tokens(red) == tokens(red) - tokens(none) > 0


def test_every_form_shows_the_same_image(llm: ChatVLLM, pictures: Pictures, tmp_path: Path) -> None:
    file = tmp_path / "red.png"
    file.write_bytes(RED)
    data = base64.b64encode(RED).decode()
    data_url = f"data:image/png;base64,{data}"
    forms: list[Any] = [
        {"type": "image_url", "image_url": {"url": data_url}},
        {"type": "image_url", "image_url": data_url},
        {"type": "image", "url": data_url},
        {"type": "image", "url": f"{pictures.url}/red.png"},
        {"type": "image", "path": str(file)},
        {"type": "image", "url": file},
        {"type": "image", "url": file.as_uri()},
        {"type": "file", "base64": data, "mime_type": "image/png"},
        {"type": "image", "source_type": "base64", "data": data, "mime_type": "image/png"},
        {"type": "image", "source_type": "url", "url": f"{pictures.url}/red.png"},
        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": data}},
        {"type": "image", "base64": data, "mime_type": "image/png", "extras": {"uuid": "the red one"}},
        {"type": "image", "extras": {"uuid": "the red one"}},
    ]
    expected = llm.invoke(ask(image(RED)))
    answers = [llm.invoke(ask(form)) for form in forms]
    assert [answer.content for answer in answers] == [expected.content] * len(forms)
    assert pictures.asked == ["/red.png"] * 2


async def test_images_come_with_every_way_to_ask(llm: ChatVLLM) -> None:
    expected = [llm.invoke(ask(image(content))).content for content in (RED, BLUE)]
    inputs: list[Any] = [ask(image(content)) for content in (RED, BLUE)]
    assert reduce(lambda left, right: left + right, llm.stream(inputs[0])).content == expected[0]
    assert (await llm.ainvoke(inputs[0])).content == expected[0]
    assert "".join([str(chunk.content) async for chunk in llm.astream(inputs[0])]) == expected[0]
    assert [message.content for message in llm.batch(inputs)] == expected


def test_images_count_as_tokens(llm: ChatVLLM) -> None:
    messages = ask(image(RED))
    assert llm.get_num_tokens_from_messages(messages) == tokens(llm.invoke(messages))


@pytest.mark.parametrize("status", ["success", "error"])
def test_the_model_sees_what_a_tool_shows(llm: ChatVLLM, status: Any) -> None:
    def look() -> str:
        """Look."""
        return ""

    def after(shown: Any) -> AIMessage:
        call = AIMessage("", tool_calls=[{"name": "look", "args": {}, "id": "c1"}])
        return llm.bind_tools([look]).invoke(
            [HumanMessage("Look"), call, ToolMessage(shown, tool_call_id="c1", status=status)]
        )

    told, red, blue = after("It is red"), after([image(RED)]), after(["Here:", image(BLUE)])
    assert len({told.content, red.content, blue.content}) == 3
    assert [message.tool_calls for message in (told, red, blue)] == [[], [], []]


# ---- what a model does not take


@pytest.mark.parametrize(
    ("block", "name"), [(image(RED), "an image"), (AUDIO, "audio"), (VIDEO, "a video")], ids=lambda value: None
)
def test_a_model_of_text_alone_says_so(deaf_and_blind: ChatVLLM, block: Any, name: str) -> None:
    messages = [SystemMessage("Be brief."), *ask(block)]
    expected = rf"messages\[1\]\.content\[1\] is {name}, and tiny_chat takes text only \(HTTP 400"
    with pytest.raises(InvalidInputError, match=expected):
        deaf_and_blind.invoke(messages)
    with pytest.raises(InvalidInputError, match=expected):
        list(deaf_and_blind.stream(messages))
    assert deaf_and_blind.invoke("Hi").content


@pytest.mark.parametrize(
    ("block", "expected"),
    [
        (AUDIO, "is audio, and tiny_vision takes no audio, only text and images"),
        (VIDEO, "is a video, and tiny_vision takes no videos, only text and images"),
    ],
    ids=["audio", "video"],
)
def test_a_model_that_sees_says_what_else_it_does_not_take(llm: ChatVLLM, block: Any, expected: str) -> None:
    with pytest.raises(InvalidInputError, match=rf"messages\[0\]\.content\[2\] {expected}"):
        llm.invoke(ask(image(RED), block))


def test_more_images_than_the_engine_takes_are_named_with_the_setting(llm: ChatVLLM) -> None:
    messages = [*ask(image(RED)), AIMessage("A wall."), *ask(image(BLUE), image(RED))]
    expected = (
        "messages[2].content[2] is one of 3 images, and tiny_vision takes 2 in one prompt; "
        'engine_args={"limit_mm_per_prompt": {"image": 3}} allows more'
    )
    with pytest.raises(InvalidInputError, match=re.escape(expected)):
        llm.invoke(messages)


def test_what_is_no_image_is_named(llm: ChatVLLM) -> None:
    broken: list[Any] = [
        image(b"not an image"),
        image(RED[:40]),
        {"type": "image", "base64": "%%%", "mime_type": "image/png"},
        {"type": "image", "url": "data:image/png,abc"},
    ]
    for block in broken:
        with pytest.raises(InvalidInputError, match=r"can't decode messages\[0\]\.content\[1\] \(HTTP"):
            llm.invoke(ask(block))
    with pytest.raises(InvalidInputError, match=r"can't decode messages\[0\]\.content\[1\]"):
        llm.get_num_tokens_from_messages(ask(broken[0]))


def test_an_image_that_the_engine_does_not_remember_is_named(llm: ChatVLLM) -> None:
    with pytest.raises(InvalidInputError, match=r"no longer has messages\[0\]\.content\[2\] under its uuid"):
        llm.invoke(ask(image(RED), {"type": "image", "uuid": "never seen"}))


# ---- what can't be loaded: vLLM says so late, as a fault of its own, and closes the connection


@pytest.mark.parametrize(
    ("name", "attempts"),
    [("none.png", 1), ("busy.png", 3)],  # 3: vLLM's own VLLM_MEDIA_FETCH_MAX_RETRIES, within one request
)
def test_a_link_that_gives_no_image_is_named_and_asked_for_once(
    llm: ChatVLLM, pictures: Pictures, name: str, attempts: int
) -> None:
    url = f"{pictures.url}/{name}"
    with pytest.raises(InvalidInputError, match=rf"can't load messages\[0\]\.content\[1\] \({re.escape(url)}\) \(HTTP"):
        llm.invoke(ask({"type": "image", "url": url}))
    assert pictures.asked == [f"/{name}"] * attempts


@pytest.mark.parametrize(
    ("url", "remedy"),
    [
        ("http://127.0.0.1:9/a.png", ""),
        ("file:///etc/a.png", ": to send a local file, write {'type': 'image', 'path': ...}"),
        ("s3://bucket/a.png", ""),
    ],
)
def test_a_url_that_vllm_can_not_load_is_named(llm: ChatVLLM, url: str, remedy: str) -> None:
    expected = re.escape(f"the server can't load messages[0].content[1] ({url}){remedy} (HTTP")
    with pytest.raises(InvalidInputError, match=expected) as raised:
        llm.invoke(ask({"type": "image_url", "image_url": {"url": url}}))
    assert isinstance(raised.value, ModelInvalidRequestError)
    assert not raised.value.is_retryable
    assert llm.invoke(ask(image(RED))).content  # over another connection
