"""The process of a gateway: its socket, its signals, and when it reads its configuration again."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import resource
import signal
import socket
import ssl
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import uvicorn

from shared_engine.errors import SettingsError
from shared_engine.gateway.app import gateway_app
from shared_engine.gateway.catalog import Catalog
from shared_engine.gateway.config import GatewayConfig
from shared_engine.gateway.connections import ClientConnection
from shared_engine.gateway.guard import MAX_HEAD_BYTES

WATCH_S = 1.0
BACKLOG = 2048
KEEP_ALIVE_S = 75
MAX_FILES = 65535
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Listening:
    """Where, and how long it takes to leave.

    Attributes:
        drain_s: how long requests in flight may go on after SIGTERM.
        tls_cert: file (PEM) of the certificate; with ``tls_key``.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    drain_s: float = 60.0
    tls_cert: str | None = None
    tls_key: str | None = None
    allows_unauthenticated: bool = False

    @property
    def is_loopback(self) -> bool:
        with contextlib.suppress(ValueError):
            return ipaddress.ip_address(self.host).is_loopback
        return self.host == "localhost"

    def check(self, config: GatewayConfig) -> None:
        """
        Raises:
            SettingsError: everybody could ask, or the certificate is none.
        """
        if self.tls_cert is not None:
            try:  # with a password, or OpenSSL would ask for one on the terminal
                ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(self.tls_cert, self.tls_key, password="")
            except (OSError, ValueError) as exc:
                raise SettingsError(
                    f"{self.tls_cert}: not a certificate and its key, unencrypted, in PEM form: {exc}"
                ) from None
        if not (self.is_loopback or config.keys or self.allows_unauthenticated):
            raise SettingsError(
                f"--host {self.host} is reached from other machines: name api_keys in the config file, or say "
                "--allow-unauthenticated"
            )


def bound(listening: Listening) -> socket.socket:
    """The socket of the address.

    Raises:
        SettingsError: it can't be had.
    """
    try:
        (family, kind, protocol, _, address), *_ = socket.getaddrinfo(
            listening.host, listening.port, proto=socket.IPPROTO_TCP
        )
        # With its protocol: asyncio turns Nagle's algorithm off only where it is TCP by name.
        sock = socket.socket(family, kind, protocol)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(address)
            sock.listen(BACKLOG)
        except BaseException:
            sock.close()
            raise
    except (OSError, OverflowError) as exc:
        raise SettingsError(f"{listening.host}:{listening.port} can't be used: {exc}") from None
    return sock


def url_of(listening: Listening, sock: socket.socket) -> str:
    """For people."""
    host, port = sock.getsockname()[:2]
    scheme = "https" if listening.tls_cert else "http"
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


def server_of(catalog: Catalog, listening: Listening) -> GatewayServer:
    """The server, which does not run yet."""
    return GatewayServer(
        uvicorn.Config(
            gateway_app(catalog, is_loopback=listening.is_loopback),
            http=ClientConnection,
            ws="none",
            lifespan="on",
            log_config=None,
            log_level="warning",
            access_log=False,
            server_header=False,
            proxy_headers=False,
            h11_max_incomplete_event_size=MAX_HEAD_BYTES,
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=max(1, round(listening.drain_s)),
            ssl_certfile=listening.tls_cert,
            ssl_keyfile=listening.tls_key,
        )
    )


async def serve(
    config: GatewayConfig,
    listening: Listening,
    sock: socket.socket,
    read: Callable[[], GatewayConfig] | None = None,
    watched: Path | None = None,
) -> None:
    """Serve until SIGTERM or SIGINT, and then until requests in flight have ended.

    Args:
        read: reads the configuration again, for SIGHUP; None where it comes from no file.
        watched: a file whose change is as good as SIGHUP.
    """
    catalog = Catalog(config)
    server = server_of(catalog, listening)
    _raise_limit_of_files()

    def read_again() -> None:
        if read is None:
            return
        try:
            new = read()
            listening.check(new)
        except SettingsError as exc:
            logger.error("the configuration stays as it was: %s", exc)
        else:
            catalog.replace(new)
            logger.info("the configuration was read again: %d models", len(new.models))

    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGHUP, read_again)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, server.leave)
    watching = None if watched is None else asyncio.create_task(_watch(watched, read_again))
    try:
        await server.serve(sockets=[sock])
    finally:
        if watching is not None:
            watching.cancel()


class GatewayServer(uvicorn.Server):
    """Ends without raising the signal again: a gateway that was told to leave has done what it should."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    def leave(self) -> None:
        """The second time at once."""
        if self.should_exit:
            self.force_exit = True
        else:
            logger.info("leaving: no new requests, those in flight go on")
        self.should_exit = True


def _raise_limit_of_files() -> None:
    """Each connection is an open file; vLLM raises its own limit to as many."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_FILES if hard == resource.RLIM_INFINITY else min(MAX_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


async def _watch(file: Path, changed: Callable[[], None]) -> None:
    seen = _mark(file)
    while True:
        await asyncio.sleep(WATCH_S)
        now = _mark(file)
        if now != seen and now is not None:  # editors remove a file for a moment
            seen = now
            changed()


def _mark(file: Path) -> tuple[int, int, int] | None:
    try:
        status = file.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino
