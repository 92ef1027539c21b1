"""What aiohttp 3 needs from us beyond its public interface. All reaches into its privates stand here, each with a test.

aiohttp is imported by the first client, not by this module.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import socket
import weakref
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from shared_engine.request.connection_budget import Slot, take_slot
from shared_engine.request.open_connections import are_too_many, note

if TYPE_CHECKING:
    import aiohttp


is_used_again: ContextVar[bool] = ContextVar("vllm_local_connection_is_used_again", default=False)
"""Whether the request that this task sent last went over a connection that an earlier one had used."""

# A peer that has vanished, or a NAT that has forgotten the connection, shows IDLE + COUNT * INTERVAL seconds later.
KEEP_ALIVE_IDLE_S, KEEP_ALIVE_INTERVAL_S, KEEP_ALIVE_COUNT = 60, 15, 4


def keep_alive(transport: asyncio.BaseTransport) -> None:
    """TCP's own signs of life on a silent connection."""
    sock = transport.get_extra_info("socket")
    if sock is None or sock.family not in (socket.AF_INET, socket.AF_INET6):
        return
    with contextlib.suppress(OSError):  # closed already: the request will show it
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEP_ALIVE_IDLE_S)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, KEEP_ALIVE_INTERVAL_S)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, KEEP_ALIVE_COUNT)


@functools.cache
def connector_class() -> type[aiohttp.TCPConnector]:
    """aiohttp's connector, except that all of them keep within one budget of connections, that a forked child will
    know the connections, that ``keep_none`` leaves requests under way alone, and that dropping a connector is no fault.
    """
    import aiohttp

    class Noting(aiohttp.TCPConnector):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs, limit=0)
            self.noted: weakref.WeakSet[asyncio.BaseTransport] = weakref.WeakSet()
            self._slots: weakref.WeakValueDictionary[Any, Slot] = weakref.WeakValueDictionary()  # by protocol
            self.keeps = True

        async def connect(self, req: Any, *args: Any, **kwargs: Any) -> Any:
            # What looks at the server (GET) waits for nobody: there is little of it, and it has to be soon.
            slot = await take_slot() if req.method == "POST" else None
            try:
                connection: Any = await super().connect(req, *args, **kwargs)
            except BaseException:
                if slot is not None:
                    slot.give_back()
                raise
            if slot is not None:
                connection.slot = self._slots[connection.protocol] = slot  # dropped with the connection at the latest
            transport = connection.transport
            if transport is not None:
                is_known = transport in self.noted
                is_used_again.set(is_known)
                if not is_known:
                    note(transport)
                    self.noted.add(transport)
                    keep_alive(transport)
            return connection

        def _release(self, key: Any, protocol: Any, *, should_close: bool = False) -> None:
            if not self.keeps:
                _end(protocol)
            super()._release(key, protocol, should_close=should_close or not self.keeps or are_too_many())
            slot = self._slots.pop(protocol, None)
            if slot is None:
                return
            if protocol.transport is None and not self._loop.is_closed():
                self._loop.call_soon(slot.give_back)  # after the file is closed, which the loop does next
            else:
                slot.give_back()

        async def keep_none(self) -> None:
            """Close what is idle now, and each other connection when its request has ended; return when the idle ones
            are closed: TLS takes some rounds of the loop, which may end next.
            """
            self.keeps = False
            idle = [protocol for each in self._conns.values() for protocol, _ in each]
            self._conns.clear()
            closed = [each for protocol in idle if (each := protocol.closed) is not None]
            for protocol in idle:
                _end(protocol)
            await asyncio.gather(*closed, return_exceptions=True)

        def __del__(self, *_: Any) -> None:
            """See ``session_class``: aiohttp would close the connections, on a loop that may be the parent's."""

    return Noting


def _end(protocol: Any) -> None:
    """As aiohttp closes its sessions: without TLS's shutdown, for whose answer asyncio would wait up to 30 s."""
    if protocol.transport is not None and protocol.transport.get_extra_info("sslcontext") is not None:
        protocol.abort()
    else:
        protocol.close()


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


@functools.cache
def session_class() -> type[aiohttp.ClientSession]:
    """aiohttp's session, which may be dropped without a word.

    One that is open then is the parent's, in a forked child, or its loop is gone: there is nothing to close it on, and
    nothing the user should read. Or it was closed by ``keep_none``, and its last request has ended.
    """
    import aiohttp

    class Droppable:
        def __init_subclass__(cls) -> None:
            """aiohttp warns of subclasses."""

        def __del__(self, *_: Any) -> None:
            """aiohttp would warn, and log it."""

    class Session(Droppable, aiohttp.ClientSession):
        pass

    return Session
