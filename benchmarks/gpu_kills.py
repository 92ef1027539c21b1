"""SIGKILL of each process of an engine on a GPU, while a stream runs."""

from __future__ import annotations

import os
import re
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor

from gpu_run import WITHIN_S, Run, ask, engine_of, wait_until
from servers import HELLO

from shared_engine import Engine, VLLMError

# As ``vllm-local status --tree`` names them -> in words. On one GPU EngineCore is the worker.
PROCESSES = {
    "server": "the API server",
    "EngineCore": "EngineCore",
    "Worker": "the worker",
    "launcher": "the launcher",
    "supervisor": "the supervisor",
}


def kills(run: Run) -> None:
    """SIGKILL of each process in turn, while a stream runs."""
    run.use_caches("eager")
    how = run.start_quickly()
    before = run.used()
    with engine_of(run.settings(0.3, enforce_eager=True)) as engine:
        run.seconds(f"cold start ({how}), to the first answer", ask(engine)[0])
        loaded = run.used()
        for name in PROCESSES:
            _kill(run, engine, name, loaded)
    run.back("after shutdown", before)


def _kill(run: Run, engine: Engine, name: str, loaded: int) -> None:
    pid = process_named(engine, name)
    what = f"SIGKILL of {PROCESSES[name]}"
    if pid is None:
        return run.say(what, "there is no such process")
    with ThreadPoolExecutor(1) as pool:
        has_begun = threading.Event()
        streamed = pool.submit(listen, engine, has_begun)
        wait_until(lambda: has_begun.is_set() or streamed.done(), "the first chunk")
        began = time.monotonic()
        os.kill(pid, signal.SIGKILL)
        heard, heard_at = streamed.result(WITHIN_S)
        ask(engine)
        answered_s = time.monotonic() - began
    run.say(f"{what}: the caller in the middle of a stream", f"{heard} after {heard_at - began:.2f} s")
    run.say(f"{what}: the next request", f"answered after {answered_s:.2f} s")
    run.back(f"{what}: ready again, against before the kill", loaded)


def listen(engine: Engine, has_begun: threading.Event) -> tuple[str, float]:
    """Read a long stream; what came of it, and when."""
    try:
        for _ in engine.stream_chat(HELLO, temperature=0, max_tokens=1900, ignore_eos=True):
            has_begun.set()
    except VLLMError as exc:
        return f"{type(exc).__name__}: {number_free(str(exc).splitlines()[0])}", time.monotonic()
    return "the whole answer (the stream had ended before)", time.monotonic()


def number_free(text: str) -> str:
    """Without what differs from run to run; short enough for a table."""
    return re.sub(r"\d{3,}", "N", text)[:160]


def process_named(engine: Engine, name: str) -> int | None:
    """Of PROCESSES."""
    tree = engine.status(processes=True).processes
    return None if tree is None else next((node.pid for node in tree.walk() if node.name.startswith(name)), None)
