"""Batches on several event loops, one after the other and at once, with few files: the second argument is the limit.

Prints how many files were open at most, or the name of the error.
"""

import asyncio
import contextlib
import os
import resource
import sys
import threading
import time

resource.setrlimit(resource.RLIMIT_NOFILE, (int(sys.argv[2]), resource.getrlimit(resource.RLIMIT_NOFILE)[1]))

from shared_engine import Engine, VLLMError

COUNT = 300
BATCH = [[{"role": "user", "content": "Hello"}]] * COUNT
engine = Engine(base_url=sys.argv[1], model="served", engine_args={"max_num_seqs": COUNT})
most = 0
is_over = threading.Event()


def watch() -> None:
    global most
    while not is_over.is_set():
        most = max(most, len(os.listdir("/proc/self/fd")))
        time.sleep(0.005)


def on_own_loop() -> None:
    assert len(asyncio.run(engine.achat_batch(BATCH))) == COUNT


watching = threading.Thread(target=watch, daemon=True)
watching.start()
try:
    assert len(engine.chat_batch(BATCH)) == COUNT
    on_own_loop()
    threads = [threading.Thread(target=on_own_loop) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    is_over.set()
    watching.join()
    print(most)
    engine.close()  # connections that are idle would be closed some seconds later, and leave their files to others
    held = []
    with contextlib.suppress(OSError):
        while True:
            held.append(os.open("/dev/null", os.O_RDONLY))
    Engine(base_url=f"{sys.argv[1]}/v1", model="served", max_retries=0, default_headers={"X-A": "b"}).chat(BATCH[0])
except VLLMError as exc:
    print(type(exc).__name__)
    if not is_over.is_set():
        raise
