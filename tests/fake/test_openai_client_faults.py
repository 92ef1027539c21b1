"""What becomes of the requests of openai's clients when their engine misbehaves: never hung, never cut off silently."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from shared_engine import (
    Engine,
    EngineBusyError,
    EngineDiedError,
    EngineStartError,
    EngineState,
    EngineStoppedError,
    RequestTimeoutError,
)
from tests.fake.conftest import MakeEngine
from tests.support.callers import ANSWER, HELLO

MESSAGES: list[Any] = HELLO


def ask(engine: Engine, way: str, **options: Any) -> Any:
    """The whole answer, of each way to ask for it."""
    wanted: Any = {"model": "default", "messages": MESSAGES, **options}
    if way == "sync":
        return engine.openai_client().chat.completions.create(**wanted).choices[0].message.content
    if way == "stream":
        return "".join(texts(engine, **options))
    return asyncio.run(ask_async(engine, wanted))


async def ask_async(engine: Engine, wanted: Any) -> Any:
    async with engine.async_openai_client() as client:
        chunks = await client.chat.completions.create(stream=True, **wanted)
        return "".join([choice.delta.content or "" async for chunk in chunks for choice in chunk.choices])


def texts(engine: Engine, **options: Any) -> Iterator[str]:
    wanted: Any = {"model": "default", "messages": MESSAGES, "stream": True, **options}
    with engine.openai_client().chat.completions.create(**wanted) as chunks:
        for chunk in chunks:
            yield from (choice.delta.content or "" for choice in chunk.choices)


each_way = pytest.mark.parametrize("way", ["sync", "stream", "async"])


@each_way
@pytest.mark.smoke
def test_the_first_request_starts_the_engine_and_no_port_is_opened(fake_engine: MakeEngine, way: str) -> None:
    engine = fake_engine()
    engine.openai_client()
    assert engine.status().state is EngineState.STOPPED
    assert ask(engine, way) == ANSWER
    assert engine.status().starts == 1
    assert all("tcp" not in kind for kind in listening(engine.status().server_pid or 0))


def listening(pid: int) -> list[str]:
    """Kinds of the sockets on which a process of the server listens."""
    tables = {kind: Path(f"/proc/{pid}/net/{kind}").read_text().splitlines()[1:] for kind in ("tcp", "tcp6")}
    inodes = {os.readlink(link) for link in Path(f"/proc/{pid}/fd").iterdir() if link.exists() or link.is_symlink()}
    return [kind for kind, rows in tables.items() for row in rows if f"socket:[{row.split()[9]}]" in inodes]


@each_way
def test_a_death_before_any_byte_is_tried_again_unseen(fake_engine: MakeEngine, tmp_path: Path, way: str) -> None:
    engine = fake_engine({"exit_at": "request", "exit_after_tokens": 0, "once": str(tmp_path / "once")})
    assert ask(engine, way) == ANSWER
    assert engine.status().starts == 2


def test_a_death_in_mid_stream_is_openais_connection_error_with_our_words(
    fake_engine: MakeEngine, tmp_path: Path
) -> None:
    engine = fake_engine({"exit_at": "request", "exit_after_tokens": 2, "once": str(tmp_path / "once")})
    stream = texts(engine)
    assert next(stream) == "Hello"
    with pytest.raises(openai.APIConnectionError, match="the engine died while the request was running") as caught:
        list(stream)
    assert isinstance(caught.value.__cause__, EngineDiedError)
    assert ask(engine, "stream") == ANSWER


def test_a_request_that_kills_every_engine_kills_two(fake_engine: MakeEngine) -> None:
    engine = fake_engine({"exit_at": "request"}, max_retries=10)
    with pytest.raises(openai.APIConnectionError, match="the engine died") as caught:
        ask(engine, "sync")
    assert isinstance(caught.value.__cause__, EngineDiedError)
    assert engine.status().starts == 2


@each_way
def test_a_start_that_fails_is_tried_once_and_told_with_the_engines_log(fake_engine: MakeEngine, way: str) -> None:
    engine = fake_engine({"exit_at": "weights"})
    with pytest.raises(openai.APIConnectionError, match=r"(?s)exit code 0.*last log lines:.*load model") as caught:
        ask(engine, way)
    assert isinstance(caught.value.__cause__, EngineStartError)
    assert engine.status().starts == 1


@each_way
def test_a_call_waits_no_longer_for_the_engine_than_its_timeout(fake_engine: MakeEngine, way: str) -> None:
    engine = fake_engine({"start_delay_s": 3})
    with pytest.raises(openai.APITimeoutError, match=r"waited 0.5 s for the engine to be ready") as caught:
        ask(engine, way, timeout=0.5)
    assert isinstance(caught.value.__cause__, RequestTimeoutError)
    assert ask(engine, way) == ANSWER
    assert engine.status().starts == 1, "the start went on"


def test_a_stream_holds_its_lease_until_it_is_closed(fake_engine: MakeEngine) -> None:
    engine = fake_engine({"hang_mid_generation": True, "hang_after_tokens": 2})
    chunks = engine.openai_client().chat.completions.create(model="default", messages=MESSAGES, stream=True)
    next(chunks)
    with pytest.raises(EngineBusyError):
        engine.evict(timeout=0.2)
    chunks.close()
    engine.evict(timeout=0.2)


async def test_an_asynchronous_stream_holds_its_lease_until_it_is_closed(fake_engine: MakeEngine) -> None:
    engine = fake_engine({"hang_mid_generation": True, "hang_after_tokens": 2})
    client = engine.async_openai_client()
    chunks = await client.chat.completions.create(model="default", messages=MESSAGES, stream=True)
    await anext(chunks)
    with pytest.raises(EngineBusyError):
        await engine.aevict(timeout=0.2)
    await chunks.close()
    await engine.aevict(timeout=0.2)


def test_an_evicted_engine_comes_back_for_a_client_that_was_there_before(fake_engine: MakeEngine) -> None:
    engine = fake_engine()
    client = engine.openai_client()
    for start in (1, 2):
        answer = client.chat.completions.create(model="default", messages=MESSAGES)
        assert answer.choices[0].message.content == ANSWER
        assert engine.status().starts == start
        engine.evict()


def test_a_stop_is_told_and_not_tried_again(fake_engine: MakeEngine) -> None:
    engine = fake_engine({"hang_mid_generation": True})
    stream = texts(engine)
    next(stream)
    engine.shutdown(force=True)
    with pytest.raises(openai.APIConnectionError, match="the engine was stopped") as caught:
        list(stream)
    assert isinstance(caught.value.__cause__, EngineStoppedError)


def test_what_a_server_says_while_it_is_asked_to_end_is_no_answer(fake_engine: MakeEngine) -> None:
    """vLLM then ends its requests with status 200 and finish_reason abort."""
    engine = fake_engine({"token_delay_s": 0.3}, max_retries=0)
    stream = texts(engine)
    next(stream)
    os.kill(engine.status().server_pid or 0, signal.SIGTERM)
    with pytest.raises(openai.APIConnectionError, match="the engine died"):
        list(stream)


def test_a_forked_process_uses_a_client_that_was_made_before(fake_engine: MakeEngine) -> None:
    engine = fake_engine()
    client = engine.openai_client()
    chunks = client.chat.completions.create(model="default", messages=MESSAGES, stream=True)
    next(chunks)
    pid = os.fork()
    if pid == 0:
        try:
            answer = client.chat.completions.create(model="default", messages=MESSAGES)
            chunks.close()  # the parent's: nothing happens to it
            os._exit(0 if answer.choices[0].message.content == ANSWER else 1)
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices).endswith("today?")
    assert engine.status().starts == 1
