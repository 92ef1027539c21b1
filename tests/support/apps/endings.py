"""Apps that end, fail or are interrupted while they use an engine, each in its own way: the second argument names it.

No module of ours is imported at the top: one app must be running before that.
"""

from __future__ import annotations

import asyncio
import atexit
import json
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from shared_engine import Engine, GenerationChunk

HELLO = [{"role": "user", "content": "Hello"}]
SHORT: dict[str, Any] = {"max_tokens": 4, "temperature": 0}
LONG: dict[str, Any] = {"max_tokens": 400, "extra_body": {"ignore_eos": True}}

engine: Engine
# Read half, and held until the interpreter drops them.
stream: Iterator[GenerationChunk]
async_stream: AsyncIterator[GenerationChunk]
loops: list[asyncio.AbstractEventLoop]


def chat() -> None:
    assert engine.chat(HELLO, **SHORT).text


def read_half_a_stream() -> None:
    global stream
    stream = engine.stream_chat(HELLO, **LONG)
    next(stream)


async def read_half_an_async_stream() -> None:
    global async_stream
    async_stream = engine.astream_chat(HELLO, **LONG)
    await anext(async_stream)


def chat_in_a_daemon_thread() -> None:
    def chats() -> None:
        while True:
            engine.chat(HELLO, **LONG)

    threading.Thread(target=chats, daemon=True).start()
    while not engine.metrics()["num_requests_running"]:
        pass


def last() -> None:
    print(engine.chat(HELLO, **SHORT).text)
    print("".join(chunk.text for chunk in engine.stream_chat(HELLO, **SHORT)))
    print(asyncio.run(engine.achat(HELLO, **SHORT)).text)


def loop_that_has_chatted() -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    loop.run_until_complete(engine.achat(HELLO, **SHORT))
    return loop


# ---- apps that end


def async_chat() -> None:
    asyncio.run(engine.achat(HELLO, **SHORT))


def stream_never_read() -> None:
    global stream
    stream = engine.stream_chat(HELLO, **LONG)


def async_stream_half_read() -> None:
    asyncio.run(read_half_an_async_stream())


def loop_closed_without_shutdown_asyncgens() -> None:
    loop_that_has_chatted().close()


def client_of_a_closed_loop_dropped() -> None:
    for _ in range(2):
        loop_that_has_chatted().close()


def loops_never_closed() -> None:
    global loops
    loops = [loop_that_has_chatted() for _ in range(2)]


def loop_closed_with_a_stream_half_read() -> None:
    loop = asyncio.new_event_loop()
    loop.run_until_complete(read_half_an_async_stream())
    loop.close()


def sys_exit_with_a_daemon_thread_in_a_chat() -> None:
    chat_in_a_daemon_thread()
    sys.exit(3)


def thread_that_still_finishes_a_chat() -> None:
    def chats() -> None:
        print(engine.chat(HELLO, **LONG).finish_reason == "length")
        print(engine.chat(HELLO, **SHORT).text)

    threading.Thread(target=chats).start()
    sys.exit(3)


def atexit_after_first_use() -> None:
    chat()
    atexit.register(last)


def atexit_never_used_before() -> None:
    atexit.register(last)


def no_thread_can_be_started() -> None:
    from shared_engine import EngineError

    def start(self: threading.Thread) -> None:
        raise RuntimeError("can not start new thread")

    threading.Thread.start = start  # type: ignore[method-assign]
    try:
        chat()
    except EngineError as exc:
        print(exc.message)


def start_in_atexit() -> None:
    from shared_engine import Engine, EngineError

    def starts() -> None:
        try:
            Engine(**json.loads(sys.argv[1]), seed=90909, start_timeout_s=0.5).chat(HELLO)
        except EngineError as exc:
            print(type(exc).__name__)

    atexit.register(starts)


def start_in_atexit_after_first_use() -> None:
    chat()
    start_in_atexit()


# ---- apps that fail


def fail_in_a_stream() -> None:
    read_half_a_stream()
    raise ValueError("no")


def fail_in_an_async_stream() -> None:
    async def main() -> None:
        await read_half_an_async_stream()
        raise ValueError("no")

    asyncio.run(main())


def fail_with_a_daemon_thread_in_a_chat() -> None:
    chat_in_a_daemon_thread()
    raise ValueError("no")


# ---- apps that go on until they are interrupted


def chat_for_ever() -> None:
    while True:
        engine.chat(HELLO, **LONG)


def stream_for_ever() -> None:
    while True:
        for _ in engine.stream_chat(HELLO, **LONG):
            pass


def async_chat_for_ever() -> None:
    async def main() -> None:
        while True:
            await engine.achat(HELLO, **LONG)

    asyncio.run(main())


def batches_for_ever() -> None:
    while True:
        engine.chat_batch([HELLO] * 4, **LONG)


def run(app: Callable[[], None]) -> None:
    global engine
    if app is atexit_before_the_import:
        atexit.register(last)
        app = chat
    from shared_engine import Engine

    engine = Engine(**json.loads(sys.argv[1]))
    app()


def atexit_before_the_import() -> None:
    """See ``run``."""


run(globals()[sys.argv[2]])
