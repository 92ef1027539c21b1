"""What the fake is to do wrong, and doing it."""

from __future__ import annotations

import json
import mmap
import multiprocessing
import os
import signal
import tempfile
import time
from dataclasses import dataclass
from typing import Any, NoReturn

# Not faults: they hold in every start, whatever ``once`` says.
_SHAPE = (
    "start_delay_s",
    "held_by",
    "weights",
    "token_delay_s",
    "queues_above",
    "memory",
    "journal",
    "spawn_core",
    "leftovers",
)
SHARED_MEMORY = "/dev/shm/psm_fake"

core_orders = 0
"""The pipe to the EngineCore of this server, once there is one; a byte makes it spin."""


@dataclass(frozen=True)
class Faults:
    """The knobs. Phases: import, fork (these two of the launcher), start, weights, ready (not listening yet), request,
    idle (when SIGUSR2 comes).
    """

    start_delay_s: float = 0.0
    """How long the start takes, spread over the loading of the weights."""
    held_by: str | None = None
    """A file: the start goes no further than its weights while it exists."""
    weights: int = 1
    """Checkpoint shards that the log tells of."""
    token_delay_s: float = 0.0
    queues_above: int | None = None
    """So many requests run at once; others wait."""
    memory: str | None = None
    """A file that stands for a device which holds one engine: locked while loaded and awake, till the group is gone."""
    memory_error: str = ""
    """What a start without memory says. Given without ``memory`` and ``needs_gone``, every start is without."""
    needs_gone: str | None = None
    """The start is without memory while this file exists."""
    journal: str | None = None
    """A file that gets a line when the device is used: begin, ready, asleep or awake, the seed, time.monotonic()."""
    spawn_core: bool = False
    """The EngineCore is spawned, as the real one of a CUDA build."""
    leftovers: bool = False
    """The server maps shared memory and makes a temporary file; it tidies up neither."""

    on_devices: str | None = None
    """The faults happen only in an engine on these: as in VLLM_CPU_OMP_THREADS_BIND, or CUDA_VISIBLE_DEVICES."""
    once: str | None = None
    """The faults happen in the first start (or import) only, which makes this file."""
    hang_at: str | None = None
    """The phase at which the process stands still; its event loop too."""
    spin: bool = False
    """Hanging burns CPU: the EngineCore's, if there is one by then."""
    chatter_s: float = 0.0
    """Hanging writes a line every so many seconds."""
    exit_at: str | None = None
    exit_code: int = 0
    exit_after_tokens: int = 0
    """The phase ``request`` comes after this many tokens of a request."""
    flood_at: str = "start"
    flood_bytes: int = 0
    flood_line_bytes: int = 200
    ignore_sigterm: bool = False
    hang_mid_generation: bool = False
    """Requests stop after ``hang_after_tokens`` tokens for ever; all other routes go on. ``spin``: the core burns."""
    hang_after_tokens: int = 1
    storm_503: int = 0
    """So many requests are answered 503, first of all."""
    fail_sleep: bool = False
    fail_wake: bool = False
    slow_sleep_s: float = 0.0
    slow_wake_s: float = 0.0

    @classmethod
    def read(cls, text: str) -> Faults:
        knobs: dict[str, Any] = json.loads(text)
        own = (os.environ.get(name) for name in ("VLLM_CPU_OMP_THREADS_BIND", "CUDA_VISIBLE_DEVICES"))
        if knobs.get("on_devices") is not None and knobs["on_devices"] not in own:
            knobs = {name: value for name, value in knobs.items() if name in _SHAPE}
        if "once" in knobs and not _make_mark(knobs["once"]):
            knobs = {name: value for name, value in knobs.items() if name in _SHAPE}
        return cls(**knobs)

    def reach(self, phase: str) -> None:
        """Do what is to go wrong at this phase."""
        if self.flood_bytes and self.flood_at == phase:
            self._flood()
        if self.exit_at == phase:
            os._exit(self.exit_code)
        if self.hang_at == phase:
            self._hang()

    def burn(self) -> None:
        """What a core does that hangs in the middle of its work."""
        if self.spin:
            os.write(core_orders, b"!")

    def note(self, event: str, who: int | None) -> None:
        if self.journal is not None:
            with open(self.journal, "a") as file:
                file.write(f"{event} {who} {time.monotonic()}\n")

    def leave_things(self) -> mmap.mmap | None:
        """Keep what it returns, or the memory is not mapped any more."""
        if not self.leftovers:
            return None
        tempfile.mkstemp(prefix="fake-")
        fd = os.open(f"{SHARED_MEMORY}{os.getpid()}", os.O_RDWR | os.O_CREAT)
        os.ftruncate(fd, 4096)
        return mmap.mmap(fd, 4096)

    def lacks_memory(self) -> bool:
        """True where a start is to fail for want of memory, whatever other engines there are."""
        if self.needs_gone is not None:
            return os.path.exists(self.needs_gone)
        return bool(self.memory_error) and self.memory is None

    def _flood(self) -> None:
        line = b"x" * (self.flood_line_bytes - 1) + b"\n"
        lines = line * max(1, (1 << 16) // len(line))
        for _ in range(self.flood_bytes // len(lines) + 1):
            left = memoryview(lines)
            while left:
                left = left[os.write(1, left) :]

    def _hang(self) -> NoReturn:
        if self.spin and core_orders:
            os.write(core_orders, b"!")
        elif self.spin:
            _spin()
        while True:
            time.sleep(self.chatter_s or 3600)
            say("still at it")


def say(line: str) -> None:
    os.write(1, line.encode() + b"\n")


def fork_core() -> int:
    """A second process of the server's group, which does nothing and, as the real one, outlives its parent."""
    global core_orders
    orders, core_orders = os.pipe()
    pid = os.fork()
    if pid == 0:
        signal.alarm(600)  # a test that fails must not leave it for ever
        os.close(core_orders)
        if os.read(orders, 1):
            _spin()
        while True:
            time.sleep(3600)
    os.close(orders)
    return pid


def spawn_core() -> int:
    """As the real one of a CUDA build: a new interpreter, which imports the launcher's file again."""
    core = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(600,))
    core.start()
    assert core.pid is not None
    return core.pid


def _spin() -> NoReturn:
    while True:
        pass


def _make_mark(path: str) -> bool:
    """True for the first who asks."""
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True
