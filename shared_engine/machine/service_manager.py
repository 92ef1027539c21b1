"""What a service and its manager tell each other, as systemd has it: sd_listen_fds(3) and sd_notify(3)."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
from collections.abc import Mapping, Sequence

FIRST_FD = 3
OF_ONE_SERVICE = (
    "INVOCATION_ID", "JOURNAL_STREAM", "LISTEN_FDNAMES", "LISTEN_FDS", "LISTEN_PID", "MANAGERPID", "NOTIFY_SOCKET",
    "SYSTEMD_EXEC_PID", "WATCHDOG_PID", "WATCHDOG_USEC",
)  # fmt: skip
"""Variables of one process or one start: not for what it starts in its turn."""
_SEND_S = 1.0
_log = logging.getLogger(__name__)


def passed_files(environment: Mapping[str, str]) -> list[tuple[str, int]]:
    """Names and numbers of the open files that this process was started with; no other program inherits them.

    Raises:
        OSError: one is not open.
    """
    count = environment.get("LISTEN_FDS", "")
    if environment.get("LISTEN_PID") != str(os.getpid()) or not count.isdecimal():
        return []
    names = environment.get("LISTEN_FDNAMES", "").split(":")
    found = [(name, FIRST_FD + at) for at, name in enumerate([*names, *[""] * int(count)][: int(count)])]
    for _, fd in found:
        os.set_inheritable(fd, False)
    return found


def with_files(environment: Mapping[str, str], names: Sequence[str]) -> dict[str, str]:
    """The environment of a program that gets open files from ``FIRST_FD`` on; LISTEN_PID is still to be set."""
    own = {name: value for name, value in environment.items() if name not in ("LISTEN_PID", "WATCHDOG_PID")}
    return {**own, "LISTEN_FDS": str(len(names)), "LISTEN_FDNAMES": ":".join(names)}


class ServiceManager:
    """Hears how this process is; nobody does where it was not started as a service."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        address = environment.get("NOTIFY_SOCKET", "")
        self._address = "\0" + address[1:] if address.startswith("@") else address
        interval = environment.get("WATCHDOG_USEC", "")
        is_watched = environment.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        self.alive_interval_s = int(interval) / 2e6 if interval.isdecimal() and is_watched else None
        """How often it wants to be told ``WATCHDOG=1``; None: never."""

    def tell(self, *said: str) -> None:
        """Such as ``READY=1``. One that can't be told is told nothing: the service goes on."""
        if not self._address:
            return
        with contextlib.closing(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)) as sock:
            sock.settimeout(_SEND_S)
            try:
                sock.sendto("\n".join(said).encode(), self._address)
            except OSError as exc:
                _log.warning("the service manager can't be told %s: %s", said[0], exc)
