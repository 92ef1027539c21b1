"""Where apps put an engine: forked workers, notebooks, web servers, threads and loops of all kinds, and their ends."""

from __future__ import annotations

import asyncio
import gc
import http.client
import json
import multiprocessing
import os
import signal
import socket
import subprocess
import threading
import traceback
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from shared_engine import Engine, EngineState, GenerationResult
from shared_engine.request.io_loop import io_loop
from tests.support.processes import run_code
from tests.support.waiting import wait_until

pytestmark = [
    pytest.mark.timeout(120),
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning"),
]

HELLO = [{"role": "user", "content": "Hello"}]
SHORT: dict[str, Any] = {"max_tokens": 4, "temperature": 0}
LONG: dict[str, Any] = {"max_tokens": 400, "extra_body": {"ignore_eos": True}}
APP_S = 30.0
# vLLM on two cores may leave no one else the processor until the last token is done (benchmarks/NOTES.md).
ATTEMPTS = 20

APP = f"""
import asyncio, atexit, json, os, sys, threading
HELLO, SHORT, LONG = {HELLO!r}, {SHORT!r}, {LONG!r}
"""
ENGINE = """
from shared_engine import Engine, EngineError
engine = Engine(**json.loads(sys.argv[1]))
"""


@pytest.fixture
def engine(tiny_chat: dict[str, Any]) -> Iterator[Engine]:
    """The shared engine, ready and quiet; the test must leave it so."""
    engine = Engine(**tiny_chat)
    engine.warmup()
    wait_quiet(engine)
    yield engine
    wait_quiet(engine)


def running(engine: Engine) -> float:
    return engine.stats().get("num_requests_running", 0)


def wait_quiet(engine: Engine) -> None:
    wait_until(lambda: running(engine) == 0, 30, "all requests to end")


def is_cut_short(engine: Engine, leave: Callable[[], object]) -> bool:
    """True if vLLM ends a request of LONG that ``leave`` begins and abandons, before its last token."""
    wait_quiet(engine)
    before = engine.stats()["generation_tokens"]
    leave()
    wait_quiet(engine)
    return bool(engine.stats()["generation_tokens"] - before < LONG["max_tokens"])


def answer_in_flight(engine: Engine) -> Future[GenerationResult]:
    """An unstreamed LONG answer, under way on the background loop: cancel it to leave it."""
    answer = asyncio.run_coroutine_threadsafe(engine.achat(HELLO, **LONG), io_loop())
    wait_until(lambda: running(engine) > 0 or answer.done(), 30, "the request to run")
    return answer


def use(engine: Engine) -> str:
    """Sync, then async on a loop of its own; in a process pool too."""
    text = engine.chat(HELLO, **SHORT).text
    assert asyncio.run(engine.achat(HELLO, **SHORT)).text == text
    return text


def outcome(code: str, tiny_chat: dict[str, Any]) -> tuple[int, str, str]:
    """Exit status, stdout and stderr of an app."""
    return end_of(run_code(APP + code, json.dumps(tiny_chat)), APP_S)


def end_of(app: subprocess.Popen[str], timeout_s: float) -> tuple[int, str, str]:
    """As ``outcome``; an app that hangs is killed, and its status tells."""
    try:
        out, err = app.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        app.kill()
        out, err = app.communicate()
    return app.returncode, out, err


# ---- forks


@contextmanager
def forked(work: Callable[[], object]) -> Iterator[int]:
    """A forked child that does ``work``, lives on until the block ends, and must not have failed."""
    done_r, done_w = os.pipe()
    leave_r, leave_w = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(leave_w)
        try:
            work()
            os.write(done_w, b"1")
        except BaseException:
            traceback.print_exc()
            os.write(done_w, b"0")
        os.read(leave_r, 1)
        os._exit(0)
    os.close(leave_r)
    try:
        os.set_blocking(done_r, False)
        said: list[bytes] = []
        wait_until(lambda: said or read_into(said, done_r), 30, "the forked child")
        assert said == [b"1"]
        yield child
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        for fd in (done_r, done_w, leave_w):
            os.close(fd)


def read_into(said: list[bytes], fd: int) -> bool:
    try:
        said.append(os.read(fd, 1))
    except BlockingIOError:
        return False
    return True


WORKERS = """
leave = threading.Event()
{before}
children = []
for ending in ("sys.exit", "os._exit", "falls off the end") * 2:
    child = os.fork()
    if child == 0:
        assert engine.chat(HELLO, **SHORT).text == "Hello! How"
        assert asyncio.run(engine.achat(HELLO, **SHORT)).text == "Hello! How"
        assert [chunk.text for chunk in engine.stream_chat(HELLO, **SHORT)]
        if ending == "sys.exit":
            sys.exit(0)
        if ending == "os._exit":
            os._exit(0)
        break
    children.append(child)
else:
    print([os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children], len(children))
    leave.set()
    {after}
    print(engine.chat(HELLO, **SHORT).text, asyncio.run(engine.achat(HELLO, **SHORT)).text)
"""
BUSY_PARENT = """
assert engine.chat(HELLO, **SHORT).text == asyncio.run(engine.achat(HELLO, **SHORT)).text == "Hello! How"
count = 0
def work():
    global count
    while not leave.is_set():
        assert engine.chat(HELLO, **SHORT).text == "Hello! How"
        count += 1
thread = threading.Thread(target=work)
thread.start()
"""


@pytest.mark.parametrize(
    ("before", "after"),
    [("", ""), (BUSY_PARENT, "thread.join(); assert count")],
    ids=["constructed only", "used and in use"],
)
def test_workers_of_a_preloaded_app_each_use_it_and_so_does_the_parent(
    tiny_chat: dict[str, Any], engine: Engine, before: str, after: str
) -> None:
    status, out, err = outcome(ENGINE + WORKERS.format(before=before, after=after), tiny_chat)
    assert (status, out, err) == (0, "[0, 0, 0, 0, 0, 0] 6\nHello! How Hello! How\n", "")


def test_a_child_that_never_uses_it_does_not_keep_the_parents_lease(engine: Engine) -> None:
    answer = answer_in_flight(engine)
    with forked(lambda: None):
        assert answer.result(timeout=30).finish_reason == "length", "the parent's answer still comes"
        engine.evict(timeout=5)
        assert engine.status().state is EngineState.STANDBY
    assert use(engine)


def test_a_child_keeps_no_connection_of_the_parent(engine: Engine) -> None:
    use(engine)
    server_socket = engine.status().socket
    assert server_socket is not None
    assert connections_to(server_socket) > 0

    def see() -> None:
        gc.collect()
        assert connections_to(server_socket) == 0

    answer = answer_in_flight(engine)
    with forked(see):
        assert answer.result(timeout=30).finish_reason == "length"


def connections_to(server_socket: str) -> int:
    """Open descriptors of this process that are connected to a Unix socket."""
    count = 0
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError), socket.socket(fileno=os.dup(int(name))) as connection:
            count += connection.getpeername() == server_socket
    return count


def test_a_server_sees_the_parent_hang_up_while_a_child_lives() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(10)
        engine = Engine(base_url=f"http://127.0.0.1:{listener.getsockname()[1]}", model="m", max_retries=0)
        answer = asyncio.run_coroutine_threadsafe(engine.achat(HELLO), io_loop())
        connection, _ = listener.accept()
        with connection:
            connection.settimeout(10)
            while b"Hello" not in connection.recv(1 << 16):
                pass
            with forked(gc.collect):
                answer.cancel()
                assert connection.recv(1 << 16) == b""


def test_a_child_that_collects_garbage_leaves_the_parents_open_connections_alone(engine: Engine) -> None:
    text = use(engine)

    def collect_and_use() -> None:
        gc.collect()
        assert use(engine) == text

    stream = engine.stream_chat(HELLO, max_tokens=64, extra_body={"ignore_eos": True})
    next(stream)
    with forked(collect_and_use):
        assert list(stream)[-1].usage is not None
        assert use(engine) == text


def test_a_stream_of_the_parent_ends_with_an_error_in_the_child_and_goes_on_in_the_parent(engine: Engine) -> None:
    stream = engine.stream_chat(HELLO, max_tokens=64, extra_body={"ignore_eos": True})
    next(stream)

    def read_on() -> None:
        with pytest.raises(ConnectionError, match="forked"):
            list(stream)

    with forked(read_on):
        assert list(stream)[-1].usage is not None


FORK_DURING_FIRST_USE = """
import shared_engine.engine as module, signal
LocalEndpoint, entered = module.LocalEndpoint, threading.Event()
def never_made(settings):
    entered.set()
    threading.Event().wait()
module.LocalEndpoint = never_made
threading.Thread(target=engine.status, daemon=True).start()
entered.wait()
child = os.fork()
if child == 0:
    signal.alarm(5)
    module.LocalEndpoint = LocalEndpoint
    assert asyncio.run(Engine(engine.settings).achat(HELLO, **SHORT)).text
    os._exit(0)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_a_child_forked_during_another_threads_first_use_does_not_hang(
    tiny_chat: dict[str, Any], engine: Engine
) -> None:
    assert outcome(ENGINE + FORK_DURING_FIRST_USE, tiny_chat) == (0, "0\n", "")


def test_a_forked_pool_after_use(engine: Engine) -> None:
    text = use(engine)
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.map_async(use, [engine] * 4).get(timeout=30) == [text] * 4
    assert use(engine) == text


def test_a_spawned_pool_gets_it_pickled(engine: Engine) -> None:
    text = use(engine)
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        assert list(pool.map(use, [engine] * 3, timeout=60)) == [text] * 3


# ---- notebooks


@contextmanager
def kernel(folder: Path) -> Iterator[tuple[Any, Any]]:
    """A Jupyter kernel: its manager and a client."""
    with pytest.MonkeyPatch.context() as patch:
        for variable in ("JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR", "IPYTHONDIR"):
            patch.setenv(variable, str(folder))
        from jupyter_client.manager import start_new_kernel

        manager, client = start_new_kernel(kernel_name="python3")
        try:
            yield manager, client
        finally:
            client.stop_channels()
            manager.shutdown_kernel(now=True)


def cell(client: Any, code: str) -> tuple[str, str]:
    """The name of the error a cell ended with, if any, and all that it wrote."""
    written: list[str] = []

    def hear(message: dict[str, Any]) -> None:
        written.append(message["content"].get("text", ""))

    reply = client.execute_interactive(code, timeout=30, output_hook=hear)["content"]
    assert reply["status"] != "aborted", f"never run: {code}"
    return reply.get("ename", ""), "".join(written)


def test_a_notebook_waits_awaits_streams_and_can_be_interrupted(
    tiny_chat: dict[str, Any], engine: Engine, tmp_path: Path
) -> None:
    with kernel(tmp_path) as (manager, client):
        code = (APP + ENGINE).replace("sys.argv[1]", repr(json.dumps(tiny_chat)))
        assert cell(client, code) == ("", "")
        answer = ("", "Hello! How\n")
        assert cell(client, "print(engine.chat(HELLO, **SHORT).text)") == answer
        assert cell(client, "print((await engine.achat(HELLO, **SHORT)).text)") == answer
        assert cell(client, "print(''.join(c.text for c in engine.stream_chat(HELLO, **SHORT)))") == answer
        assert cell(client, "print(''.join([c.text async for c in engine.astream_chat(HELLO, **SHORT)]))") == answer

        for endless in (
            "while True: engine.chat(HELLO, **LONG)",
            "while True: await engine.achat(HELLO, **LONG)",
            "while True: list(engine.stream_chat(HELLO, **LONG))",
        ):
            # Jupyter aborts what arrives just after the reply of a cell that failed, unless it is told not to.
            asked = client.execute(endless, stop_on_error=False)
            wait_until(lambda: running(engine) > 0, 30, "the request to run")
            manager.interrupt_kernel()
            reply = client.get_shell_msg(timeout=30)
            assert reply["parent_header"]["msg_id"] == asked
            assert reply["content"]["ename"] in ("KeyboardInterrupt", "CancelledError")
            assert cell(client, "print(engine.chat(HELLO, **SHORT).text)") == answer
            wait_quiet(engine)
        assert cell(client, "print((await engine.achat(HELLO, **SHORT)).text)") == answer


# ---- web servers


@contextmanager
def web_app(engine: Engine) -> Iterator[Callable[[str], http.client.HTTPResponse]]:
    """FastAPI under uvicorn; yields what asks for a path."""
    import uvicorn
    from fastapi import FastAPI
    from fastapi.responses import StreamingResponse

    from langchain_vllm_local import ChatVLLM

    app = FastAPI()
    model = ChatVLLM(**engine.settings.model_dump(exclude_unset=True), **SHORT)

    async def asynchronous() -> Any:
        return (await engine.achat(HELLO, **SHORT)).text

    async def langchain() -> Any:
        return (await model.ainvoke("Hello")).text

    def in_threadpool() -> Any:
        return engine.chat(HELLO, **SHORT).text

    async def sync_in_the_loop() -> Any:  # blocks the server's loop, as any sync call there does, but ends
        return engine.chat(HELLO, **SHORT).text

    async def stream() -> Any:
        async def pieces() -> Any:
            async for chunk in engine.astream_chat(HELLO, **LONG):
                yield chunk.text

        return StreamingResponse(pieces())

    for handler in (asynchronous, langchain, in_threadpool, sync_in_the_loop, stream):
        app.get(f"/{handler.__name__}")(handler)
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", ws="none", lifespan="off"))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()

        def get(path: str) -> http.client.HTTPResponse:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
            connection.request("GET", f"/{path}", headers={"Connection": "close"})
            return connection.getresponse()

        try:
            wait_until(lambda: server.started, 10, "uvicorn")
            yield get
        finally:
            server.should_exit = True
            thread.join(20)
            assert not thread.is_alive()


def test_a_web_app_answers_many_at_once_from_all_kinds_of_handlers(engine: Engine) -> None:
    paths = ["asynchronous", "langchain", "in_threadpool", "sync_in_the_loop"]

    def text_of(path: str) -> tuple[int, str]:
        with get(path) as response:
            return response.status, json.loads(response.read())

    with web_app(engine) as get, ThreadPoolExecutor(16) as pool:
        assert list(pool.map(text_of, paths * 16)) == [(200, "Hello! How")] * 64


def test_a_web_client_that_leaves_a_stream_ends_the_request_in_vllm(engine: Engine) -> None:
    def leave_early() -> None:
        with get("stream") as response:
            assert response.read1(1)

    with web_app(engine) as get:
        assert any(is_cut_short(engine, leave_early) for _ in range(ATTEMPTS))


# ---- threads and loops


def test_loops_that_come_and_go_in_several_threads_are_not_kept(engine: Engine) -> None:
    seen: list[weakref.ref[asyncio.AbstractEventLoop]] = []

    async def several() -> set[str]:
        seen.append(weakref.ref(asyncio.get_running_loop()))
        return {answer.text for answer in await asyncio.gather(*(engine.achat(HELLO, **SHORT) for _ in range(3)))}

    def runs(_: int) -> list[set[str]]:
        return [asyncio.run(several()) for _ in range(4)]

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(runs, range(2))) == [[{"Hello! How"}] * 4] * 2
    asyncio.run(several())
    gc.collect()
    assert len(seen) == 9
    assert sum(each() is not None for each in seen) <= 1, "at most the last loop's client waits for the next loop"


def test_uvloop(engine: Engine) -> None:
    uvloop = pytest.importorskip("uvloop")

    async def main() -> str:
        assert "".join([chunk.text async for chunk in engine.astream_chat(HELLO, **SHORT)]) == "Hello! How"
        return (await engine.achat(HELLO, **SHORT)).text

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert runner.run(main()) == "Hello! How"
        with forked(partial(use, engine)):
            assert runner.run(main()) == "Hello! How"


# ---- the end of the interpreter

STREAM = "stream = engine.stream_chat(HELLO, **LONG)\nnext(stream)\n"
ASYNC_STREAM = (
    "async def main():\n    global stream\n    stream = engine.astream_chat(HELLO, **LONG)\n    await anext(stream)\n"
)
IN_FLIGHT = """
def chat():
    while True:
        engine.chat(HELLO, **LONG)
threading.Thread(target=chat, daemon=True).start()
while not engine.stats()["num_requests_running"]:
    pass
"""
LAST = """
def last():
    print(engine.chat(HELLO, **SHORT).text)
    print("".join(chunk.text for chunk in engine.stream_chat(HELLO, **SHORT)))
    print(asyncio.run(engine.achat(HELLO, **SHORT)).text)
atexit.register(last)
"""
USE = "assert engine.chat(HELLO, **SHORT).text\n"
NEW_LOOP = "loop = asyncio.new_event_loop()\nloop.run_until_complete(engine.achat(HELLO, **SHORT))\n"
TWO_LOOPS = """
loops = [asyncio.new_event_loop() for _ in range(2)]
for loop in loops:
    loop.run_until_complete(engine.achat(HELLO, **SHORT))
"""
ENDS: dict[str, tuple[str, int, str]] = {
    "after a sync chat": (ENGINE + USE, 0, ""),
    "after an async chat": (ENGINE + "asyncio.run(engine.achat(HELLO, **SHORT))", 0, ""),
    "a sync stream half read": (ENGINE + STREAM, 0, ""),
    "a sync stream never read": (ENGINE + "stream = engine.stream_chat(HELLO, **LONG)", 0, ""),
    "an async stream half read": (ENGINE + ASYNC_STREAM + "asyncio.run(main())", 0, ""),
    "a loop closed without shutdown_asyncgens": (ENGINE + NEW_LOOP + "loop.close()", 0, ""),
    "a closed loop's client dropped": (ENGINE + NEW_LOOP + "loop.close()\n" + NEW_LOOP + "loop.close()", 0, ""),
    "loops never closed": (ENGINE + TWO_LOOPS, 0, ""),
    "a loop closed with a stream half read": (
        ENGINE + ASYNC_STREAM + "loop = asyncio.new_event_loop()\nloop.run_until_complete(main())\nloop.close()\n",
        0,
        "",
    ),
    "a daemon thread in a chat": (ENGINE + IN_FLIGHT, 0, ""),
    "a daemon thread in a chat, sys.exit": (ENGINE + IN_FLIGHT + "sys.exit(3)", 3, ""),
    "a thread that still finishes a chat": (
        ENGINE
        + "def chat():\n    print(engine.chat(HELLO, **LONG).finish_reason == 'length')\n"
        + "    print(engine.chat(HELLO, **SHORT).text)\n"
        + "threading.Thread(target=chat).start()\nsys.exit(3)\n",
        3,
        "True\nHello! How\n",
    ),
    "atexit, registered before the import": (LAST + ENGINE + USE, 0, "Hello! How\n" * 3),
    "atexit, registered after first use": (ENGINE + USE + LAST, 0, "Hello! How\n" * 3),
    "atexit, never used before": (ENGINE + LAST, 0, "Hello! How\n" * 3),
    "no thread can be started": (
        ENGINE + "def start(self):\n    raise RuntimeError('can not start new thread')\n"
        "threading.Thread.start = start\n"
        "try:\n    engine.chat(HELLO, **SHORT)\nexcept EngineError as exc:\n    print(exc.message)\n",
        0,
        "no thread could be started for requests that are not asynchronous: can not start new thread\n",
    ),
}


@pytest.mark.parametrize(("code", "status", "out"), ENDS.values(), ids=ENDS.keys())
def test_an_app_ends_without_a_word(
    tiny_chat: dict[str, Any], engine: Engine, code: str, status: int, out: str
) -> None:
    assert outcome(code, tiny_chat) == (status, out, "")


START_IN_ATEXIT = """
def last():
    try:
        Engine(**json.loads(sys.argv[1]), seed=90909, start_timeout_s=0.5).chat(HELLO)
    except EngineError as exc:
        print(type(exc).__name__)
atexit.register(last)
"""


@pytest.mark.parametrize("before", ["", USE], ids=["never used before", "used before"])
def test_a_start_asked_for_in_an_atexit_handler_ends_as_any_other(
    tiny_chat: dict[str, Any], engine: Engine, before: str
) -> None:
    assert outcome(ENGINE + before + START_IN_ATEXIT, tiny_chat) == (0, "EngineStartTimeoutError\n", "")


FAILURES = {
    "in a sync stream": STREAM + "raise ValueError('no')\n",
    "in an async stream": ASYNC_STREAM + "    raise ValueError('no')\nasyncio.run(main())\n",
    "with a daemon thread in a chat": IN_FLIGHT + "raise ValueError('no')\n",
}


@pytest.mark.parametrize("code", FAILURES.values(), ids=FAILURES.keys())
def test_an_app_that_fails_shows_its_own_error_only(tiny_chat: dict[str, Any], engine: Engine, code: str) -> None:
    status, out, err = outcome(ENGINE + code, tiny_chat)
    assert (status, out) == (1, "")
    assert is_one_traceback(err, "ValueError: no"), err


def is_one_traceback(err: str, last_line: str) -> bool:
    start = "Traceback (most recent call last):\n"
    return err.startswith(start) and err.count(start) == 1 and err.endswith(f"\n{last_line}\n")


INTERRUPTED = {
    "in a sync chat": "while True: engine.chat(HELLO, **LONG)",
    "in a sync stream": "while True:\n    for chunk in engine.stream_chat(HELLO, **LONG): pass\n",
    "in an async chat": "async def main():\n    while True: await engine.achat(HELLO, **LONG)\nasyncio.run(main())\n",
    "in a batch": "while True: engine.chat_batch([HELLO] * 4, **LONG)",
}


@pytest.mark.parametrize("code", INTERRUPTED.values(), ids=INTERRUPTED.keys())
def test_ctrl_c_ends_an_app_and_its_request(tiny_chat: dict[str, Any], engine: Engine, code: str) -> None:
    app = run_code(APP + ENGINE + code, json.dumps(tiny_chat))
    try:
        wait_until(lambda: running(engine) > 0, 30, "the request to run")
        app.send_signal(signal.SIGINT)
    finally:
        status, out, err = end_of(app, 10)
    assert (status, out) == (-signal.SIGINT, ""), err
    if "asyncio.run" in code:  # asyncio shows the cancellation it turned into KeyboardInterrupt
        assert err.endswith("\nKeyboardInterrupt\n"), err
    else:
        assert is_one_traceback(err, "KeyboardInterrupt"), err
