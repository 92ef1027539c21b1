"""check_context and truncate_completion: what does not fit is refused before it is sent, or made to fit, and said."""

from __future__ import annotations

import asyncio
import json
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from shared_engine import ContextLengthError, Engine, EngineState, GenerationResult
from tests.support.interpreters import make_exporter
from tests.support.remote_server import RemoteServer, running_server
from tests.support.small_tokenizers import make_folder

# The server's model has a token for each word, and two around them.
FIVE: list[Any] = [{"role": "user", "content": "one two three"}]
TOOL: dict[str, Any] = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
LIMIT = 10


@pytest.fixture
def server() -> Iterator[RemoteServer]:
    with running_server() as server:
        server.models = [{"id": "served", "max_model_len": LIMIT}, {"id": "other", "max_model_len": 2 * LIMIT}]
        yield server


def chat(engine: Engine, **options: Any) -> Any:
    return engine.chat(FIVE, **options)


def stream(engine: Engine, **options: Any) -> Any:
    return list(engine.stream_chat(FIVE, **options))


def batch(engine: Engine, **options: Any) -> Any:
    return engine.chat_batch([FIVE], **options)[0]


def generate(engine: Engine, **options: Any) -> Any:
    return engine.generate("one two three", **options)


def generate_batch(engine: Engine, **options: Any) -> Any:
    return engine.generate_batch(["one two three"], **options)[0]


def achat(engine: Engine, **options: Any) -> Any:
    return asyncio.run(engine.achat(FIVE, **options))


def astream(engine: Engine, **options: Any) -> Any:
    async def collect() -> list[Any]:
        return [chunk async for chunk in engine.astream_generate("one two three", **options)]

    return asyncio.run(collect())


each_way = pytest.mark.parametrize("way", [chat, stream, batch, generate, generate_batch, achat, astream])


@each_way
def test_what_does_not_fit_is_refused_before_it_is_sent(server: RemoteServer, way: Callable[..., Any]) -> None:
    engine = Engine(base_url=server.url, check_context=True)
    with pytest.raises(
        ContextLengthError, match=r"5 tokens, max_tokens = 9 .* limit is 10: 4 too many; nothing was"
    ) as at:
        way(engine, max_tokens=9)
    error = at.value
    assert (error.prompt_tokens, error.completion_tokens, error.max_model_len, error.excess) == (5, 9, LIMIT, 4)
    assert error.status is None
    assert server.requests == []
    assert pickle.loads(pickle.dumps(error)).excess == 4


@each_way
def test_what_fits_is_sent_as_it_is(server: RemoteServer, way: Callable[..., Any]) -> None:
    if "stream" in way.__name__:
        server.streams("Hi")
    way(Engine(base_url=server.url, check_context=True, truncate_completion=True), max_tokens=5)
    ((_, body),) = server.requests
    assert body["max_tokens"] == 5


@each_way
def test_max_tokens_is_lowered_and_the_answer_says_so(server: RemoteServer, way: Callable[..., Any]) -> None:
    if "stream" in way.__name__:
        server.streams("H", "i")
    answer = way(Engine(base_url=server.url, truncate_completion=True), max_tokens=9)
    ((_, body),) = server.requests
    assert body["max_tokens"] == 5
    if isinstance(answer, GenerationResult):
        assert answer.max_tokens_lowered_to == 5
    else:
        assert [(chunk.finish_reason, chunk.max_tokens_lowered_to) for chunk in answer if chunk.text] == [
            (None, None),
            ("stop", 5),
        ]


def test_a_call_decides_for_itself(server: RemoteServer) -> None:
    engine = Engine(base_url=server.url)
    assert engine.chat(FIVE, max_tokens=9).max_tokens_lowered_to is None
    with pytest.raises(ContextLengthError):
        engine.chat(FIVE, max_tokens=9, check_context=True)
    assert engine.chat(FIVE, max_tokens=9, truncate_completion=True).max_tokens_lowered_to == 5
    strict = Engine(base_url=server.url, check_context=True)
    assert strict.chat(FIVE, max_tokens=9, check_context=False).text == "Hi"
    for _, body in server.requests:
        assert not {"check_context", "truncate_completion"} & body.keys()


@pytest.mark.parametrize("options", [{"check_context": True}, {"truncate_completion": True}])
def test_a_prompt_that_leaves_nothing_is_refused_either_way(server: RemoteServer, options: dict[str, Any]) -> None:
    engine = Engine(base_url=server.url, **options)
    for count in (LIMIT, LIMIT + 5):
        with pytest.raises(ContextLengthError, match="there is no room for an answer") as caught:
            engine.generate("a " * (count - 2))
        assert (caught.value.prompt_tokens, caught.value.excess) == (count, count + 1 - LIMIT)
    assert engine.generate("a " * (LIMIT - 3)).text == "Hi"


def test_max_tokens_under_its_other_name(server: RemoteServer) -> None:
    engine = Engine(base_url=server.url, truncate_completion=True)
    assert engine.chat(FIVE, extra_body={"max_completion_tokens": 9}).max_tokens_lowered_to == 5
    assert server.requests[-1][1]["max_completion_tokens"] == 5


def test_it_is_not_lowered_below_min_tokens(server: RemoteServer) -> None:
    engine = Engine(base_url=server.url, truncate_completion=True)
    with pytest.raises(ContextLengthError):
        engine.chat(FIVE, max_tokens=9, min_tokens=6)
    assert engine.chat(FIVE, max_tokens=9, min_tokens=5).max_tokens_lowered_to == 5


def test_a_prompt_that_the_server_is_to_cut_is_not_counted(server: RemoteServer) -> None:
    engine = Engine(base_url=server.url, check_context=True)
    assert engine.generate("a " * 100, truncate_prompt_tokens=3).text == "Hi"


def test_another_models_limit_is_its_own(server: RemoteServer) -> None:
    engine = Engine(base_url=server.url, model="served", check_context=True)
    assert engine.chat(FIVE, max_tokens=9, extra_body={"model": "other"}).text == "Hi"
    with pytest.raises(ContextLengthError, match="limit is 20"):
        engine.chat(FIVE, max_tokens=19, extra_body={"model": "other"})
    assert engine.chat(FIVE, max_tokens=9, model="other").text == "Hi"


def test_an_adapter_has_its_models_limit(server: RemoteServer) -> None:
    engine = Engine(base_url=server.url, model="served", check_context=True)
    assert engine.chat(FIVE, max_tokens=5, lora="sql").text == "Hi"
    with pytest.raises(ContextLengthError, match="limit is 10"):
        engine.chat(FIVE, max_tokens=9, lora="sql")


def test_a_batch_refuses_the_items_that_do_not_fit(server: RemoteServer) -> None:
    engine = Engine(base_url=server.url, check_context=True)
    outcomes = engine.generate_batch(["a", "a " * 20, "b"], max_tokens=2, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [GenerationResult, ContextLengthError, GenerationResult]
    assert len(server.requests) == 2


def test_a_server_that_does_not_count_is_told_once(server: RemoteServer, caplog: pytest.LogCaptureFixture) -> None:
    server.counts_tokens = False
    engine = Engine(base_url=server.url, check_context=True)
    for _ in range(3):
        assert engine.chat(FIVE, max_tokens=9).text == "Hi"
    assert caplog.text.count("can't count the tokens of prompts, so check_context") == 1


def test_the_servers_own_refusal_has_the_same_numbers(server: RemoteServer) -> None:
    message = "This model's maximum context length is 10 tokens."
    server.fails(400, message=message)
    with pytest.raises(ContextLengthError) as caught:
        Engine(base_url=server.url).chat(FIVE, max_tokens=9)
    error = caught.value
    assert (error.prompt_tokens, error.completion_tokens, error.excess, error.status) == (5, 9, 4, 400)


# ---- of a local engine, which is not started for it

CHAT = {
    "plain": {"template": "{% for m in messages %}{{ m.content }} {% endfor %}", "content_format": "string"},
    "tools": {
        "template": "{{ tools | tojson }}{% for m in messages %}{{ m.content }}{% endfor %}",
        "content_format": "string",
    },
    "special_tokens": {},
    "probes": [],
}


@pytest.fixture
def local(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Engine]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    folder = make_folder(tmp_path / "model", "gemma", "gemma2", "GemmaTokenizer", model={"max_position_embeddings": 64})
    chat = json.dumps(json.dumps(CHAT))
    tokenizer = '(model / "tokenizer.json").read_text()'
    code = f'print(json.dumps({{"tokenizer": {tokenizer}, "probes": [], "chat": json.loads({chat})}}))'
    python = make_exporter(tmp_path / "environment", code)
    return lambda **options: Engine(model=str(folder), python=python, check_context=True, **options)


@pytest.mark.parametrize("way", [chat, stream, batch, generate, generate_batch, achat, astream])
def test_a_local_engine_is_not_started_to_refuse(local: Callable[..., Engine], way: Callable[..., Any]) -> None:
    engine = local(max_model_len=50)
    with pytest.raises(ContextLengthError, match="nothing was sent"):
        way(engine, max_tokens=49)
    assert engine.status().state is EngineState.STOPPED


def test_tools_count(local: Callable[..., Engine]) -> None:
    engine = local(max_model_len=50)
    plain, with_tools = engine.count_tokens(FIVE), engine.count_tokens(FIVE, tools=[TOOL])
    assert with_tools > plain
    with pytest.raises(ContextLengthError) as caught:
        engine.chat(FIVE, tools=[TOOL], max_tokens=50)
    assert caught.value.prompt_tokens == with_tools


def test_where_the_engine_decides_its_window_the_models_own_is_the_most(local: Callable[..., Engine]) -> None:
    """It is known without a start that this one can't fit."""
    engine = local(max_model_len="auto")
    most = engine.context_window
    assert most is not None
    with pytest.raises(ContextLengthError, match=f"limit is {most}"):
        engine.chat(FIVE, max_tokens=most)
    assert engine.status().state is EngineState.STOPPED
