"""What a reply, or none, means to the caller; without a supervisor, by the record that one has left."""

from __future__ import annotations

import pytest

from shared_engine import (
    EngineDiedError,
    EngineError,
    EngineNotInstalledError,
    EngineStartError,
    EngineStartTimeoutError,
    EngineStoppedError,
)
from shared_engine.request.supervisor_client import (
    MAX_CRASHES,
    MAX_SPAWNS,
    SupervisorClient,
    end_error,
    start_error,
)
from shared_engine.runtime.control import OtherReleaseError
from shared_engine.runtime.keep_policy import KeepPolicy
from shared_engine.runtime.messages import Fate, Outcome, StartFailed
from shared_engine.runtime.record import EngineState, Failure, FailureKind, Record, write_record
from shared_engine.runtime.spec import EngineSpec

DIED = Failure(FailureKind.DIED, "vLLM ended with exit code 1", ("a line of the log",))


@pytest.mark.parametrize(
    ("kind", "error"),
    [
        (FailureKind.START, EngineStartError),
        (FailureKind.MEMORY, EngineStartError),
        (FailureKind.NO_GPU, EngineStartError),
        (FailureKind.TIMEOUT, EngineStartTimeoutError),
        (FailureKind.NOT_INSTALLED, EngineNotInstalledError),
        (FailureKind.DIED, EngineStartError),
        (FailureKind.STOPPED, EngineStoppedError),
    ],
)
def test_a_failed_start(kind: FailureKind, error: type[EngineError]) -> None:
    raised = start_error(StartFailed(Failure(kind, "no such flag", ("last line",))))
    assert type(raised) is error
    assert raised.message == "no such flag"
    if kind is not FailureKind.STOPPED:
        assert raised.log_tail == ("last line",)


def test_a_failed_start_that_is_not_tried_again_yet_says_so() -> None:
    raised = start_error(StartFailed(Failure(FailureKind.START, "no such flag"), retry_in_s=1.25))
    assert raised.message == "no such flag (this is the last start's error; the next start is allowed in 1.2 s)"


@pytest.mark.parametrize(
    ("outcome", "error", "words"),
    [
        (Outcome(Fate.STOPPED), EngineStoppedError, "was stopped while the request was running"),
        (Outcome(Fate.DIED, DIED), EngineDiedError, "died while the request was running: vLLM ended with exit code 1"),
        (Outcome(Fate.REPLACED), EngineDiedError, "ended while the request was running, and was started again"),
        (None, EngineDiedError, "died with its supervisor"),
    ],
)
def test_the_end_of_an_engine(outcome: Outcome | None, error: type[EngineError], words: str) -> None:
    raised = end_error(outcome)
    assert type(raised) is error
    assert words in raised.message


def test_an_engine_that_runs_is_no_reason() -> None:
    assert end_error(Outcome(Fate.RUNNING)) is None


# ---- asked after the supervisor has gone


@pytest.fixture
def client(root: object) -> SupervisorClient:
    made = SupervisorClient(EngineSpec(("--model", "m"), "/no/python", "0.32.0", "org/model"))
    made.directory.prepare()
    return made


@pytest.mark.parametrize(
    ("record", "error"),
    [
        # It was shut down, and its supervisor has exited: no reason to start it again.
        (Record(state=EngineState.STOPPED, start_number=2), EngineStoppedError),
        (Record(state=EngineState.STOPPED, start_number=2, failure=DIED), EngineDiedError),
        # Its supervisor was killed while it ran.
        (Record(state=EngineState.READY, start_number=2), EngineDiedError),
        (Record(state=EngineState.READY, start_number=3), EngineDiedError),
        (None, EngineDiedError),
    ],
)
async def test_without_a_supervisor_the_record_tells(
    client: SupervisorClient, record: Record | None, error: type[EngineError]
) -> None:
    if record is not None:
        write_record(client.directory.record, record)
    raised = await client.death_of(2)
    assert type(raised) is error
    assert raised.log_tail == (DIED.log_tail if record is not None and record.failure else ())


@pytest.mark.parametrize("trouble", [OSError(24, "Too many open files"), TimeoutError(), OtherReleaseError("other")])
async def test_where_it_cannot_be_asked_the_request_s_own_error_stays(
    client: SupervisorClient, monkeypatch: pytest.MonkeyPatch, trouble: Exception
) -> None:
    async def refuse(*_: object) -> None:
        raise trouble

    monkeypatch.setattr(client.control, "what_became_of", refuse)
    assert await client.death_of(2) is None


@pytest.mark.parametrize(
    ("left", "spawned"),
    [(EngineState.STARTING, MAX_CRASHES), (EngineState.STOPPED, MAX_SPAWNS), (None, MAX_SPAWNS)],
)
async def test_a_start_that_ends_each_supervisor_is_given_up_soon(
    client: SupervisorClient, monkeypatch: pytest.MonkeyPatch, left: EngineState | None, spawned: int
) -> None:
    """A supervisor that somebody has asked to end leaves a record that says so, and another one is started."""
    made = 0

    async def spawn(_: float) -> None:
        nonlocal made
        made += 1
        if left is not None:
            write_record(client.directory.record, Record(state=left))

    monkeypatch.setattr(client._spawner, "ensure_listening", spawn)
    with pytest.raises(EngineStartError, match="several supervisors of org/model in a row ended"):
        await client.acquire(KeepPolicy(), show_progress=False)
    assert made == spawned
