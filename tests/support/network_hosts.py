"""Hosts of a small network on this machine: network namespaces on one bridge, whose cables can be pulled.

Needs ``ip`` and the right to use it (root, or CAP_NET_ADMIN and CAP_SYS_ADMIN).
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from tests.support.plain_server import Host

NETWORK = "198.18.77"  # of the block that is set aside for benchmarks (RFC 2544)


@dataclass(frozen=True)
class NetworkHost(Host):
    """A namespace of its own.

    Attributes:
        cable: the interface on this side.
    """

    cable: str = ""

    def unplug(self) -> None:
        """Nothing comes from it or reaches it any more; nobody is told."""
        ip("link", "set", self.cable, "down")

    def plug_in(self) -> None:
        ip("link", "set", self.cable, "up")


@contextmanager
def network_hosts(count: int) -> Iterator[list[NetworkHost]]:
    """
    Raises:
        OSError: this process may not make them; says what was refused.
    """
    with ExitStack() as stack:
        bridge = f"vl{os.getpid()}"[:12]

        def made(kind: str, name: str, *more: str) -> None:
            words = ("netns", "add", name) if kind == "netns" else ("link", "add", name, "type", kind, *more)
            ip(*words)
            stack.callback(ip, *("netns" if kind == "netns" else "link", "del", name))

        made("bridge", bridge)
        ip("address", "add", f"{NETWORK}.254/24", "dev", bridge)
        ip("link", "set", bridge, "up")
        hosts = []
        for number in range(1, count + 1):
            name, cable, address = f"{bridge}n{number}", f"{bridge}c{number}", f"{NETWORK}.{number}"
            made("netns", name)
            made("veth", cable, "peer", "name", "eth0", "netns", name)
            inside = ("ip", "netns", "exec", name)
            ip("link", "set", cable, "master", bridge, "up")
            ip("-n", name, "address", "add", f"{address}/24", "dev", "eth0")
            ip("-n", name, "link", "set", "eth0", "up")
            ip("-n", name, "link", "set", "lo", "up")
            hosts.append(NetworkHost(address, inside, cable))
        yield hosts


def ip(*words: str) -> None:
    """
    Raises:
        OSError: ``ip`` is not there, or refused; with its words.
    """
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(f"ip {' '.join(words)}: {done.stderr.strip()}")
