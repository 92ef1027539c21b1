"""Forks twenty children, each of which asks the engine at once; prints how they ended."""

import json
import os
import sys

import aiohttp  # noqa: F401  (imported before the forks, so that the children ask at the same moment)

from shared_engine import Engine

engine = Engine(**json.loads(sys.argv[1]))
pids = []
for _ in range(20):
    pid = os.fork()
    if pid == 0:
        os._exit(0 if engine.chat([{"role": "user", "content": "Hello"}], max_tokens=9).text else 1)
    pids.append(pid)
print(json.dumps([os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]))
