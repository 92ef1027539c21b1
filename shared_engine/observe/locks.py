"""Who holds the kernel's file locks, as ``/proc/locks`` lists them. Takes none."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Mapping
from pathlib import Path


def shared_locks() -> dict[str, set[int]]:
    """``<major>:<minor>:<inode>`` of a file -> the PIDs that took a shared flock on it.

    One lock is listed once, under the process that took it: forked children that share it are not counted.
    """
    found: dict[str, set[int]] = {}
    with contextlib.suppress(OSError):
        for line in Path("/proc/locks").read_text().splitlines():
            fields = line.split()
            if len(fields) >= 6 and (fields[1], fields[3]) == ("FLOCK", "READ"):  # those that wait have "->" in [1]
                found.setdefault(fields[5], set()).add(int(fields[4]))
    return found


def holders(path: Path, locks: Mapping[str, set[int]]) -> tuple[int, ...]:
    """Who of ``locks`` holds this file."""
    try:
        with open(path, "rb") as file:
            return tuple(sorted(locks.get(_name_in_locks(file.fileno()), ())))
    except OSError:
        return ()


def _name_in_locks(fd: int) -> str:
    """The kernel names a file by its file system's device, which stat() does not give on btrfs, but mountinfo does."""
    status = os.fstat(fd)
    major, minor = os.major(status.st_dev), os.minor(status.st_dev)
    with contextlib.suppress(OSError):
        mount = re.search(r"^mnt_id:\s*(\d+)", Path(f"/proc/self/fdinfo/{fd}").read_text(), re.MULTILINE)
        for line in Path("/proc/self/mountinfo").read_text().splitlines():
            fields = line.split(" ", 3)
            if mount and fields[0] == mount[1]:
                major, minor = map(int, fields[2].split(":"))
    return f"{major:02x}:{minor:02x}:{status.st_ino}"
