"""A Jupyter kernel, what its cells write, and how long a cell takes to be interrupted."""

from __future__ import annotations

import queue
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

PRESS_AGAIN_S = 3.0


@contextmanager
def kernel(folder: Path) -> Iterator[tuple[Any, Any]]:
    """A Jupyter kernel: its manager and a client."""
    with pytest.MonkeyPatch.context() as patch:
        for variable in ("JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR", "IPYTHONDIR"):
            patch.setenv(variable, str(folder))
        from jupyter_client.manager import start_new_kernel

        manager, client = start_new_kernel(kernel_name="python3")
        try:
            yield manager, client
        finally:
            client.stop_channels()
            manager.shutdown_kernel(now=True)


def cell(client: Any, code: str) -> tuple[str, str]:
    """The name of the error a cell ended with, if any, and all that it wrote."""
    written: list[str] = []

    def hear(message: dict[str, Any]) -> None:
        written.append(message["content"].get("text", ""))

    reply = client.execute_interactive(code, timeout=30, output_hook=hear)["content"]
    assert reply["status"] != "aborted", f"never run: {code}"
    return reply.get("ename", ""), "".join(written)


def interrupted(manager: Any, client: Any, code: str, after_s: float) -> tuple[str, float]:
    """The name of the error of a cell that is interrupted ``after_s`` seconds after it began, and how long that took.

    Not before the cell's own code runs: a kernel that is interrupted in its own may never reply. A signal that lands
    where Python drops exceptions is lost: people press again.
    """
    # Jupyter aborts what arrives just after the reply of a cell that failed, unless it is told not to.
    asked = client.execute(f"print('begins', flush=True)\n{code}", stop_on_error=False)
    while True:
        message = client.get_iopub_msg(timeout=30)
        if message["parent_header"].get("msg_id") == asked and message["content"].get("text") == "begins\n":
            break
    time.sleep(after_s)
    for _ in range(5):
        manager.interrupt_kernel()
        began = time.monotonic()
        try:
            reply = client.get_shell_msg(timeout=PRESS_AGAIN_S)
        except queue.Empty:
            continue
        assert reply["parent_header"]["msg_id"] == asked
        return reply["content"].get("ename", "no error"), time.monotonic() - began
    raise AssertionError(f"not interrupted: {code}")
