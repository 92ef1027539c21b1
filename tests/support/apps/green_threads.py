"""An app under gevent or eventlet, and what its own asyncio does beside ours; prints an outcome for each by name.

Arguments: gevent or eventlet; the settings of an engine whose answers take about 0.2 s, as JSON.
"""

import sys

if sys.argv[1] == "gevent":
    from gevent import monkey

    monkey.patch_all()
else:
    import eventlet

    eventlet.monkey_patch()

import asyncio
import json
import os
import threading
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

from langchain_vllm_local import ChatVLLM
from llama_index_vllm_local import VLLM
from shared_engine import Engine
from shared_engine.request.io_loop import run_sync
from shared_engine.request.threads import in_a_thread

settings = json.loads(sys.argv[2])
engine = Engine(**settings)
HELLO = [{"role": "user", "content": "Hello"}]
ended: list[str] = []


def greenlet(work: Callable[[], Any]) -> Callable[[], Any]:
    """Begin it beside this one; what is returned waits for its result."""
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(outcome(work)))
    thread.start()

    def result() -> Any:
        thread.join()
        return results[0]

    return result


def within(seconds: float, work: Callable[[], object]) -> str:
    """As both kinds end what takes too long: by an exception in the middle of it."""
    if sys.argv[1] == "gevent":
        import gevent

        timeout: Any = gevent.Timeout
    else:
        timeout = eventlet.Timeout
    try:
        with timeout(seconds):
            work()
    except timeout:
        return "left"
    return "ended"


async def numbers() -> AsyncIterator[int]:
    """Ends with the loop in which it began."""
    try:
        for number in range(1000):
            yield number
            await asyncio.sleep(0.001)
    finally:
        ended.append(type(asyncio.get_running_loop()).__name__)


kept: list[AsyncIterator[int]] = []


async def own_work() -> str:
    """What another library does with asyncio: timers, tasks, generators, threads."""
    loop = asyncio.get_running_loop()
    source = numbers()
    kept.append(source)
    await anext(source)
    for _ in range(20):
        await asyncio.gather(asyncio.sleep(0.005), asyncio.to_thread(time.sleep, 0.001))
        assert asyncio.get_running_loop() is loop
    return "done"


def beside_requests() -> list[str]:
    waiting = [greenlet(lambda: engine.chat(HELLO).text) for _ in range(4)]
    own = [asyncio.run(own_work()) for _ in range(3)]
    assert len(ended) == 3, "each generator ends with its own loop"
    return sorted({*own, *(each() for each in waiting)})


async def request_in_a_coroutine() -> str:
    """It stops its loop, as any sync call does there, and nothing else."""
    ticking = asyncio.create_task(own_work())
    text = engine.chat(HELLO).text
    assert await ticking == "done"
    return text + (await engine.achat(HELLO)).text


def others_go_on() -> bool:
    """While ten requests are waited for, another greenlet has its turn again and again."""
    moments: list[float] = []
    is_over: list[bool] = []

    def tick() -> None:
        while not is_over:
            moments.append(time.monotonic())
            time.sleep(0.005)

    ticks = greenlet(tick)
    for wait in [greenlet(lambda: engine.chat(HELLO).text) for _ in range(10)]:
        wait()
    is_over.append(True)
    ticks()
    return len(moments) > 10


def in_another_kernel_thread() -> str:
    if sys.argv[1] == "gevent":
        import gevent

        return str(gevent.get_hub().threadpool.apply(lambda: engine.chat(HELLO).text))
    from eventlet import tpool

    return str(tpool.execute(lambda: engine.chat(HELLO).text))


def in_a_forked_child() -> list[int | str]:
    """While a request of the parent's is in flight, whose answer is for the parent alone."""
    waiting = greenlet(lambda: engine.chat(HELLO).text)
    time.sleep(0.05)
    child = os.fork()
    if child == 0:
        try:
            asked = engine.chat(HELLO).text == asyncio.run(engine.achat(HELLO)).text
            os._exit(0 if asked else 1)
        except BaseException:
            os._exit(2)
    text = waiting()
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), text]


def beside_threads_that_begin() -> list[str]:
    """Others have their turn also while a thread begins, in the middle of our loop's work."""

    def own() -> str:
        for _ in range(100):
            assert asyncio._get_running_loop() is None
            time.sleep(0)
        return "done"

    async def ours() -> None:
        await in_a_thread(lambda: time.sleep(0))
        await asyncio.gather(*(asyncio.to_thread(time.sleep, 0.001) for _ in range(5)))

    waiting = [greenlet(own) for _ in range(5)]
    for _ in range(20):
        run_sync(ours())
    return [each() for each in waiting]


def first_of_a_stream() -> str:
    return next(chunk.text for chunk in engine.stream_chat(HELLO) if chunk.text)


PARTS: dict[str, Callable[[], Any]] = {
    "before": lambda: asyncio.run(own_work()),
    "chat": lambda: engine.chat(HELLO).text,
    "after": lambda: asyncio.run(own_work()),
    "mark": lambda: asyncio._get_running_loop() is None,
    "kernel thread": in_another_kernel_thread,
    "achat": lambda: asyncio.run(engine.achat(HELLO)).text,
    "coroutine": lambda: asyncio.run(request_in_a_coroutine()),
    "stream": lambda: "".join(chunk.text for chunk in engine.stream_chat(HELLO)),
    "part of a stream": first_of_a_stream,
    "batch": lambda: sorted({each.text for each in engine.chat_batch([HELLO] * 9)}),
    "LangChain": lambda: sorted({each.text for each in ChatVLLM(**settings).batch(["Hello"] * 9)}),
    "LlamaIndex": lambda: sorted({each.text for each in VLLM(**settings).complete_batch(["Hello"] * 9)}),
    "timeout": lambda: within(0.1, lambda: engine.chat(HELLO)),
    "fork": in_a_forked_child,
    "others": others_go_on,
    "threads": beside_threads_that_begin,
}


def outcome(part: Callable[[], Any]) -> Any:
    try:
        return part()
    except BaseException as exc:
        return f"{type(exc).__name__}: {exc}"


told = {name: outcome(part) for name, part in PARTS.items()}
ended.clear()
kept.clear()
told["beside"] = outcome(beside_requests)
print(json.dumps(told), flush=True)
