"""What the processor can compute in. Reads ``/proc/cpuinfo``, and touches nothing."""

from __future__ import annotations

import platform
import re
from functools import cache
from pathlib import Path

_CPUINFO = Path("/proc/cpuinfo")


@cache
def is_slow_in_bfloat16(cpuinfo: Path = _CPUINFO) -> bool:
    """True for an x86-64 processor without AVX-512, which has nothing for 16 bits.

    vLLM's CPU build then computes batches several times slower in bfloat16 than in float32 (benchmarks/NOTES.md).
    """
    if platform.machine() != "x86_64" or not cpuinfo.exists():
        return False
    flags = re.search(r"^flags\s*:(.*)$", cpuinfo.read_text(), re.MULTILINE)
    return flags is not None and "avx512f" not in flags[1].split()
