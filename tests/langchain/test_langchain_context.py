"""check_context and truncate_completion through LangChain: settings or a call's, in every way to ask."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from langchain_core.exceptions import ContextOverflowError

from langchain_vllm_local import VLLM, ChatVLLM
from shared_engine import ContextLengthError
from tests.support.remote_server import RemoteServer, running_server

# The server's model has a token for each word, and two around them.
PROMPT = "one two three"


@pytest.fixture
def server() -> Iterator[RemoteServer]:
    with running_server() as server:
        server.models = [{"id": "served", "max_model_len": 10}]
        yield server


def collect(chunks: Any) -> Any:
    whole = None
    for chunk in chunks:
        whole = chunk if whole is None else whole + chunk
    return whole


async def acollect(llm: Any, **options: Any) -> Any:
    whole = None
    async for chunk in llm.astream(PROMPT, **options):
        whole = chunk if whole is None else whole + chunk
    return whole


WAYS: dict[str, Callable[..., Any]] = {
    "invoke": lambda llm, **options: llm.invoke(PROMPT, **options),
    "ainvoke": lambda llm, **options: asyncio.run(llm.ainvoke(PROMPT, **options)),
    "batch": lambda llm, **options: llm.batch([PROMPT], **options)[0],
    "abatch": lambda llm, **options: asyncio.run(llm.abatch([PROMPT], **options))[0],
    "stream": lambda llm, **options: collect(llm.stream(PROMPT, **options)),
    "astream": lambda llm, **options: asyncio.run(acollect(llm, **options)),
}
each_way = pytest.mark.parametrize("way", WAYS)


@each_way
@pytest.mark.parametrize("kind", [ChatVLLM, VLLM])
@pytest.mark.parametrize("is_of_the_call", [False, True])
def test_what_does_not_fit_is_refused_before_it_is_sent(
    server: RemoteServer, kind: Any, way: str, is_of_the_call: bool
) -> None:
    given = {"check_context": True}
    llm = kind(base_url=server.url, max_tokens=9, **({} if is_of_the_call else given))
    with pytest.raises(ContextOverflowError, match="4 too many; nothing was sent") as caught:
        WAYS[way](llm, **(given if is_of_the_call else {}))
    assert isinstance(caught.value, ContextLengthError)
    assert (caught.value.prompt_tokens, caught.value.max_model_len, caught.value.excess) == (5, 10, 4)
    assert server.requests == []


@each_way
@pytest.mark.parametrize("is_of_the_call", [False, True])
def test_a_chats_max_tokens_is_lowered_and_its_metadata_say_so(
    server: RemoteServer, way: str, is_of_the_call: bool
) -> None:
    if "stream" in way:
        server.streams("H", "i")
    given = {"truncate_completion": True}
    llm = ChatVLLM(base_url=server.url, max_tokens=9, **({} if is_of_the_call else given))
    message = WAYS[way](llm, **(given if is_of_the_call else {}))
    assert message.response_metadata["max_tokens_lowered_to"] == 5
    assert server.requests[-1][1]["max_tokens"] == 5
    fits = WAYS[way](llm, max_tokens=5)
    assert "max_tokens_lowered_to" not in fits.response_metadata


def test_a_texts_max_tokens_is_lowered_and_its_generation_info_says_so(server: RemoteServer) -> None:
    llm = VLLM(base_url=server.url, max_tokens=9, truncate_completion=True)
    ((generation,),) = llm.generate([PROMPT]).generations
    assert generation.generation_info["max_tokens_lowered_to"] == 5
    assert server.requests[-1][1]["max_tokens"] == 5


def test_bound_tools_count(server: RemoteServer) -> None:
    def add(a: int, b: int) -> int:
        """Add."""
        return a + b

    llm = ChatVLLM(base_url=server.url, max_tokens=6, check_context=True).bind_tools([add])
    with pytest.raises(ContextLengthError):
        llm.invoke(PROMPT)
    assert server.requests == []
    assert llm.invoke(PROMPT, max_tokens=5).text == "Hi"
