"""Images in LlamaIndex's messages, on real vLLM with a tiny model that sees, and what it says of other input."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from llama_index.core.base.llms.types import (
    AudioBlock,
    ChatMessage,
    ChatResponse,
    CitableBlock,
    DocumentBlock,
    ImageBlock,
    TextBlock,
    ThinkingBlock,
    ToolCallBlock,
    VideoBlock,
)
from llama_index.core.callbacks import CallbackManager, TokenCountingHandler
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.retrievers import BaseRetriever
from llama_index.core.schema import ImageNode, NodeWithScore, QueryBundle, TextNode

from llama_index_vllm_local import VLLM
from shared_engine import InvalidInputError
from tests.support.pictures import BLUE, RED, Pictures, running_pictures

pytestmark = pytest.mark.engine

WAV = b"RIFF$\0\0\0WAVEfmt \x10\0\0\0\1\0\1\0@\x1f\0\0\x80>\0\0\2\0\x10\0data\0\0\0\0"


@pytest.fixture
def pictures() -> Iterator[Pictures]:
    with running_pictures() as server:
        yield server


@pytest.fixture
def llm(vision: dict[str, Any], counter: TokenCountingHandler) -> VLLM:
    return VLLM(**vision, temperature=0.0, max_tokens=8, callback_manager=CallbackManager([counter]))


def ask(*blocks: Any) -> list[ChatMessage]:
    return [ChatMessage(role="user", blocks=[TextBlock(text="What is this?"), *blocks])]


def tokens(response: ChatResponse) -> int:
    return int(response.additional_kwargs["prompt_tokens"])


def test_the_model_sees_each_image_and_its_tokens_are_counted(llm: VLLM, counter: TokenCountingHandler) -> None:
    none, red, blue, both = (
        llm.chat(ask(*(ImageBlock(image=content) for content in images))) for images in ([], [RED], [BLUE], [RED, BLUE])
    )
    assert len({response.message.content for response in (none, red, blue, both)}) == 4
    assert tokens(both) - tokens(red) == tokens(red) - tokens(none) > 0
    assert counter.prompt_llm_token_count == sum(tokens(response) for response in (none, red, blue, both))


def test_every_form_shows_the_same_image(llm: VLLM, pictures: Pictures, tmp_path: Path) -> None:
    file = tmp_path / "red.png"
    file.write_bytes(RED)
    data = base64.b64encode(RED)
    data_url = f"data:image/png;base64,{data.decode()}"
    forms: list[Any] = [
        ImageBlock(image=data),
        ImageBlock(image=BytesIO(RED)),
        ImageBlock(path=file),
        ImageBlock(url=file.as_uri()),
        ImageBlock(url=data_url),
        ImageBlock(url=f"{pictures.url}/red.png", detail="low"),
        DocumentBlock(data=RED),
    ]
    expected = llm.chat(ask(ImageBlock(image=RED)))
    answers = [llm.chat(ask(form)).message.content for form in forms]
    assert answers == [expected.message.content] * len(forms)
    assert pictures.asked == ["/red.png"]


async def test_images_come_with_every_way_to_ask(llm: VLLM) -> None:
    messages = ask(ImageBlock(image=RED))
    expected = llm.chat(messages).message.content
    assert [*llm.stream_chat(messages)][-1].message.content == expected
    assert (await llm.achat(messages)).message.content == expected
    assert [response async for response in await llm.astream_chat(messages)][-1].message.content == expected


def test_the_model_sees_what_a_tool_shows_and_what_a_source_holds(llm: VLLM) -> None:
    def after(*shown: Any) -> ChatResponse:
        call = ChatMessage(role="assistant", blocks=[ToolCallBlock(tool_call_id="c1", tool_name="look")])
        result = ChatMessage(role="tool", blocks=shown, additional_kwargs={"tool_call_id": "c1"})
        return llm.chat([ChatMessage(content="Look"), call, result])

    told, red, blue, cited = (
        after(TextBlock(text="It is red")),
        after(ImageBlock(image=RED)),
        after(TextBlock(text="Here:"), ImageBlock(image=BLUE)),
        after(CitableBlock(title="Red", source="a wall", content=[ImageBlock(image=RED)])),
    )
    assert len({response.message.content for response in (told, red, blue, cited)}) == 4


class Found(BaseRetriever):
    """Finds a picture and a text, whatever is asked."""

    def __init__(self, content: bytes) -> None:
        super().__init__()
        self.content = content

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        picture = ImageNode(image=base64.b64encode(self.content).decode(), image_mimetype="image/png")
        return [NodeWithScore(node=picture), NodeWithScore(node=TextNode(text="A wall."))]


async def test_a_query_engine_shows_the_model_what_it_retrieved(llm: VLLM) -> None:
    red, blue = (RetrieverQueryEngine.from_args(Found(content), llm=llm, multimodal=True) for content in (RED, BLUE))
    answers = [str(engine.query("What is this?")) for engine in (red, blue)]
    assert answers[0] != answers[1]
    assert [str(await engine.aquery("What is this?")) for engine in (red, blue)] == answers


# ---- what a model does not take


@pytest.mark.parametrize(
    ("block", "name"),
    [
        (ImageBlock(image=RED), "an image"),
        (AudioBlock(audio=WAV), "audio"),
        (VideoBlock(video=b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom"), "a video"),
    ],
    ids=["image", "audio", "video"],
)
async def test_a_model_of_text_alone_says_so(tiny_chat: dict[str, Any], block: Any, name: str) -> None:
    llm = VLLM(**tiny_chat, max_tokens=8)
    blocks = [ThinkingBlock(content="hm"), TextBlock(text="What is this?"), block]
    messages = [ChatMessage(role="system", content="Be brief."), ChatMessage(blocks=blocks)]
    expected = rf"messages\[1\]\.blocks\[2\] is {name}, and tiny_chat takes text only \(HTTP 400"
    with pytest.raises(InvalidInputError, match=expected):
        llm.chat(messages)
    with pytest.raises(InvalidInputError, match=expected):
        list(llm.stream_chat(messages))
    with pytest.raises(InvalidInputError, match=expected):
        await llm.achat(messages)
    with pytest.raises(InvalidInputError, match=expected):
        [response async for response in await llm.astream_chat(messages)]
    assert llm.complete("Hi").text


def test_what_else_the_model_does_not_take_is_named(llm: VLLM) -> None:
    red = ImageBlock(image=RED)
    with pytest.raises(
        InvalidInputError, match=r"blocks\[2\] is audio, and tiny_vision takes no audio, only text and i"
    ):
        llm.chat(ask(red, AudioBlock(audio=WAV)))
    walls = CitableBlock(title="Walls", source="a house", content=[red, red])
    expected = (
        "messages[1].blocks[1].content[1] is one of 3 images, and tiny_vision takes 2 in one prompt; "
        'engine_args={"limit_mm_per_prompt": {"image": 3}} allows more'
    )
    with pytest.raises(InvalidInputError, match=re.escape(expected)):
        llm.chat([*ask(red), *ask(walls)])


def test_what_is_no_image_is_named(llm: VLLM) -> None:
    broken = [
        ImageBlock(image=RED[:40]),
        ImageBlock(image=b"\xffnot an image", image_mimetype="image/png"),
        ImageBlock(url="data:image/png,abc"),
    ]
    for block in broken:
        with pytest.raises(InvalidInputError, match=r"can't decode messages\[0\]\.blocks\[1\] \(HTTP"):
            llm.chat(ask(block))


def test_a_link_that_gives_no_image_is_named(llm: VLLM, pictures: Pictures) -> None:
    url = f"{pictures.url}/none.png"
    with pytest.raises(InvalidInputError, match=rf"can't load messages\[0\]\.blocks\[1\] \({re.escape(url)}\) \(HTTP"):
        llm.chat(ask(ImageBlock(url=url)))
    assert llm.chat(ask(ImageBlock(image=RED))).message.content  # over another connection
