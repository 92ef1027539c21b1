"""Each form of a content block, and the part that is sent for it."""

from __future__ import annotations

import base64
import os
from pathlib import Path
from typing import Any

import pytest
from langchain_core.language_models._utils import _normalize_messages
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.messages.content import (
    create_audio_block,
    create_image_block,
    create_plaintext_block,
    create_video_block,
)

from langchain_vllm_local._blocks import to_openai_part
from langchain_vllm_local._messages import to_openai_messages
from shared_engine import InvalidInputError
from shared_engine.adapting import local_files

WHERE = "messages[0].content[1]"
BYTES = b"\x89PNG not really"
DATA = base64.b64encode(BYTES).decode()
URL = "https://example.org/a.png"


def image(url: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url}}


def audio(url: str) -> dict[str, Any]:
    return {"type": "audio_url", "audio_url": {"url": url}}


def video(url: str) -> dict[str, Any]:
    return {"type": "video_url", "video_url": {"url": url}}


def text(said: str) -> dict[str, Any]:
    return {"type": "text", "text": said}


PNG = f"data:image/png;base64,{DATA}"
WAV = f"data:audio/wav;base64,{DATA}"
MP4 = f"data:video/mp4;base64,{DATA}"

FORMS: dict[str, tuple[Any, dict[str, Any]]] = {
    "a string": ("Hi", text("Hi")),
    "text": ({"type": "text", "text": "Hi", "id": "lc_1", "annotations": []}, text("Hi")),
    "text of version 0": ({"type": "text", "source_type": "text", "text": "Hi"}, text("Hi")),
    # the standard
    "image at a URL": (create_image_block(url=URL), image(URL)),
    "image at a data URL": ({"type": "image", "url": PNG}, image(PNG)),
    "image in base64": (create_image_block(base64=DATA, mime_type="image/png"), image(PNG)),
    "audio at a URL": (create_audio_block(url="https://example.org/a.wav"), audio("https://example.org/a.wav")),
    "audio in base64": (create_audio_block(base64=DATA, mime_type="audio/wav"), audio(WAV)),
    "video at a URL": (create_video_block(url="https://example.org/a.mp4"), video("https://example.org/a.mp4")),
    "video in base64": (create_video_block(base64=DATA, mime_type="video/mp4"), video(MP4)),
    "text file": (create_plaintext_block("Hi"), text("Hi")),
    "text file in base64": (
        {"type": "text-plain", "base64": base64.b64encode("Größe".encode()).decode(), "mime_type": "text/plain"},
        text("Größe"),
    ),
    "text file with what it is": (
        create_plaintext_block("Hi", title="Letter", context="of a friend"),
        text("Letter\nof a friend\nHi"),
    ),
    "file that is an image": ({"type": "file", "base64": DATA, "mime_type": "image/png"}, image(PNG)),
    "file that is text": (
        {"type": "file", "base64": base64.b64encode(b"a,b").decode(), "mime_type": "text/csv"},
        text("a,b"),
    ),
    "image with vLLM's name for it": ({"type": "image", "url": URL, "uuid": "u"}, {**image(URL), "uuid": "u"}),
    "image with the name among the extras": (
        {"type": "image", "url": URL, "extras": {"uuid": "u"}},
        {**image(URL), "uuid": "u"},
    ),
    "image of a name alone": ({"type": "image", "uuid": "u"}, {"type": "image_url", "image_url": None, "uuid": "u"}),
    "a block that core wrapped": (
        {"type": "non_standard", "value": {"type": "image_url", "image_url": URL}},
        image(URL),
    ),
    # version 0
    "image at a URL, v0": ({"type": "image", "source_type": "url", "url": URL}, image(URL)),
    "image in base64, v0": (
        {"type": "image", "source_type": "base64", "data": DATA, "mime_type": "image/png"},
        image(PNG),
    ),
    "audio in base64, v0": (
        {"type": "audio", "source_type": "base64", "data": DATA, "mime_type": "audio/wav"},
        audio(WAV),
    ),
    "text file, v0": ({"type": "file", "source_type": "text", "text": "Hi"}, text("Hi")),
    "text file, v0, as core knows it": ({"type": "file", "source_type": "text", "url": "Hi"}, text("Hi")),
    # OpenAI
    "image_url": (
        {"type": "image_url", "image_url": {"url": URL, "detail": "low"}},
        {"type": "image_url", "image_url": {"url": URL, "detail": "low"}},
    ),
    "image_url, bare": ({"type": "image_url", "image_url": URL}, image(URL)),
    "image_url without type": ({"image_url": URL}, image(URL)),
    "input_audio": ({"type": "input_audio", "input_audio": {"data": DATA, "format": "wav"}}, audio(WAV)),
    "input_audio that vLLM would refuse": (
        {"type": "input_audio", "input_audio": {"data": DATA, "format": "flac"}},
        audio(f"data:audio/flac;base64,{DATA}"),
    ),
    "refusal": ({"type": "refusal", "refusal": "No."}, {"type": "refusal", "refusal": "No."}),
    # vLLM
    "audio_url": ({"type": "audio_url", "audio_url": {"url": WAV}}, audio(WAV)),
    "audio_url, bare": ({"type": "audio_url", "audio_url": WAV}, audio(WAV)),
    "video_url": ({"type": "video_url", "video_url": {"url": MP4}}, video(MP4)),
    "image_url with vLLM's name for it": ({**image(URL), "uuid": "u"}, {**image(URL), "uuid": "u"}),
    "image_url of a name alone": (
        {"type": "image_url", "image_url": None, "uuid": "u"},
        {"type": "image_url", "image_url": None, "uuid": "u"},
    ),
    "image_embeds": ({"type": "image_embeds", "image_embeds": DATA}, {"type": "image_embeds", "image_embeds": DATA}),
    # Anthropic
    "source in base64": (
        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": DATA}},
        image(PNG),
    ),
    "source at a URL": ({"type": "image", "source": {"type": "url", "url": URL}}, image(URL)),
}


@pytest.mark.parametrize(("block", "part"), FORMS.values(), ids=FORMS)
def test_each_form_has_its_part(block: Any, part: dict[str, Any]) -> None:
    assert to_openai_part(block, WHERE) == part


@pytest.mark.parametrize(
    "block",
    [
        {"type": "image", "source_type": "base64", "data": DATA, "mime_type": "image/png", "detail": "low"},
        {"type": "image", "source_type": "url", "url": URL, "mime_type": "image/png"},
        {"type": "audio", "source_type": "base64", "data": DATA, "mime_type": "audio/wav"},
        {"type": "file", "source_type": "text", "url": "Hi", "mime_type": "text/plain"},
        {"type": "input_audio", "input_audio": {"data": DATA, "format": "wav"}},
    ],
)
def test_a_block_is_sent_alike_whether_or_not_core_has_rewritten_it(block: dict[str, Any]) -> None:
    message = HumanMessage([block])
    (rewritten,) = _normalize_messages([message])
    assert rewritten.content != message.content
    assert to_openai_messages([rewritten]) == to_openai_messages([message])


def test_images_go_out_with_any_message() -> None:
    block: dict[str, Any] = {"type": "image", "base64": DATA, "mime_type": "image/png"}
    call = {"name": "look", "args": {}, "id": "c1"}
    messages = [HumanMessage([block]), AIMessage([block], tool_calls=[call]), ToolMessage([block], tool_call_id="c1")]
    assert [message["content"] for message in to_openai_messages(messages)] == [[image(PNG)]] * 3


@pytest.mark.parametrize(("content", "sent"), [("It broke", "It broke"), ("", "Error"), ([], "Error")])
def test_a_tool_that_failed_never_looks_as_if_it_had_not(content: Any, sent: str) -> None:
    failed, fine = (ToolMessage(content, tool_call_id="c1", status=status) for status in ("error", "success"))
    assert to_openai_messages([failed])[0]["content"] == sent
    assert to_openai_messages([fine])[0]["content"] == content


# ---- local files


@pytest.fixture
def png(tmp_path: Path) -> Path:
    file = tmp_path / "my photo.PNG"
    file.write_bytes(BYTES)
    return file


def test_a_local_file_is_sent_with_the_message(png: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(png.parent)
    monkeypatch.setenv("HOME", str(png.parent))
    blocks: list[dict[str, Any]] = [
        {"type": "image", "path": str(png)},
        {"type": "image", "path": "my photo.PNG"},
        {"type": "image", "path": "~/my photo.PNG"},
        {"type": "image", "path": png},
        {"type": "image", "url": png},
        {"type": "image", "url": png.as_uri()},
        {"type": "image", "url": f"file://localhost{png.as_uri().removeprefix('file://')}"},
        {"type": "image", "source_type": "url", "url": png.as_uri()},
        {"type": "file", "path": png},
    ]
    assert [to_openai_part(block, WHERE) for block in blocks] == [image(PNG)] * len(blocks)


@pytest.mark.parametrize(
    ("name", "kind", "mime_type"),
    [
        ("a.jpg", "image", "image/jpeg"),
        ("a.webp", "image", "image/webp"),
        ("a.mp3", "audio", "audio/mpeg"),
        ("a.flac", "audio", "audio/flac"),
        ("a.m4a", "audio", "audio/mp4"),
        ("a.mp4", "audio", "video/mp4"),
        ("a.mp4", "video", "video/mp4"),
        ("a.mkv", "video", "video/x-matroska"),
    ],
)
def test_the_type_of_a_file_is_told_by_its_name(tmp_path: Path, name: str, kind: str, mime_type: str) -> None:
    (tmp_path / name).write_bytes(BYTES)
    part = to_openai_part({"type": kind, "path": tmp_path / name}, WHERE)
    assert part == {"type": f"{kind}_url", f"{kind}_url": {"url": f"data:{mime_type};base64,{DATA}"}}


def test_a_given_type_counts(tmp_path: Path) -> None:
    (tmp_path / "upload-17").write_bytes(BYTES)
    block = {"type": "image", "path": tmp_path / "upload-17", "mime_type": "image/png"}
    assert to_openai_part(block, WHERE) == image(PNG)


def test_a_local_text_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("secret")
    for kind in ("text-plain", "file"):
        for place in ({"path": tmp_path / "notes.txt"}, {"url": (tmp_path / "notes.txt").as_uri()}):
            with pytest.raises(InvalidInputError, match="send its text"):
                to_openai_part({"type": kind, **place}, WHERE)


def test_files_are_read_for_a_human_only(png: Path) -> None:
    block = {"type": "image", "path": str(png)}
    assert to_openai_messages([HumanMessage([block])])[0]["content"] == [image(PNG)]
    with pytest.raises(InvalidInputError, match=r"messages\[0\].content\[0\] names the file .*only a HumanMessage's"):
        to_openai_messages([SystemMessage([block])])
    others: list[BaseMessage] = [ToolMessage([block], tool_call_id="1"), AIMessage([block])]
    for message in others:
        assert to_openai_messages([message])[0]["content"] == [text(f"[image at {png} is not shown]")]


def test_the_server_is_asked_for_files_only_in_its_own_form() -> None:
    block = {"type": "image_url", "image_url": {"url": "file:///on/the/server.png"}}
    assert to_openai_part(block, WHERE) == block


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    missing = tmp_path / "none.png"
    with pytest.raises(InvalidInputError, match=rf"messages\[0\].content\[1\] names {missing}, which does not exist"):
        to_openai_part({"type": "image", "path": missing}, WHERE)


def test_what_is_no_file_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "folder.png").mkdir()
    for name in ("pipe.png", "folder.png"):
        with pytest.raises(InvalidInputError, match=f"{name}, which is not a regular file"):
            to_openai_part({"type": "image", "path": tmp_path / name}, WHERE)


def test_a_file_without_content_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    with pytest.raises(InvalidInputError, match=r"a\.png, which is empty"):
        to_openai_part({"type": "image", "path": tmp_path / "a.png"}, WHERE)


def test_a_file_that_can_not_be_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    (tmp_path / "a.png").write_bytes(BYTES)
    for name in ("loop.png", f"{'x' * 300}.png", "a.png/b.png"):
        with pytest.raises(InvalidInputError, match=r"messages\[0\].content\[1\] names .*, which"):
            to_openai_part({"type": "image", "path": tmp_path / name}, WHERE)


def test_a_file_beyond_all_reason_is_refused_unread(tmp_path: Path) -> None:
    with (tmp_path / "a.mp4").open("wb") as file:
        file.truncate(local_files.MAX_FILE_BYTES + (1 << 20))
    with pytest.raises(InvalidInputError, match=r"a\.mp4, which has 257 MiB: at most 256 MiB"):
        to_openai_part({"type": "video", "path": tmp_path / "a.mp4"}, WHERE)


@pytest.mark.parametrize(
    ("name", "seems"), [("passwd", "has no recognisable type"), ("a.pdf", "seems to be application")]
)
def test_only_a_file_of_the_blocks_kind_is_sent(tmp_path: Path, name: str, seems: str) -> None:
    (tmp_path / name).write_bytes(BYTES)
    with pytest.raises(InvalidInputError, match=rf"type 'image', but {tmp_path / name} {seems}.*: give its mime_type"):
        to_openai_part({"type": "image", "path": tmp_path / name}, WHERE)


# ---- what can't be sent


@pytest.mark.parametrize(
    ("block", "problem"),
    [
        ({"type": "nonsense"}, "is a block of type 'nonsense'; known: text, image, audio"),
        (
            {"type": "file", "base64": DATA, "mime_type": "application/pdf"},
            r"'file' \(application/pdf\), and vLLM does not",
        ),
        (
            {"type": "file", "file_id": "f1"},
            "'file', and vLLM does not take files: send its text, or its pages",
        ),
        ({"type": "file", "file": {"file_id": "f1"}}, "'file', and vLLM does not take files"),
        ({"type": "image"}, "has no image in it: give its url, base64 or path"),
        ({"type": "audio", "url": None}, "has no audio in it"),
        ({"type": "image", "file_id": "f1"}, "names a stored file, and vLLM stores no files"),
        ({"type": "image", "source_type": "id", "id": "f1"}, "names a stored file"),
        ({"type": "image", "url": "photo.png"}, "'photo.png', which is not a URL: name a local file by its path"),
        ({"type": "image", "url": 5}, "the url 5, which is not a URL"),
        ({"type": "image", "path": 5}, "the path 5, of type int"),
        ({"type": "image", "url": "file://elsewhere/a.png"}, "a file on another machine"),
        ({"type": "video", "base64": DATA}, "needs its mime_type, such as 'video/mp4'"),
        ({"type": "image", "base64": BYTES, "mime_type": "image/png"}, "a base64 string, got bytes"),
        ({"type": "image", "base64": "", "mime_type": "image/png"}, "a base64 string, got str ''"),
        ({"type": "text-plain", "url": URL}, "has no text in it: give text or base64; vLLM does not fetch text"),
        ({"type": "text-plain", "base64": "%"}, "is not base64"),
        ({"type": "text-plain", "base64": base64.b64encode(b"\xff\xfe").decode()}, "must be UTF-8 text"),
        ({"type": "image_url", "image_url": {}}, "has no URL: a block of type 'image_url' is"),
        ({"type": "image_url", "image_url": ""}, "has no URL"),
        ({"type": "image_url"}, "has no URL"),
        ({"type": "input_audio", "input_audio": {"data": DATA}}, "input_audio needs data, in base64, and its format"),
        ({"type": "non_standard"}, "is a block of type 'non_standard'"),
    ],
)
def test_what_can_not_be_sent_is_named_with_its_remedy(block: Any, problem: str) -> None:
    with pytest.raises(InvalidInputError, match=rf"messages\[0\].content\[1\].*{problem}"):
        to_openai_part(block, WHERE)
    messages = [HumanMessage(["What?", block]), HumanMessage("And now?")]
    with pytest.raises(InvalidInputError, match=rf"messages\[0\].content\[1\].*{problem}"):
        to_openai_messages(messages)
    earlier = [messages[0], AIMessage([block]), ToolMessage([block], tool_call_id="1"), messages[1]]
    for message in to_openai_messages(earlier)[:3]:
        for part in message["content"]:
            assert part["type"] == "text"
            assert part["text"]


FILE = {"type": "file", "url": "demo://r/1", "mime_type": "application/pdf", "name": "report.pdf"}
FILE_NOTE = "[file report.pdf (application/pdf) at demo://r/1 is not shown]"


def test_what_a_tool_or_another_model_has_sent_is_told_in_words() -> None:
    answer = AIMessage([{"type": "text", "text": "See:"}, {"type": "executable_code", "code": "1 + 1"}])
    messages = [
        HumanMessage(["Read this", FILE]),
        answer,
        ToolMessage([{"type": "text", "text": "found"}, FILE], tool_call_id="1"),
        HumanMessage("And now?"),
    ]
    assert [message["content"] for message in to_openai_messages(messages)] == [
        [text("Read this"), text(FILE_NOTE)],
        [text("See:"), text("[executable_code]\n1 + 1")],
        [text("found"), text(FILE_NOTE)],
        "And now?",
    ]


def test_an_image_in_mcps_form_is_an_image() -> None:
    block = {"type": "image", "data": DATA, "mimeType": "image/png"}
    assert to_openai_messages([ToolMessage([block], tool_call_id="1")])[0]["content"] == [image(PNG)]
