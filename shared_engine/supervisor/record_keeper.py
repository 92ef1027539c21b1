"""RecordKeeper: the one writer of an engine's record."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

from shared_engine.machine.locks import is_at
from shared_engine.machine.process_group import signal_group
from shared_engine.runtime.directory import RuntimeDir
from shared_engine.runtime.engine_log import EngineLog
from shared_engine.runtime.files import remove_files
from shared_engine.runtime.record import EngineState, Record, boot_id, read_record, write_record
from shared_engine.runtime.spec import EngineSpec
from shared_engine.supervisor.changes import Changes


class RecordKeeper:
    """Keeps the record, and publishes each change of it as long as this supervisor owns the directory.

    Args:
        lock_fd: supervisor.lock, held by this process.
        changes: noted with each change.
    """

    def __init__(self, directory: RuntimeDir, spec: EngineSpec, lock_fd: int, log: EngineLog, changes: Changes) -> None:
        self._dir = directory
        self._lock_fd = lock_fd
        self._log = log
        self._changes = changes
        self.entered_at = time.monotonic()
        """When the state was entered."""
        old = read_record(directory.record) or Record()
        remove_files(old.shared_files if old.boot_id == boot_id() else ())
        self.first_start = old.start_number + 1
        """Number of the first start of this supervisor; those before were another's."""
        self.record = Record(
            start_number=old.start_number,
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
        """The last component of the model's name."""
        return Path(self.record.model).name

    def enter(self, state: EngineState, reason: str, **changes: Any) -> None:
        """Enter a state that the table of transitions allows, and log it."""
        self._log.note(f"{self.state.value} -> {state.value}, {reason}")
        self.entered_at = time.monotonic()
        self.record = self.record.entered(state, state_since=time.time(), **changes)
        self.publish()

    def publish(self, **changes: Any) -> None:
        """Change fields of the record, and write it."""
        self.record = replace(self.record, **changes)
        self._changes.note()
        self.exit_if_disowned()
        try:
            write_record(self._dir.record, self.record)
        except OSError as exc:
            # A stale record would be believed; with none, every caller asks here.
            self._dir.record.unlink(missing_ok=True)
            self._log.note(f"the record can't be written: {exc}")

    def next_start(self) -> dict[str, Any]:
        """Fields of the record for one more start: each has a number, and a socket of its own."""
        number = self.record.start_number + 1
        return {"start_number": number, "socket": str(self._dir.server_socket(number)), "server_pid": 0}

    def is_written(self) -> bool:
        """Whether the record is there to be read; tries again to write it."""
        if not self._dir.record.exists():
            self.publish()
        return self._dir.record.exists()

    def exit_if_disowned(self) -> None:
        """With the lock file gone nobody finds this engine any more, and its paths may be another's by now."""
        if not is_at(self._dir.lock, self._lock_fd):
            self._exit_at_once()

    def _exit_at_once(self) -> NoReturn:
        if self.record.server_pid:
            signal_group(self.record.server_pid, signal.SIGKILL)
        os._exit(0)  # the kernel ends all below this process
