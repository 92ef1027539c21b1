"""What aiohttp 3 needs from us beyond its public interface. All reaches into its privates stand here, each with a test.

aiohttp is imported by the first client, not by this module.
"""

from __future__ import annotations

import asyncio
import functools
import os
import weakref
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import aiohttp


_connections: weakref.WeakSet[asyncio.BaseTransport] = weakref.WeakSet()


@functools.cache
def connectors() -> tuple[type[aiohttp.TCPConnector], type[aiohttp.UnixConnector]]:
    """aiohttp's connectors, except that a forked child will know the connections, and dropping one is no fault."""
    import aiohttp

    class Noting(aiohttp.BaseConnector):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.noted: weakref.WeakSet[asyncio.BaseTransport] = weakref.WeakSet()

        async def connect(self, *args: Any, **kwargs: Any) -> Any:
            connection = await super().connect(*args, **kwargs)
            if connection.transport is not None:
                _connections.add(connection.transport)
                self.noted.add(connection.transport)
            return connection

        def __del__(self, *_: Any) -> None:
            """See ``abandon``: aiohttp would close the connections, on a loop that may be the parent's."""

    class NotingTCP(Noting, aiohttp.TCPConnector):
        pass

    class NotingUnix(Noting, aiohttp.UnixConnector):
        pass

    return NotingTCP, NotingUnix


@functools.cache
def response_class() -> type[aiohttp.ClientResponse]:
    """aiohttp's response, whose connection is not used again after a server's failure (5xx).

    vLLM closes it silently, and the next request on it would be lost.
    """
    import aiohttp

    class Response(aiohttp.ClientResponse):
        async def start(self, connection: Any) -> aiohttp.ClientResponse:
            protocol = connection.protocol
            await super().start(connection)
            if self.status >= 500 and protocol is not None:
                self.content.on_eof(protocol.close)  # it may be in the pool by then, which drops what is closed
            return self

    return Response


def hang_up(connector: Any) -> None:
    """Close the connections of a loop that is gone, and whose generators nobody closed, as LlamaIndex's asyncio_run
    leaves it in a notebook. asyncio could do that on the loop only; Python, once it collects them, with a warning.
    """
    for transport in connector.noted:
        socket = getattr(transport, "_sock", None)  # uvloop's have none: they are closed with their loop
        if socket is not None:
            socket.close()
            transport._sock = None


def abandon(session: aiohttp.ClientSession) -> None:
    """Let go of a session whose loop is gone: there is nothing to close it on, and nothing the user should read."""
    session.detach()


def let_go_in_child() -> None:
    """A forked child must neither use nor keep the parent's connections.

    As long as the child had them open, vLLM would not see the parent hang up, and would go on with an answer nobody
    reads. Closing them through asyncio would end the parent's own waiting: both wait on one epoll set. So the
    descriptors come to stand for nothing instead, and the objects on top of them stay as they are.
    """
    nothing = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    for transport in list(_connections):
        socket = transport.get_extra_info("socket")
        if socket is not None and socket.fileno() >= 0 and not transport.is_closing():
            os.dup2(nothing, socket.fileno(), inheritable=False)
    os.close(nothing)
    _connections.clear()
