"""Faults made on real vLLM while requests are in flight, and what came of it. For tests and a benchmark.

A fault is a function that breaks something of a ready engine. ``suffer`` has requests in flight, lets the fault happen,
and counts what the callers saw, what is left, and how soon the next request is answered.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shared_engine import Engine, EngineBusyError, VLLMError
from tests.support.engines import settings_of
from tests.support.processes import all_processes, parent_of, processes_of_group, run_app, wait_gone
from tests.support.waiting import wait_until

HELLO = [{"role": "user", "content": "Hello"}]
TOKENS = 200
WORK: dict[str, Any] = {"max_tokens": TOKENS, "extra_body": {"ignore_eos": True}}
CHATS, STREAMS = 4, 2
LEFT_AFTER_S = 15.0
ANSWER_WITHIN_S = 120.0

Fault = Callable[[Engine], None]


@dataclass(frozen=True)
class Outcome:
    """What became of one fault.

    Attributes:
        answered: requests in flight that were answered all the same, tried again unseen by their callers.
        told: requests that raised one of our errors.
        lost: requests that were neither answered whole nor told why.
        left: processes of the broken engine that were still there LEFT_AFTER_S seconds later.
        files: files of shared memory it left behind.
        next_answer_s: from the fault until a request sent after it was answered.
        errors: what the callers were told.
    """

    answered: int
    told: int
    lost: int
    left: int
    files: int
    next_answer_s: float
    errors: tuple[str, ...] = ()


def suffer(engine: Engine, fault: Fault) -> Outcome:
    """Let ``fault`` happen to a ready engine with CHATS + STREAMS requests in flight."""
    engine.warmup()
    before = all_processes(engine)
    files = shared_memory_of(engine)
    with ThreadPoolExecutor(CHATS + STREAMS + 1) as pool:
        # A worker that stands still: the requests are in flight for certain, and none has had a byte.
        os.kill(process_named(engine, "Worker"), signal.SIGSTOP)
        requests = [pool.submit(chat, engine) for _ in range(CHATS)] + [
            pool.submit(stream, engine) for _ in range(STREAMS)
        ]
        wait_until(lambda: connections_of(engine) >= len(requests), 30, "the requests to reach the server")
        began = time.monotonic()
        fault(engine)
        following = pool.submit(chat, engine)
        outcomes = [result_of(request) for request in requests]
        assert following.result(ANSWER_WITHIN_S)
        next_answer_s = time.monotonic() - began
    broken = [pid for pid in before if pid not in all_processes(engine)]
    left = wait_gone(broken, LEFT_AFTER_S)
    return Outcome(
        answered=outcomes.count("answered"),
        told=sum(outcome.startswith("told") for outcome in outcomes),
        lost=outcomes.count("lost"),
        left=left,
        files=sum(os.path.exists(path) for path in files),
        next_answer_s=next_answer_s,
        errors=tuple(sorted({outcome for outcome in outcomes if outcome.startswith("told")})),
    )


def chat(engine: Engine) -> bool:
    """True for a whole answer."""
    result = engine.chat(HELLO, **WORK)
    return result.usage.completion_tokens == TOKENS


def stream(engine: Engine) -> bool:
    chunks = list(engine.stream_chat(HELLO, **WORK))
    usage = chunks[-1].usage
    return usage is not None and usage.completion_tokens == TOKENS


def result_of(request: Future[bool]) -> str:
    try:
        return "answered" if request.result(ANSWER_WITHIN_S) else "lost"
    except VLLMError as exc:
        return f"told {type(exc).__name__}: {str(exc).splitlines()[0]}"
    except TimeoutError:
        return "lost"


# ---- the faults


def kill(name: str) -> Fault:
    def fault(engine: Engine) -> None:
        os.kill(process_named(engine, name), signal.SIGKILL)

    return fault


def stop(name: str) -> Fault:
    def fault(engine: Engine) -> None:
        os.kill(process_named(engine, name), signal.SIGSTOP)

    return fault


FAULTS: dict[str, Fault] = {
    "SIGKILL of the API server": kill("APIServer"),
    "SIGKILL of EngineCore": kill("EngineCore"),
    "SIGKILL of the worker": kill("Worker"),
    "SIGKILL of the launcher": kill("launcher"),
    "SIGKILL of the supervisor": kill("supervisor"),
    "SIGSTOP of the worker": stop("Worker"),
    "SIGSTOP of EngineCore": stop("EngineCore"),
    "SIGSTOP of the API server": stop("APIServer"),
}
HANGS = tuple(name for name in FAULTS if name.startswith("SIGSTOP"))


# ---- races and crowds


def start_from_twenty_processes(engine: Engine) -> tuple[int, int]:
    """Twenty processes want the engine at once: (how many were answered, how often it was started)."""
    out, err = run_app("twenty_processes", settings_of(engine)).communicate(timeout=ANSWER_WITHIN_S)
    assert out, err
    return json.loads(out).count(0), engine.status().starts


def race_an_eviction(engine: Engine, delay_s: float) -> bool:
    """Ask for an eviction, and send a request ``delay_s`` later: True if it was answered."""
    engine.warmup()
    with ThreadPoolExecutor(2) as pool:
        eviction = pool.submit(evict, engine)
        began = time.monotonic()
        wait_until(lambda: time.monotonic() - began >= delay_s, 5, "the moment")
        answer = pool.submit(engine.chat, HELLO, max_tokens=8)
        eviction.result(60)
        return bool(answer.result(ANSWER_WITHIN_S).text)


def evict(engine: Engine) -> None:
    """Evict, unless the request came first."""
    with contextlib.suppress(EngineBusyError):
        engine.evict(timeout=0.0)


# ---- what is there


def process_named(engine: Engine, name: str) -> int:
    """``supervisor``, ``launcher``, or a process of the server by the name vLLM gives it."""
    status = engine.status()
    assert status.supervisor_pid and status.server_pid
    if name == "supervisor":
        return status.supervisor_pid
    if name == "APIServer":
        return status.server_pid
    if name == "launcher":
        return parent_of(status.server_pid)
    return next(pid for pid in processes_of_group(status.server_pid) if name in title_of(pid))


def title_of(pid: int) -> str:
    """What a process calls itself: vLLM sets it."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""


def connections_of(engine: Engine) -> int:
    """Connections that the server has accepted: entries of its socket's path in the kernel's table but the listener."""
    socket = engine.status().socket
    table = Path("/proc/net/unix").read_text().splitlines()
    return max(0, sum(line.endswith(f" {socket}") for line in table) - 1)


def shared_memory_of(engine: Engine) -> set[str]:
    record = json.loads((Path(engine.status().log_file or "").parent / "record.json").read_text())
    return set(record["shared_files"])
