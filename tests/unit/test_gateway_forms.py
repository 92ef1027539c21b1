"""A form's model is found whoever wrote the form, and what could be read in two ways is refused."""

from __future__ import annotations

import asyncio

import aiohttp
import httpx
import pytest
from aiohttp.base_protocol import BaseProtocol

from shared_engine.gateway.forms import Form
from shared_engine.gateway.refusals import RefusedError

SOUND = bytes(range(256)) + b"\r\n\r\n--c\r\nmodel\r\n"
TYPE = "multipart/form-data; boundary=b"
NAMED = b'Content-Disposition: form-data; name="model"'
FILE = b'Content-Disposition: form-data; name="file"; filename="a.wav"\r\nContent-Type: audio/wav'


def part(head: bytes, value: bytes) -> bytes:
    return b"--b\r\n" + head + b"\r\n\r\n" + value + b"\r\n"


def form(*parts: bytes, end: bytes = b"--b--\r\n") -> bytes:
    return b"".join(parts) + end


async def read(content_type: str, body: bytes) -> list[tuple[str | None, bytes]]:
    """As another reader has it."""
    loop = asyncio.get_running_loop()
    stream = aiohttp.StreamReader(BaseProtocol(loop), 1 << 16, loop=loop)
    stream.feed_data(body)
    stream.feed_eof()
    found = []
    async for each in aiohttp.MultipartReader({"Content-Type": content_type}, stream):
        assert isinstance(each, aiohttp.BodyPartReader)
        found.append((each.name, bytes(await each.read())))
    return found


def by_httpx() -> tuple[str, bytes]:
    request = httpx.Request("POST", "http://a", data={"model": "ä", "l": "en"}, files={"file": ("ä.wav", SOUND)})
    return request.headers["content-type"], request.read()


async def by_aiohttp() -> tuple[str, bytes]:
    data = aiohttp.FormData({"model": "ä", "l": "en"})
    data.add_field("file", SOUND, filename='ä"; name="b.wav', content_type="audio/wav")
    writer = data()
    return writer.headers["Content-Type"], await writer.as_bytes()


def by_a_browser() -> tuple[str, bytes]:
    head = b'content-disposition: form-data; name="file"; filename="\xc3\xa4%22; name=.wav"\r\ncontent-type: audio/wav'
    parts = (
        part(head, SOUND),
        part(NAMED, "ä".encode()),
        part(NAMED.replace(b"model", b"l"), b"en"),
    )
    return 'multipart/form-data; boundary="b"', form(*parts)


async def test_the_model_of_a_form_is_found_and_named_whoever_wrote_it() -> None:
    for content_type, body in (by_httpx(), await by_aiohttp(), by_a_browser()):
        found = Form.of(content_type, body)
        assert found.model == "ä"
        rest = [pair for pair in await read(content_type, body) if pair[0] != "model"]
        assert {name for name, _ in rest} == {"file", "l"}
        assert sorted(await read(content_type, found.naming("own"))) == sorted([("model", b"own"), *rest])
        assert await read(content_type, found.naming(None)) == rest


async def test_a_form_without_a_model_gets_the_servers_own_name() -> None:
    body = form(part(FILE, SOUND))
    found = Form.of(TYPE, body)
    assert found.model is None
    assert found.naming(None) == body
    assert (await read(TYPE, found.naming("own")))[0] == ("model", b"own")
    alone = Form.of(TYPE, form(part(NAMED, b"a")))
    assert await read(TYPE, alone.naming("own")) == [("model", b"own")]


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        (TYPE, form(part(NAMED, b"a"), part(NAMED, b"other"))),
        (TYPE, form(part(NAMED, b"a"), part(b"Content-Disposition: form-data; name=model", b"other"))),
        (TYPE, form(part(NAMED, b"a"), part(b"A: b\r\n" + NAMED, b"other"))),
        (TYPE, form(part(NAMED + b'; filename="a"', b"a"))),
        (TYPE, form(part(NAMED + b"\r\n" + NAMED.replace(b"model", b"b"), b"a"))),
        (TYPE, form(part(b'Content-Disposition: form-data; name="b"; name="model"', b"a"))),
        (TYPE, form(part(b"Content-Disposition: form-data; name*=utf-8''model", b"a"))),
        (TYPE, form(part(b'Content-Disposition: form-data; name="mo\\del"', b"a"))),
        (TYPE, form(part(b'Content-Disposition: form-data; filename="a"', b"a"))),
        (TYPE, form(part(b'Content-Disposition: attachment; name="model"', b"a"))),
        (TYPE, form(part(b'Content-Disposition: form-data; name="a', b"a"))),
        (TYPE, form(part(b"Content-Disposition : form-data; name=a", b"a"))),
        (TYPE, form(part(b"Content-Disposition: form-data;\r\n name=a", b"a"))),
        (TYPE, form(part(b"Content-Disposition: form-data; name=a\nX: y", b"a"))),
        (TYPE, form(part(b"Content-Type: text/plain", b"a"))),
        (TYPE, b"--b\r\n\r\na\r\n--b--\r\n"),
        (TYPE, b"--b\r\n" + NAMED + b"\r\n--b--\r\n"),
        (TYPE, b"before\r\n" + form(part(NAMED, b"a"))),
        (TYPE, form(part(NAMED, b"a"), end=b"--b--\r\n" + part(NAMED, b"other"))),
        (TYPE, form(part(NAMED, b"a"), end=b"--b")),
        (TYPE, form(part(NAMED, b"a"), end=b"")),
        (TYPE, form(part(NAMED, b"a"), part(FILE, b"\r\n--bc\r\n"))),
        (TYPE, form(part(NAMED, b"a")).replace(b"\r\n", b"\n")),
        (TYPE, b""),
        (TYPE, b'{"model": "a"}'),
        ("multipart/form-data", form(part(NAMED, b"a"))),
        ("multipart/form-data; boundary=", form(part(NAMED, b"a"))),
        ("multipart/form-data; boundary=c; boundary=b", form(part(NAMED, b"a"))),
        ("multipart/form-data; boundary*=utf-8''b; boundary=b", form(part(NAMED, b"a"))),
        (f"{TYPE}; charset=utf-7", form(part(b"Content-Disposition: form-data; name=+AG0-odel", b"a"))),
        (f"multipart/form-data; boundary={'b' * 71}", form(part(NAMED, b"a"))),
    ],
)  # fmt: skip
def test_what_could_be_read_in_two_ways_is_refused(content_type: str, body: bytes) -> None:
    with pytest.raises(RefusedError, match="not a valid form") as caught:
        Form.of(content_type, body)
    assert (caught.value.status, caught.value.code) == (400, "invalid_form")
