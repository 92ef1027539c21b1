"""Runs inside the engine's own Python: imports vLLM once, then forks the server on request.

Owns: the preloaded interpreter and the server process it forks. Run by path, not as a module; needs the
standard library and vLLM only. It must not know settings, leases, states or records: the supervisor decides.

Commands come on stdin, events go to the file descriptor named by ``--events-fd`` (runtime/launcher_messages.py);
stdout and stderr carry vLLM's log. End of file on stdin means the supervisor is gone: the server is killed and the
launcher exits.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import select
import signal
import sys
import time
import traceback
from types import ModuleType

if __name__ in ("__main__", "__mp_main__"):
    # Run by path: these modules get their names without shared_engine/__init__.py, which needs the app's packages.
    # And nothing that vLLM imports may be found in this folder, which Python has put first on its search path.
    here = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [entry for entry in sys.path if os.path.abspath(entry) != here]
    package = ModuleType("shared_engine")
    package.__path__ = [os.path.dirname(here)]
    sys.modules["shared_engine"] = package

from shared_engine.launcher.blanks import allow_few_blanks_when_imported
from shared_engine.launcher.process import (
    adopt_orphans,
    allow_amx,
    die_with_parent,
    is_orphan_of_its_session,
    print_stack_when_asked,
    report_ends_of_children,
)

# A spawned child of the server imports this file again as __mp_main__, a forked one runs the hook: either way
# every process of the tree dies with its parent, however hard that one was killed.
if __name__ == "__mp_main__":
    if is_orphan_of_its_session():
        os._exit(1)
    die_with_parent()
    allow_amx()
    print_stack_when_asked()
    report_ends_of_children()
    allow_few_blanks_when_imported()

from shared_engine.launcher.api_server import serve
from shared_engine.launcher.compile_cache import use_safe_cache
from shared_engine.launcher.log import say, take_level
from shared_engine.launcher.preload import import_vllm
from shared_engine.launcher.start_method import preload_libgomp
from shared_engine.runtime.launcher_messages import (
    Event,
    Exited,
    ImportFailed,
    Preloaded,
    Started,
    StartServer,
    read_command,
    write_event,
)


class Launcher:
    """The command loop: reads commands, forks servers, reports their ends."""

    def __init__(self, events_fd: int) -> None:
        self._events_fd = events_fd
        self._wakeup_r, self._wakeup_w = os.pipe()
        os.set_blocking(self._wakeup_r, False)
        os.set_blocking(self._wakeup_w, False)
        self._server_pid: int | None = None

    def run(self) -> None:
        signal.set_wakeup_fd(self._wakeup_w, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        pending = b""
        while True:
            ready, _, _ = select.select([0, self._wakeup_r], [], [])
            if self._wakeup_r in ready:
                with contextlib.suppress(BlockingIOError):
                    os.read(self._wakeup_r, 4096)
                self._reap()
            if 0 in ready:
                data = os.read(0, 65536)
                if not data:
                    return self.close()
                *lines, pending = (pending + data).split(b"\n")
                for line in lines:
                    command = read_command(line)
                    if not isinstance(command, StartServer):
                        return self.close()
                    self._start(command.argv)

    def emit(self, event: Event) -> None:
        os.write(self._events_fd, write_event(event))

    def close(self) -> None:
        """Kill what is left of the server and see it gone."""
        if self._server_pid is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._server_pid, signal.SIGKILL)
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            try:
                if os.waitpid(-1, os.WNOHANG)[0] == 0:
                    time.sleep(0.01)
            except ChildProcessError:
                return

    def _start(self, argv: tuple[str, ...]) -> None:
        is_leader_r, is_leader_w = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.setsid()
            os.close(is_leader_w)
            os.close(is_leader_r)
            os.close(self._events_fd)
            use_safe_cache()
            serve(list(argv))
        os.close(is_leader_w)
        os.read(is_leader_r, 1)  # the end of the pipe: it leads a group, so that signals to the group can't miss it
        os.close(is_leader_r)
        self._server_pid = pid
        say(f"forked the server, process {pid}", logging.DEBUG)
        self.emit(Started(pid))

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if pid == self._server_pid:
                # The supervisor ends the rest of the group: a number that is free again may become another process's.
                self._server_pid = None
                say(f"the server, process {pid}, has ended: {os.waitstatus_to_exitcode(status)}", logging.DEBUG)
                self.emit(Exited(pid, os.waitstatus_to_exitcode(status)))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events-fd", type=int, required=True)
    events_fd = parser.parse_args().events_fd
    preload_libgomp()  # first: it may run all of this again
    take_level(os.environ)
    die_with_parent()
    os.register_at_fork(after_in_child=die_with_parent)  # vLLM may fork, even where we leave the choice to it
    allow_amx()
    print_stack_when_asked()
    report_ends_of_children()
    adopt_orphans()
    # A terminal's Ctrl-C is for the app, not for the engine that others share.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    launcher = Launcher(events_fd)
    started = time.monotonic()
    try:
        version, refusal = import_vllm()
    except BaseException as exc:
        traceback.print_exc()
        launcher.emit(ImportFailed(f"{type(exc).__name__}: {exc}"))
        return 1
    launcher.emit(Preloaded(version, refusal, round(time.monotonic() - started, 3)))
    launcher.run()
    return 0


if __name__ == "__main__":
    # Not sys.exit: the interpreter's teardown of torch takes a second and prints of leaks that nobody can fix.
    code = main()
    sys.stdout.flush()
    os._exit(code)
