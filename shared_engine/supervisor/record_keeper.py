"""RecordKeeper: the one writer of an engine's record."""

from __future__ import annotations

import logging
import os
import sys
import time
from dataclasses import replace
from typing import Any

from shared_engine.machine.hub_cache import called
from shared_engine.machine.proc import living_processes
from shared_engine.machine.process_group import kill_marked
from shared_engine.runtime.directory import RuntimeDir
from shared_engine.runtime.engine_log import EngineLog
from shared_engine.runtime.files import remove_files
from shared_engine.runtime.life_stats import LifeStats
from shared_engine.runtime.record import EngineState, Failure, Record, boot_id, read_record, write_record
from shared_engine.runtime.spec import EngineSpec
from shared_engine.supervisor.changes import Changes
from shared_engine.supervisor.ownership import Ownership

MAX_DEATHS = 100


class RecordKeeper:
    """Keeps the record, and publishes each change of it as long as this supervisor owns the directory.

    Args:
        ownership: of the directory.
        changes: noted with each change.
    """

    def __init__(
        self, directory: RuntimeDir, spec: EngineSpec, ownership: Ownership, log: EngineLog, changes: Changes
    ) -> None:
        self._dir = directory
        self._ownership = ownership
        self._log = log
        self._changes = changes
        self._is_written = False
        self.entered_at = time.monotonic()
        """When the state was entered."""
        old = read_record(directory.record) or Record()
        if old.boot_id == boot_id():
            files = set(old.shared_files)
            if old.server_pid and sys.platform == "linux":
                # The kernel ends a server with its supervisor, but not all helpers of vLLM: one that is stopped stays.
                files |= kill_marked((stat.pid for stat in living_processes()), f"TMPDIR={directory.scratch}")
            remove_files(files)
        self.first_start = old.start_number + 1
        """Number of the first start of this supervisor; those before were another's."""
        self.deaths: dict[int, Failure] = {}
        """How the servers of this supervisor's last starts have died, by the number of the start."""
        self.record = Record(
            start_number=old.start_number,
            life=old.life if old.boot_id == boot_id() else LifeStats(),
            model=spec.model,
            vllm_version=spec.vllm_version,
            devices=spec.devices,
            supervisor_pid=os.getpid(),
            boot_id=boot_id(),
            state_since=time.time(),
        )

    @property
    def state(self) -> EngineState:
        return self.record.state

    @property
    def name(self) -> str:
        """What people know the model by."""
        return called(self.record.model)

    def enter(self, state: EngineState, reason: str, **changes: Any) -> None:
        """Enter a state that the table of transitions allows, and log it."""
        level = logging.WARNING if state is EngineState.FAILED else logging.INFO
        self._log.note(f"{self.state.value} -> {state.value}, {reason}", level)
        self.entered_at = time.monotonic()
        self.record = self.record.entered(state, state_since=time.time(), **changes)
        self.publish()

    def publish(self, **changes: Any) -> None:
        """Change fields of the record, and write it."""
        self.record = replace(self.record, **changes)
        self._changes.note()
        self.exit_if_not_owned()
        try:
            write_record(self._dir.record, self.record)
            self._is_written = True
        except OSError as exc:
            self._is_written = False
            # A stale record would be believed; with none, every caller asks here.
            remove_files([str(self._dir.record)])
            self._log.note(f"the record can't be written: {exc}", logging.WARNING)

    def publish_death(self, failure: Failure) -> None:
        """Of the server of the last start."""
        self.deaths[self.record.start_number] = failure
        while len(self.deaths) > MAX_DEATHS:
            del self.deaths[next(iter(self.deaths))]
        self.publish(failure=failure)

    def next_start(self) -> dict[str, Any]:
        """Fields of the record for one more start: each has a number, and a socket of its own."""
        number = self.record.start_number + 1
        return {"start_number": number, "socket": str(self._dir.server_socket(number)), "server_pid": 0, "tcp": ()}

    def is_written(self) -> bool:
        """Whether the record is there to be read, as it is now; tries again to write it."""
        if not self._is_written or not self._dir.record.exists():
            self.publish()
        return self._is_written

    def exit_if_not_owned(self) -> None:
        """See Ownership: the files may be another supervisor's by now."""
        self._ownership.exit_if_lost(self.record.server_pid)
