"""The clients of this process: one for each server and event loop. A client never outlives its loop."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import os
import sys
from collections.abc import AsyncIterator

from shared_engine.errors import EngineStartError
from shared_engine.request.aiohttp_quirks import let_go_in_child
from shared_engine.request.client import HttpClient
from shared_engine.request.http_options import DEFAULT, HttpOptions
from shared_engine.request.threads import in_a_thread, refuse_at_exit, running_loop


class LoopClients:
    """The clients of one server, one for each event loop that uses it; a client never outlives its loop."""

    def __init__(self, base_url: str, socket_path: str | None = None, options: HttpOptions = DEFAULT) -> None:
        self._arguments = (base_url, socket_path, options)
        # The scope is kept as long as the client: when both are dropped, Python has the scope's loop close the client.
        self._clients: dict[asyncio.AbstractEventLoop, tuple[HttpClient, AsyncIterator[HttpClient]]] = {}

    async def get(self) -> HttpClient:
        """The running loop's client."""
        refuse_at_exit()
        loop = running_loop()
        if loop not in self._clients and "aiohttp" not in sys.modules:
            with contextlib.suppress(EngineStartError):  # no thread any more, as the app ends: imported below
                await in_a_thread(lambda: importlib.import_module("aiohttp"))
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
        scope = _client_scope(*self._arguments)
        client = await anext(scope)
        self._clients[loop] = (client, scope)
        return client

    async def close(self) -> None:
        """Close the running loop's client; the next request opens another."""
        known = self._clients.pop(asyncio.get_running_loop(), None)
        if known is not None:
            await known[0].close()


async def _client_scope(base_url: str, socket_path: str | None, options: HttpOptions) -> AsyncIterator[HttpClient]:
    client = HttpClient(base_url, socket_path, options)
    try:
        yield client
    finally:
        await client.close()


_shared: dict[tuple[str, str | None, HttpOptions], LoopClients] = {}


def loop_clients(base_url: str, socket_path: str | None = None, options: HttpOptions = DEFAULT) -> LoopClients:
    """This process's clients of one server, shared by all objects: frameworks construct and copy models freely."""
    return _shared.setdefault((base_url, socket_path, options), LoopClients(base_url, socket_path, options))


def drop_socket(base_url: str, socket_path: str) -> None:
    """Let go of the connections to a socket nobody will listen on again."""
    _shared.pop((base_url, socket_path, DEFAULT), None)


_inherited: list[object] = []


def _forget_in_child() -> None:
    """A forked child has none of the parent's loops."""
    let_go_in_child()
    _inherited.append(dict(_shared))
    _shared.clear()


os.register_at_fork(after_in_child=_forget_in_child)
