"""The private folder of one engine: its locks, record, sockets and log.

    <root>/<key>/
        supervisor.lock   held for life by the one supervisor
        lease             shared lock: a request runs; exclusive lock: being evicted; content: see lease.py
        record.json       written by the supervisor, read by all
        spec.json         what to start
        control.sock      asks the supervisor
        <start number>.sock  the vLLM server
        engine.log        vLLM's log and the supervisor's, rotated once
        tmp/              vLLM's temporary files; emptied before each start and after it
    <root>/<device>.start  held by the supervisor whose engine is starting there

The root must be the same for every process of the user, so it depends on no session variable.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
from collections.abc import Mapping
from pathlib import Path

from shared_engine.errors import SettingsError
from shared_engine.machine.home import caches

ROOT_VARIABLE = "VLLM_LOCAL_RUNTIME_DIR"
_ANOTHER = f"set {ROOT_VARIABLE} to another path"
MAX_SOCKET_PATH = 107  # sun_path is 108 bytes with its terminating zero; macOS has 104
_LONGEST_NAME = "control.sock"
_LONGEST_SCRATCH_NAME = "00000000-0000-0000-0000-000000000000"  # of the sockets between vLLM's own processes
_NETWORK_FILE_SYSTEMS = ("nfs", "cifs", "smb", "fuse.sshfs", "lustre", "gpfs", "ceph", "9p")


def runtime_root() -> Path:
    """The folder that holds all engines of this user."""
    chosen = os.environ.get(ROOT_VARIABLE)
    return Path(chosen).absolute() if chosen else Path("/tmp") / f"vllm-local-{os.getuid()}"


class RuntimeDir:
    """The paths of one engine. Creates nothing until ``prepare``."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lock = path / "supervisor.lock"
        self.lease = path / "lease"
        self.record = path / "record.json"
        self.spec = path / "spec.json"
        self.control_socket = path / "control.sock"
        self.log = path / "engine.log"
        self.scratch = path / "tmp"

    def server_socket(self, start_number: int) -> Path:
        """A fresh name for each start: nothing can connect to the wrong server, and no bind finds a stale file."""
        return self.path / f"{start_number}.sock"

    def scratch_environment(self, base: Mapping[str, str]) -> dict[str, str]:
        """``base`` with the engine's temporary files here, where they go with it; what torch compiles stays.

        Unchanged where the path is too long for the sockets that vLLM makes among them.
        """
        if len(os.fsencode(self.scratch / _LONGEST_SCRATCH_NAME)) > MAX_SOCKET_PATH:
            return dict(base)
        inductor = str(self._compiled(base))
        # Not in front: setproctitle, which names vLLM's processes, looks for argv before the first variable.
        return {
            **base,
            "TORCHINDUCTOR_CACHE_DIR": base.get("TORCHINDUCTOR_CACHE_DIR", inductor),
            "TMPDIR": str(self.scratch),
        }

    def _compiled(self, base: Mapping[str, str]) -> Path:
        """Where torch keeps what it compiles: its own default is open to others. It can't be imported without any."""
        kept = caches(base) / "vllm-local" / "torchinductor"
        with contextlib.suppress(OSError):
            kept.mkdir(mode=0o700, parents=True, exist_ok=True)
            if os.access(kept, os.W_OK | os.X_OK):
                return kept
        return self.scratch / "torchinductor"  # of a user whose home is read-only, or / as in a container

    def clear_scratch(self) -> None:
        """Remove what vLLM left behind: a killed one removes nothing itself."""
        shutil.rmtree(self.scratch, ignore_errors=True)
        with contextlib.suppress(OSError):  # vLLM's own error is better, if it matters
            self.scratch.mkdir(mode=0o700, exist_ok=True)

    def keep_young(self) -> None:
        """Keep all that is here from whoever removes what is old in /tmp."""
        for folder, _, names in os.walk(self.path):
            for path in (folder, *(os.path.join(folder, name) for name in names)):
                with contextlib.suppress(OSError):  # it is gone, or the file system is read-only
                    os.utime(path, follow_symlinks=False)

    def prepare(self) -> None:
        """Make the folder, or check that the one there is private.

        Raises:
            SettingsError: the path is too long, not writable, another user's, or on a network file system.
        """
        longest = len(os.fsencode(self.path / _LONGEST_NAME))
        if longest > MAX_SOCKET_PATH:
            raise SettingsError(
                f"the runtime directory {self.path} is too long for a Unix socket ({longest} bytes, at most "
                f"{MAX_SOCKET_PATH}): set {ROOT_VARIABLE} to a shorter path"
            )
        for folder in (self.path.parent, self.path):
            _make_private(folder)
        kind = _file_system_of(self.path)
        if kind.startswith(_NETWORK_FILE_SYSTEMS):
            raise SettingsError(
                f"the runtime directory {self.path} is on a network file system ({kind}), where locks can't be "
                f"trusted: set {ROOT_VARIABLE} to a local path"
            )


def runtime_dir(key: str) -> RuntimeDir:
    return RuntimeDir(runtime_root() / key)


def check_root() -> None:
    """Refuse a runtime directory that is there and can't be used: a look at it, and nothing is made or opened.

    Raises:
        SettingsError: it is not a folder, another user's, or open to others.
    """
    root = runtime_root()
    with contextlib.suppress(FileNotFoundError, NotADirectoryError, PermissionError):  # said where it is to be made
        _check_private(root, root.lstat())


def _make_private(folder: Path) -> None:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.lstat()
    except OSError as exc:
        raise SettingsError(f"the runtime directory {folder} can't be made ({exc.strerror}): {_ANOTHER}") from exc
    _check_private(folder, status)


def _check_private(folder: Path, status: os.stat_result) -> None:
    if not stat.S_ISDIR(status.st_mode):
        kind = "link, which is unsafe" if stat.S_ISLNK(status.st_mode) else "file"
        raise SettingsError(f"the runtime directory {folder} is a {kind}: remove it, or {_ANOTHER}")
    if status.st_uid != os.getuid():
        raise SettingsError(
            f"the runtime directory {folder} belongs to user {status.st_uid}, which is unsafe: {_ANOTHER}"
        )
    if status.st_mode & 0o077:
        raise SettingsError(
            f"the runtime directory {folder} is open to other users (mode {status.st_mode & 0o777:o}): "
            f"`chmod 700` it (systemd: RuntimeDirectoryMode=0700), or {_ANOTHER}"
        )


def _file_system_of(folder: Path) -> str:
    """The type of the mount that holds ``folder``; empty where that is not known."""
    best, kind = "", ""
    with contextlib.suppress(OSError), open("/proc/self/mounts") as mounts:
        for line in mounts:
            _, point, this_kind, *_ = line.split(" ")
            if str(folder).startswith(point.rstrip("/") + "/") and len(point) >= len(best):
                best, kind = point, this_kind
    return kind
