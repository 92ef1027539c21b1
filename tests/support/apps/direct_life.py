"""The life of an engine under this app itself: deaths, forks, evictions.

Prints, as JSON, what a forked child got, and what was seen.

A script as beginners write it: no ``if __name__ == "__main__"`` around it. Run by the Python that has vLLM.
"""

import json
import os
import signal
import sys
from concurrent.futures import ThreadPoolExecutor

sys.path.append(os.environ["PACKAGES_BESIDE"])

from shared_engine import Engine, EngineDiedError
from shared_engine.machine.proc import shared_files
from tests.support.in_flight import HELLO, LONG, SHORT, running
from tests.support.processes import process_exists
from tests.support.waiting import wait_until

settings = json.loads(sys.argv[1])
engine = Engine(**settings, mode="direct")
seen: dict[str, object] = {}


def processes() -> list[int]:
    tree = engine.status(processes=True).processes
    return [] if tree is None else [node.pid for node in tree.walk() if node.pid != os.getpid()]


def chat(_: int = 0) -> str:
    return engine.chat(HELLO, **SHORT).text


engine.warmup()
first = processes()
files = shared_files(first)
with ThreadPoolExecutor(1) as pool:
    answer = pool.submit(engine.chat, HELLO, **LONG)
    wait_until(lambda: running(engine), 30, "the request to run")
    os.kill(first[1], signal.SIGKILL)  # a worker
    seen["tokens of a request whose worker was killed"] = answer.result().usage.completion_tokens
seen["starts after that"] = engine.status().starts
seen["left of the killed ones"] = [pid for pid in first if process_exists(pid)]
seen["shared memory left of them"] = [file for file in files if os.path.exists(file)]

stream = engine.stream_chat(HELLO, **LONG)
next(stream)
os.kill(processes()[0], signal.SIGKILL)  # EngineCore
try:
    list(stream)
except EngineDiedError as exc:
    seen["a stream whose EngineCore was killed"] = exc.message

second = processes()
child = os.fork()
if child == 0:
    os.write(1, f"{json.dumps({'child': chat(), 'shares': processes() == second})}\n".encode())
    sys.exit(7)
seen["exit code of a forked child"] = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
seen["answer after its end"] = chat()
third = processes()
seen["memory while loaded, MB"] = round((engine.status(processes=True).memory_bytes or 0) / 1e6)

short_lived = Engine(**{**settings, "idle_ttl_s": 0.5, "seed": 5}, mode="direct")
short_lived.warmup()
both = [short_lived.metrics()["generation_tokens"], engine.metrics()["generation_tokens"] > 0]
seen["two engines have their own metrics"] = both == [0, True]
tree = short_lived.status(processes=True).processes
idle = [] if tree is None else [node.pid for node in tree.walk() if node.pid != os.getpid()]
wait_until(lambda: not any(map(process_exists, idle)), 20, "the idle engine to leave")
wait_until(lambda: short_lived.status().state.value == "stopped", 5, "its state")
seen["an idle one has left"] = len(idle) > 0
life = short_lived.stats().life
assert life is not None
seen["its life"] = [life.starts, life.evictions, life.failures]
seen["and only that"] = all(map(process_exists, third))

print(json.dumps(seen), flush=True)
