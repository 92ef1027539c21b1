"""A stream that is left ends its request, at once where it is closed, and without the garbage collector."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from langchain_core.messages import HumanMessage
from langchain_core.output_parsers import StrOutputParser

from langchain_vllm_local import VLLM, ChatVLLM
from tests.support.pictures import RED
from tests.support.remote_server import RemoteServer
from tests.support.sources import Source, no_garbage_collection

CHAT, TEXT = ChatVLLM(model="org/name"), VLLM(model="org/name")
each_model = pytest.mark.parametrize("llm", [CHAT, TEXT], ids=["ChatVLLM", "VLLM"])


@pytest.fixture(autouse=True)
def collector_off() -> Iterator[None]:
    with no_garbage_collection():
        yield


@pytest.fixture
def source(monkeypatch: pytest.MonkeyPatch) -> Source:
    source = Source()
    source.is_the_engine(monkeypatch)
    return source


def asked(llm: Any) -> Any:
    return [HumanMessage("Hi")] if llm is CHAT else "Hi"


# ---- our own generators: the engine's stream has been closed when they have


@each_model
def test_closing_a_stream_closes_that_of_the_engine(source: Source, llm: Any) -> None:
    stream = llm._stream(asked(llm))
    assert next(stream).text == "a"
    stream.close()
    assert source.closed


@each_model
async def test_closing_an_asynchronous_stream_closes_that_of_the_engine(source: Source, llm: Any) -> None:
    stream = llm._astream(asked(llm))
    assert (await anext(stream)).text == "a"
    await stream.aclose()
    assert source.closed


def test_closing_typed_events_closes_the_stream_of_the_engine(source: Source) -> None:
    events = CHAT._stream_chat_model_events([HumanMessage("Hi")])
    assert next(events)["event"] == "message-start"
    events.close()
    assert source.closed


async def test_closing_asynchronous_typed_events_closes_the_stream_of_the_engine(source: Source) -> None:
    events = CHAT._astream_chat_model_events([HumanMessage("Hi")])
    assert (await anext(events))["event"] == "message-start"
    await events.aclose()
    assert source.closed


# ---- through LangChain's core, which closes nothing: the last reference to our generator does


@each_model
@pytest.mark.parametrize("is_parsed", [False, True], ids=["model", "sequence"])
def test_closing_a_stream_of_core_closes_that_of_the_engine(source: Source, llm: Any, is_parsed: bool) -> None:
    stream = (llm | StrOutputParser() if is_parsed else llm).stream("Hi")
    next(stream)
    stream.close()
    assert source.closed


@each_model
def test_leaving_the_loop_over_a_stream_of_core_closes_that_of_the_engine(source: Source, llm: Any) -> None:
    for _ in llm.stream("Hi"):
        break
    assert source.closed


@each_model
@pytest.mark.parametrize("is_parsed", [False, True], ids=["model", "sequence"])
async def test_closing_an_asynchronous_stream_of_core_has_the_event_loop_close_that_of_the_engine(
    source: Source, llm: Any, is_parsed: bool
) -> None:
    stream = (llm | StrOutputParser() if is_parsed else llm).astream("Hi")
    await anext(stream)
    await stream.aclose()
    await source.is_closed_soon()


@each_model
async def test_leaving_the_loop_over_an_asynchronous_stream_has_the_event_loop_close_that_of_the_engine(
    source: Source, llm: Any
) -> None:
    async for _ in llm.astream("Hi"):
        break
    await source.is_closed_soon()


# ---- local files


@pytest.mark.slow
async def test_the_event_loop_goes_on_while_a_local_file_is_read(
    server: RemoteServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    photo = tmp_path / "photo.png"
    photo.write_bytes(RED)
    went_on, read_bytes = threading.Event(), Path.read_bytes

    def read_slowly(file: Path) -> bytes:
        assert went_on.wait(10)
        return read_bytes(file)

    monkeypatch.setattr(Path, "read_bytes", read_slowly)
    llm = ChatVLLM(base_url=server.url)
    forms: list[dict[str, Any]] = [
        {"type": "image", "path": str(photo)},
        {"type": "image", "url": photo.as_uri()},
        {"type": "non_standard", "value": {"type": "image", "path": photo}},
    ]
    for block in forms:
        went_on.clear()
        asyncio.get_running_loop().call_later(0.05, went_on.set)
        assert (await llm.ainvoke([HumanMessage([block])])).text == "Hi"
    server.streams("Hi")
    went_on.clear()
    asyncio.get_running_loop().call_later(0.05, went_on.set)
    assert [chunk.text async for chunk in llm.astream([HumanMessage([forms[0]])])][:1] == ["Hi"]
    assert len(server.requests) == len(forms) + 1
