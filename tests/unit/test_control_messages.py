"""What is said on the control socket and on the launcher's pipes survives the line; nothing else is taken for it."""

from __future__ import annotations

import ast
import math
from typing import Any

import pytest

from shared_engine.launcher import LAUNCHER
from shared_engine.runtime import launcher_messages
from shared_engine.runtime.keep_policy import KeepPolicy
from shared_engine.runtime.messages import (
    EnsureReady,
    Evict,
    Fate,
    Gone,
    MakeRoom,
    NotUnderstood,
    Outcome,
    ProtocolError,
    Ready,
    Refusal,
    Refused,
    Shutdown,
    StartFailed,
    StartProgress,
    WhatBecameOf,
    decode,
    encode,
)
from shared_engine.runtime.progress import Progress, StartPhase
from shared_engine.runtime.record import Failure, FailureKind

FAILURE = Failure(FailureKind.MEMORY, "not enough memory: ä\n", ("a line", "\x00"))
MESSAGES = [
    EnsureReady(KeepPolicy(idle_ttl_s=math.inf, pinned=True), {"PATH": "/bin", "NAME": "\udcff"}),
    WhatBecameOf(3),
    Evict(),
    MakeRoom(),
    Shutdown(),
    Shutdown(force=True),
    StartProgress(Progress(StartPhase.QUEUED, detail="qwen starts", since=1.5)),
    Ready(4711, 3),
    StartFailed(FAILURE, 1.5),
    *(Outcome(fate) for fate in Fate),
    Outcome(Fate.DIED, FAILURE),
    Gone(),
    *(Refused(refusal) for refusal in Refusal),
    NotUnderstood(),
]


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_a_message_survives_the_line(message: Any) -> None:
    line = encode(message)
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert decode(line) == message


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"\n",
        b"\xff\n",
        b"[]\n",
        b'{"ok": true}\n',
        b'{"type": "Dance"}\n',
        b'{"type": "Ready"}\n',
        b'{"type": "Evict", "force": true}\n',
        b'{"type": "Refused", "refusal": "tired"}\n',
        b'{"type": "EnsureReady", "policy": {"colour": 1}, "environment": {}}\n',
    ],
)
def test_what_is_no_message_is_refused(line: bytes) -> None:
    with pytest.raises(ProtocolError):
        decode(line)


def test_the_environment_is_never_shown() -> None:
    assert "hunter2" not in repr(EnsureReady(KeepPolicy(), {"TOKEN": "hunter2"}))


def test_the_launcher_emits_the_events_that_the_supervisor_reads() -> None:
    """It runs in vLLM's Python, by itself, so that its words stand in both files."""
    emitted: dict[str, set[str]] = {}
    for node in ast.walk(ast.parse(LAUNCHER.read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "emit":
            (name,) = node.args
            assert isinstance(name, ast.Constant)
            emitted[str(name.value)] = {str(keyword.arg) for keyword in node.keywords}
    known = {name: set(kind.__dataclass_fields__) for name, kind in launcher_messages.EVENTS.items()}
    assert emitted == known


def test_the_launcher_knows_the_commands() -> None:
    text = LAUNCHER.read_text()
    assert launcher_messages.start_command(["--model", "m"], 3) == (
        b'{"op": "start", "argv": ["--model", "m"], "start_number": 3}\n'
    )
    assert launcher_messages.exit_command() == b'{"op": "exit"}\n'
    for word in ('command["op"] == "exit"', 'command["argv"]', 'command["start_number"]'):
        assert word in text
