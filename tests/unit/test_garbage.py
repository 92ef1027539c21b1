"""What others may have written where we read: nothing of it crashes us, and nothing of it is believed."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared_engine.cli.main import main
from shared_engine.errors import EngineError
from shared_engine.observe.engines import find_engines, look_at
from shared_engine.runtime.control import Control, Send, serve_callers
from shared_engine.runtime.directory import ROOT_VARIABLE, RuntimeDir
from shared_engine.runtime.files import MAX_BYTES, read_own
from shared_engine.runtime.lease import read_last_use
from shared_engine.runtime.messages import (
    EnsureReady,
    Evict,
    Gone,
    Outcome,
    ProtocolError,
    Ready,
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
from shared_engine.runtime.record import EngineState, Record, boot_id, read_record, write_record
from shared_engine.runtime.spec import EngineSpec, read_spec
from tests.support.generated import NESTED, few, garbage

KEY = "0123456789abcdef"
SPEC = EngineSpec(argv=("serve",), python="/python", vllm_version="0.32.0", model="m")


@pytest.fixture
def directory(root: Path, monkeypatch: pytest.MonkeyPatch) -> RuntimeDir:
    made = RuntimeDir(root / KEY)
    made.prepare()
    monkeypatch.setenv(ROOT_VARIABLE, str(root))
    return made


# ---- messages

KINDS = [EnsureReady, WhatBecameOf, Evict, Shutdown, StartProgress, Ready, StartFailed, Outcome, Refused]
st.register_type_strategy(Mapping, st.dictionaries(st.text(), st.text(), max_size=4))
messages = st.one_of(*map(st.from_type, KINDS))


@pytest.mark.slow
@few
@given(messages)
def test_any_message_survives_the_line(message: Any) -> None:
    line = encode(message)
    assert line.count(b"\n") == 1
    try:
        assert decode(line) == message
    except ProtocolError:
        assert b"NaN" in line


@pytest.mark.parametrize("line", NESTED, ids=len)
def test_what_is_nested_too_deep_is_refused(line: bytes, directory: RuntimeDir) -> None:
    with pytest.raises(ProtocolError):
        decode(line)
    directory.record.write_bytes(line)
    assert read_record(directory.record) is None
    directory.spec.write_bytes(line)
    # Python 3.14 reads deeper: of one it finds the end missing.
    with pytest.raises(ValueError, match=r"nested too deep|Expecting value"):
        read_spec(directory.spec)


@few
@given(garbage("type", "policy", "environment", "start_number", "force", "progress", "failure", "fate"))
@pytest.mark.slow
def test_what_is_no_message_is_refused(line: bytes) -> None:
    with pytest.raises(ProtocolError):
        decode(line)


WRONG: list[tuple[str, dict[str, Any]]] = [
    ("WhatBecameOf", {"start_number": "1"}),
    ("WhatBecameOf", {"start_number": True}),
    ("WhatBecameOf", {"start_number": 1.0}),
    ("WhatBecameOf", {"start_number": None}),
    ("Shutdown", {"force": 1}),
    ("Shutdown", {"force": "yes"}),
    ("EnsureReady", {"policy": {}, "environment": 5}),
    ("EnsureReady", {"policy": {}, "environment": {"PATH": 5}}),
    ("EnsureReady", {"policy": {"idle_ttl_s": "5"}, "environment": {}}),
    ("EnsureReady", {"policy": {"idle_ttl_s": None}, "environment": {}}),
    ("EnsureReady", {"policy": {"idle_ttl_s": float("nan")}, "environment": {}}),
    ("EnsureReady", {"policy": {"idle_ttl_s": 10**400}, "environment": {}}),
    ("EnsureReady", {"policy": {"pinned": 1}, "environment": {}}),
    ("EnsureReady", {"policy": [], "environment": {}}),
    ("Ready", {"supervisor_pid": 1, "start_number": "1"}),
    ("Outcome", {"fate": ["died"]}),
    ("Outcome", {"fate": "died", "failure": {"kind": "died", "message": 1}}),
    ("Outcome", {"fate": "died", "failure": {"kind": "died", "message": "m", "log_tail": "line"}}),
]


@pytest.mark.parametrize(("kind", "fields"), WRONG)
def test_a_message_with_a_field_of_another_type_is_refused(kind: str, fields: dict[str, Any]) -> None:
    with pytest.raises(ProtocolError):
        decode(json.dumps({"type": kind, **fields}).encode())


async def test_a_listener_survives_whatever_is_sent(directory: RuntimeDir, caplog: pytest.LogCaptureFixture) -> None:
    heard: list[Request] = []

    async def handle(request: Request, _: Send) -> Reply:
        heard.append(request)
        return Gone()

    def say(data: bytes) -> bytes:
        with socket.socket(socket.AF_UNIX) as caller:
            caller.settimeout(10)
            caller.connect(str(directory.control_socket))
            with contextlib.suppress(BrokenPipeError):
                caller.sendall(data)
                caller.shutdown(socket.SHUT_WR)
            with contextlib.suppress(ConnectionResetError):
                return caller.recv(1000)
        return b""

    server = await serve_callers(directory.control_socket, handle)
    whole = encode(Shutdown())
    for data in (b"", b"\n", b"\xff\n", whole[:-1], whole[:10], b"[" * 100_000 + b"\n", b"x" * (1 << 25)):
        assert b"Gone" not in await asyncio.to_thread(say, data)
    assert heard == []
    assert await Control(directory).make_room(5) == Gone()
    server.close()
    assert caplog.records == []


@pytest.mark.parametrize(
    "said", [b"x" * (1 << 25), b"[" * 100_000 + b"\n", b"{}\n", encode(Evict())[:-2] + b"\n", encode(Gone())], ids=len
)
async def test_a_caller_survives_whatever_is_replied(directory: RuntimeDir, said: bytes) -> None:
    async def reply(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(said)
        with contextlib.suppress(ConnectionError):
            await writer.drain()
        writer.close()

    server = await asyncio.start_unix_server(reply, str(directory.control_socket))
    with pytest.raises(EngineError, match="another release"):
        await Control(directory).what_became_of(1, 10)
    server.close()


# ---- files


@few
@given(garbage(*Record.__dataclass_fields__))
@pytest.mark.slow
def test_a_record_that_is_garbage_is_none(directory: RuntimeDir, content: bytes) -> None:
    directory.record.write_bytes(content)
    record = read_record(directory.record)
    assert record is None or isinstance(record.state, EngineState)
    for engine in find_engines():
        assert not engine.is_alive
    look_at(directory, SPEC)


@few
@given(st.from_type(Record))
@pytest.mark.slow
def test_any_record_can_be_shown(directory: RuntimeDir, record: Record) -> None:
    with contextlib.suppress(ValueError):  # numbers that JSON has no form for
        write_record(directory.record, record)
    find_engines()
    assert main(["status", "--all"]) == 0


@pytest.mark.parametrize("name", ["state", "start_number", "socket", "pinned", "devices", "failure", "progress"])
def test_a_record_with_a_field_of_another_type_is_none(directory: RuntimeDir, name: str) -> None:
    fields = json.loads(Record(state=EngineState.READY).to_json())
    directory.record.write_text(json.dumps({**fields, name: [5] if name != "devices" else "cpu"}))
    assert read_record(directory.record) is None


@few
@given(garbage("argv", "python", "vllm_version", "model", "environment", "devices"))
@pytest.mark.slow
def test_a_spec_that_is_garbage_is_refused(directory: RuntimeDir, content: bytes) -> None:
    directory.spec.write_bytes(content)
    with pytest.raises((OSError, ValueError)):
        read_spec(directory.spec)


def test_a_spec_survives_the_file(directory: RuntimeDir) -> None:
    directory.spec.write_text(SPEC.to_json())
    assert read_spec(directory.spec) == SPEC
    assert asdict(read_spec(directory.spec)) == asdict(SPEC)


@few
@given(st.one_of(st.binary(max_size=20), st.binary(min_size=8, max_size=8)))
def test_a_lease_with_any_content_was_last_used_between_the_boot_and_now(directory: RuntimeDir, content: bytes) -> None:
    directory.lease.write_bytes(content)
    with open(directory.lease, "rb") as file:
        assert 0.0 <= read_last_use(file.fileno()) < 1e9


def as_link(path: Path) -> None:
    path.with_name("elsewhere").write_text(Record(state=EngineState.READY).to_json())
    path.symlink_to(path.with_name("elsewhere"))


def as_link_to_itself(path: Path) -> None:
    path.symlink_to(path)


def as_large(path: Path) -> None:
    with open(path, "wb") as file:
        file.truncate(MAX_BYTES + 1)


FORMS: list[Callable[[Path], Any]] = [Path.mkdir, os.mkfifo, as_link, as_link_to_itself, as_large]


@pytest.fixture(params=FORMS, ids=lambda form: form.__name__)
def form(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.mark.timeout(30)
def test_what_is_no_file_of_ours_is_not_read(directory: RuntimeDir, form: Callable[[Path], Any]) -> None:
    form(directory.record)
    form(directory.spec)
    with pytest.raises(OSError, match=r"."):
        read_own(directory.spec)
    assert read_record(directory.record) is None
    assert find_engines() == []


@pytest.mark.timeout(30)
@pytest.mark.parametrize("name", ["lock", "lease", "control_socket", "log"])
def test_whatever_stands_in_a_files_place_engines_can_be_listed(
    directory: RuntimeDir, form: Callable[[Path], Any], name: str
) -> None:
    write_record(directory.record, Record(state=EngineState.READY, model="m", boot_id=boot_id()))
    form(getattr(directory, name))
    (engine,) = find_engines()
    assert not engine.is_alive
    assert main(["status", "--all"]) == 0


def test_another_users_record_is_not_believed(directory: RuntimeDir, monkeypatch: pytest.MonkeyPatch) -> None:
    write_record(directory.record, Record(state=EngineState.READY))
    assert read_record(directory.record) is not None
    uid = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: uid + 1)
    assert read_record(directory.record) is None


@pytest.mark.parametrize("mode", [0o770, 0o777, 0o722])
def test_nothing_in_a_folder_that_others_may_write_to_is_believed(directory: RuntimeDir, mode: int) -> None:
    write_record(directory.record, Record(state=EngineState.READY))
    assert len(find_engines()) == 1
    directory.path.parent.chmod(mode)
    assert find_engines() == []
