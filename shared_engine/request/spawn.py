"""Starts the supervisor of an engine that has none. Any number of processes may do so at once; one of them wins."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import shared_engine
from shared_engine.errors import EngineStartError
from shared_engine.launch.spec import launch_environment
from shared_engine.machine.systemd import new_scope, service_of_this_process
from shared_engine.request.threads import in_a_thread
from shared_engine.runtime.control import Control
from shared_engine.runtime.engine_log import TAIL_LINES
from shared_engine.runtime.files import write_atomically
from shared_engine.runtime.log_level import level_variable
from shared_engine.runtime.record import is_supervised
from shared_engine.runtime.spec import EngineSpec

_log = logging.getLogger(__name__)

SUPERVISOR_START_S = 30.0
POLL_S = 0.02
# The standard library first: what an app has installed may have modules of the same names. Without TLS, which asyncio
# loads where it is there: OpenSSL costs a megabyte of a process that has no use for it.
_SUPERVISE = (
    "import sys; sys.path.append(sys.argv.pop(1)); sys.modules['ssl'] = None; "
    "from shared_engine.supervisor.main import main; sys.exit(main(sys.argv[1:]))"
)


class Spawner:
    """Starts supervisors of one engine, one at a time in this process."""

    def __init__(self, spec: EngineSpec, control: Control) -> None:
        self._spec = spec
        self._control = control
        self._directory = control.directory
        self._spawning = threading.Lock()

    async def ensure_listening(self, deadline: float) -> None:
        """Return when a supervisor listens, or had and has exited again: ask, and call this again if need be.

        Args:
            deadline: on the clock of time.monotonic().

        Raises:
            EngineStartError: none comes up.
        """
        if self._spawning.acquire(blocking=False):
            try:
                await in_a_thread(self._spawn)
            finally:
                self._spawning.release()
        limit = min(deadline, time.monotonic() + SUPERVISOR_START_S)
        while not await self._control.is_listening():
            if time.monotonic() > limit:
                raise EngineStartError(f"no supervisor came up in {SUPERVISOR_START_S:g} s; see {self._directory.log}")
            if not self._spawning.locked() and not is_supervised(self._directory):
                return await asyncio.sleep(POLL_S)  # it exited between our asking and its lock
            await asyncio.sleep(POLL_S)

    def forget_in_child(self) -> None:
        """After a fork, in the child: another thread of the parent may have held the lock."""
        self._spawning = threading.Lock()

    def log_tail(self) -> tuple[str, ...]:
        """The last lines of the engine's log; empty where there is none."""
        with contextlib.suppress(OSError):
            return tuple(self._directory.log.read_text(errors="replace").splitlines()[-TAIL_LINES:])
        return ()

    def _spawn(self) -> None:
        directory = self._directory
        root = Path(shared_engine.__file__).resolve().parent.parent
        try:
            write_atomically(directory.spec, self._spec.to_json())
            log = os.open(directory.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        except OSError as exc:
            raise EngineStartError(f"{directory.path} can't be written to: {exc.strerror}") from exc
        command = [sys.executable, "-I", "-S", "-c", _SUPERVISE, str(root), str(directory.path)]
        # The level is not in the environment that engines get: with another one, a launcher on standby is given up.
        environment = {**launch_environment(os.environ), **level_variable(os.environ)}

        def run(prefix: Sequence[str], variables: Mapping[str, str]) -> int:
            done = subprocess.run(
                [*prefix, *command],
                env={**environment, **variables},
                cwd=directory.path,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                check=False,
                timeout=SUPERVISOR_START_S,
            )
            return done.returncode

        try:
            service = service_of_this_process()
            scope = None if service is None else new_scope(directory.path.name[:8], environment)
            returncode = 1 if scope is None else run(scope.prefix, scope.variables)
            if returncode != 0:
                if service is not None:
                    _log.info("the engine shares the cgroup of %s, and ends when that service does", service)
                returncode = run((), {})
        except subprocess.TimeoutExpired as exc:
            raise EngineStartError(f"{sys.executable} did not come up as Python in {SUPERVISOR_START_S:g} s") from exc
        except OSError as exc:
            raise EngineStartError(f"{sys.executable} can't be run to supervise the engine: {exc.strerror}") from exc
        except RuntimeError as exc:  # this Python starts no process any more
            raise EngineStartError(f"the engine can't be started while the app ends: {exc}") from exc
        finally:
            os.close(log)
        if returncode != 0:
            raise EngineStartError(f"{sys.executable} failed to supervise the engine", self.log_tail())
        # The child that stays takes the lock right away; wait for it, or for another's.
        limit = time.monotonic() + SUPERVISOR_START_S
        while not is_supervised(directory) and time.monotonic() < limit:
            time.sleep(POLL_S / 4)
