"""The process of a gateway: its signals, what its service manager hears, and when it reads its configuration again."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import resource
import signal
import socket
import ssl
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import uvicorn

from shared_engine.errors import SettingsError
from shared_engine.gateway.app import gateway_app
from shared_engine.gateway.catalog import Catalog
from shared_engine.gateway.config import GatewayConfig
from shared_engine.gateway.connections import ClientConnection
from shared_engine.gateway.handover import Handover
from shared_engine.gateway.handshakes import TlsServer
from shared_engine.gateway.listening import Listening
from shared_engine.gateway.watched_file import WatchedFile
from shared_engine.machine.service_manager import ServiceManager

WATCH_S = 1.0
KEEP_ALIVE_S = 75
MAX_FILES = 65535
LEAVE_S = 15.0
"""How long it takes to leave when no request is in flight any more, at most."""
LAST_WORDS_S = 2.0
"""Of that for requests that were ended to tell their clients so,"""
CLOSE_S = 10.0
"""and for all that is closed, and unloaded, after them."""
logger = logging.getLogger(__name__)


def server_of(catalog: Catalog, listening: Listening, started: Callable[[], None] = lambda: None) -> GatewayServer:
    """The server, which does not run yet.

    Args:
        started: called when it can be asked.
    """
    return GatewayServer(
        uvicorn.Config(
            gateway_app(catalog, is_loopback=listening.is_loopback),
            http=ClientConnection,
            ws="none",
            lifespan="off",  # uvicorn skips the end of one at the second signal
            log_config=None,
            log_level="warning",
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=max(1, round(listening.drain_s)),
        ),
        listening.tls_context(),
        catalog,
        started,
    )


async def serve(
    config: GatewayConfig,
    listening: Listening,
    sockets: Sequence[socket.socket],
    read: Callable[[], GatewayConfig] | None = None,
    watched: WatchedFile | None = None,
    ready: int | None = None,
    started: Callable[[], None] = lambda: None,
    is_stale: Callable[[], bool] = lambda: False,
) -> None:
    """Serve until SIGTERM or SIGINT, and then until requests in flight have ended.

    Args:
        read: reads the configuration again, for SIGHUP; None where it comes from no file.
        watched: a file whose change is as good as SIGHUP.
        ready: see ``Start``.
        started: called when it can be asked and heeds its signals.
        is_stale: whether SIGHUP came before.
    """
    catalog, manager = Catalog(config), ServiceManager(os.environ)
    loop = asyncio.get_running_loop()

    def serves() -> None:
        loop.add_signal_handler(signal.SIGHUP, read_again)
        loop.add_signal_handler(signal.SIGUSR2, Handover(sockets, replaced).begin)
        started()
        if ready is None:
            manager.tell("READY=1")
        else:  # then another one is the service still, and says so when this one is
            os.write(ready, b"%d" % os.getpid())
            os.close(ready)
        if is_stale():
            read_again()

    def read_again() -> None:
        if read is None:
            return
        manager.tell("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")
        try:
            new = read()
            listening.check(new)
            catalog.replace(new)
            told = f"the configuration was read again: {len(new.models)} models"
            logger.info("%s", told)
        except SettingsError as exc:
            told = f"the configuration stays as it was: {exc}"
            logger.error("%s", told)
        except Exception as exc:  # a mistake in this program, which ends neither what is served nor the watching
            told = f"the configuration stays as it was: {exc!r}"
            logger.exception("%s", told)
        manager.tell("READY=1", f"STATUS={' '.join(told.split())}")

    def leave() -> None:
        manager.tell("STOPPING=1", f"EXTEND_TIMEOUT_USEC={round((listening.drain_s + LEAVE_S) * 1e6)}")
        server.heed_signal()

    def replaced(pid: int) -> None:
        manager.tell(f"MAINPID={pid}")
        logger.info("process %d takes over", pid)
        server.leave()

    server = server_of(catalog, listening, serves)
    _raise_limit_of_files()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, leave)
    tasks = [asyncio.create_task(_say_alive(manager, each)) for each in (manager.alive_interval_s,) if each]
    tasks += [asyncio.create_task(_watch(each, read_again)) for each in (watched,) if each]
    try:
        await server.serve(sockets=list(sockets))
    finally:
        for task in tasks:
            task.cancel()


class GatewayServer(uvicorn.Server):
    """Ends without raising the signal again: a gateway that was told to leave has done what it should.

    Args:
        tls: of its certificate; None for plain HTTP.
        catalog: whoever sets its ``leaving`` has this leave. It is closed however this ends.
        started: called when it can be asked.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        tls: ssl.SSLContext | None,
        catalog: Catalog,
        started: Callable[[], None],
    ) -> None:
        super().__init__(config)
        self._tls = tls
        self._catalog = catalog
        self._say_started = started
        self._had_signal = False

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        with self._catalog.log.heard():
            self._catalog.preload()
            try:
                await super().serve(sockets)
            finally:
                await self._end_requests()
                await self._close_catalog()

    async def on_tick(self, counter: int) -> bool:
        if self._catalog.leaving.is_set():
            self.leave()
        return await super().on_tick(counter)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets if self._tls is None else [])
        if self._tls is not None:
            servers: list[Any] = self.servers
            servers += [TlsServer(sock, self._tls, self._connection, self.server_state) for sock in sockets or ()]
        if not self.should_exit:
            self._say_started()

    def _connection(self) -> ClientConnection:
        return ClientConnection(self.config, self.server_state, self.lifespan.state)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    def heed_signal(self) -> None:
        """Leave; at the second one at once. Who has left otherwise before may go on until then."""
        self.force_exit = self._had_signal
        self._had_signal = True
        self.leave()

    def leave(self) -> None:
        """No new requests; those in flight go on for as long as they may."""
        if not self.should_exit:
            logger.info("leaving: no new requests, those in flight go on")
        self._catalog.leaving.set()
        self.should_exit = True

    async def _end_requests(self) -> None:
        """Those that uvicorn has not ended, or not waited for."""
        tasks = list(self.server_state.tasks)
        for task in tasks:
            if not task.cancelling():
                task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=LAST_WORDS_S)

    async def _close_catalog(self) -> None:
        try:
            async with asyncio.timeout(CLOSE_S):
                await self._catalog.close()
        except TimeoutError:
            logger.warning("not all was closed, or unloaded, after %g s", CLOSE_S)


def _raise_limit_of_files() -> None:
    """Each connection is an open file; vLLM raises its own limit to as many."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_FILES if hard == resource.RLIM_INFINITY else min(MAX_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


async def _say_alive(manager: ServiceManager, interval_s: float) -> None:
    while True:
        manager.tell("WATCHDOG=1")
        await asyncio.sleep(interval_s)


async def _watch(file: WatchedFile, changed: Callable[[], None]) -> None:
    while True:
        await asyncio.sleep(WATCH_S)
        if file.has_changed():
            changed()
