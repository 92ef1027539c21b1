"""Connections by TLS, from when they are accepted until both sides have agreed.

Till then they count, and make room, as any other one without a request. ``create_server`` would keep those that never
begin where nobody counts them, until no file is left.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
from collections.abc import Callable

from uvicorn.server import ServerState

from shared_engine.gateway import connections

AGAIN_S = 0.1
"""After no file was left for one."""
logger = logging.getLogger(__name__)


class TlsServer:
    """Accepts on a socket that listens, until ``close``.

    Args:
        connection: makes what each one is, once it is agreed on.
    """

    def __init__(
        self,
        sock: socket.socket,
        context: ssl.SSLContext,
        connection: Callable[[], asyncio.Protocol],
        state: ServerState,
    ) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._context = context
        self._connection = connection
        self._state = state
        self._accepting = asyncio.create_task(self._accept())

    async def _accept(self) -> None:
        while True:
            try:
                accepted, _ = await asyncio.get_running_loop().sock_accept(self._sock)
            except OSError as exc:  # it has left, or too many files are open
                logger.debug("a connection was not accepted: %s", exc)
                await asyncio.sleep(AGAIN_S)
            else:
                _Handshake(accepted, self._context, self._connection, self._state)

    def close(self) -> None:
        """Accept no more."""
        self._accepting.cancel()

    async def wait_closed(self) -> None:
        """Return when none is accepted any more."""
        with contextlib.suppress(asyncio.CancelledError):
            await self._accepting


class _Handshake:
    """One of them."""

    def __init__(
        self,
        accepted: socket.socket,
        context: ssl.SSLContext,
        connection: Callable[[], asyncio.Protocol],
        state: ServerState,
    ) -> None:
        self._accepted = accepted
        self._has_begun = False
        self._agreeing = asyncio.create_task(self._agree(context, connection))
        self._agreeing.add_done_callback(lambda _: connections.forget(self, state))
        connections.count(self, state)

    async def _agree(self, context: ssl.SSLContext, connection: Callable[[], asyncio.Protocol]) -> None:
        self._has_begun = True  # and from here on the event loop closes it
        with contextlib.suppress(OSError):  # it speaks something else, takes too long, or has left
            await asyncio.get_running_loop().connect_accepted_socket(
                connection, self._accepted, ssl=context, ssl_handshake_timeout=connections.HEAD_S
            )

    def make_room(self) -> None:
        """Another connection needs its file."""
        self._agreeing.cancel()
        if not self._has_begun:
            self._accepted.close()

    shutdown = make_room  # no request can be on its way yet
