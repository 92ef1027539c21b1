"""Leases against real processes: what the kernel holds, and lets go."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from shared_engine.machine.locks import try_lock
from shared_engine.runtime.lease import ExclusiveLease, Lease, open_lease_file, read_last_use
from tests.support.paths import REPOSITORY
from tests.support.waiting import wait_until

HOLD = """
import sys, pathlib, signal
from shared_engine.runtime.lease import Lease
lease = Lease(pathlib.Path(sys.argv[1]))
assert lease.try_take()
print("held", flush=True)
signal.pause()
"""


def is_held(path: Path) -> bool:
    """True while any process has a lease; does not keep the lock it tries."""
    fd = open_lease_file(path)
    try:
        return not try_lock(fd, fcntl.LOCK_EX)
    finally:
        os.close(fd)


def test_requests_of_one_process_share_one_lock(tmp_path: Path) -> None:
    path = tmp_path / "lease"
    lease = Lease(path)
    assert lease.try_take()
    assert lease.try_take()
    lease.give_back()
    assert is_held(path)
    lease.give_back()
    assert not is_held(path)


def test_two_processes_hold_it_together(tmp_path: Path) -> None:
    path = tmp_path / "lease"
    first, second = Lease(path), Lease(path)
    assert first.try_take()
    assert second.try_take()
    first.give_back()
    assert is_held(path)
    second.give_back()


def test_no_lease_while_evicting(tmp_path: Path) -> None:
    path = tmp_path / "lease"
    supervisor = open_lease_file(path)
    assert try_lock(supervisor, fcntl.LOCK_EX)
    lease = Lease(path)
    assert not lease.try_take()
    fcntl.flock(supervisor, fcntl.LOCK_UN)
    assert lease.try_take()
    lease.give_back()
    os.close(supervisor)


def test_the_end_of_the_last_request_is_stamped(tmp_path: Path) -> None:
    path = tmp_path / "lease"
    lease = Lease(path)
    lease.try_take()
    before = time.monotonic()
    lease.give_back()
    fd = open_lease_file(path)
    assert before <= read_last_use(fd) <= time.monotonic()
    os.close(fd)


def test_a_file_without_a_stamp_was_never_used(tmp_path: Path) -> None:
    fd = open_lease_file(tmp_path / "lease")
    assert read_last_use(fd) == 0.0
    os.close(fd)


def test_a_killed_process_loses_its_lease(tmp_path: Path) -> None:
    path = tmp_path / "lease"
    child = subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE, cwd=REPOSITORY)
    assert child.stdout is not None
    with child.stdout:
        assert child.stdout.readline() == b"held\n"
        assert is_held(path)
        child.send_signal(signal.SIGKILL)
        child.wait()
    assert not is_held(path)


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_neither_keeps_nor_breaks_the_parents_lease(tmp_path: Path) -> None:
    path = tmp_path / "lease"
    lease = Lease(path)
    lease.try_take()
    ready_r, ready_w = os.pipe()
    child = os.fork()
    if child == 0:
        lease.forget_in_child()
        os.write(ready_w, b"1")
        signal.pause()
    try:
        os.read(ready_r, 1)
        assert is_held(path), "the child's forgetting must not unlock the parent's lease"
        lease.give_back()
        wait_until(lambda: not is_held(path), 5, "the lease to end with the parent's request")
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(ready_r)
        os.close(ready_w)


# ---- the supervisor's side, where somebody removes the file


def test_requests_that_hold_a_removed_file_forbid_an_eviction(tmp_path: Path) -> None:
    path = tmp_path / "lease"
    supervisor, client = ExclusiveLease(path), Lease(path)
    assert client.try_take()
    path.unlink()
    assert not supervisor.try_take()
    client.give_back()
    used_at = time.monotonic()
    assert supervisor.try_take()
    assert used_at - 1 < supervisor.last_use() <= used_at


def test_requests_that_made_another_file_forbid_an_eviction(tmp_path: Path) -> None:
    path = tmp_path / "lease"
    supervisor, client = ExclusiveLease(path), Lease(path)
    path.unlink()
    assert client.try_take()
    assert not supervisor.try_take()
    client.give_back()
    assert supervisor.try_take()
    assert not client.try_take()
    supervisor.give_back()
    assert client.try_take()
    client.give_back()


def test_where_no_file_can_be_made_nothing_is_evicted(tmp_path: Path) -> None:
    path = tmp_path / "engine" / "lease"
    path.parent.mkdir()
    supervisor = ExclusiveLease(path)
    path.unlink()
    path.parent.rmdir()
    assert not supervisor.try_take()
    assert not Lease(path).try_take()
