"""A client's connection: what is not HTTP is refused in OpenAI's form, who sends no request is not kept, and a request
that is on its way when the gateway leaves is answered."""

from __future__ import annotations

import asyncio
import resource
import socket
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from shared_engine.gateway.refusals import RefusedError

HEAD_S = 30.0
"""How long the line and the headers of a request may take to come."""
LAST_REQUEST_S = 1.0
"""How long a connection without a request stays when the gateway leaves: one may be on its way."""
TAKE_S = 60.0
"""How long a client may take nothing of what is sent to it."""
_idle: dict[ClientConnection, None] = {}
"""Those without a request, in the order in which they became so."""


def most_connections() -> int:
    """So many have a file for a model's server each, too."""
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2


class ClientConnection(H11Protocol):
    """As uvicorn's, which waits for a first request for ever."""

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._is_leaving = False
        sock: socket.socket = transport.get_extra_info("socket")
        if sock.family in (socket.AF_INET, socket.AF_INET6):  # the kernel ends it then, and its generation with it
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, round(TAKE_S * 1000))
        self._timer: asyncio.TimerHandle | None = None
        self._wait_for_head()
        _idle[self] = None
        if len(self.connections) > most_connections():
            next(iter(_idle))._make_room()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._is_idle:
            self._wait_for_head()
        else:
            self._stop_waiting()
            _idle.pop(self, None)

    def on_response_complete(self) -> None:
        super().on_response_complete()  # which begins a request that has come meanwhile
        if not self._is_idle or self.transport.is_closing():
            return
        _idle[self] = None
        if self._is_leaving:  # the answer had begun before, and could not say so
            self.loop.call_later(LAST_REQUEST_S, self._end)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        _idle.pop(self, None)
        super().connection_lost(exc)

    def shutdown(self) -> None:
        """The next answer to begin is the last one, and says so; where none does soon, the connection ends."""
        self._is_leaving = True
        if self._is_idle:
            self.loop.call_later(LAST_REQUEST_S, self._end)
        elif not self.cycle.response_started:
            self.cycle.default_headers = self.server_state.default_headers

    def _end(self) -> None:
        if self._is_idle and not self.transport.is_closing():
            super().shutdown()

    @property
    def _is_idle(self) -> bool:
        return self.cycle is None or bool(self.cycle.response_complete)

    def _make_room(self) -> None:
        _idle.pop(self)
        self.transport.close()

    def _should_upgrade(self) -> bool:
        return False  # to nothing; uvicorn would say so in the log each time

    def send_400_response(self, msg: str) -> None:
        """Refuse what can't be read, and close."""
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):  # it was refused before its body was read
            self.transport.close()
            return
        refusal = RefusedError(400, msg, "invalid_http")
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(refusal.body())).encode()),
            (b"connection", b"close"),
        ]
        events: tuple[h11.Event, ...] = (
            h11.Response(status_code=400, headers=headers, reason=b"Bad Request"),
            h11.Data(data=refusal.body()),
            h11.EndOfMessage(),
        )
        for event in events:
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def _wait_for_head(self) -> None:
        if self._timer is None:
            self._timer = self.loop.call_later(HEAD_S, self.transport.close)

    def _stop_waiting(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
