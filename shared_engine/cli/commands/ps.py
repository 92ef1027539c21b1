"""``vllm-local ps``."""

from __future__ import annotations

import argparse
import asyncio
import os

from shared_engine.cli.exit_codes import DONE
from shared_engine.cli.naming import ENGINE_HELP, named
from shared_engine.cli.ps_table import ps_table
from shared_engine.cli.table import as_json
from shared_engine.machine.gpu import ORDER, device_named, find_gpus, in_cuda_order
from shared_engine.machine.memory import total_memory
from shared_engine.observe.activity import Activity, activities
from shared_engine.observe.engine_info import EngineInfo
from shared_engine.observe.engines import find_engines
from shared_engine.observe.log_reader import printable
from shared_engine.runtime.record import EngineState

# Whose models are in memory, or on the way there.
_LOADED = (EngineState.STARTING, EngineState.READY, EngineState.ASLEEP, EngineState.STOPPING)
EXAMPLES = ("vllm-local ps", "vllm-local ps --json")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("engines", nargs="*", metavar="ENGINE", help=f"{ENGINE_HELP} (default: all that are loaded)")
    parser.add_argument("--names", action="store_true", help="only the names, one on each line")
    parser.add_argument("--json", action="store_true", help="a list of objects, as of status, with running and waiting")


def run(arguments: argparse.Namespace) -> int:
    found = find_engines()
    shown = named(found, arguments.engines) if arguments.engines else [each for each in found if each.state in _LOADED]
    if arguments.names:
        print("".join(f"{printable(engine.name)}\n" for engine in shown), end="")
        return DONE
    in_use = [engine for engine in shown if engine.leases]
    seen = asyncio.run(activities(in_use)) if in_use else []
    does = {engine.key or "": activity for engine, activity in zip(in_use, seen, strict=True)}
    if arguments.json:
        print(as_json([_described(engine, does) for engine in shown]))
    elif shown:
        print("\n".join(ps_table(shown, does, _memory_of(shown))))
    else:
        print("no model is loaded")
    return DONE


def _described(engine: EngineInfo, does: dict[str, Activity | None]) -> dict[str, object]:
    """null: not known. An engine that nobody uses has nothing to do, and is not asked."""
    activity = does.get(engine.key or "", Activity(0, 0))
    told = {"running": None, "waiting": None} if activity is None else activity._asdict()
    return {**engine.to_json(), **told}


def _memory_of(engines: list[EngineInfo]) -> dict[str, int]:
    devices = {device for engine in engines for device in engine.devices}
    gpus = in_cuda_order(find_gpus(), os.environ.get(ORDER)) if any(device != "cpu" for device in devices) else ()
    memory = {"cpu": total_memory()}
    for device in devices - {"cpu"}:
        gpu = device_named(device, gpus)
        if gpu is not None and gpu.memory_total is not None:
            memory[device] = gpu.memory_total
    return memory
