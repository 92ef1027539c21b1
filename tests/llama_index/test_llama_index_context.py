"""check_context and truncate_completion through LlamaIndex: settings or a call's, by every endpoint."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from llama_index_vllm_local import VLLM
from shared_engine import ContextLengthError
from tests.llama_index.ways import ENDPOINTS, STREAMS
from tests.support.remote_server import RemoteServer, running_server

each_endpoint = pytest.mark.parametrize("endpoint", ENDPOINTS)


@pytest.fixture
def server() -> Iterator[RemoteServer]:
    """Its model has a token for each word, and two around them: six of the question."""
    with running_server() as server:
        server.models = [{"id": "served", "max_model_len": 10}]
        yield server


@each_endpoint
@pytest.mark.parametrize("is_of_the_call", [False, True])
def test_what_does_not_fit_is_refused_before_it_is_sent(
    server: RemoteServer, endpoint: str, is_of_the_call: bool
) -> None:
    given = {"check_context": True}
    llm = VLLM(base_url=server.url, max_tokens=9, **({} if is_of_the_call else given))
    with pytest.raises(ContextLengthError, match="5 too many; nothing was sent") as caught:
        ENDPOINTS[endpoint](llm, **(given if is_of_the_call else {}))
    assert (caught.value.prompt_tokens, caught.value.max_model_len, caught.value.excess) == (6, 10, 5)
    assert server.requests == []


@each_endpoint
@pytest.mark.parametrize("is_of_the_call", [False, True])
def test_max_tokens_is_lowered_and_the_response_says_so(
    server: RemoteServer, endpoint: str, is_of_the_call: bool
) -> None:
    if endpoint in STREAMS:
        server.streams("H", "i")
    given = {"truncate_completion": True}
    llm = VLLM(base_url=server.url, max_tokens=9, **({} if is_of_the_call else given))
    last = ENDPOINTS[endpoint](llm, **(given if is_of_the_call else {}))[-1]
    assert last.additional_kwargs["max_tokens_lowered_to"] == 4
    assert last.raw["max_tokens_lowered_to"] == 4
    assert server.requests[-1][1]["max_tokens"] == 4
    fits = ENDPOINTS[endpoint](llm, max_tokens=4)[-1]
    assert "max_tokens_lowered_to" not in fits.additional_kwargs
    assert "max_tokens_lowered_to" not in fits.raw
