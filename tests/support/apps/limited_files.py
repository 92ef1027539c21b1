"""Asks once, in a process whose files, and those of its children, may not grow beyond the second argument's bytes."""

import json
import resource
import sys

resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]),) * 2)

from shared_engine import Engine, VLLMError

engine = Engine(**json.loads(sys.argv[1]))
try:
    print(engine.chat([{"role": "user", "content": "Hello"}]).text)
except VLLMError as exc:
    print(type(exc).__name__, exc)
