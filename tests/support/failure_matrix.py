"""Signals to the processes of an engine on real vLLM while it does something, and what came of it.

For tests and a benchmark. A ``Fault`` is a signal to one process. Each of ACTIVITIES brings the engine to some work,
lets the fault happen, and counts what the callers heard, how soon, what is left, and how soon the next request is
answered.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shared_engine import Engine, EngineBusyError, EngineDiedError, VLLMError
from tests.support.engines import settings_of
from tests.support.processes import all_processes, parent_of, processes_of_group, run_app, wait_gone
from tests.support.waiting import wait_until

HELLO = [{"role": "user", "content": "Hello"}]
TOKENS, LONG_TOKENS = 200, 1500
WORK: dict[str, Any] = {"max_tokens": TOKENS, "extra_body": {"ignore_eos": True}}
LONG_WORK: dict[str, Any] = {**WORK, "max_tokens": LONG_TOKENS}
LEFT_AFTER_S = 15.0
ANSWER_WITHIN_S = 120.0

PROCESSES = {
    "APIServer": "the API server",
    "EngineCore": "EngineCore",
    "Worker": "the worker",
    "launcher": "the launcher",
    "supervisor": "the supervisor",
}
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGSTOP)


@dataclass(frozen=True)
class Fault:
    """A signal to one process: ``supervisor``, ``launcher``, or one of the server by the name vLLM gives it."""

    signal: signal.Signals
    process: str

    def __str__(self) -> str:
        return f"{self.signal.name} of {PROCESSES[self.process]}"

    @property
    def is_ignored(self) -> bool:
        """A terminal's signals are for the app, not for the engine that others share."""
        return (self.process, self.signal) in {
            ("launcher", signal.SIGINT),
            ("supervisor", signal.SIGINT),
            ("supervisor", signal.SIGHUP),
        }

    def happen(self, engine: Engine) -> int:
        """Return the process it happened to."""
        pid = process_named(engine, self.process)
        os.kill(pid, self.signal)
        return pid


FAULTS = tuple(Fault(number, process) for process in PROCESSES for number in SIGNALS)


@dataclass(frozen=True)
class Outcome:
    """What became of one fault.

    Attributes:
        answered: requests that were answered whole, tried again unseen by their callers where need be.
        told: requests that had shown something, and raised EngineDiedError.
        lost: requests of which neither is true.
        heard_s: from the fault until the last of the told had heard it; 0 without any.
        left: processes of the broken engine that were still there LEFT_AFTER_S seconds later.
        files: files of shared memory it left behind.
        next_answer_s: from the fault until a request sent after it was answered.
        errors: what the callers were told.
    """

    answered: int
    told: int
    lost: int
    heard_s: float
    left: int
    files: int
    next_answer_s: float
    errors: tuple[str, ...] = ()


Activity = Callable[[Engine, Fault], Outcome]


def while_nothing_has_been_shown(engine: Engine, fault: Fault) -> Outcome:
    """Chats, streams and a batch are in flight, and none has had a byte."""
    engine.warmup()
    calls = [chat, chat, chat, stream, stream, batch]
    worker = process_named(engine, "Worker")
    os.kill(worker, signal.SIGSTOP)  # until the fault has happened: the requests are in flight for certain
    return _suffer(engine, fault, calls, lambda _: connections_of(engine) >= len(calls) + BATCH - 1, wakes=worker)


def in_the_middle_of_streams(engine: Engine, fault: Fault) -> Outcome:
    """Streams have shown some of their text."""
    engine.warmup()
    shown: list[int] = []

    def long_stream(engine: Engine) -> bool:
        stream = engine.stream_chat(HELLO, **LONG_WORK)
        for _ in range(5):
            next(stream)
        shown.append(1)
        usage = list(stream)[-1].usage
        return usage is not None and usage.completion_tokens == LONG_TOKENS

    return _suffer(engine, fault, [long_stream] * 3, lambda _: len(shown) == 3)


def while_idle(engine: Engine, fault: Fault) -> Outcome:
    engine.warmup()
    return _suffer(engine, fault, [], lambda _: True)


def while_it_starts(engine: Engine, fault: Fault) -> Outcome:
    """Requests wait for the start; the process has just appeared."""
    engine.shutdown()

    def has_appeared(requests: Sequence[Future[bool]]) -> bool:
        assert not any(request.done() for request in requests), [request.exception() for request in requests]
        with contextlib.suppress(AssertionError, OSError, StopIteration):
            return bool(process_named(engine, fault.process))
        return False

    return _suffer(engine, fault, [chat, chat, stream], has_appeared)


def while_it_stops(engine: Engine, fault: Fault) -> Outcome:
    """It is being evicted."""
    engine.warmup()

    def evicted(engine: Engine) -> bool:
        evict(engine)
        return True

    return _suffer(engine, fault, [evicted], lambda _: True)


ACTIVITIES: dict[str, Activity] = {
    "nothing shown yet": while_nothing_has_been_shown,
    "in mid-stream": in_the_middle_of_streams,
    "idle": while_idle,
    "starting": while_it_starts,
    "stopping": while_it_stops,
}


def _suffer(
    engine: Engine,
    fault: Fault,
    calls: Sequence[Callable[[Engine], bool]],
    is_time: Callable[[Sequence[Future[bool]]], bool],
    wakes: int = 0,
) -> Outcome:
    """Let ``fault`` happen while ``calls`` run, once it is time; then the process ``wakes`` goes on."""
    ends: dict[Future[bool], float] = {}
    with ThreadPoolExecutor(len(calls) + 1) as pool:
        requests = [pool.submit(call, engine) for call in calls]
        for request in requests:
            request.add_done_callback(lambda request: ends.__setitem__(request, time.monotonic()))
        wait_until(lambda: is_time(requests), 60, "the moment")
        before, files = all_processes(engine), shared_memory_of(engine)
        began = time.monotonic()
        struck = fault.happen(engine)
        if wakes and struck != wakes and wait_gone([wakes], ENDS_WITHIN_S):
            with contextlib.suppress(ProcessLookupError):
                os.kill(wakes, signal.SIGCONT)
        try:
            following = pool.submit(chat, engine)
            outcomes = [result_of(request) for request in requests]
            told = [request for request, outcome in zip(requests, outcomes, strict=True) if outcome.startswith("told")]
            assert following.result(ANSWER_WITHIN_S)
            next_answer_s = time.monotonic() - began
        finally:
            with contextlib.suppress(ProcessLookupError):  # what the fault did no harm to by standing still
                os.kill(struck, signal.SIGCONT)
    broken = [pid for pid in before if pid not in all_processes(engine)]
    left = wait_gone(broken, LEFT_AFTER_S)
    return Outcome(
        answered=outcomes.count("answered"),
        told=len(told),
        lost=len(outcomes) - outcomes.count("answered") - len(told),
        heard_s=max((ends[request] - began for request in told), default=0.0),
        left=left,
        files=0 if not broken else sum(os.path.exists(path) for path in files - shared_memory_of(engine)),
        next_answer_s=next_answer_s,
        errors=tuple(sorted({outcome for outcome in outcomes if outcome != "answered"})),
    )


BATCH = 4
ENDS_WITHIN_S = 0.5
"""A fault that ends the worker too does so sooner: woken before that, it would answer with a token or two."""


def chat(engine: Engine) -> bool:
    """True for a whole answer."""
    result = engine.chat(HELLO, **WORK)
    return result.usage.completion_tokens == TOKENS


def stream(engine: Engine) -> bool:
    chunks = list(engine.stream_chat(HELLO, **WORK))
    usage = chunks[-1].usage
    return usage is not None and usage.completion_tokens == TOKENS


def batch(engine: Engine) -> bool:
    return all(result.usage.completion_tokens == TOKENS for result in engine.chat_batch([HELLO] * BATCH, **WORK))


def result_of(request: Future[bool]) -> str:
    try:
        return "answered" if request.result(ANSWER_WITHIN_S) else "lost: cut off in silence"
    except EngineDiedError as exc:
        return f"told {str(exc).splitlines()[0]}"
    except VLLMError as exc:
        return f"lost: {type(exc).__name__}: {str(exc).splitlines()[0]}"
    except TimeoutError:
        return "lost: no answer"


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
