"""``vllm-local stop``; and what ``evict`` shares with it."""

from __future__ import annotations

import argparse
import asyncio

from shared_engine.cli.argument_types import seconds
from shared_engine.cli.ending import end_engines
from shared_engine.cli.exit_codes import DONE
from shared_engine.cli.naming import ENGINE_HELP, named
from shared_engine.cli.table import as_json
from shared_engine.cli.terminal import complain
from shared_engine.errors import EngineNameError
from shared_engine.observe.engines import find_engines, listing, running

END_TIMEOUT_S = 30.0
EXAMPLES = ("vllm-local stop", "vllm-local stop Qwen3-4B --timeout 5", "vllm-local stop --all --force")
INTERRUPTED = "an engine that has begun to stop goes on stopping"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_ending(parser)
    parser.add_argument("--force", action="store_true", help="do not wait: requests in flight fail")


def add_ending(parser: argparse.ArgumentParser) -> None:
    """Which engines are to end, and how long they may take."""
    parser.add_argument("engines", nargs="*", metavar="ENGINE", help=f"{ENGINE_HELP} (default: the only one alive)")
    parser.add_argument("--all", action="store_true", help="all of them")
    text = f"wait so many seconds for requests in flight (default {END_TIMEOUT_S:g})"
    parser.add_argument("--timeout", type=seconds, default=END_TIMEOUT_S, metavar="S", help=text)
    parser.add_argument("--json", action="store_true", help="a list of objects: key, model, outcome, message")


def run(arguments: argparse.Namespace) -> int:
    return end(arguments, shuts_down=True, force=arguments.force)


def end(arguments: argparse.Namespace, *, shuts_down: bool, force: bool) -> int:
    if arguments.all and arguments.engines:
        arguments.usage_error("name engines, or use --all, not both")
    engines = find_engines()
    meant = running(engines)
    if arguments.engines:
        chosen = named(engines, arguments.engines)
    elif arguments.all:
        chosen = [engine for engine in engines if engine.is_alive]
    elif len(meant) < 2:
        chosen = meant
    else:
        raise EngineNameError(f"{len(meant)} engines are alive: name one, or use --all:\n{listing(meant)}")
    if not chosen and not arguments.json:
        print("no engine is alive")
    ended = asyncio.run(end_engines(chosen, arguments.timeout, shuts_down=shuts_down, force=force))
    if arguments.json:
        print(as_json([each.to_json() for each in ended]))
    else:
        for each in ended:
            print(each.text) if each.code == DONE else complain(each.text)
    return max((each.code for each in ended), default=DONE)
