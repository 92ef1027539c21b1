"""An app as process 1, as in a container without an init: what becomes of processes that it does not know of.

Says, as JSON, what it saw: each state after a step, and which processes are left, by state letter.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

from shared_engine import Engine


def others() -> dict[str, str]:
    """Every other process: its PID, and the letter of its state."""
    found = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        found[stat.parent.name] = fields[0]
    return {pid: state for pid, state in found.items() if pid != "1"}


assert os.getpid() == 1
engine = Engine(**json.loads(sys.argv[1]))
seen = [engine.generate("Hello").text]
if sys.argv[2:] == ["ends"]:  # as a container that is out of memory: the kernel ends all the others
    print(json.dumps({"answers": seen}), flush=True)
    os._exit(1)
supervisor = engine.status().supervisor_pid
assert supervisor is not None
os.kill(supervisor, signal.SIGKILL)
deadline = time.monotonic() + 10
while others().get(str(supervisor)) not in ("Z", None):
    assert time.monotonic() < deadline
    time.sleep(0.02)
seen.append(engine.generate("Hello").text)
second = engine.status().supervisor_pid
engine.evict()
seen.append(engine.generate("Hello").text)
engine.shutdown(force=True)
deadline = time.monotonic() + 10
while set(others().values()) - {"Z"} and time.monotonic() < deadline:
    time.sleep(0.02)
print(json.dumps({"answers": seen, "is_another": second != supervisor, "left": sorted(others().values())}))
