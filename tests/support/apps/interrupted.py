"""Ctrl-C at every moment of one way to ask: the first argument names it. Prints what was seen as JSON.

The server, in a thread of this process, never answers. Sync ways are interrupted at each line that the main thread runs
of our code and of what waits in it, then while it waits; asynchronous ones by SIGINT after one delay after the other.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import importlib
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Coroutine
from typing import Any

from aiohttp import web
from pydantic_core import PydanticSerializationError

from tests.support.paths import REPOSITORY
from tests.support.remote_server import running_server
from tests.support.waiting import wait_until

HELLO = [{"role": "user", "content": "Hello"}]
COUNT = 4
WAITING_S, AGAIN_S = 0.3, 3.0
DELAYS_S = [0.0, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128, 0.256]
STEP = int(sys.argv[2])
OURS = tuple(str(REPOSITORY / name) for name in ("shared_engine", "langchain_vllm_local", "llama_index_vllm_local"))
# Not threading.py: between two of its lines a Condition has no lock, which it then releases.
TRACED = (*OURS, str(concurrent.futures.__file__).rpartition("/")[0], asyncio.base_events.__file__)

url = ""
in_flight = 0


async def never_answers(_: web.Request) -> web.StreamResponse:
    global in_flight
    in_flight += 1
    try:
        await asyncio.Event().wait()
    finally:
        in_flight -= 1
    raise AssertionError


# ---- the ways


def engine() -> Any:
    from shared_engine import Engine

    return Engine(base_url=url, model="served")


def langchain(kind: str = "ChatVLLM") -> Any:
    import langchain_vllm_local

    return getattr(langchain_vllm_local, kind)(base_url=url, model="served")


def llama_index(kind: str = "VLLM") -> Any:
    import llama_index_vllm_local

    return getattr(llama_index_vllm_local, kind)(base_url=url, model="served")


def human() -> list[Any]:
    from langchain_core.messages import HumanMessage

    return [HumanMessage("Hello")]


def messages() -> list[Any]:
    from llama_index.core.llms import ChatMessage

    return [ChatMessage("Hello")]


def documents() -> list[Any]:
    from langchain_core.documents import Document

    return [Document("a"), Document("b")]


SYNC: dict[str, Callable[[], Any]] = {
    "engine.chat": lambda: engine().chat(HELLO),
    "engine.stream_chat": lambda: list(engine().stream_chat(HELLO)),
    "engine.generate_batch": lambda: engine().generate_batch(["Hello"] * COUNT, max_tokens=8),
    "engine.embed": lambda: engine().embed(["Hello"] * COUNT, batch_size=1),
    "engine.rerank": lambda: engine().rerank("Hello", ["a", "b"]),
    "langchain.invoke": lambda: langchain().invoke("Hello"),
    "langchain.stream": lambda: list(langchain().stream("Hello")),
    "langchain.batch": lambda: langchain().batch(["Hello"] * COUNT),
    "langchain.generate": lambda: langchain().generate([human()] * COUNT),
    "langchain.text_batch": lambda: langchain("VLLM").batch(["Hello"] * COUNT, return_exceptions=True),
    "langchain.embed": lambda: langchain("VLLMEmbeddings").embed_documents(["Hello"] * COUNT),
    "langchain.rerank": lambda: langchain("VLLMRerank").compress_documents(documents(), "Hello"),
    "llama_index.chat": lambda: llama_index().chat(messages()),
    "llama_index.stream_chat": lambda: list(llama_index().stream_chat(messages())),
    "llama_index.complete_batch": lambda: llama_index().complete_batch(["Hello"] * COUNT),
    "llama_index.chat_batch": lambda: llama_index().chat_batch([messages()] * COUNT),
    "llama_index.embed": lambda: llama_index("VLLMEmbedding").get_text_embedding_batch(["Hello"] * COUNT),
}


async def all_of(stream: Any) -> list[Any]:
    return [item async for item in stream]


async def llama_index_stream() -> None:
    await all_of(await llama_index().astream_chat(messages()))


ASYNC: dict[str, Callable[[], Coroutine[Any, Any, Any]]] = {
    "engine.achat": lambda: engine().achat(HELLO),
    "engine.achat_batch": lambda: engine().achat_batch([HELLO] * COUNT),
    "engine.astream_chat": lambda: all_of(engine().astream_chat(HELLO)),
    "engine.aembed": lambda: engine().aembed(["Hello"] * COUNT, batch_size=1),
    "langchain.ainvoke": lambda: langchain().ainvoke("Hello"),
    "langchain.abatch": lambda: langchain().abatch(["Hello"] * COUNT),
    "langchain.agenerate": lambda: langchain().agenerate([human()] * COUNT),
    "langchain.astream": lambda: all_of(langchain().astream("Hello")),
    "llama_index.achat": lambda: llama_index().achat(messages()),
    "llama_index.achat_batch": lambda: llama_index().achat_batch([messages()] * COUNT),
    "llama_index.astream_chat": llama_index_stream,
}


# ---- the interruptions


class Interruption:
    """Raises KeyboardInterrupt at the ``number``th line, or by SIGINT where the thread waits before that.

    SIGINT comes again if need be, as a user presses the keys: where it meets a weak reference's callback, Python drops
    it.
    """

    def __init__(self, number: int) -> None:
        self._left = number
        self._is_back = threading.Event()
        self._signals = threading.Thread(target=self._signal)
        self.at: str | None = None
        self.began = 0.0

    def _signal(self) -> None:
        wait_s = WAITING_S
        while not self._is_back.wait(wait_s):
            wait_s = AGAIN_S
            self.at, self.began = "waiting", time.monotonic()
            os.kill(os.getpid(), signal.SIGINT)

    def _trace(self, frame: Any, event: str, _: Any) -> Any:
        code = frame.f_code
        if not code.co_filename.startswith(TRACED):
            return None
        if code.co_filename == asyncio.base_events.__file__ and code.co_name.startswith("__"):
            return None  # a loop that is half made can't be dropped without noise, whoever made it
        if event == "call" and _is_dropped(frame):
            return None  # Python says what is raised there, and goes on
        if event == "line" and self.at is None:
            self._left -= 1
            if self._left < 0:
                self.at = f"{frame.f_code.co_filename}:{frame.f_lineno}"
                self.began = time.monotonic()
                raise KeyboardInterrupt
        return self._trace

    def __enter__(self) -> Interruption:
        self._signals.start()
        sys.settrace(self._trace)
        return self

    def __exit__(self, *_: object) -> None:
        self._is_back.set()
        sys.settrace(None)
        self._signals.join()


def _is_dropped(frame: Any) -> bool:
    """Whether this is on behalf of an object that nobody has any more."""
    while frame is not None and frame.f_code.co_name != "__del__":
        frame = frame.f_back
    return frame is not None


def sync_moments(ask: Callable[[], Any]) -> list[tuple[str, float]]:
    """Where it was interrupted, and the seconds until it was back."""
    seen: list[tuple[str, float]] = []
    while not seen or seen[-1][0] != "waiting":
        interruption = Interruption(len(seen) * STEP)
        try:
            with interruption:
                ask()
            raise AssertionError("answered")
        except (KeyboardInterrupt, PydanticSerializationError) as exc:
            # pydantic makes an error of its own of all that a serializer raises.
            if "KeyboardInterrupt" not in repr(exc):
                raise
            assert interruption.at is not None
            seen.append((interruption.at, time.monotonic() - interruption.began))
        wait_until(lambda: in_flight == 0, 2, f"the requests to end, interrupted at {interruption.at}")
    return seen


def async_moments(ask: Callable[[], Coroutine[Any, Any, Any]]) -> list[tuple[str, float]]:
    seen = []
    for delay_s in DELAYS_S:
        began = [0.0]

        def interrupt(began: list[float] = began) -> None:
            began[0] = time.monotonic()
            os.kill(os.getpid(), signal.SIGINT)

        async def main(delay_s: float = delay_s, interrupt: Callable[[], None] = interrupt) -> None:
            threading.Timer(delay_s, interrupt).start()
            await ask()

        try:
            asyncio.run(main())
            raise AssertionError("answered")
        except KeyboardInterrupt:
            seen.append((f"{delay_s:g} s", time.monotonic() - began[0]))
        wait_until(lambda: in_flight == 0, 2, f"the requests to end, interrupted after {delay_s:g} s")
    return seen


def main() -> None:
    global url
    signal.signal(signal.SIGINT, signal.default_int_handler)
    name = sys.argv[1]
    package = importlib.import_module(
        f"{name.partition('.')[0]}_vllm_local".replace("engine_vllm_local", "shared_engine")
    )
    for public in package.__all__:
        getattr(package, public)  # imports what it needs
    if name.startswith("llama_index"):
        messages()
    with running_server() as server:
        server.handler = never_answers
        url = server.url
        seen = sync_moments(SYNC[name]) if name in SYNC else async_moments(ASYNC[name])
    print(json.dumps(max(seen, key=lambda moment: moment[1])), len(seen))


main()
