"""``vllm-local stop`` and ``evict``: end engines, and say for each how it went."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

from shared_engine.cli.exit_codes import BUSY, DONE, FAILED
from shared_engine.errors import EngineBusyError, VLLMError
from shared_engine.observe.engine_info import EngineInfo
from shared_engine.observe.engines import find_engines
from shared_engine.observe.processes import program_of
from shared_engine.runtime.control import Control
from shared_engine.runtime.directory import runtime_dir


class Ending(NamedTuple):
    """How it went with one engine.

    Attributes:
        text: for people.
    """

    engine: EngineInfo
    code: int
    text: str

    def to_json(self) -> dict[str, Any]:
        outcome = {DONE: "done", BUSY: "busy"}.get(self.code, "failed")
        return {"key": self.engine.key, "model": self.engine.model, "outcome": outcome, "message": self.text}


async def end_engines(engines: Sequence[EngineInfo], timeout: float, *, shuts_down: bool, force: bool) -> list[Ending]:
    """End all at once; how it went with each.

    Args:
        timeout: seconds to wait for requests in flight.
        shuts_down: leave no process; else evict, and vLLM stays imported.
        force: shut down at once; requests in flight fail.
    """
    ended = await asyncio.gather(*(_end(engine, timeout, shuts_down, force) for engine in engines))
    return [Ending(engine, code, text) for engine, (code, text) in zip(engines, ended, strict=True)]


async def _end(engine: EngineInfo, timeout: float, shuts_down: bool, force: bool) -> tuple[int, str]:
    what, ended = f"{engine.name} ({engine.short_key})", "stopped" if shuts_down else "evicted"
    if not engine.is_alive:
        return DONE, f"{what} is not running"
    control = Control(runtime_dir(engine.key or ""))
    began = time.monotonic()
    try:
        if shuts_down:
            await control.shutdown(timeout, force=force)
        else:
            await control.evict(timeout)
    except EngineBusyError:
        return BUSY, f"{what} was not {ended}: waited {timeout:g} s for {_who_holds(engine)}"
    except VLLMError as exc:
        return FAILED, f"{what}: {exc}"
    return DONE, f"{what} {ended} in {time.monotonic() - began:.1f} s"


def _who_holds(engine: EngineInfo) -> str:
    now = next((each for each in find_engines() if each.key == engine.key), engine)
    holders = ", ".join(f"{pid} ({program_of(pid)})" for pid in now.lease_holders)
    return f"requests of process {holders}" if holders else "requests in flight, or that wait for its start"
