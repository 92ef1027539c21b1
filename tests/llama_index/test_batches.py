"""complete_batch, chat_batch and their async twins: all in flight, each prompt with its own events, usage and error."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest
from aiohttp import web
from llama_index.core.callbacks import TokenCountingHandler
from llama_index.core.instrumentation.events import BaseEvent
from llama_index.core.instrumentation.events.llm import LLMChatEndEvent, LLMChatStartEvent
from llama_index.core.llms import ChatMessage

from llama_index_vllm_local import VLLM
from shared_engine import ContextLengthError, InvalidInputError, RequestRejectedError
from tests.support.paths import REPOSITORY
from tests.support.remote_server import RemoteServer, chat_answer

COUNT = 40
COUNTRIES = {"France": "Paris", "Italy": "Rome", "Spain": "Madrid", "Japan": "Tokyo"}
QUESTIONS = [f"What is the capital of {country}?" for country in COUNTRIES]

# Each takes an llm, texts and keywords, and returns the responses.
Way = Callable[..., list[Any]]


def conversations(texts: list[str]) -> list[list[ChatMessage]]:
    return [[ChatMessage(role="user", content=text)] for text in texts]


def from_a_running_loop(llm: VLLM, texts: list[str], **kwargs: Any) -> list[Any]:
    async def cell() -> list[Any]:
        return llm.chat_batch(conversations(texts), **kwargs)

    return asyncio.run(cell())


WAYS: dict[str, Way] = {
    "complete_batch": lambda llm, texts, **kwargs: llm.complete_batch(texts, **kwargs),
    "acomplete_batch": lambda llm, texts, **kwargs: asyncio.run(llm.acomplete_batch(texts, **kwargs)),
    "chat_batch": lambda llm, texts, **kwargs: llm.chat_batch(conversations(texts), **kwargs),
    "achat_batch": lambda llm, texts, **kwargs: asyncio.run(llm.achat_batch(conversations(texts), **kwargs)),
    "in a notebook": from_a_running_loop,
}


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest) -> Way:
    return WAYS[request.param]


# ---- on a server that answers as told


@pytest.mark.slow
def test_all_are_in_flight_at_once_and_come_back_in_order(remote: VLLM, server: RemoteServer, way: Way) -> None:
    waiting: list[asyncio.Event] = []

    async def answers_when_all_are_here(request: web.Request) -> web.StreamResponse:
        waiting.append(asyncio.Event())
        if len(waiting) == COUNT:
            for event in waiting:
                event.set()
        await asyncio.wait_for(waiting[-1].wait(), 30)
        return web.json_response(chat_answer((await request.json())["messages"][0]["content"]))

    server.handler = answers_when_all_are_here
    texts = [f"number {index}" for index in range(COUNT)]
    answers = way(remote, texts)
    assert [getattr(answer, "text", None) or answer.message.content for answer in answers] == texts


def refuse(word: str) -> Callable[[web.Request], Any]:
    async def handler(request: web.Request) -> web.StreamResponse:
        if word in (await request.json())["messages"][0]["content"]:
            return web.json_response({"error": {"message": "refused", "code": 400}}, status=400)
        return web.json_response(chat_answer())

    return handler


def test_a_refused_prompt_fails_alone_where_asked_for(remote: VLLM, server: RemoteServer, way: Way) -> None:
    server.handler = refuse("bad")
    answers = way(remote, ["good", "bad", "good"], return_exceptions=True)
    assert isinstance(answers[1], RequestRejectedError)
    assert [answer.raw["usage"]["total_tokens"] for answer in (answers[0], answers[2])] == [4, 4]


def test_without_that_the_first_error_ends_the_others(remote: VLLM, server: RemoteServer, way: Way) -> None:
    ended = threading.Semaphore(0)

    async def handler(request: web.Request) -> web.StreamResponse:
        if "bad" in (await request.json())["messages"][0]["content"]:
            return web.json_response({"error": {"message": "refused", "code": 400}}, status=400)
        try:
            await asyncio.sleep(60)
        finally:
            ended.release()
        return web.json_response(chat_answer())

    server.handler = handler
    with pytest.raises(RequestRejectedError):
        way(remote, ["slow", "bad", "slow"])
    begun = sum("slow" in body["messages"][0]["content"] for _, body in server.requests)
    assert all(ended.acquire(timeout=10) for _ in range(begun))


def test_keywords_are_every_prompts(remote: VLLM, server: RemoteServer, way: Way) -> None:
    way(remote, ["one", "two"], max_tokens=7)
    assert [body["max_tokens"] for _, body in server.requests] == [7, 7]


def test_no_prompts_give_no_answers(remote: VLLM, server: RemoteServer, way: Way) -> None:
    assert way(remote, []) == []
    assert server.requests == []


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda llm: llm.complete_batch("one prompt"), "prompts must be a list of strings, got str: 'one prompt'"),
        (lambda llm: llm.complete_batch(["a", 3]), r"prompts\[1\] must be a string, got int"),
        (lambda llm: llm.chat_batch([ChatMessage(content="a")]), r"conversations\[0\] must be a list of ChatMessage"),
        (lambda llm: llm.chat_batch("hello"), "conversations must be a list of conversations, got str"),
    ],
)
def test_what_is_no_batch_is_refused_before_anything_is_sent(
    remote: VLLM, server: RemoteServer, call: Callable[[VLLM], Any], message: str
) -> None:
    with pytest.raises(InvalidInputError, match=message):
        call(remote)
    assert server.requests == []


@pytest.mark.parametrize("way", ["complete_batch", "chat_batch"])
def test_a_batch_leaves_the_threads_own_event_loop_alone(remote: VLLM, way: str) -> None:
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    try:
        WAYS[way](remote, ["Hello"])
        assert asyncio.get_event_loop() is loop
    finally:
        asyncio.set_event_loop(None)
        loop.close()


CELL = """
import asyncio, sys
from llama_index_vllm_local import VLLM
llm = VLLM(base_url=sys.argv[1])
async def cell():
    llm.complete_batch(["Hello"] * 3)
try:
    if sys.argv[2] == "notebook":
        asyncio.new_event_loop().run_until_complete(cell())
    llm.complete_batch(["Hello"] * 3)
except KeyboardInterrupt:
    print("interrupted")
"""


@pytest.mark.slow
@pytest.mark.parametrize("where", ["notebook", "script"])
def test_ctrl_c_ends_a_batch_at_once(server: RemoteServer, where: str) -> None:
    arrived = threading.Semaphore(0)

    async def hangs(_: web.Request) -> web.StreamResponse:
        arrived.release()
        await asyncio.sleep(60)
        return web.json_response(chat_answer())

    server.handler = hangs
    with subprocess.Popen(
        [sys.executable, "-c", CELL, server.url, where], stdout=subprocess.PIPE, text=True, cwd=REPOSITORY
    ) as app:
        assert all(arrived.acquire(timeout=30) for _ in range(3))
        os.kill(app.pid, signal.SIGINT)
        out, _ = app.communicate(timeout=20)
    assert out == "interrupted\n"


# ---- on real vLLM


def test_each_answer_has_its_own_usage_and_events(
    llm: VLLM, counter: TokenCountingHandler, events: list[BaseEvent], way: Way
) -> None:
    answers = way(llm, QUESTIONS)
    for answer, capital in zip(answers, COUNTRIES.values(), strict=True):
        assert capital in (getattr(answer, "text", None) or answer.message.content)
    assert len(counter.llm_token_counts) == len(QUESTIONS)
    assert counter.total_llm_token_count == sum(answer.raw["usage"]["total_tokens"] for answer in answers)
    if not hasattr(answers[0], "text"):
        kinds = [type(event) for event in events]
        assert kinds.count(LLMChatStartEvent) == kinds.count(LLMChatEndEvent) == len(QUESTIONS)


def test_a_prompt_that_is_too_long_fails_alone(llm: VLLM) -> None:
    answers = llm.complete_batch([QUESTIONS[0], "word " * 3000, QUESTIONS[1]], return_exceptions=True)
    assert isinstance(answers[1], ContextLengthError)
    assert "Paris" in answers[0].text
    assert "Rome" in answers[2].text
