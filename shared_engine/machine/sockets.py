"""Unix sockets, as their other end sees them."""

from __future__ import annotations

import socket

CONNECT_TIMEOUT_S = 1.0


def can_connect(path: str) -> bool:
    """True when a server listens: vLLM binds early, but refuses connections until it can answer."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(CONNECT_TIMEOUT_S)
        try:
            probe.connect(path)
        except OSError:
            return False
        return True
