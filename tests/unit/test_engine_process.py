"""What the log of a start that failed says of its cause."""

from __future__ import annotations

import time

import pytest

from shared_engine.supervisor.start_failures import explain, lacks_memory

LAST = "RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}"


@pytest.mark.parametrize(
    ("line", "is_memory"),
    [
        ("ValueError: Free memory on device cuda:0 (1.0/79.6 GiB) on startup is less than desired GPU memory", True),
        ("ValueError: Available memory on node 0 (0.1/15.6 GiB) on kv cache allocation is less than requested", True),
        ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.", True),
        ("OSError: [Errno 12] Cannot allocate memory", True),
        ("ValueError: No available memory for the cache blocks. Try increasing `gpu_memory_utilization`", False),
        ("ValueError: To serve at least one request, ... the estimated maximum model length is 128.", False),
        ("INFO Available KV cache memory: 1.00 GiB", False),
        ("", False),
    ],
)
def test_another_engine_is_the_cause_only_where_memory_is_taken(line: str, is_memory: bool) -> None:
    assert lacks_memory(["INFO something", f"(EngineCore pid=7) ERROR 11-21 09:48:08 [core.py:1] {line}", LAST]) is (
        is_memory
    )


@pytest.mark.timeout(30)
def test_long_lines_are_looked_through_fast() -> None:
    """The supervisor does nothing else meanwhile."""
    began = time.monotonic()
    assert explain(["x" * 12_000] * 4 + ["a b " * 3_000] * 4 + ["OSError: gone", LAST]) == "OSError: gone"
    assert time.monotonic() - began < 1
