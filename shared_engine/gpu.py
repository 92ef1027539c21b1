"""GPUMonitor: the memory, load and processes of NVIDIA GPUs, alerts, and waiting for memory. Starts nothing on a GPU.

Needs no package: the driver's own library tells (machine/nvml.py). Without a driver there are no devices, and words.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from shared_engine.errors import InvalidInputError
from shared_engine.machine.gpu import ORDER, VISIBLE, device_named, in_cuda_order, look_at_gpus, visible_gpus
from shared_engine.machine.nvml import Gpu, NvmlError
from shared_engine.observe.processes import program_of

if TYPE_CHECKING:
    from typing import Self

_log = logging.getLogger(__name__)

GIB = 1 << 30
POLL_S = 0.25
WATCH_S = 5.0


@dataclass(frozen=True, kw_only=True)
class GPUProcess:
    """A process that computes on a GPU.

    Attributes:
        name: of its program; ``?`` where it is another user's, or outside of this container.
        memory_bytes: on this GPU; None where the driver does not tell.
    """

    pid: int
    name: str
    memory_bytes: int | None


@dataclass(frozen=True, kw_only=True)
class GPUStats:
    """One GPU, or one MIG instance, at one moment. None is what the driver does not tell.

    Attributes:
        index: its number among the visible ones, as CUDA counts them here (``cuda:<index>``); None of one that is not.
        driver_index: the number that ``nvidia-smi`` has for it, or for the GPU that it is an instance of.
        uuid: names it in CUDA_VISIBLE_DEVICES, whatever the order: ``GPU-...`` or ``MIG-...``.
        memory_used_bytes: by processes; the driver reserves some beside.
        utilization_percent: share of the last moments in which it computed; never told of an instance.
        temperature_c, power_w: in degrees Celsius and watts; of the whole GPU, also where this is an instance.
        processes: those that compute on it, the largest first.
    """

    index: int | None
    driver_index: int
    uuid: str
    name: str
    memory_used_bytes: int | None
    memory_free_bytes: int | None
    memory_total_bytes: int | None
    utilization_percent: int | None
    temperature_c: int | None
    power_w: float | None
    processes: tuple[GPUProcess, ...]

    @property
    def memory_share(self) -> float | None:
        """How much of the memory is in use, from 0 to 1."""
        if self.memory_used_bytes is None or not self.memory_total_bytes:
            return None
        return self.memory_used_bytes / self.memory_total_bytes

    def __str__(self) -> str:
        number = "" if self.index is None else f"cuda:{self.index} "
        return f"{number}{self.name} ({self.uuid})"


@dataclass(frozen=True)
class GPUAlert:
    """That more than ``threshold`` of a GPU's memory is in use.

    Attributes:
        at: seconds since the epoch.
    """

    stats: GPUStats
    threshold: float
    at: float

    def __str__(self) -> str:
        stats = self.stats
        return (
            f"{stats}: {_gib(stats.memory_used_bytes)} of {_gib(stats.memory_total_bytes)} GiB in use, more than "
            f"{self.threshold:.0%}"
        )


class GPUMonitor:
    """Looks at NVIDIA GPUs: at one, or at all that this process may use.

    Args:
        device: a number (or ``cuda:<number>``) as CUDA counts the visible ones, or a UUID or its beginning, whether
            visible or not. None: all visible ones.
        threshold: share of a GPU's memory. An alert is a line in the log (WARNING), a call of ``on_alert``, and one
            more in ``alerts``: each time that a look finds more than that in use, where the look before did not.
        on_alert: called with each GPUAlert, in the thread that looks. What it raises is logged.
        visible_devices: as CUDA_VISIBLE_DEVICES. Default: the environment's, at each look.

    A monitor looks when it is asked, and every few seconds between ``start`` and ``stop``, or inside of ``with``.
    Where there is no GPU, no driver, or no answer from it, there are no devices, and ``problem`` says why.

    Raises:
        InvalidInputError: a value is out of range.
    """

    def __init__(
        self,
        device: int | str | None = None,
        threshold: float = 0.9,
        on_alert: Callable[[GPUAlert], object] | None = None,
        *,
        visible_devices: str | None = None,
    ) -> None:
        self.device = _checked_device(device)
        self.threshold = _checked("threshold", threshold, 0, 1)
        self._on_alert = on_alert
        self._visible = visible_devices
        self.problem: str | None = None
        """Why the last look found no device; None where it found some, and before the first."""
        self.alerts = 0
        """How many there were."""
        self._above: set[str] = set()
        self._watch: _Watch | None = None

    def __repr__(self) -> str:
        return f"GPUMonitor(device={self.device!r}, threshold={self.threshold:g})"

    # ---- looking

    def get_stats(self) -> list[GPUStats]:
        """Each device now, in CUDA's order; an empty list where there is none. Takes some milliseconds."""
        found = self._look()
        for stats in found:
            self._compare(stats)
        return found

    def summary(self) -> str:
        """For people: a line for each device, one for each process on it, or why there is no device."""
        lines: list[str] = []
        for stats in self.get_stats():
            used, total, share = stats.memory_used_bytes, stats.memory_total_bytes, stats.memory_share
            memory = "memory not told" if share is None else f"{_gib(used)} of {_gib(total)} GiB ({share:.0%})"
            told = ((stats.utilization_percent, "% busy"), (stats.temperature_c, " °C"), (stats.power_w, " W"))
            more = [f"{value:.0f}{unit}" for value, unit in told if value is not None]
            lines.append(", ".join([f"{stats}: {memory}", *more]))
            lines += [f"  {each.pid} {each.name}: {_gib(each.memory_bytes)} GiB" for each in stats.processes]
        return "\n".join(lines) or f"no GPU: {self.problem}"

    def check_memory_available(self, gb: float) -> bool:
        """Whether one of the devices has ``gb`` GiB free now."""
        return _most_free(self.get_stats()) >= _checked("gb", gb, 0, math.inf) * GIB

    def wait_for_memory(self, gb: float, timeout: float = 60.0) -> bool:
        """Return True as soon as one of the devices has ``gb`` GiB free.

        False after ``timeout`` seconds; at once where there is no device to wait for, or none is that large.
        """
        deadline = time.monotonic() + _checked("timeout", timeout, 0, math.inf)
        while (has_memory := self._has_memory(gb, deadline)) is None:
            time.sleep(POLL_S)
        return has_memory

    async def await_for_memory(self, gb: float, timeout: float = 60.0) -> bool:
        """As ``wait_for_memory``, while the event loop goes on."""
        deadline = time.monotonic() + _checked("timeout", timeout, 0, math.inf)
        while (has_memory := await asyncio.to_thread(self._has_memory, gb, deadline)) is None:
            await asyncio.sleep(POLL_S)
        return has_memory

    def _has_memory(self, gb: float, deadline: float) -> bool | None:
        """None while it is to be waited for."""
        needed, found = _checked("gb", gb, 0, math.inf) * GIB, self.get_stats()
        if _most_free(found) >= needed:
            return True
        if max((stats.memory_total_bytes or 0 for stats in found), default=0) < needed:
            _log.info("%g GiB of GPU memory are not waited for: %s", gb, self.problem or "no device has that much")
            return False
        return False if time.monotonic() >= deadline else None

    def _look(self) -> list[GPUStats]:
        try:
            everything = in_cuda_order(look_at_gpus(), os.environ.get(ORDER))
        except NvmlError as exc:
            self.problem = str(exc)
            return []
        names = os.environ.get(VISIBLE) if self._visible is None else self._visible
        visible = visible_gpus(everything, names)
        if isinstance(self.device, str):
            named = device_named(f"cuda:{self.device}", everything)
            chosen: Sequence[Gpu] = () if named is None else (named,)
        else:
            chosen = visible if self.device is None else visible[self.device : self.device + 1]
        self.problem = None if chosen else _why_none(self.device, everything, visible, names)
        numbers = {gpu.uuid: number for number, gpu in enumerate(visible)}
        return [_stats(gpu, numbers.get(gpu.uuid)) for gpu in chosen]

    # ---- alerts

    def _compare(self, stats: GPUStats) -> None:
        share = stats.memory_share
        with _guard:
            was_above = stats.uuid in self._above
            if share is None or share <= self.threshold:
                self._above.discard(stats.uuid)
                return
            self._above.add(stats.uuid)
            if was_above:
                return
            self.alerts += 1
            _alerts[stats.uuid] += 1
        alert = GPUAlert(stats, self.threshold, time.time())
        _log.warning("%s", alert)
        if self._on_alert is not None:
            try:
                self._on_alert(alert)
            except Exception:
                _log.exception("on_alert of %r failed", self)

    # ---- looking by itself

    def start(self, interval_s: float = WATCH_S) -> None:
        """Look every ``interval_s`` seconds from now on, in a thread that ends with the monitor and with the process.

        A forked child has no such thread: call this there.
        """
        _checked("interval_s", interval_s, 0, math.inf)
        with _guard:
            if self._watch is None or not self._watch.is_alive():
                self._watch = _Watch(self, interval_s)
                self._watch.start()

    def stop(self) -> None:
        """Return when nothing looks by itself any more."""
        watch, self._watch = self._watch, None
        if watch is not None:
            watch.end()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


class _Watch(threading.Thread):
    """Looks every few seconds, as long as there is a monitor."""

    def __init__(self, monitor: GPUMonitor, interval_s: float) -> None:
        super().__init__(name="vllm-local-gpu", daemon=True)
        self._monitor = weakref.ref(monitor)
        self._interval_s = interval_s
        self._ended = threading.Event()

    def run(self) -> None:
        while self._look() and not self._ended.wait(self._interval_s):
            pass

    def _look(self) -> bool:
        monitor = self._monitor()
        if monitor is None:
            return False
        monitor.get_stats()
        return True

    def end(self) -> None:
        self._ended.set()
        if self is not threading.current_thread():  # on_alert may stop its own monitor
            self.join()


_guard = threading.Lock()
_alerts: Counter[str] = Counter()


def alert_counts() -> Mapping[str, int]:
    """How many alerts all monitors of this process have had, by the UUID of the device."""
    with _guard:
        return dict(_alerts)


def _forget_in_child() -> None:
    global _guard
    _guard = threading.Lock()


os.register_at_fork(after_in_child=_forget_in_child)


# ---- values


def _stats(gpu: Gpu, index: int | None) -> GPUStats:
    processes = (
        GPUProcess(pid=pid, name=program_of(pid), memory_bytes=size) for pid, size in gpu.memory_by_pid.items()
    )
    return GPUStats(
        index=index,
        driver_index=gpu.index,
        uuid=gpu.uuid,
        name=gpu.name,
        memory_used_bytes=gpu.memory_used,
        memory_free_bytes=gpu.memory_free,
        memory_total_bytes=gpu.memory_total,
        utilization_percent=gpu.utilization_percent,
        temperature_c=gpu.temperature_c,
        power_w=gpu.power_w,
        processes=tuple(sorted(processes, key=lambda each: (-(each.memory_bytes or 0), each.pid))),
    )


def _most_free(found: Sequence[GPUStats]) -> int:
    """-1 where none is known."""
    return max((stats.memory_free_bytes or 0 for stats in found), default=-1)


def _why_none(device: int | str | None, everything: Sequence[Gpu], visible: Sequence[Gpu], names: str | None) -> str:
    if not everything:
        return "the NVIDIA driver shows none"
    there = ", ".join(gpu.uuid for gpu in everything)
    if isinstance(device, str):
        return f"none, or more than one, is named {device}; there are {there}"
    if not visible and names is None:
        return f"{there}: in MIG mode, without an instance"
    if not visible:
        return f"{VISIBLE} = {names!r} shows none of {there}"
    return f"cuda:{device} is not among the visible ones: there are {len(visible)}"


def _gib(count: int | None) -> str:
    return "?" if count is None else f"{count / GIB:.1f}"


def _checked(name: str, value: float, least: float, most: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
        limit = f"from {least:g} to {most:g}" if most < math.inf else f"{least:g} or more"
        raise InvalidInputError(f"{name} = {value!r}: must be a number, {limit}")
    return float(value)


def _checked_device(device: int | str | None) -> int | str | None:
    number = device.removeprefix("cuda:") if isinstance(device, str) else device
    if isinstance(number, str) and number.isdecimal():
        number = int(number)
    is_number = isinstance(number, int) and not isinstance(number, bool) and number >= 0
    if number is None or is_number or (isinstance(number, str) and number.startswith(("GPU-", "MIG-"))):
        return number
    raise InvalidInputError(
        f"device = {device!r}: must be a number such as 0 (or 'cuda:0'), or a UUID such as 'GPU-8932f937-...'"
    )
