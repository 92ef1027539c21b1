"""``vllm-local list``; and where it and ``rm`` look."""

from __future__ import annotations

import argparse
import os
import time

from shared_engine.cli.disk_models import DiskModel, models_on_disk
from shared_engine.cli.exit_codes import DONE
from shared_engine.cli.table import as_json, size, table
from shared_engine.config_files import default_files, read_files
from shared_engine.observe.log_reader import printable

# The setting, read here: its declaration takes longer to import than all else, and shells complete by this command.
SETTING, VARIABLE = "download_dir", "VLLM_DOWNLOAD_DIR"
EXAMPLES = ("vllm-local list", "vllm-local list --json")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_download_dir(parser)
    parser.add_argument("--names", action="store_true", help="only the names, one on each line")
    parser.add_argument("--json", action="store_true", help="a list of objects")


def add_download_dir(parser: argparse.ArgumentParser) -> None:
    text = "of models from the hub here too (default: the setting download_dir)"
    parser.add_argument("--download-dir", metavar="DIR", help=text)


def download_dir_of(arguments: argparse.Namespace) -> str | None:
    return arguments.download_dir or os.environ.get(VARIABLE) or _in_a_file()


def run(arguments: argparse.Namespace) -> int:
    found = models_on_disk(download_dir_of(arguments))
    if arguments.json:
        print(as_json([each.to_json() for each in found]))
    elif arguments.names:
        print("".join(f"{printable(each.name)}\n" for each in found), end="")
    elif found:
        print(
            "\n".join(table([("MODEL", "SIZE", "CHANGED", "STATE"), *map(_row, found)], numbers=(1,), least=((0, 40),)))
        )
    else:
        print("no models on this disk; `vllm-local pull MODEL` fetches one")
    return DONE


def _in_a_file() -> str | None:
    given = read_files(default_files(os.environ)).get(SETTING)
    return None if given is None else str(given.value)


def _row(model: DiskModel) -> tuple[str, ...]:
    changed = time.strftime("%Y-%m-%d", time.localtime(model.changed_at))
    state = "loaded" if model.is_loaded else "" if model.is_whole else "incomplete: pull it again"
    return (model.name, size(model.bytes), changed, state)
