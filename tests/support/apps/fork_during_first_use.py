"""Forks while another thread is in the middle of making what its first request needs; prints how the child ended."""

import asyncio
import json
import os
import signal
import sys
import threading
from typing import NoReturn
from unittest.mock import patch

from shared_engine import Engine, EngineSettings

engine = Engine(**json.loads(sys.argv[1]))
entered = threading.Event()


def never_made(settings: EngineSettings) -> NoReturn:
    entered.set()
    threading.Event().wait()
    raise AssertionError


patched = patch("shared_engine.request.endpoints.LocalEndpoint", never_made)
patched.start()
threading.Thread(target=engine.status, daemon=True).start()
entered.wait()
child = os.fork()
if child == 0:
    signal.alarm(5)
    patched.stop()
    assert asyncio.run(Engine(engine.settings).achat([{"role": "user", "content": "Hello"}], max_tokens=4)).text
    os._exit(0)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
