"""Completion of the command in shells: the script that shtab makes of the parser, and where a shell finds it."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping
from pathlib import Path
from shlex import quote
from typing import Any

import shtab

from shared_engine.cli.engine_arguments import reveal_all
from shared_engine.machine.home import expanded
from shared_engine.runtime.files import write_atomically

PROGRAM = "vllm-local"
MARK = "# completion of vllm-local"


def _lines_of(command: str, function: str) -> dict[str, Any]:
    """What a command prints, when it is wanted.

    Not by ``shtab.cmd``: in bash the shell would run what stands in ``$(...)`` in a name, and in zsh the command would
    run when the script is read.
    """
    run = f"{command} 2>/dev/null"
    each = """while IFS= read -r name; do [[ $name == "$1"* ]] && printf '%s\\n' "$name"; done"""
    bash = f"{function}() {{ {run} | {each}; }}"
    zsh = f'{function}() {{ compadd -- ${{(f)"$({run})"}}; _files -/ }}'
    return {"bash": function, "zsh": function, "fish": f"({run})", "preamble": {"bash": bash, "zsh": zsh}}


# What words of these kinds are: by the name that the help has for them.
_WORDS = {
    "FILE": shtab.FILE,
    "DIR": shtab.DIRECTORY,
    "MODEL": _lines_of(f"{PROGRAM} list --names", "_vllm_local_models"),
    "ENGINE": _lines_of(f"{PROGRAM} ps --names", "_vllm_local_engines"),
}


def script_of(parser: argparse.ArgumentParser, shell: str) -> str:
    """What the shell has to read, of a parser that knows all commands; every option is in it."""
    _prepare(parser)
    return str(shtab.complete(parser, shell))


def _prepare(parser: argparse.ArgumentParser) -> None:
    reveal_all(parser)
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for each in dict.fromkeys(action.choices.values()):
                _prepare(each)
        elif action.metavar in _WORDS:
            action.complete = _WORDS[str(action.metavar)]  # type: ignore[attr-defined]


def file_of(shell: str, environment: Mapping[str, str]) -> Path:
    """Where the script goes: fish reads its place by itself, bash and zsh as their start-up file says."""
    home = expanded("~", environment)
    if shell == "fish":
        return Path(environment.get("XDG_CONFIG_HOME") or home / ".config", "fish", "completions", f"{PROGRAM}.fish")
    data = Path(environment.get("XDG_DATA_HOME") or home / ".local/share", PROGRAM, "completion")
    return data / (f"{PROGRAM}.bash" if shell == "bash" else f"_{PROGRAM}")


def start_up(shell: str, environment: Mapping[str, str]) -> tuple[Path, str] | None:
    """The file that a shell reads at its start, and the line that it needs there; None where it needs none."""
    home = expanded("~", environment)
    file = file_of(shell, environment)
    if shell == "bash":
        return home / ".bashrc", f"[ -r {quote(str(file))} ] && . {quote(str(file))}  {MARK}"
    if shell == "zsh":
        line = f"fpath=({quote(str(file.parent))} $fpath); autoload -Uz compinit; compinit  {MARK}"
        return Path(environment.get("ZDOTDIR") or home) / ".zshrc", line
    return None


def install(parser: argparse.ArgumentParser, shell: str, environment: Mapping[str, str]) -> list[Path]:
    """Write the script, and the line of the start-up file, which is changed once; the files that were written.

    Raises:
        OSError: one of them can't be.
    """
    file = file_of(shell, environment)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(file, script_of(parser, shell))
    needed = start_up(shell, environment)
    if needed is None:
        return [file]
    start_file, line = needed[0], os.fsencode(needed[1])
    lines = _lines_in(start_file)
    if line in lines:
        return [file]
    others = [each for each in lines if not each.endswith(MARK.encode())]
    while others and not others[-1]:
        del others[-1]
    _rewrite(start_file, [*others, line, b""])
    return [file, start_file]


def remove(shell: str, environment: Mapping[str, str]) -> list[Path]:
    """Undo ``install``; the files that were changed.

    Raises:
        OSError: one of them can't be.
    """
    changed = []
    file, needed = file_of(shell, environment), start_up(shell, environment)
    if file.exists():
        file.unlink()
        changed.append(file)
    if needed is not None:
        lines = _lines_in(needed[0])
        left = [line for line in lines if not line.endswith(MARK.encode())]
        if left != lines:
            _rewrite(needed[0], left)
            changed.append(needed[0])
    return changed


def _lines_in(file: Path) -> list[bytes]:
    """As they are, whatever their encoding; none where there is no file."""
    return file.read_bytes().split(b"\n") if file.exists() else []


def _rewrite(file: Path, lines: list[bytes]) -> None:
    # In place: it may be a link into a folder of dotfiles.
    file.write_bytes(b"\n".join(lines))
