"""The user's home folder, where there may be none: a container's user by number has no entry in the user database."""

from __future__ import annotations

import os
import pwd
from collections.abc import Mapping
from pathlib import Path

NOWHERE = "/nonexistent"
"""What Debian enters as the home of users that have none: it is not there, and only root could make it."""


def home(environment: Mapping[str, str] = os.environ) -> str | None:
    """The home folder that HOME names, or the user database; None where neither does."""
    try:
        return environment.get("HOME") or pwd.getpwuid(os.getuid()).pw_dir or None
    except KeyError:
        return None


def expanded(path: str | os.PathLike[str], environment: Mapping[str, str] = os.environ) -> Path:
    """``path`` with the user's home folder for a ``~`` at its beginning.

    Where there is no home, a folder that is not there. Never ``~`` itself, which would be looked for in the current
    folder; and no error, as Path.expanduser has. Another user's home (``~name``) that is not known stays as it is.
    """
    text = os.fspath(path)
    if text == "~" or text.startswith("~/"):
        return Path(((home(environment) or NOWHERE).rstrip("/") + text[1:]) or "/")
    return Path(os.path.expanduser(text))


def caches(environment: Mapping[str, str] = os.environ) -> Path:
    """Where programs keep what they can make again."""
    return expanded(environment.get("XDG_CACHE_HOME") or "~/.cache", environment)
