"""``vllm-local status``."""

from __future__ import annotations

import argparse
import functools
import json
import sys
import time

from shared_engine.cli.argument_types import seconds
from shared_engine.cli.exit_codes import DONE
from shared_engine.cli.naming import ENGINE_HELP, named
from shared_engine.cli.status_table import status_table
from shared_engine.cli.table import fitted
from shared_engine.cli.terminal import can_draw
from shared_engine.observe.engines import find_engines
from shared_engine.runtime.directory import check_root, runtime_root

WATCH_S, MIN_WATCH_S = 2.0, 0.1
EXAMPLES = ("vllm-local status", "vllm-local status --watch 1 --tree", "vllm-local status Qwen3-4B --json")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("engines", nargs="*", metavar="ENGINE", help=ENGINE_HELP)
    parser.add_argument("--all", action="store_true", help="also engines that have ended")
    parser.add_argument("--tree", action="store_true", help="show the processes of each")
    parser.add_argument("--json", action="store_true", help="a list of objects; with --watch one line each time")
    period = functools.partial(seconds, least=MIN_WATCH_S)
    text = f"again every SECONDS (default {WATCH_S:g}) until Ctrl-C"
    parser.add_argument("--watch", nargs="?", type=period, const=WATCH_S, metavar="SECONDS", help=text)


def run(arguments: argparse.Namespace) -> int:
    if arguments.watch is None:
        print(_frame(arguments))
        return DONE
    try:
        while True:
            frame = _frame(arguments)
            is_drawing = can_draw(sys.stdout) and not arguments.json
            print(f"\x1b[H\x1b[J{fitted(frame)}" if is_drawing else frame, flush=True)
            if not is_drawing and not arguments.json:
                print(flush=True)
            time.sleep(arguments.watch)
    except KeyboardInterrupt:
        return DONE


def _frame(arguments: argparse.Namespace) -> str:
    engines = find_engines()
    if arguments.engines:
        shown = named(engines, arguments.engines)
    else:
        shown = [engine for engine in engines if arguments.all or engine.is_worth_a_line]
    if arguments.json:
        return json.dumps([each.to_json() for each in shown], indent=2 if arguments.watch is None else None)
    if shown:
        return "\n".join(status_table(shown, tree=arguments.tree))
    check_root()
    ended = f" ({len(engines)} ended: --all shows them)" if engines else ""
    return f"no engine is alive in {runtime_root()}{ended}"
