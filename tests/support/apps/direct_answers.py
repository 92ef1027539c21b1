"""An engine under this app itself, asked with and without a framework.

Prints, as JSON, the answers and what was seen; then waits to be killed.

A script as beginners write it: no ``if __name__ == "__main__"`` around it. Run by the Python that has vLLM.
"""

import asyncio
import json
import logging
import multiprocessing
import os
import signal
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

sys.path.append(os.environ["PACKAGES_BESIDE"])

from shared_engine import Engine, EngineBusyError
from shared_engine.machine.proc import shared_files
from tests.support.in_flight import HELLO, LONG, SHORT, running, wait_quiet
from tests.support.questions import answers_of, answers_of_adapters
from tests.support.waiting import wait_until

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD, signal.SIGUSR1, signal.SIGUSR2)
WATCHED = ("VLLM_", "LD_PRELOAD", "OMP_", "TORCHINDUCTOR_", "CUDA_", "TMPDIR")

settings = json.loads(sys.argv[1])
engine = Engine(**settings, mode="direct")
seen: dict[str, object] = {}


def processes() -> list[int]:
    tree = engine.status(processes=True).processes
    return [] if tree is None else [node.pid for node in tree.walk() if node.pid != os.getpid()]


def of_the_app() -> list[object]:
    variables = {name: value for name, value in os.environ.items() if name.startswith(WATCHED)}
    handlers = [str(signal.getsignal(number)) for number in SIGNALS]
    log = logging.getLogger()
    start_method = multiprocessing.get_start_method(allow_none=True)
    return [variables, handlers, log.level, len(log.handlers), start_method, os.getcwd(), threading.main_thread().name]


def chat(_: int = 0) -> str:
    return engine.chat(HELLO, **SHORT).text


before = of_the_app()
with ThreadPoolExecutor(4) as pool:
    texts = list(pool.map(chat, range(4)))


async def chats_in_a_running_loop() -> list[str]:
    at_once = await asyncio.gather(*(engine.achat(HELLO, **SHORT) for _ in range(8)))
    return [*(answer.text for answer in at_once), chat()]  # as in a notebook: blocking, while a loop runs here


for _ in range(2):
    texts += asyncio.run(chats_in_a_running_loop())
seen["answers of threads and loops"] = sorted(set(texts))
after = of_the_app()
seen["what is the app's has changed"] = [pair for pair in zip(before, after, strict=True) if pair[0] != pair[1]]
direct = {**settings, "mode": "direct"}
answers = {**answers_of(engine), **answers_of_adapters(direct)}
seen["starts"] = engine.status().starts

began = engine.metrics()["generation_tokens"]
stream = engine.stream_chat(HELLO, **LONG)
next(stream)
stream.close()
wait_quiet(engine)
seen["a stream that was left was aborted"] = engine.metrics()["generation_tokens"] - began < LONG["max_tokens"]

with ThreadPoolExecutor(1) as pool:
    answer = pool.submit(engine.chat, HELLO, **LONG)
    wait_until(lambda: running(engine), 30, "the request to run")
    try:
        engine.evict(timeout=0.2)
    except EngineBusyError:
        seen["evicted under a request"] = False
    assert answer.result().usage.completion_tokens == LONG["max_tokens"]

pids = processes()
told = {"answers": answers, "seen": seen, "pids": pids, "files": shared_files(pids), "log": engine.status().log_file}
print(json.dumps(told), flush=True)
threading.Event().wait(60)
