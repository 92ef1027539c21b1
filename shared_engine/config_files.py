"""Config files: settings by their names, as TOML. Read by the command, and by ``EngineSettings.from_file`` only.

``./vllm-local.toml`` for one project, ``~/.config/vllm-local/config.toml`` for a user; the first of them wins.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shared_engine.errors import SettingsError
from shared_engine.machine.home import expanded

PROJECT_FILE = "vllm-local.toml"


@dataclass(frozen=True)
class Given:
    """A setting's value, and where it was found.

    Attributes:
        source: a file, an environment variable, an option of the command line; for people.
    """

    value: Any
    source: str


def default_files(environment: Mapping[str, str]) -> tuple[Path, ...]:
    """Those that there are of the two, the winning one first."""
    home = environment.get("XDG_CONFIG_HOME") or "~/.config"
    files = (Path(PROJECT_FILE), expanded(Path(home, "vllm-local", "config.toml"), environment))
    return tuple(file for file in files if file.exists())


def read_files(files: Iterable[str | os.PathLike[str]]) -> dict[str, Given]:
    """All settings in the files, by name; an earlier file wins. A text that begins with ./ or ../ is a path beside
    its file.

    Raises:
        SettingsError: a file can't be read, is not TOML, or could have been written by another user.
    """
    found: dict[str, Given] = {}
    for file in map(Path, files):
        file = expanded(file)
        for name, value in _read(file).items():
            found.setdefault(name, Given(with_paths(value, file.absolute().parent), str(file)))
    return found


def _read(file: Path) -> dict[str, Any]:
    try:
        with file.open("rb") as opened:
            check_owner(file, os.fstat(opened.fileno()))
            return tomllib.load(opened)
    except OSError as exc:
        raise SettingsError(f"the config file {file} can't be read: {exc.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as exc:
        raise SettingsError(f"the config file {file} is not TOML: {exc}") from None


def check_owner(file: Path, status: os.stat_result) -> None:
    # A setting can name a program to run (``python``), and the project's file is read wherever the command is run.
    if status.st_uid not in (0, os.getuid()) or status.st_mode & 0o002:
        whose = "is writable for everybody" if status.st_mode & 0o002 else f"belongs to user {status.st_uid}"
        raise SettingsError(
            f"the config file {file} {whose}, so it is not read: make it yours alone "
            f"(`chown {os.getuid()} {file}; chmod go-w {file}`), or remove it"
        )


def with_paths(value: Any, folder: Path) -> Any:
    if isinstance(value, str) and value.startswith(("./", "../")):
        return os.path.normpath(folder / value)
    if isinstance(value, dict):
        return {name: with_paths(each, folder) for name, each in value.items()}
    return [with_paths(each, folder) for each in value] if isinstance(value, list) else value
