"""The clients of this process: one for each server and event loop. A client never outlives its loop."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import os
import sys
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, Generic, TypeVar

from shared_engine.errors import EngineStartError
from shared_engine.request.client import Client, HttpClient
from shared_engine.request.http_options import DEFAULT, HttpOptions
from shared_engine.request.open_connections import let_go_in_child
from shared_engine.request.threads import in_a_thread, refuse_at_exit, running_loop

if TYPE_CHECKING:
    from shared_engine.request.engine_socket import EngineSocket

ClientT = TypeVar("ClientT", bound=Client)
ENGINE_SOCKET = "shared_engine.request.engine_socket"


class LoopClients(Generic[ClientT]):
    """The clients of one server, one for each event loop that uses it; a client never outlives its loop.

    Args:
        make: one of them.
        needs: the module that does the work, which takes time to import.
    """

    def __init__(self, make: Callable[[], ClientT], needs: str) -> None:
        self._make = make
        self._needs = needs
        # The scope is kept as long as the client: when both are dropped, Python has the scope's loop close the client.
        self._clients: dict[asyncio.AbstractEventLoop, tuple[ClientT, AsyncIterator[ClientT]]] = {}

    def known(self) -> ClientT | None:
        """The running loop's client; None where it has none yet."""
        refuse_at_exit()
        known = self._clients.get(running_loop())
        return None if known is None else known[0]

    async def get(self) -> ClientT:
        """The running loop's client."""
        refuse_at_exit()
        loop = running_loop()
        if loop not in self._clients and self._needs not in sys.modules:
            with contextlib.suppress(EngineStartError):  # no thread any more, as the app ends: imported below
                await in_a_thread(lambda: importlib.import_module(self._needs))
        known = self._clients.get(loop)
        if known is not None:
            return known[0]
        for other in list(self._clients):
            if other.is_closed():  # a client refers to its loop: no weak reference would ever let go of the two
                forgotten = self._clients.pop(other, None)
                if forgotten is not None:
                    forgotten[0].hang_up()
        # asyncio.run and uvloop close every started generator before they close the loop: the client goes with its
        # loop, and nobody has to remember to close it.
        scope = _client_scope(self._make)
        client = await anext(scope)
        self._clients[loop] = (client, scope)
        return client

    async def close(self) -> None:
        """Close the running loop's client; the next request opens another."""
        known = self._clients.pop(asyncio.get_running_loop(), None)
        if known is not None:
            await known[0].close()


async def _client_scope(make: Callable[[], ClientT]) -> AsyncIterator[ClientT]:
    client = make()
    try:
        yield client
    finally:
        await client.end()


# This process's, shared by all objects: frameworks construct and copy models freely.
_of_urls: dict[tuple[str, HttpOptions], LoopClients[HttpClient]] = {}
_of_sockets: dict[str, LoopClients[EngineSocket]] = {}


def loop_clients(base_url: str, options: HttpOptions = DEFAULT) -> LoopClients[HttpClient]:
    """This process's clients of a server at a URL."""
    made = LoopClients(lambda: HttpClient(base_url, options), "aiohttp")
    return _of_urls.setdefault((base_url, options), made)


def socket_clients(path: str) -> LoopClients[EngineSocket]:
    """This process's clients of an engine, by its socket."""
    return _of_sockets.setdefault(path, LoopClients(lambda: _engine_socket(path), ENGINE_SOCKET))


def drop_socket(path: str) -> None:
    """Let go of the connections to a socket nobody will listen on again."""
    _of_sockets.pop(path, None)


def _engine_socket(path: str) -> EngineSocket:
    from shared_engine.request.engine_socket import EngineSocket

    return EngineSocket(path)


_inherited: list[object] = []


def _forget_in_child() -> None:
    """A forked child has none of the parent's loops."""
    let_go_in_child()
    _inherited.append((dict(_of_urls), dict(_of_sockets)))
    _of_urls.clear()
    _of_sockets.clear()


os.register_at_fork(after_in_child=_forget_in_child)
