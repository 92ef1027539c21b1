"""Asks once; prints the answer and which engine gave it."""

import json
import sys

from shared_engine import Engine

engine = Engine(**json.loads(sys.argv[1]))
text = engine.chat([{"role": "user", "content": "Hello"}], max_tokens=8).text
status = engine.status()
print(json.dumps({"text": text, "server_pid": status.server_pid, "starts": status.starts}))
