"""A preloaded app: six forked workers use the engine and end in three ways, and so does the parent.

With a second argument the parent has used it before, and uses it in a thread meanwhile.
"""

import asyncio
import json
import os
import sys
import threading

from shared_engine import Engine

HELLO = [{"role": "user", "content": "Hello"}]
ANSWER = "Hello! How"
engine = Engine(**json.loads(sys.argv[1]), max_tokens=4, temperature=0)
leave = threading.Event()
count = 0


def work() -> None:
    global count
    while not leave.is_set():
        assert engine.chat(HELLO).text == ANSWER
        count += 1


thread = threading.Thread(target=work)
if busy := len(sys.argv) > 2:
    assert engine.chat(HELLO).text == asyncio.run(engine.achat(HELLO)).text == ANSWER
    thread.start()
children = []
for ending in ("sys.exit", "os._exit", "falls off the end") * 2:
    child = os.fork()
    if child == 0:
        assert engine.chat(HELLO).text == ANSWER
        assert asyncio.run(engine.achat(HELLO)).text == ANSWER
        assert [chunk.text for chunk in engine.stream_chat(HELLO)]
        if ending == "sys.exit":
            sys.exit(0)
        if ending == "os._exit":
            os._exit(0)
        break
    children.append(child)
else:
    print([os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children], len(children))
    leave.set()
    if busy:
        thread.join()
        assert count
    print(engine.chat(HELLO).text, asyncio.run(engine.achat(HELLO)).text)
