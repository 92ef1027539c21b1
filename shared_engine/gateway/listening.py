"""Where a gateway listens: on an address of its own, or on sockets that it was started with."""

from __future__ import annotations

import os
import socket
import ssl
from dataclasses import dataclass

from shared_engine.errors import SettingsError
from shared_engine.gateway.config import GatewayConfig
from shared_engine.gateway.handover import READY
from shared_engine.machine.service_manager import passed_files
from shared_engine.machine.sockets import is_loopback

BACKLOG = 2048


@dataclass(frozen=True)
class Listening:
    """Where, and how long it takes to leave.

    Attributes:
        drain_s: how long requests in flight may go on after SIGTERM.
        tls_cert: file (PEM) of the certificate; with ``tls_key``.
        passed: sockets of whoever started this process, which hold in place of host and port.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    drain_s: float = 60.0
    tls_cert: str | None = None
    tls_key: str | None = None
    allows_unauthenticated: bool = False
    passed: tuple[socket.socket, ...] = ()

    @property
    def is_loopback(self) -> bool:
        """Only programs of this machine reach it: a Unix socket's file says which."""
        return all(map(is_loopback, (_host(each) for each in self.passed))) if self.passed else is_loopback(self.host)

    def tls_context(self) -> ssl.SSLContext | None:
        """
        Raises:
            SettingsError: the certificate is none.
        """
        if self.tls_cert is None:
            return None
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        try:  # with a password, or OpenSSL would ask for one on the terminal
            context.load_cert_chain(self.tls_cert, self.tls_key, password="")
        except (OSError, ValueError) as exc:
            told = f"{self.tls_cert}: not a certificate and its key, unencrypted, in PEM form: {exc}"
            raise SettingsError(told) from None
        return context

    def check(self, config: GatewayConfig) -> None:
        """
        Raises:
            SettingsError: everybody could ask, or the certificate is none.
        """
        self.tls_context()
        if not (self.is_loopback or config.keys or self.allows_unauthenticated):
            where = ", ".join(_host(each) for each in self.passed) or f"--host {self.host}"
            raise SettingsError(
                f"{where} is reached from other machines: name api_keys in the config file, or say "
                "--allow-unauthenticated"
            )


@dataclass(frozen=True)
class Start:
    """What whoever started this process has given it.

    Attributes:
        sockets: to listen on; none: it makes its own.
        ready: a file that gets the process id when the gateway can be asked; None where nobody waits for that.
    """

    sockets: tuple[socket.socket, ...] = ()
    ready: int | None = None

    @classmethod
    def of_this_process(cls) -> Start:
        """
        Raises:
            SettingsError: it was given something else.
        """
        ready, sockets = None, []
        try:
            for name, fd in passed_files(os.environ):
                if name == READY:
                    ready = fd
                else:
                    sockets.append(listening_socket(fd))
        except OSError as exc:
            raise SettingsError(f"LISTEN_FDS names a file that is not a socket: {exc}") from None
        return cls(tuple(sockets), ready)


def listening_socket(fd: int) -> socket.socket:
    """That of an open file.

    Raises:
        SettingsError: it does not listen.
        OSError: it is not a socket.
    """
    sock = socket.socket(fileno=fd)
    if sock.type != socket.SOCK_STREAM or not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        with sock:
            where = sock.getsockname()
        raise SettingsError(f"LISTEN_FDS names {where}, which does not listen: give it a ListenStream=")
    return sock


def _host(sock: socket.socket) -> str:
    return "localhost" if sock.family == socket.AF_UNIX else str(sock.getsockname()[0])


def bound(listening: Listening) -> list[socket.socket]:
    """The sockets that it was given, or that of its address.

    Raises:
        SettingsError: it can't be had.
    """
    if listening.passed:
        return list(listening.passed)
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
    return [sock]


def url_of(listening: Listening, sock: socket.socket) -> str:
    """For people."""
    if sock.family == socket.AF_UNIX:
        return f"unix:{sock.getsockname()}"
    host, port = sock.getsockname()[:2]
    scheme = "https" if listening.tls_cert else "http"
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"
