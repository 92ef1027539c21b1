"""``vllm-local logs``."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from itertools import chain
from pathlib import Path

from shared_engine.cli.argument_types import count
from shared_engine.cli.exit_codes import DONE
from shared_engine.cli.naming import ENGINE_HELP
from shared_engine.cli.terminal import tell
from shared_engine.errors import EngineNameError
from shared_engine.observe.engine_info import EngineInfo
from shared_engine.observe.engines import choose, find_engines
from shared_engine.observe.log_lines import LineReader
from shared_engine.observe.log_reader import plain_text, read_log
from shared_engine.runtime.directory import runtime_root

LOG_LINES = 100
EXAMPLES = ("vllm-local logs -f", "vllm-local logs Qwen3-4B -n 20 --json")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    text = f"{ENGINE_HELP} (default: the one alive, or last used)"
    parser.add_argument("engine", nargs="?", metavar="ENGINE", help=text)
    parser.add_argument("-f", "--follow", action="store_true", help="go on until Ctrl-C")
    text = f"so many of the last lines (default {LOG_LINES})"
    parser.add_argument("--json", action="store_true", help="an object for each line")
    parser.add_argument("-n", dest="lines", type=count, default=LOG_LINES, metavar="LINES", help=text)


def run(arguments: argparse.Namespace) -> int:
    engines = find_engines()
    engine = choose(engines, arguments.engine) if arguments.engine else _last_used(engines)
    texts = read_log(Path(engine.log_file or ""), arguments.lines, follow=arguments.follow)
    if arguments.json:
        reader = LineReader()
        for line in (line for text in chain(texts, "\n") for line in reader.feed(text)):
            print(json.dumps(line.to_json()), flush=True)
        return DONE
    for text in texts if sys.stdout.isatty() else plain_text(texts):
        sys.stdout.write(text)
        sys.stdout.flush()
    return DONE


def _last_used(engines: Sequence[EngineInfo]) -> EngineInfo:
    if not engines:
        raise EngineNameError(f"no engines found in {runtime_root()}")
    if len(engines) > 1:
        tell(f"==> {engines[0].name} ({engines[0].key})")
    return engines[0]  # the living come first, then the most recently used
