"""Sockets: who reaches them, and what their other end sees of Unix sockets."""

from __future__ import annotations

import contextlib
import functools
import ipaddress
import select
import socket
import struct
import sys

from shared_engine.machine.proc import open_process

CONNECT_TIMEOUT_S = 1.0


@functools.lru_cache(maxsize=16)  # the gateway asks for each request, nearly always the same
def is_loopback(host: str) -> bool:
    """Of an address, or a name: only programs of this machine reach it."""
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost" or host.endswith(".localhost")


def can_connect(path: str) -> bool:
    """True when a server listens: vLLM binds early, but refuses connections until it can answer."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(CONNECT_TIMEOUT_S)
        try:
            probe.connect(path)
        except OSError:
            return False
        return True


def has_listener(path: str) -> bool:
    """False when nobody listens, or ever will again: the socket is closed, or its file gone."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.setblocking(False)
            probe.connect(path)
    except (ConnectionRefusedError, FileNotFoundError):
        return False
    except OSError:  # its queue is full, or this process has no file descriptor left
        return True
    return True


def peer_process(connection: socket.socket) -> int | None:
    """The process that listens, as ``open_process`` gives it."""
    if sys.platform != "linux":
        return None
    pid, _, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return open_process(pid)


def can_read(fd: int) -> bool:
    """True when reading would not wait; of a process's file descriptor: when it has ended."""
    poll = select.poll()  # select() takes no number beyond 1023
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(0))
