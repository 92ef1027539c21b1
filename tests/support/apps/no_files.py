"""Uses an engine, then has no file left: prints what each call raises, and the answer when there are files again."""

import contextlib
import json
import os
import resource
import sys
from collections.abc import Callable

resource.setrlimit(resource.RLIMIT_NOFILE, (100, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))

from shared_engine import Engine

HELLO = [{"role": "user", "content": "Hello"}]
engine = Engine(**json.loads(sys.argv[1]))
if sys.argv[2] == "after use":
    engine.chat(HELLO)
    engine.close()
CALLS: dict[str, Callable[[], object]] = {
    "chat": lambda: engine.chat(HELLO),
    "stream": lambda: list(engine.stream_chat(HELLO)),
    "batch": lambda: engine.chat_batch([HELLO] * 3),
    "status": engine.status,
    "metrics": engine.metrics,
    "evict": engine.evict,
    "shutdown": engine.shutdown,
}
held = []
with contextlib.suppress(OSError):
    while True:
        held.append(os.open("/dev/null", os.O_RDONLY))
for name, call in CALLS.items():
    try:
        call()
    except Exception as exc:
        print(name, type(exc).__name__)
for number in held:
    os.close(number)
print(engine.chat(HELLO).text)
