"""What the steps of gpu_check.py have in common: what a step is given, and how it asks an engine.

On a CPU (``--cpu``) the same steps run at smaller sizes, RAM stands in for GPU memory, and what only a GPU can show
says so. That is a rehearsal: its figures mean nothing.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from device_memory import used_mib
from servers import HELLO, MODEL
from step_runner import Rows

from shared_engine import Engine
from shared_engine.launcher.start_method import START_VARIABLE
from shared_engine.machine.memory import GIB

GPU_ONLY = "GPU only"
MEMORY_BACK_S = 3.0
WITHIN_S = 60.0


@dataclass(frozen=True)
class Run:
    """What a step is given.

    Attributes:
        folder: of the whole run: caches, made-up models, and what steps leave for later ones.
    """

    is_cpu: bool
    folder: Path
    rows: Rows

    def say(self, measure: str, result: str) -> None:
        self.rows.add(measure, result)

    def seconds(self, measure: str, value: float) -> None:
        self.say(measure, f"{value:.2f} s")

    @property
    def memory_name(self) -> str:
        return "RAM in use (rehearsal)" if self.is_cpu else "GPU memory"

    def used(self) -> int:
        """MiB."""
        return used_mib(self.is_cpu)

    def grown(self, when: str, before: int) -> None:
        """How much more memory is in use than ``before``."""
        self.say(f"{self.memory_name}, {when}", f"{self.used() - before:+,} MiB")

    def back(self, when: str, before: int) -> None:
        """The same, where nothing should be left: looked at again for a moment if there is."""
        began = time.monotonic()
        left = at_once = self.used() - before
        while left > 0 and time.monotonic() - began < MEMORY_BACK_S:
            time.sleep(0.05)
            left = self.used() - before
        text = f"{at_once:+,} MiB"
        if left != at_once:
            text += f" at once, {left:+,} MiB after {time.monotonic() - began:.1f} s"
        self.say(f"{self.memory_name}, {when}", text)

    def settings(self, share: float, *, kv_gib: float | None = None, **more: Any) -> dict[str, Any]:
        """Of an engine on tiny_chat.

        Args:
            share: of the GPU's memory.
            kv_gib: size of the KV cache; None: what vLLM finds to be free of its share, on a GPU.
        """
        settings: dict[str, Any] = {"model": MODEL, "max_model_len": 2048, "gpu_memory_utilization": share, **more}
        if self.is_cpu:
            kv_gib = 0.25
        if kv_gib is not None:
            settings["engine_args"] = {"kv_cache_memory_bytes": int(kv_gib * GIB), **more.get("engine_args", {})}
        return settings

    @property
    def fork_works(self) -> Path:
        """There when the step of forked starts found that they work: later steps then start in less time."""
        return self.folder / "fork_works"

    def start_quickly(self) -> str:
        """Have the engines of this step fork if that works; in words."""
        if self.fork_works.exists():
            os.environ[START_VARIABLE] = "fork"
            return "forked"
        return "as by default"

    def use_caches(self, name: str) -> None:
        """Have vLLM keep what it compiles in a folder of this run."""
        folder = self.folder / "caches" / name
        for variable, place in (
            ("VLLM_CACHE_ROOT", "vllm"),
            ("TRITON_CACHE_DIR", "triton"),
            ("TORCHINDUCTOR_CACHE_DIR", "inductor"),
        ):
            os.environ[variable] = str(folder / place)


@contextmanager
def engine_of(settings: dict[str, Any]) -> Iterator[Engine]:
    """Not started yet; gone afterwards."""
    engine = Engine(**settings)
    try:
        yield engine
    finally:
        engine.shutdown(force=True)


def ask(engine: Engine) -> tuple[float, str]:
    """Seconds until the answer, and the answer."""
    began = time.monotonic()
    text = engine.chat(HELLO, temperature=0, max_tokens=32).text
    return time.monotonic() - began, text


def wait_until(condition: Callable[[], bool], what: str) -> None:
    ends = time.monotonic() + WITHIN_S
    while not condition():
        if time.monotonic() > ends:
            raise TimeoutError(f"waited {WITHIN_S:g} s for {what}")
        time.sleep(0.02)


def log_of(engine: Engine) -> str:
    file = engine.status().log_file
    return "" if file is None else Path(file).read_text(errors="replace")


def last_match(pattern: str, text: str) -> str:
    found = re.findall(pattern, text)
    return str(found[-1]) if found else "the log does not tell"
