"""vLLM's router, cache-aware, before servers: what both adapters and the engine have through it. `make test-routers`.

Named so that pytest finds it only when it is asked: the router is in an environment of its own.

What the router does to requests and errors is shown on servers that answer as told, in seconds. Then three real vLLM
servers stand behind it: LangChain's suites and all of our adapters' tests on vLLM run through it, in minutes.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from langchain_vllm_local import ChatVLLM
from llama_index_vllm_local import VLLM
from shared_engine import (
    AuthenticationError,
    Engine,
    ModelNotFoundError,
    RateLimitError,
    RequestError,
    RequestRejectedError,
    ServerConnectionError,
    ServerError,
    VLLMError,
)
from tests.support.adapters import ADAPTERS
from tests.support.parameters import SENT
from tests.support.paths import TINY_CHAT
from tests.support.plain_server import PlainServer, free_port, plain_servers
from tests.support.pooling_server import embeds_and_reranks
from tests.support.remote_server import RemoteServer, running_server
from tests.support.suites import BEHIND_ONE_URL, VLLM_AS_IT_IS, assert_suites_pass
from tests.support.vllm_router import vllm_router

HELLO = [{"role": "user", "content": "Hello"}]
CAPITAL, PARIS = "What is the capital of France?", "The capital of France is Paris."


# ---- servers that answer as told


@pytest.fixture
def workers() -> Iterator[list[RemoteServer]]:
    with ExitStack() as stack:
        yield [stack.enter_context(running_server()) for _ in range(2)]


@pytest.fixture
def front(workers: list[RemoteServer], tmp_path: Path) -> Iterator[str]:
    """A router of the test's own: what has failed through it is remembered."""
    with vllm_router([worker.url for worker in workers], tmp_path) as url:
        yield url


@pytest.fixture
def engine(front: str) -> Engine:
    return Engine(base_url=front, model="served", max_retries=0)


def received(workers: list[RemoteServer]) -> dict[str, Any]:
    """The one request that came."""
    ((_, body),) = [request for worker in workers for request in worker.requests]
    for worker in workers:
        worker.requests.clear()
    return body


def test_every_parameter_arrives_as_it_was_sent(engine: Engine, workers: list[RemoteServer]) -> None:
    asks: list[tuple[Callable[..., object], Any]] = [(engine.chat, HELLO), (engine.generate, "Hello")]
    for ask, asked in asks:
        for name, (value, _) in SENT.items():
            ask(asked, **{name: value})
            assert received(workers)[name] == value, name
        ask(asked, extra_body={"of_the_future": {"a": 1}})
        assert received(workers)["of_the_future"] == {"a": 1}
    engine.chat(HELLO, chat_template_kwargs={"enable_thinking": False})
    assert received(workers)["chat_template_kwargs"] == {"enable_thinking": False}


def test_what_it_leaves_out_of_requests(engine: Engine, front: str, workers: list[RemoteServer]) -> None:
    """Its own types are SGLang's. In docs/fleets.md: change it there when this fails."""
    tool = {"name": "f", "parameters": {"type": "object", "properties": {}}, "strict": True}
    engine.chat(HELLO, tools=[{"type": "function", "function": tool}])
    assert received(workers)["tools"][0]["function"] == {"name": "f", "parameters": tool["parameters"]}
    for worker in workers:
        worker.handler = embeds_and_reranks
    engine.embed(["a"], dimensions=1, truncate_prompt_tokens=-1)
    assert received(workers).keys() == {"model", "input", "dimensions", "encoding_format"}
    with pytest.raises(RequestRejectedError, match="unknown variant `structural_tag`"):
        engine.chat(HELLO, response_format={"type": "structural_tag", "format": {}})


def test_messages_arrive_whole(engine: Engine, workers: list[RemoteServer]) -> None:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    messages: list[dict[str, Any]] = [
        {"role": "system", "content": "Be brief."},
        {
            "role": "user",
            "content": [{"type": "text", "text": "Look:"}, {"type": "image_url", "image_url": {"url": "data:,"}}],
        },
        {"role": "assistant", "content": "", "reasoning": "A thought.", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": "found"},
    ]
    engine.chat(messages)
    assert received(workers)["messages"] == messages


@pytest.mark.parametrize("method", ["invoke", "stream"])
@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, RequestRejectedError),
        (401, AuthenticationError),
        (404, ModelNotFoundError),
        (422, RequestRejectedError),
        (429, RateLimitError),
        (500, ServerError),
        (503, ServerError),
    ],
)
def test_errors_keep_status_words_and_retry_after(
    front: str, workers: list[RemoteServer], status: int, kind: type[RequestError], method: str
) -> None:
    for worker in workers:
        worker.fails(status, message="the server's words", headers={"Retry-After": "7"})
    chat = ChatVLLM(base_url=front, model="served", max_retries=0)
    with pytest.raises(kind, match="the server's words") as caught:
        list(getattr(chat, method)("Hello"))
    assert (caught.value.status, caught.value.retry_after_s) == (status, 7.0)


@pytest.mark.parametrize("shown", [(), ("a", "b")])
def test_a_stream_that_is_cut_is_an_error(engine: Engine, workers: list[RemoteServer], shown: tuple[str, ...]) -> None:
    for worker in workers:
        worker.streams(*shown, then="cut")
    with pytest.raises(ServerConnectionError):
        list(engine.stream_chat(HELLO))


def test_leaving_a_stream_ends_it_at_the_server(front: str, workers: list[RemoteServer]) -> None:
    for worker in workers:
        worker.streams("a", then="hang")
    stream = ChatVLLM(base_url=front, model="served").stream("Hello")
    assert next(stream).content == "a"
    stream.close()  # type: ignore[attr-defined]
    (asked,) = [worker for worker in workers if worker.requests]
    assert asked.aborted.wait(10)


def test_scores_come_around_its_own_reading_of_them(engine: Engine, workers: list[RemoteServer]) -> None:
    for worker in workers:
        worker.handler = embeds_and_reranks
    ranked = engine.rerank("query", ["a", "abc", "ab"], top_n=2).results
    assert [each.index for each in ranked] == [1, 2]


def test_tokens_and_models_are_the_servers(engine: Engine, front: str) -> None:
    assert engine.count_tokens("a b c") == 5
    assert engine.is_ready()
    assert Engine(base_url=front).chat(HELLO).model == "served"


def test_a_server_that_is_gone_costs_retries_and_no_request(
    front: str, workers: list[RemoteServer], tmp_path: Path
) -> None:
    """It asks a dead server ten times before it asks another: two of our tries. So fewer retries are too few."""
    with ExitStack() as stack:
        gone = f"http://127.0.0.1:{free_port()}"
        folder = tmp_path / "gone"
        folder.mkdir()
        url = stack.enter_context(vllm_router([gone, workers[0].url], folder, "--health-check-interval-secs", "3600"))
        engine = Engine(base_url=url, model="served")
        for number in range(20):
            assert engine.chat([{"role": "user", "content": f"{number} is a number. " * 9}]).text == "Hi"
        assert engine.stats().requests.errors == {}


# ---- three real servers

LEFT_OUT = {
    **BEHIND_ONE_URL,
    **VLLM_AS_IT_IS,
    "loaded_at_run_time": "the router tells one server of three",
    "cancelling_a_call_aborts": "the router has a whole answer generated to its end",
    "long_is_named_or_cut": "the router leaves truncate_prompt_tokens out",
    "long_text_is_named_or_cut": "the router leaves truncate_prompt_tokens out",
    "plain_floats_of_length_one_unless_told_otherwise": "the router leaves use_activation out",
    "strict": "the router leaves strict out",
}
"""Tests that do not hold through it, by a part of their names, and why: docs/fleets.md."""


@pytest.fixture(scope="module")
def front_of_three(servers: list[PlainServer], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with vllm_router([server.url for server in servers], tmp_path_factory.mktemp("router")) as url:
        yield url


@pytest.fixture(scope="module")
def front_of_embedder(embedder: PlainServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with vllm_router([embedder.url], tmp_path_factory.mktemp("router")) as url:
        yield url


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("adapter", ["langchain", "llama_index"])
def test_the_adapters_tests_on_vllm_pass_through_it(front_of_three: str, front_of_embedder: str, adapter: str) -> None:
    assert_suites_pass([f"tests/{adapter}"], front_of_three, front_of_embedder, LEFT_OUT)


def test_adapters_have_their_names_through_it(front_of_three: str) -> None:
    chat, index = ChatVLLM(base_url=front_of_three, temperature=0), VLLM(base_url=front_of_three, temperature=0)
    for name in ADAPTERS:
        assert chat.invoke(CAPITAL, lora=name).text == index.complete(CAPITAL, lora=name).text != PARIS
    assert chat.invoke(CAPITAL).text == PARIS


def test_a_killed_server_costs_no_request_that_had_shown_nothing(tiny_chat: dict[str, Any], tmp_path: Path) -> None:
    """Of the streams that it was sending, each ends with an error, and none as if it were whole."""
    with plain_servers(3, tiny_chat, tmp_path) as servers:
        folder = tmp_path / "router"
        folder.mkdir()
        flags = ["--balance-abs-threshold", "2", "--cb-failure-threshold", "2"]  # else all go to one server
        with vllm_router([server.url for server in servers], folder, *flags) as url:
            settings: dict[str, Any] = {"base_url": url, "model": str(TINY_CHAT), "temperature": 0, "max_tokens": 64}
            chat = ChatVLLM(**settings, extra_body={"ignore_eos": True})
            half_way = threading.Event()

            def ask(number: int) -> str:
                shown = tokens = 0
                try:
                    for chunk in chat.stream(f"Tell me about number {number}."):
                        shown += len(chunk.text)
                        tokens += chunk.usage_metadata["output_tokens"] if chunk.usage_metadata else 0
                        if shown and number >= 40:
                            half_way.set()
                except VLLMError:
                    return "told" if shown else "lost"
                return "answered" if tokens == 64 else "cut"

            with ThreadPoolExecutor(12) as pool:
                answers = pool.map(ask, range(96))
                assert half_way.wait(120)
                servers[0].signal(signal.SIGKILL)
                outcomes = list(answers)
            assert set(outcomes) <= {"answered", "told"}
            assert outcomes.count("told") <= 12
            assert outcomes[-12:] == ["answered"] * 12
