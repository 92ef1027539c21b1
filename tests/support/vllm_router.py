"""vLLM's router, from an environment of its own: `make test-routers` makes it."""

from __future__ import annotations

import os
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.support.paths import REPOSITORY
from tests.support.plain_server import free_port, running, wait_for

ROUTERS = Path(os.environ.get("ROUTERS_VENV", REPOSITORY / ".venv-routers"))


@contextmanager
def vllm_router(workers: Sequence[str], folder: Path, *flags: str) -> Iterator[str]:
    """The router before servers at these URLs, cache-aware by default; its own URL, once it says that it is well."""
    url, log = f"http://127.0.0.1:{(port := free_port())}", folder / "vllm_router.log"
    command = [
        str(ROUTERS / "bin" / "vllm-router"), "--host", "127.0.0.1", "--port", str(port),
        "--prometheus-port", str(free_port()), *flags, "--worker-urls", *workers,
    ]  # fmt: skip
    with running(command, log) as process:
        wait_for(lambda: _is_well(url), process, log)
        yield url


def _is_well(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=5) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False
