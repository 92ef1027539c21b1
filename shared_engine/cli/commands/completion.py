"""``vllm-local completion``."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from shared_engine.cli.exit_codes import DONE
from shared_engine.errors import InvalidInputError

SHELLS = ("bash", "zsh", "fish")
EXAMPLES = (
    "vllm-local completion install",
    "vllm-local completion install zsh",
    "vllm-local completion show fish",
    "vllm-local completion remove",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    text = (
        "install: for all shells that start from now on; show: print what the shell has to read; remove: undo install"
    )
    parser.add_argument("what", choices=("install", "show", "remove"), metavar="install|show|remove", help=text)
    text = "default: the one of the variable SHELL"
    parser.add_argument("shell", nargs="?", choices=SHELLS, metavar="|".join(SHELLS), help=text)


def run(arguments: argparse.Namespace) -> int:
    from shared_engine.cli import completion  # late: it needs shtab, and the parsers of all commands
    from shared_engine.cli.main import COMMANDS, parser_of

    shell = arguments.shell or Path(os.environ.get("SHELL", "")).name
    if shell not in SHELLS:
        raise InvalidInputError(f"SHELL = {os.environ.get('SHELL', '')!r}: name one of {', '.join(SHELLS)}")
    if arguments.what == "show":
        print(completion.script_of(parser_of(COMMANDS), shell))
        return DONE
    if arguments.what == "remove":
        changed = completion.remove(shell, os.environ)
        print("\n".join(f"removed from {file}" for file in changed) or f"nothing was installed for {shell}")
        return DONE
    for file in completion.install(parser_of(COMMANDS), shell, os.environ):
        print(f"written: {file}")
    print(f"it works in the next {shell}; after an update of vllm-local, run this again")
    return DONE
