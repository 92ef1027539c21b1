"""A systemd manager of this user, for one test: a real one, in a mount namespace in which the machine looks booted."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.waiting import wait_until

SYSTEMD = Path("/lib/systemd/systemd")
START_S = 20.0
_BOOTED = "mount -t tmpfs tmpfs /run/systemd && mkdir /run/systemd/system"


def lacking() -> str | None:
    """Why there can't be one here; None if there can."""
    if not SYSTEMD.exists() or shutil.which("systemctl") is None:
        return "needs systemd"
    done = subprocess.run(["unshare", "--mount", "sh", "-c", _BOOTED], capture_output=True, text=True, check=False)
    return f"needs a mount namespace: {done.stderr.strip()}" if done.returncode else None


class UserManager:
    """It runs.

    Attributes:
        units: the folder of its units.
    """

    def __init__(self, pid: int, units: Path, environment: dict[str, str]) -> None:
        self.units = units
        self._pid = pid
        self._environment = environment

    def systemctl(self, *words: str, check: bool = True) -> str:
        """What it says on stdout."""
        done = subprocess.run(
            ["nsenter", "--mount", f"--target={self._pid}", "systemctl", "--user", *words],
            env=self._environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert done.returncode == 0 or not check, done.stdout + done.stderr
        return done.stdout.strip()

    def shown(self, unit: str, field: str) -> str:
        return self.systemctl("show", unit, f"--property={field}", "--value")


@contextmanager
def user_manager(folder: Path) -> Iterator[UserManager]:
    """
    Args:
        folder: of this test: the manager's home, with a short path.
    """
    runtime, home, config = folder / "run", folder / "home", folder / "config"
    units = config / "systemd" / "user"
    for each in (runtime, home, units):
        each.mkdir(parents=True, mode=0o700)
    names = {"XDG_RUNTIME_DIR": runtime, "HOME": home, "XDG_CONFIG_HOME": config}
    environment = {**os.environ, **{name: str(path) for name, path in names.items()}}
    environment.pop("DBUS_SESSION_BUS_ADDRESS", None)
    script = f"{_BOOTED} && exec {SYSTEMD} --user --unit=basic.target"
    process = subprocess.Popen(["unshare", "--mount", "sh", "-c", script], env=environment, start_new_session=True)
    manager = UserManager(process.pid, units, environment)
    try:
        wait_until(lambda: manager.systemctl("is-system-running", check=False) == "running", START_S, "systemd")
        yield manager
    finally:
        process.send_signal(signal.SIGTERM)  # ends its units, and then itself
        try:
            process.wait(START_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise
