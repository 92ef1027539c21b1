"""Each content block of a ChatMessage, the part that is sent for it, and what is said of one that can't be taken."""

from __future__ import annotations

import asyncio
import base64
import os
import re
import threading
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any

import pytest
from llama_index.core.base.llms.types import (
    AudioBlock,
    CachePoint,
    ChatMessage,
    CitableBlock,
    CitationBlock,
    DocumentBlock,
    ImageBlock,
    TextBlock,
    ThinkingBlock,
    VideoBlock,
)
from llama_index.core.llms import CacheControl
from llama_index.core.prompts import RichPromptTemplate

from llama_index_vllm_local import VLLM
from llama_index_vllm_local._blocks import to_openai_parts
from llama_index_vllm_local._messages import to_openai_messages
from shared_engine import InvalidInputError
from shared_engine.adapting import local_files
from tests.support.remote_server import RemoteServer
from tests.support.vision_model import png

WHERE = "messages[0].blocks[1]"
PNG = png(255, 0, 0)
WAV = b"RIFF$\0\0\0WAVEfmt \x10\0\0\0\1\0\1\0@\x1f\0\0\x80>\0\0\2\0\x10\0data\0\0\0\0"
MP4 = b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom\xff"
PDF = b"%PDF-1.4\n\xff"
UNKNOWN = b"\xff!"
URL = "https://example.org/a.png"


def in_base64(content: bytes) -> str:
    return base64.b64encode(content).decode()


def as_url(mime_type: str | None, content: bytes) -> str:
    return f"data:{mime_type};base64,{in_base64(content)}"


PNG_URL, MP4_URL = as_url("image/png", PNG), as_url("video/mp4", MP4)
WAV_URL = as_url(local_files.mime_type_of(Path("a.wav")), WAV)


def image(url: str = PNG_URL, **more: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url, **more}}


def audio(url: str) -> dict[str, Any]:
    return {"type": "audio_url", "audio_url": {"url": url}}


def video(url: str = MP4_URL) -> dict[str, Any]:
    return {"type": "video_url", "video_url": {"url": url}}


def text(said: str) -> dict[str, Any]:
    return {"type": "text", "text": said}


def parts(block: Any, *, reads_files: bool = True) -> list[dict[str, Any]]:
    return [part.content for part in to_openai_parts(block, WHERE, reads_files=reads_files)]


FORMS: dict[str, tuple[Any, list[dict[str, Any]]]] = {
    "text": (TextBlock(text="Hi"), [text("Hi")]),
    "image": (ImageBlock(image=PNG), [image()]),
    "image in base64": (ImageBlock(image=in_base64(PNG).encode()), [image()]),
    "image with its type": (
        ImageBlock(image=UNKNOWN, image_mimetype="image/x-mine"),
        [image(as_url("image/x-mine", UNKNOWN))],
    ),
    "image as a stream": (ImageBlock(image=BytesIO(PNG)), [image()]),
    "image as a stream of base64": (ImageBlock(image=BytesIO(in_base64(PNG).encode())), [image()]),
    "image at a URL": (ImageBlock(url=URL), [image(URL)]),
    "image at a data URL": (ImageBlock(url=PNG_URL), [image()]),
    "image with its detail": (ImageBlock(url=URL, detail="low"), [image(URL, detail="low")]),
    "image that was fetched": (ImageBlock(image=PNG, url=URL, path=__file__), [image()]),
    "image at a URL that has no name of a file": (
        ImageBlock(url="https://example.org/?id=5"),
        [image("https://example.org/?id=5")],
    ),
    "image in a bucket, of which the server may know": (
        ImageBlock(url="s3://bucket/a.png"),
        [image("s3://bucket/a.png")],
    ),
    "audio": (AudioBlock(audio=WAV), [audio(WAV_URL)]),
    "audio with its format": (
        AudioBlock(audio=UNKNOWN, format="mp3"),
        [audio(as_url("audio/mpeg", UNKNOWN))],
    ),
    "audio of a format that Python does not know": (
        AudioBlock(audio=UNKNOWN, format="mine"),
        [audio(as_url("audio/mine", UNKNOWN))],
    ),
    "audio with its type": (
        AudioBlock(audio=UNKNOWN, format="audio/mpeg"),
        [audio(as_url("audio/mpeg", UNKNOWN))],
    ),
    "audio of a video": (AudioBlock(audio=MP4), [audio(MP4_URL)]),
    "audio at a URL": (AudioBlock(url="https://example.org/a.wav"), [audio("https://example.org/a.wav")]),
    "video": (VideoBlock(video=MP4), [video()]),
    "video at a URL": (VideoBlock(url="https://example.org/a.mp4"), [video("https://example.org/a.mp4")]),
    "document": (DocumentBlock(data=b"Hello, world!"), [text("Hello, world!")]),
    "document in base64": (DocumentBlock(data=in_base64("Größe".encode()).encode()), [text("Größe")]),
    "document with its title": (DocumentBlock(data=b"Hello, world!", title="Letter"), [text("Letter\nHello, world!")]),
    "document with its type": (
        DocumentBlock(data=b'{"a": 1}', document_mimetype="application/json"),
        [text('{"a": 1}')],
    ),
    "document as a stream": (DocumentBlock(data=BytesIO(b"Hello, world!")), [text("Hello, world!")]),
    "document at a data URL": (DocumentBlock(url=f"data:text/plain;base64,{in_base64(b'Hi')}"), [text("Hi")]),
    "document at a data URL without base64": (DocumentBlock(url="data:,Hello%2C%20world"), [text("Hello, world")]),
    "document that is an image": (DocumentBlock(data=PNG), [image()]),
    "document that is an image at a URL": (DocumentBlock(url=URL), [image(URL)]),
    "citable text": (
        CitableBlock(title="Cats", source="book 5", content="They purr."),
        [text("Cats (book 5)"), text("They purr.")],
    ),
    "citable content": (
        CitableBlock(
            title="Cats",
            source="book 5",
            content=[TextBlock(text="See:"), ImageBlock(image=PNG), DocumentBlock(data=b"They purr.", title="Page 7")],
        ),
        [text("Cats (book 5)"), text("See:"), image(), text("Page 7\nThey purr.")],
    ),
    "citation": (
        CitationBlock(title="Cats", source="book 5", cited_content="They purr.", additional_location_info={"page": 7}),
        [text("Cats (book 5)"), text("They purr.")],
    ),
}


@pytest.mark.parametrize(("block", "sent"), FORMS.values(), ids=FORMS)
def test_each_form_has_its_parts(block: Any, sent: list[dict[str, Any]]) -> None:
    before = block.model_copy()
    assert parts(block) == sent
    assert parts(block) == sent  # as it is sent again, with every turn of the conversation
    assert block == before


def test_raw_bytes_go_out_as_they_are_wherever_core_left_them_so() -> None:
    block = AudioBlock(format="wav")
    block.audio = WAV  # core before 0.14.14 takes some raw audio for base64
    assert parts(block) == [audio(WAV_URL)]


def test_a_stream_is_read_from_its_start_and_left_where_it_was(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(PNG)
    with (tmp_path / "a.png").open("rb") as stream:
        stream.seek(5)
        assert parts(ImageBlock(image=stream)) == [image()]
        assert stream.tell() == 5


# ---- in a message


def test_mixed_content_keeps_its_order_and_text_alone_is_one_string() -> None:
    user, document = (
        ChatMessage(
            blocks=[
                TextBlock(text="What is"),
                ImageBlock(url=URL),
                ThinkingBlock(content="hm"),
                TextBlock(text="this?"),
            ]
        ),
        ChatMessage(
            blocks=[
                TextBlock(text="Sum up:"),
                DocumentBlock(data=b"They purr.", title="Page 7"),
                CachePoint(cache_control=CacheControl(type="ephemeral")),
                CitableBlock(title="Cats", source="book 5", content="Meow."),
            ]
        ),
    )
    assert [message["content"] for message in to_openai_messages([user, document])] == [
        [text("What is"), image(URL), text("this?")],
        "Sum up:\nPage 7\nThey purr.\nCats (book 5)\nMeow.",
    ]


@pytest.mark.parametrize("role", ["user", "assistant", "system", "tool", "function"])
def test_images_go_out_with_any_message(role: str) -> None:
    message = ChatMessage(role=role, blocks=[TextBlock(text="See:"), ImageBlock(image=PNG)])
    assert to_openai_messages([message])[0]["content"] == [text("See:"), image()]


def test_images_of_a_rich_prompt_go_out_in_their_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.png").write_bytes(PNG)
    monkeypatch.chdir(tmp_path)
    template = RichPromptTemplate("{% chat role='user' %}What is {{ path | image }} this?{% endchat %}")
    (message,) = to_openai_messages(template.format_messages(path="a.png"))
    assert message == {"role": "user", "content": [text("What is"), image(), text("this?")]}


def test_a_model_without_a_chat_template_never_loses_a_block_silently() -> None:
    messages = [ChatMessage(content="Hi"), ChatMessage(blocks=[TextBlock(text="This:"), ImageBlock(url=URL)])]
    llm = VLLM(model="org/name", is_chat_model=False)
    with pytest.raises(InvalidInputError, match=r"messages\[1\]\.blocks\[1\] is of type 'image', and a model without"):
        llm.chat(messages)
    own = VLLM(model="org/name", messages_to_prompt=lambda messages: f"{len(messages)} messages")
    assert own._chat_request(messages, {}).prompt == "2 messages"


# ---- local files


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    file = tmp_path / "my photo.PNG"
    file.write_bytes(PNG)
    return file


def test_a_local_file_is_sent_with_the_message(photo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(photo.parent)
    blocks = [
        ImageBlock(path=str(photo)),
        ImageBlock(path="my photo.PNG"),
        ImageBlock(path=photo),
        ImageBlock(url=photo.as_uri()),
        ImageBlock(url=f"file://localhost{photo.as_uri().removeprefix('file://')}"),
        DocumentBlock(path=photo),
        DocumentBlock(url=photo.as_uri()),
    ]
    assert [parts(block) for block in blocks] == [[image()]] * len(blocks)


@pytest.mark.parametrize(
    ("block_type", "name", "sent"),
    [
        (ImageBlock, "a.jpg", image(as_url("image/jpeg", MP4))),
        (AudioBlock, "a.mp3", audio(as_url("audio/mpeg", MP4))),
        (AudioBlock, "a.flac", audio(as_url("audio/flac", MP4))),
        (AudioBlock, "a.mp4", audio(MP4_URL)),
        (VideoBlock, "a.mp4", video()),
        (VideoBlock, "a.mkv", video(as_url("video/x-matroska", MP4))),
        (VideoBlock, "upload-17", video()),  # by what it begins with
    ],
)
def test_the_type_of_a_file_is_told_by_its_name_or_else_by_its_content(
    tmp_path: Path, block_type: Any, name: str, sent: dict[str, Any]
) -> None:
    (tmp_path / name).write_bytes(MP4)
    assert parts(block_type(path=tmp_path / name)) == [sent]


def test_a_given_type_counts(tmp_path: Path) -> None:
    (tmp_path / "upload.bin").write_bytes(PNG)
    assert parts(ImageBlock(path=tmp_path / "upload.bin", image_mimetype="image/png")) == [image()]
    (tmp_path / "notes.bin").write_text("They purr.")
    assert parts(DocumentBlock(path=tmp_path / "notes.bin", document_mimetype="text/plain")) == [text("They purr.")]


@pytest.mark.parametrize("name", ["a.txt", "a.md", "a.csv", "a.html", "a.json", "a.xml"])
def test_a_document_of_text_is_read(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("Größe", encoding="utf-8")
    assert parts(DocumentBlock(path=tmp_path / name, title="Sizes")) == [text("Sizes\nGröße")]


def test_files_are_read_for_a_user_only(photo: Path, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("secret")
    blocks: list[Any] = [
        ImageBlock(path=photo),
        ImageBlock(url=photo.as_uri()),
        DocumentBlock(path=tmp_path / "a.txt"),
        CitableBlock(title="Cats", source="book 5", content=[ImageBlock(path=photo)]),
    ]
    for block in blocks:
        assert to_openai_messages([ChatMessage(role="user", blocks=[block])])
        for role in ("system", "developer"):
            with pytest.raises(
                InvalidInputError,
                match=r"messages\[0\]\.blocks\[0\]\S* names the file .*only a user message's are read: give its bytes",
            ):
                to_openai_messages([ChatMessage(role=role, blocks=[block])])
        for role in ("tool", "function", "assistant", "chatbot"):
            (message,) = to_openai_messages([ChatMessage(role=role, blocks=[block])])
            assert message["content"].endswith(
                f"at {block.path or block.url} is not shown]" if hasattr(block, "url") else "]"
            )
            assert "secret" not in message["content"]


def test_only_a_file_of_the_blocks_kind_is_sent(tmp_path: Path) -> None:
    for name in ("passwd", "a.pdf", "a.txt", "a.mp3"):
        (tmp_path / name).write_bytes(b"root:x:0:0")
    wrong: list[tuple[Any, str]] = [
        (
            ImageBlock(path=tmp_path / "passwd"),
            "'image', but .*passwd has no recognisable type: give its image_m",
        ),
        (
            ImageBlock(path=tmp_path / "a.pdf"),
            "'image', but .*pdf seems to be application/pdf: give its image_m",
        ),
        (AudioBlock(path=tmp_path / "passwd"), "'audio', but .*passwd has no recognisable type: give its format"),
        (VideoBlock(path=tmp_path / "a.mp3"), "'video', but .*mp3 seems to be audio/mpeg: give its video_mimetype"),
        (DocumentBlock(path=tmp_path / "passwd"), "passwd, which has no recognisable type: give its document_mimetype"),
        (DocumentBlock(path=tmp_path / "a.pdf"), "document of type application/pdf, and vLLM takes only text"),
    ]
    for block, problem in wrong:
        with pytest.raises(InvalidInputError, match=rf"{re.escape(WHERE)} .*{problem}"):
            parts(block)


def test_what_is_no_whole_file_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "empty.png").touch()
    with (tmp_path / "large.png").open("wb") as file:
        file.truncate(local_files.MAX_FILE_BYTES + (1 << 20))
    problems = {
        "pipe.png": "is not a regular file",
        "none.png": "does not exist",
        "empty.png": "is empty",
        "large.png": "has 257 MiB: at most 256 MiB",
    }
    for name, problem in problems.items():
        for block in (DocumentBlock(path=str(tmp_path / name)), ImageBlock(url=(tmp_path / name).as_uri())):
            with pytest.raises(InvalidInputError, match=rf"{re.escape(WHERE)} names .*{name}, which {problem}"):
                parts(block)


# ---- what can't be sent


def closed_stream() -> BytesIO:
    stream = BytesIO(PNG)
    stream.close()
    return stream


class Once(BytesIO):
    def seekable(self) -> bool:
        return False


@pytest.mark.parametrize(
    ("block", "problem"),
    [
        (ImageBlock(), "has no image in it: give its image, path or url"),
        (AudioBlock(), "has no audio in it: give its audio, path or url"),
        (VideoBlock(), "has no video in it"),
        (DocumentBlock(), "has no document in it: give its data or path"),
        (ImageBlock(image=UNKNOWN), "'image', but its data has no recognisable type: give its image_mimetype"),
        (ImageBlock(image=PDF), "'image', but its data seems to be application/pdf"),
        (AudioBlock(audio=PNG), "'audio', but its data seems to be image/png: give its format"),
        (VideoBlock(video=PNG), "'video', but its data seems to be image/png: give its video_mimetype"),
        (VideoBlock(url="https://example.org/a.mp4", fps=2), "fps = 2, .*{'media_io_kwargs': {'video': {'fps': 2}}}"),
        (DocumentBlock(data=PDF), "document of type application/pdf, .*send its text, or its pages as images"),
        (DocumentBlock(data=b"\xff\xfe"), "must be UTF-8 text"),
        (
            DocumentBlock(url="https://example.org/a.txt"),
            "at 'https://example.org/a.txt', and vLLM does not fetch",
        ),
        (DocumentBlock(url="data:text/plain;base64,%"), "has data that is not base64"),
        (DocumentBlock(url="data:text/plain;base64,"), "is a data URL without data"),
        (ImageBlock(url="file://elsewhere/a.png"), "a file on another machine"),
        (ImageBlock(image=StringIO("abc")), "is a stream of str: open the file in binary mode"),
        (
            ImageBlock(image=closed_stream()),
            r"can't be read \(I/O operation on closed file.*give its bytes, or",
        ),
        (ImageBlock(image=Once(PNG)), "is a stream that can be read only once: give its bytes"),
        ("text", "is a str, which can't be sent; text, images, audio"),
    ],
)
def test_what_can_not_be_sent_is_named_with_its_remedy(block: Any, problem: str) -> None:
    with pytest.raises(InvalidInputError, match=rf"messages\[0\]\.blocks\[1\].*{problem}"):
        parts(block)


def test_what_a_tool_or_an_earlier_turn_has_that_can_not_be_sent_is_told_in_words() -> None:
    pdf = DocumentBlock(data=PDF, title="report.pdf", document_mimetype="application/pdf")
    note = "[document report.pdf (application/pdf) is not shown]"
    citable = CitableBlock(title="Cats", source="book 5", content=[TextBlock(text="They purr."), pdf])
    messages = [
        ChatMessage(role="user", blocks=[TextBlock(text="Read this"), pdf]),
        ChatMessage(role="assistant", blocks=[TextBlock(text="See:"), VideoBlock(url="https://e.org/a.mp4", fps=2)]),
        ChatMessage(role="tool", blocks=[TextBlock(text="found"), pdf, citable]),
        ChatMessage(role="user", content="And now?"),
    ]
    assert [message["content"] for message in to_openai_messages(messages)] == [
        f"Read this\n{note}",
        "See:\n[video (video/mp4) at https://e.org/a.mp4 is not shown]",
        f"found\n{note}\n[citable Cats book 5]\nThey purr.\n{note}",
        "And now?",
    ]
    for role in ("user", "system"):
        asked = [*messages[:1], ChatMessage(role=role, blocks=[pdf]), messages[-1]]
        with pytest.raises(
            InvalidInputError, match=r"messages\[0\]\.blocks\[1\] is a document of type application/pdf"
        ):
            to_openai_messages(asked)


def test_a_block_within_another_is_named_by_its_place_there() -> None:
    citable = CitableBlock(title="Cats", source="book 5", content=[TextBlock(text="See:"), ImageBlock()])
    with pytest.raises(InvalidInputError, match=r"messages\[0\]\.blocks\[1\]\.content\[1\] has no image"):
        parts(citable)
    citation = CitationBlock(title="Cats", source="b", cited_content=ImageBlock(), additional_location_info={})
    with pytest.raises(InvalidInputError, match=r"messages\[0\]\.blocks\[1\]\.cited_content has no image"):
        parts(citation)


# ---- what a server says of them


@pytest.fixture
def llm(server: RemoteServer) -> VLLM:
    return VLLM(model="served", base_url=server.url, max_retries=3)


async def test_every_way_to_ask_gives_the_same_error_and_asks_once(llm: VLLM, server: RemoteServer) -> None:
    server.fails(500, message="Cannot connect to host example.org:443 ssl:default [refused]")
    link = ImageBlock(url=URL)
    blocks: list[Any] = [ThinkingBlock(content="hm"), CitableBlock(title="Cats", source="book 5", content=[link])]
    messages = [ChatMessage(content="Hi"), ChatMessage(blocks=blocks)]
    expected = re.escape(f"the server can't load messages[1].blocks[1].content[0] ({URL}) (HTTP 500")
    with pytest.raises(InvalidInputError, match=expected):
        llm.chat(messages)
    with pytest.raises(InvalidInputError, match=expected):
        list(llm.stream_chat(messages))
    with pytest.raises(InvalidInputError, match=expected):
        await llm.achat(messages)
    with pytest.raises(InvalidInputError, match=expected):
        [response async for response in await llm.astream_chat(messages)]
    assert len(server.requests) == 4


def test_a_file_that_only_the_server_has_is_refused_with_llama_indexs_own_way_to_send_one(
    llm: VLLM, server: RemoteServer
) -> None:
    server.fails(400, message="The URL must be either a HTTP, data or file URL. Cannot load local files")
    for block, name in ((ImageBlock(url="s3://b/a"), "Image"), (AudioBlock(url="s3://b/a"), "Audio")):
        expected = re.escape(
            f"can't load messages[0].blocks[0] (s3://b/a): to send a local file, write {name}Block(path=...)"
        )
        with pytest.raises(InvalidInputError, match=expected):
            llm.chat([ChatMessage(blocks=[block])])


async def test_an_event_loop_goes_on_while_a_file_is_read(
    llm: VLLM, server: RemoteServer, photo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Read through a file that lets it wait until the loop has done something else."""
    went_on = threading.Event()
    read_bytes = Path.read_bytes

    def read_slowly(file: Path) -> bytes:
        assert went_on.wait(10)
        return read_bytes(file)

    monkeypatch.setattr(Path, "read_bytes", read_slowly)
    message = ChatMessage(blocks=[CitableBlock(title="Cats", source="book 5", content=[ImageBlock(path=photo)])])
    asyncio.get_running_loop().call_later(0.05, went_on.set)
    assert (await llm.achat([message])).message.content == "Hi"
    went_on.clear()
    asyncio.get_running_loop().call_later(0.05, went_on.set)
    server.streams("Hi")
    assert [response.delta async for response in await llm.astream_chat([message])][:1] == ["Hi"]
    assert [body["messages"][0]["content"][1] for _, body in server.requests] == [image()] * 2


async def test_leaving_a_stream_aborts_the_request_though_its_errors_are_explained(
    llm: VLLM, server: RemoteServer
) -> None:
    server.streams("Hi", then="hang")
    stream = await llm.astream_chat([ChatMessage(blocks=[ImageBlock(url=URL)])])
    async for response in stream:
        assert response.delta == "Hi"
        break
    await stream.aclose()
    assert await asyncio.to_thread(server.aborted.wait, 10)


def test_the_callers_messages_are_what_they_were(llm: VLLM, server: RemoteServer) -> None:
    messages = [ChatMessage(blocks=[block]) for block, _ in FORMS.values()]
    before = [message.model_copy(deep=True) for message in messages if not _has_stream(message)]
    llm.chat(messages)
    assert [message for message in messages if not _has_stream(message)] == before


def _has_stream(message: ChatMessage) -> bool:
    return any(
        isinstance(getattr(block, name, None), BytesIO) for block in message.blocks for name in ("image", "data")
    )
