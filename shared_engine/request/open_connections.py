"""The connections that this process has open, of all clients and event loops: for those who have to let go of them."""

from __future__ import annotations

import asyncio
import os
import weakref
from collections.abc import Iterable
from typing import Any

from shared_engine.request.connection_budget import max_connections

_connections: weakref.WeakSet[asyncio.BaseTransport] = weakref.WeakSet()


def note(transport: asyncio.BaseTransport) -> None:
    """It was opened."""
    _connections.add(transport)


def are_too_many() -> bool:
    """Whether one that nobody uses just now is to be closed."""
    return len(_connections) > max_connections()


def hang_up(transports: Iterable[Any]) -> None:
    """Close connections of a loop that is gone, and whose generators nobody closed, as LlamaIndex's asyncio_run leaves
    it in a notebook. asyncio could do that on the loop only; Python, once it collects them, with a warning.
    """
    for transport in transports:
        sock = getattr(transport, "_sock", None)  # uvloop's have none: they are closed with their loop
        if sock is not None:
            sock.close()
            transport._sock = None


def let_go_in_child() -> None:
    """A forked child must neither use nor keep the parent's connections.

    As long as the child had them open, vLLM would not see the parent hang up, and would go on with an answer nobody
    reads. Closing them through asyncio would end the parent's own waiting: both wait on one epoll set. So the
    descriptors come to stand for nothing instead, and the objects on top of them stay as they are.
    """
    nothing = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    for transport in list(_connections):
        sock = transport.get_extra_info("socket")
        if sock is not None and sock.fileno() >= 0 and not transport.is_closing():
            os.dup2(nothing, sock.fileno(), inheritable=False)
    os.close(nothing)
    _connections.clear()
