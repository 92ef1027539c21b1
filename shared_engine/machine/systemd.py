"""A cgroup of its own for a process that a systemd service starts, but that others use as well.

What a service starts stays in the service's cgroup: it ends when the service is restarted, and its memory counts as the
service's. A scope is systemd's own way out (systemd-run(1), systemd.scope(5)).
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

BOOTED = Path("/run/systemd/system")  # as sd_booted(3) looks
CGROUPS = Path("/proc/self/cgroup")


@dataclass(frozen=True)
class Scope:
    """How to start a process in a scope.

    Attributes:
        prefix: the command to put in front of the process's own.
        variables: what this command needs in its environment.
    """

    prefix: tuple[str, ...]
    variables: Mapping[str, str]


def own_service(cgroups: str) -> str | None:
    """The systemd service that a process belongs to, such as ``app.service``; None for a session or a container.

    Args:
        cgroups: what /proc/PID/cgroup says.
    """
    for line in cgroups.splitlines():
        units = [name for name in line.rpartition(":")[2].split("/") if name.endswith((".service", ".scope"))]
        if units and units[-1].endswith(".service") and not units[-1].startswith("user@"):
            return units[-1]
    return None


def service_of_this_process() -> str | None:
    """See ``own_service``."""
    if not BOOTED.is_dir():
        return None
    try:
        return own_service(CGROUPS.read_text())
    except OSError:
        return None


def new_scope(name: str, environment: Mapping[str, str]) -> Scope | None:
    """A scope beside the services of this user; None where no systemd manager of this user can be reached.

    Args:
        name: a part of the scope's name.
    """
    tool = shutil.which("systemd-run", path=environment.get("PATH"))
    if tool is None:
        return None
    user_directory = environment.get("XDG_RUNTIME_DIR") or f"/run/user/{os.getuid()}"
    unit = f"--unit=vllm-local-{name}-{time.monotonic_ns()}"
    options = ("--scope", "--quiet", "--collect", unit, "--description=vLLM engine of vllm-local", "--")
    if Path(user_directory, "systemd", "private").exists():
        return Scope((tool, "--user", *options), {"XDG_RUNTIME_DIR": user_directory})
    if os.getuid() == 0 and Path("/run/systemd/private").exists():
        return Scope((tool, *options), {})
    return None
