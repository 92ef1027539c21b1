"""What a forked child must not inherit."""

from __future__ import annotations

import importlib
import os
import pkgutil
import sys
import threading
import warnings
from typing import Any

import pytest

import shared_engine

LOCKS = (type(threading.Lock()), type(threading.RLock()))
ELSEWHERE = ("shared_engine.launcher", "shared_engine.supervisor", "shared_engine.cli", "shared_engine.gateway")
"""What runs in processes of its own, which fork only from their main thread."""


def locks() -> dict[str, Any]:
    """All that a module of ours has, by module and name."""
    return {
        f"{name}.{attribute}": value
        for name, module in list(sys.modules.items())
        if name.startswith("shared_engine.") and not name.startswith(ELSEWHERE)
        for attribute, value in vars(module).items()
        if isinstance(value, LOCKS)
    }


@pytest.mark.slow
def test_no_lock_that_a_thread_of_the_parent_holds_is_held_in_a_forked_child() -> None:
    for module in pkgutil.walk_packages(shared_engine.__path__, "shared_engine."):
        if module.name.startswith("shared_engine.request.") or module.name == "shared_engine.direct.host":
            importlib.import_module(module.name)
    held, are_held, may_end = locks(), threading.Event(), threading.Event()
    assert len(held) > 5

    def hold() -> None:
        for lock in held.values():
            lock.acquire()
        are_held.set()
        may_end.wait(30)
        for lock in held.values():
            lock.release()

    thread = threading.Thread(target=hold)
    thread.start()
    assert are_held.wait(10)
    read, write = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forks beside threads, which is what is tried here
        child = os.fork()
    if child == 0:
        try:
            os.write(
                write, " ".join(name for name, lock in locks().items() if not lock.acquire(blocking=False)).encode()
            )
        finally:
            os._exit(0)
    os.close(write)
    may_end.set()
    thread.join(10)
    os.waitpid(child, 0)
    with os.fdopen(read) as pipe:
        assert pipe.read() == ""
