"""What a supervisor replies, without a launcher."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from shared_engine.runtime.directory import RuntimeDir
from shared_engine.runtime.keep_policy import KeepPolicy
from shared_engine.runtime.messages import StartFailed
from shared_engine.runtime.record import EngineState, FailureKind
from shared_engine.runtime.spec import EngineSpec
from shared_engine.supervisor.supervisor import Supervisor


@pytest.fixture
def lock(tmp_path: Path) -> Iterator[tuple[RuntimeDir, int]]:
    directory = RuntimeDir(tmp_path / "key")
    directory.prepare()
    directory.spec.write_text(EngineSpec((), "/no/python", "0.32.0", "org/model").to_json())
    fd = os.open(directory.lock, os.O_RDWR | os.O_CREAT, 0o600)
    yield directory, fd
    os.close(fd)


async def test_for_a_caller_whose_time_is_over_no_start_begins(lock: tuple[RuntimeDir, int]) -> None:
    supervisor, policy = Supervisor(*lock), KeepPolicy(start_timeout_s=-1.0)
    supervisor._engine.callers.adopt(policy, {})
    began = time.monotonic()
    reply = await supervisor._started(policy, lambda _: None)
    assert isinstance(reply, StartFailed)
    assert reply.failure.kind is FailureKind.TIMEOUT
    assert "goes on" not in reply.failure.message
    assert supervisor._engine.keeper.state is EngineState.STOPPED
    assert not supervisor._work.is_busy
    assert time.monotonic() - began < 5
