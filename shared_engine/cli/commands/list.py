"""``vllm-local list``."""

from __future__ import annotations

import argparse
import time

from shared_engine.cli.disk_models import DiskModel, models_on_disk
from shared_engine.cli.engine_arguments import add_config_argument, given_settings
from shared_engine.cli.exit_codes import DONE
from shared_engine.cli.table import as_json, size, table

EXAMPLES = ("vllm-local list", "vllm-local list --json")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config_argument(parser)
    text = "of models from the hub here too (default: the setting download_dir)"
    parser.add_argument("--download-dir", metavar="DIR", help=text)
    parser.add_argument("--names", action="store_true", help="only the names, one on each line")
    parser.add_argument("--json", action="store_true", help="a list of objects")


def run(arguments: argparse.Namespace) -> int:
    given = given_settings(arguments).get("download_dir")
    found = models_on_disk(arguments.download_dir or (None if given is None else str(given.value)))
    if arguments.json:
        print(as_json([each.to_json() for each in found]))
    elif arguments.names:
        print("".join(f"{each.name}\n" for each in found), end="")
    elif found:
        print(
            "\n".join(table([("MODEL", "SIZE", "CHANGED", "STATE"), *map(_row, found)], numbers=(1,), least=((0, 40),)))
        )
    else:
        print("no models on this disk; `vllm-local pull MODEL` fetches one")
    return DONE


def _row(model: DiskModel) -> tuple[str, ...]:
    changed = time.strftime("%Y-%m-%d", time.localtime(model.changed_at))
    state = "loaded" if model.is_loaded else "" if model.is_whole else "incomplete: pull it again"
    return (model.name, size(model.bytes), changed, state)
