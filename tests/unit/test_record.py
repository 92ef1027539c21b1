"""The record and its states."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from shared_engine.runtime.directory import RuntimeDir
from shared_engine.runtime.engine_log import EngineLog
from shared_engine.runtime.record import (
    TRANSITIONS,
    EngineState,
    Failure,
    FailureKind,
    Record,
    read_record,
    write_record,
)
from shared_engine.runtime.spec import EngineSpec
from shared_engine.supervisor.changes import Changes
from shared_engine.supervisor.ownership import Ownership
from shared_engine.supervisor.record_keeper import RecordKeeper


def test_a_record_survives_the_file(tmp_path: Path) -> None:
    failure = Failure(FailureKind.START, "no", ("a", "b"))
    record = Record(state=EngineState.FAILED, model="m", start_number=3, failure=failure)
    write_record(tmp_path / "record.json", record)
    assert read_record(tmp_path / "record.json") == record


@pytest.mark.parametrize("text", ["", "{", '{"state": "dancing"}', "[]", '{"start_number": 1}'])
def test_a_record_that_can_not_be_read_is_none(tmp_path: Path, text: str) -> None:
    file = tmp_path / "record.json"
    assert read_record(file) is None
    file.write_text(text)
    assert read_record(file) is None


def test_fields_of_a_newer_version_are_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "record.json"
    file.write_text('{"state": "ready", "model": "m", "colour": "blue"}')
    assert read_record(file) == Record(state=EngineState.READY, model="m")


def test_every_state_has_a_way_out_and_a_way_in() -> None:
    assert set(TRANSITIONS) == set(EngineState)
    assert all(TRANSITIONS.values())
    assert set().union(*TRANSITIONS.values()) == set(EngineState)


@pytest.mark.parametrize("state", EngineState)
def test_a_state_is_entered_only_by_the_table(state: EngineState) -> None:
    for target in EngineState:
        if target in TRANSITIONS[state]:
            assert Record(state=state).entered(target).state is target
        else:
            with pytest.raises(ValueError, match="no transition"):
                Record(state=state).entered(target)


async def test_a_record_that_can_be_neither_written_nor_removed_ends_nothing(tmp_path: Path) -> None:
    directory = RuntimeDir(tmp_path / "key")
    directory.prepare()
    (directory.record / "file").mkdir(parents=True)
    lock = os.open(directory.lock, os.O_RDWR | os.O_CREAT, 0o600)
    spec = EngineSpec((), "/no/python", "0.32.0", "org/model")
    keeper = RecordKeeper(directory, spec, Ownership(directory, lock), EngineLog(directory.log), Changes())
    keeper.publish(start_s=1.0)
    assert not keeper.is_written()
    (directory.record / "file").rmdir()
    directory.record.rmdir()
    assert keeper.is_written()
    assert read_record(directory.record) == keeper.record
    os.close(lock)
