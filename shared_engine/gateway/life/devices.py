"""The devices of this machine as they are now: GPUs, and the machine's own memory and processors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from shared_engine.gpu import GPUMonitor
from shared_engine.machine.memory import ram

_STAT = Path("/proc/stat")
_IDLE = slice(3, 5)


class Devices:
    """Looked at each time; what the processors did is told from one look to the next."""

    def __init__(self) -> None:
        self._gpus = GPUMonitor(threshold=1.0)  # nobody is to be alerted
        self._last: tuple[int, int] | None = None

    def look(self) -> list[dict[str, Any]]:
        """Takes some milliseconds."""
        return [
            *(
                {
                    "id": gpu.uuid if gpu.index is None else f"cuda:{gpu.index}",
                    "name": gpu.name,
                    "memory_used_bytes": gpu.memory_used_bytes,
                    "memory_total_bytes": gpu.memory_total_bytes,
                    "utilization_percent": gpu.utilization_percent,
                }
                for gpu in self._gpus.get_stats()
            ),
            self._machine(),
        ]

    def _machine(self) -> dict[str, Any]:
        memory = ram()
        return {
            "id": "cpu",
            "name": "this machine",
            "memory_used_bytes": None if memory is None else memory.total - memory.free,
            "memory_total_bytes": None if memory is None else memory.total,
            "utilization_percent": self._busy_percent(),
        }

    def _busy_percent(self) -> int | None:
        """Share of the processors' time since the last look; None at the first."""
        try:
            times = [int(part) for part in _STAT.read_text().split("\n", 1)[0].split()[1:9]]
        except (OSError, ValueError):
            return None
        now, last = (sum(times), sum(times[_IDLE])), self._last
        self._last = now
        if last is None or now[0] <= last[0]:
            return None
        return round(100 * (1 - (now[1] - last[1]) / (now[0] - last[0])))
