"""What vLLM 0.32 says of an image, a sound or a video that it does not take, and what the caller is told.

The words are vLLM's own; test_images.py has it say them.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from langchain_core import exceptions as core
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage

from langchain_vllm_local import ChatVLLM
from langchain_vllm_local._messages import to_openai_messages, wording
from shared_engine import EngineSettings, InvalidInputError, RequestError, RequestRejectedError, ServerError
from shared_engine.adapting.media_errors import explain
from tests.support.paths import TINY_CHAT
from tests.support.remote_server import RemoteServer

TEXT = {"type": "text", "text": "Hi"}
PNG = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}
WAV = {"type": "audio_url", "audio_url": {"url": "data:audio/wav;base64,AA=="}}
MP4 = {"type": "video_url", "video_url": {"url": "data:video/mp4;base64,AA=="}}
LINK = {"type": "image_url", "image_url": {"url": "http://example.org:81/a.png"}}
OTHER_LINK = {"type": "image_url", "image_url": {"url": "http://example.com/b.png"}}
FILE = {"type": "image_url", "image_url": {"url": "file:///etc/a.png"}}

REMOTE = EngineSettings(model="org/name", base_url="http://127.0.0.1:9")


def told(error: RequestError, *content: dict[str, Any], settings: EngineSettings = REMOTE) -> Any:
    return told_of([SystemMessage("Hi"), HumanMessage(list(content))], error, settings)


def told_of(messages: list[BaseMessage], error: RequestError, settings: EngineSettings = REMOTE) -> Any:
    return explain(error, to_openai_messages(messages), settings, wording(messages))


@pytest.mark.parametrize(
    ("error", "content", "expected"),
    [
        (
            RequestRejectedError("/models/name is not a multimodal model", 400),
            [TEXT, PNG],
            "messages[1].content[1] is an image, and org/name takes text only",
        ),
        (
            RequestRejectedError("/models/name is not a multimodal model", 400),
            [WAV, PNG],
            "messages[1].content[0] is audio, and org/name takes text only",
        ),
        (
            RequestRejectedError("At most 0 video(s) may be provided in one prompt. (parameter=video)", 400),
            [PNG, MP4],
            "messages[1].content[1] is a video, and org/name takes no videos",
        ),
        (
            RequestRejectedError("At most 2 image(s) may be provided in one prompt. (parameter=image)", 400),
            [PNG, WAV, PNG, TEXT, PNG, PNG],
            "messages[1].content[4] is one of 4 images, and org/name takes 2 in one prompt; its server's "
            "--limit-mm-per-prompt decides",
        ),
        (
            RequestRejectedError("Failed to load image: cannot identify image file <_io.BytesIO object>", 400),
            [TEXT, PNG],
            "the server can't decode messages[1].content[1]",
        ),
        (
            RequestRejectedError("Non-base64 digit found", 400),
            [PNG, LINK],
            "the server can't decode one of messages[1].content[0], messages[1].content[1] "
            "(http://example.org:81/a.png)",
        ),
        (
            ServerError("Only base64 data URLs are supported for now.", 501),
            [PNG],
            "the server can't decode messages[1].content[0]",
        ),
        (
            RequestRejectedError(
                "Failed to fetch media from URL: HTTP 404 error (parameter=image_url, "
                "value=http://example.org:81/a.png)",
                422,
            ),
            [OTHER_LINK, LINK],
            "the server can't load messages[1].content[1] (http://example.org:81/a.png)",
        ),
        (
            ServerError("Cannot connect to host example.org:81 ssl:default [Name or service not known]", 500),
            [OTHER_LINK, LINK],
            "the server can't load messages[1].content[1] (http://example.org:81/a.png)",
        ),
        (
            ServerError("500, message='Internal Server Error', url='http://example.com/b.png'", 500),
            [OTHER_LINK, LINK],
            "the server can't load messages[1].content[0] (http://example.com/b.png)",
        ),
        (
            RequestRejectedError("The URL must be either a HTTP, data or file URL.", 400),
            [PNG, {"type": "image_url", "image_url": {"url": "s3://[bucket"}}],
            "the server can't load messages[1].content[1] (s3://[bucket)",
        ),
        (
            RequestRejectedError("Cache miss for image at index 1 but data is not provided.", 400),
            [PNG, {"type": "image_url", "image_url": None, "uuid": "u"}],
            "the server no longer has messages[1].content[1] under its uuid: send it again",
        ),
        (
            ServerError("Cannot load local files without `--allowed-local-media-path`.", 500),
            [PNG, FILE],
            "the server can't load messages[1].content[1] (file:///etc/a.png): to send a local file, write "
            "{'type': 'image', 'path': ...}",
        ),
    ],
)
def test_a_refusal_names_the_block(error: RequestError, content: list[Any], expected: str) -> None:
    named = told(error, *content)
    assert isinstance(named, InvalidInputError)
    assert str(named) == f"{expected} (HTTP {error.status}: {error.message})"


@pytest.mark.parametrize(
    "error",
    [
        RequestRejectedError("temperature must be non-negative", 400),
        ServerError("EngineCore encountered an issue", 500),
        RequestRejectedError("At most 2 image(s) may be provided in one prompt.", 400),  # and there is one
        RequestError("no connection"),
    ],
)
def test_what_has_another_cause_stays_as_it_is(error: RequestError) -> None:
    assert told(error, TEXT, PNG) is error


def test_a_refusal_without_a_block_that_it_could_mean_stays_as_it_is() -> None:
    error = RequestRejectedError("Failed to load image: from somewhere else", 400)
    assert told(error, TEXT) is error


def test_a_fault_that_may_be_a_links_says_so_and_stays_a_fault() -> None:
    error = told(ServerError("", 500), PNG, LINK)  # what vLLM says when the other side lets it wait
    assert type(error) is ServerError
    assert error.status == 500
    assert error.message.endswith("the server had to load messages[1].content[1] (http://example.org:81/a.png)")


def test_a_local_model_is_named_by_its_folder_and_what_it_takes_by_its_config(tmp_path: Path) -> None:
    (tmp_path / "seer").mkdir()
    (tmp_path / "seer" / "config.json").write_text('{"vision_config": {}, "audio_config": {}}')
    seer = EngineSettings(model=str(tmp_path / "seer"))
    error = RequestRejectedError("At most 0 video(s) may be provided in one prompt.", 400)
    assert "seer takes no videos, only text and audio and images (HTTP" in str(told(error, MP4, settings=seer))
    error = RequestRejectedError("At most 0 image(s) may be provided in one prompt. Set `--limit-mm-per-prompt`", 400)
    assert 'engine_args={"limit_mm_per_prompt": {"image": 1}} allows more' in str(told(error, PNG, settings=seer))
    error = RequestRejectedError("whatever is not a multimodal model", 400)
    assert "tiny_chat takes text only" in str(told(error, PNG, settings=EngineSettings(model=str(TINY_CHAT))))


# ---- of a remote server, through ChatVLLM


async def test_every_way_to_ask_gives_the_same_error_and_asks_once(server: RemoteServer) -> None:
    server.fails(500, message="Cannot connect to host example.org:81 ssl:default [refused]")
    llm = ChatVLLM(model="served", base_url=server.url, max_retries=3)
    messages = [HumanMessage([TEXT, LINK])]
    expected = re.escape("can't load messages[0].content[1] (http://example.org:81/a.png)")
    with pytest.raises(InvalidInputError, match=expected) as raised:
        llm.invoke(messages)
    assert isinstance(raised.value, core.ModelInvalidRequestError)
    assert not raised.value.is_retryable
    with pytest.raises(InvalidInputError, match=expected):
        list(llm.stream(messages))
    with pytest.raises(InvalidInputError, match=expected):
        await llm.ainvoke(messages)
    with pytest.raises(InvalidInputError, match=expected):
        [chunk async for chunk in llm.astream(messages)]
    results: list[Any] = llm.batch([messages, messages], return_exceptions=True)
    assert [type(result) for result in results] == [type(raised.value)] * 2
    assert len(server.requests) == 6


def test_blocks_keep_their_places_where_others_are_sent_elsewhere() -> None:
    result = {"type": "tool_result", "tool_use_id": "c1", "content": [TEXT, PNG]}
    messages = [
        HumanMessage("Hi"),
        AIMessage([{"type": "thinking", "thinking": "Hm."}, PNG, {"type": "tool_use", "name": "look", "id": "c1"}]),
        HumanMessage([result, TEXT, PNG]),
    ]
    error = told_of(messages, RequestRejectedError("cannot identify image file", 400))
    expected = "one of messages[1].content[1], messages[2].content[0].content[1], messages[2].content[2]"
    assert f"the server can't decode {expected} (" in str(error)
