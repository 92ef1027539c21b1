"""What is said on the control socket and on the launcher's pipes survives the line; nothing else is taken for it."""

from __future__ import annotations

import math
from typing import Any, get_args

import pytest

from shared_engine.runtime.keep_policy import KeepPolicy, TcpAddress
from shared_engine.runtime.launcher_messages import (
    Command,
    Event,
    Exit,
    Exited,
    ImportFailed,
    Preloaded,
    Started,
    StartServer,
    read_command,
    read_event,
    write_command,
    write_event,
)
from shared_engine.runtime.life_stats import LifeStats
from shared_engine.runtime.messages import (
    EnsureReady,
    Evict,
    Fate,
    Gone,
    Keep,
    Kept,
    MakeRoom,
    NotUnderstood,
    Outcome,
    ProtocolError,
    Ready,
    Refusal,
    Refused,
    Reply,
    Request,
    Shutdown,
    StartFailed,
    StartProgress,
    WhatBecameOf,
    decode,
    encode,
)
from shared_engine.runtime.progress import Progress, StartPhase
from shared_engine.runtime.record import Failure, FailureKind, Record
from shared_engine.runtime.spec import PROTOCOL

FAILURE = Failure(FailureKind.MEMORY, "not enough memory: ä\n", ("a line", "\x00"))
MESSAGES = [
    EnsureReady(KeepPolicy(idle_ttl_s=math.inf, pinned=True), {"PATH": "/bin", "NAME": "\udcff"}),
    WhatBecameOf(3),
    Keep(idle_ttl_s=math.inf),
    Keep(pinned=False),
    Evict(),
    MakeRoom(),
    Shutdown(),
    Shutdown(force=True),
    StartProgress(Progress(StartPhase.QUEUED, detail="qwen starts", since=1.5)),
    Ready(4711, 3),
    StartFailed(FAILURE, 1.5),
    *(Outcome(fate) for fate in Fate),
    Outcome(Fate.DIED, FAILURE),
    Kept(),
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


@pytest.mark.parametrize("command", [StartServer(("--model", "m")), Exit()])
def test_a_command_is_read_as_it_was_written(command: Command) -> None:
    line = write_command(command)
    assert line.endswith(b"\n")
    assert read_command(line) == command


@pytest.mark.parametrize("event", [Preloaded("0.32.0", None, 6.5), ImportFailed("no"), Started(7), Exited(7, -9)])
def test_an_event_is_read_as_it_was_written(event: Event) -> None:
    assert read_event(write_event(event)) == event


def test_a_launcher_of_a_newer_release_is_understood_as_far_as_it_goes() -> None:
    """The supervisor may outlive an upgrade, and then runs the launcher that is on disk."""
    assert read_event(b'{"event": "started", "pid": 7, "colour": "blue"}') == Started(7)
    assert read_event(b'{"event": "dances"}') is None
    with pytest.raises(ValueError, match="the launcher's event lacks 'returncode'"):
        read_event(b'{"event": "exited", "pid": 7}')


def test_the_protocol_has_another_number_when_it_changes() -> None:
    """Engines of another PROTOCOL have other keys, so that no client asks a supervisor that understands other words.

    Changed a message? Raise PROTOCOL in runtime/spec.py, and write the new fields here.
    """
    kinds = (*get_args(Request), *get_args(Reply), KeepPolicy, TcpAddress, Failure, LifeStats, Progress, Record)
    assert (PROTOCOL, {kind.__name__: sorted(kind.__dataclass_fields__) for kind in kinds}) == (
        10,
        {
            "EnsureReady": ["environment", "policy"],
            "WhatBecameOf": ["start_number"],
            "Keep": ["idle_ttl_s", "pinned"],
            "Evict": [],
            "MakeRoom": [],
            "Shutdown": ["force"],
            "StartProgress": ["progress"],
            "Ready": ["start_number", "supervisor_pid"],
            "StartFailed": ["failure", "retry_in_s"],
            "Outcome": ["failure", "fate"],
            "Kept": [],
            "Gone": [],
            "Refused": ["refusal"],
            "NotUnderstood": [],
            "KeepPolicy": [
                "idle_ttl_s", "max_loaded_engines", "pinned", "serve_tcp", "sleep_after_s", "stall_timeout_s",
                "standby_ttl_s", "start_timeout_s",
            ],
            "TcpAddress": ["host", "key", "port"],
            "Failure": ["is_from_outside", "kind", "log_tail", "message"],
            "LifeStats": ["counters", "evictions", "failures", "returns", "start_seconds", "starts"],
            "Progress": ["detail", "done", "phase", "since", "total", "unit"],
            "Record": [
                "boot_id", "devices", "failure", "idle_ttl_s", "launcher_pid", "life", "made_room", "max_model_len",
                "max_num_seqs", "model", "pinned", "progress", "server_pid", "shared_files", "socket", "start_number",
                "start_s", "state", "state_since", "supervisor_pid", "tcp", "vllm_version",
            ],
        },
    )  # fmt: skip
