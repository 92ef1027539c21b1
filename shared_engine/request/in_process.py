"""Requests to vLLM's application in this process: ASGI calls, made on its loop and read on the caller's."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote

from multidict import CIMultiDict

from shared_engine.direct.host import Host
from shared_engine.errors import ServerConnectionError, ServerUnreachableError
from shared_engine.request.client import Client
from shared_engine.request.http_options import HeaderPairs

# As uvicorn's: of newer ones Starlette expects that sending fails once the caller has left, which would be seen later.
SPEC_VERSION = "2.3"


class InProcessClient(Client):
    """Requests to the application of one start of vLLM, from one event loop."""

    def __init__(self, host: Host) -> None:
        self.where = "vLLM in this process"
        self._host = host

    async def send(
        self,
        method: str,
        path: str,
        body: bytes | None,
        timeout: float | None,
        headers: HeaderPairs = (),
    ) -> Exchange:
        exchange = Exchange(self, self._host, timeout)
        try:
            await exchange.begin(method, path, body or b"", (*self._headers, *headers))
        except BaseException:
            exchange.release()
            raise
        return exchange

    @contextlib.contextmanager
    def our_errors(self, timeout: float | None, began: float, *, has_begun: bool = False) -> Iterator[None]:  # noqa: ARG002
        yield  # an Exchange raises them as they are

    async def close(self) -> None:
        """Nothing is open between requests."""


class Exchange:
    """One request and its answer. Begun, read and released on the caller's loop; carried out on the host's."""

    status: int
    headers: CIMultiDict[str]

    def __init__(self, client: InProcessClient, host: Host, timeout: float | None) -> None:
        self._client = client
        self._host = host
        self._timeout = timeout
        self._loop = asyncio.get_running_loop()
        self._messages: deque[Any] = deque()
        self._has_arrived = asyncio.Event()
        self._is_waking = False
        self._is_whole = False
        self._left = asyncio.Event()  # waited for on the host's loop

    @property
    def content(self) -> Exchange:
        """Has ``readany``, as what aiohttp has under that name."""
        return self

    @property
    def content_type(self) -> str:
        return self.headers.get("content-type", "").partition(";")[0]

    async def begin(self, method: str, path: str, body: bytes, headers: HeaderPairs) -> None:
        """Send the request; return when the answer begins."""
        if not self._host.call(lambda: self._carry_out(method, path, body, headers)):
            raise ServerUnreachableError(f"{self._client.where} has ended")
        start = await self._next()
        self.status = start["status"]
        said = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in start["headers"]]
        self.headers = CIMultiDict(said)

    async def readany(self) -> bytes:
        """What has come of the body; nothing at its end."""
        data = b""
        while not data and not self._is_whole:
            message = await self._next()
            data = message.get("body", b"")
            self._is_whole = not message.get("more_body", False)
        return data

    async def read(self) -> bytes:
        """All of the body, from here."""
        parts = []
        while part := await self.readany():
            parts.append(part)
        return b"".join(parts)

    def release(self) -> None:
        """The caller reads no more: vLLM aborts what it has not answered yet."""
        if not self._is_whole:
            self._is_whole = True
            self._host.soon(self._left.set)

    close = release

    async def _next(self) -> Any:
        while not self._messages:
            self._has_arrived.clear()
            try:
                async with asyncio.timeout(self._timeout):
                    await self._has_arrived.wait()
            except TimeoutError:
                raise self._client.silent(self._timeout) from None
        message = self._messages.popleft()
        if isinstance(message, _End):
            why = "" if message.error is None else f": {type(message.error).__name__}: {message.error}"
            raise ServerConnectionError(f"{self._client.where} ended before the answer was whole{why}")
        return message

    def _wake(self) -> None:
        self._is_waking = False
        self._has_arrived.set()

    # ---- on the host's loop

    async def _carry_out(self, method: str, path: str, body: bytes, headers: HeaderPairs) -> None:
        route, _, query = path.partition("?")
        own = {"host": "engine", "content-type": "application/json", "content-length": str(len(body))}
        sent = {**own, **{name.lower(): value for name, value in headers}, **self._host.headers}
        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": SPEC_VERSION},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": unquote(route),
            "raw_path": route.encode(),
            "query_string": query.encode(),
            "root_path": "",
            "headers": [(name.encode("latin-1"), value.encode("latin-1")) for name, value in sent.items()],
            "client": None,
            "server": None,
            "state": {},
        }
        bodies = [body]

        async def receive() -> dict[str, Any]:
            if bodies:
                return {"type": "http.request", "body": bodies.pop(), "more_body": False}
            await self._left.wait()
            return {"type": "http.disconnect"}

        error: BaseException | None = None
        try:
            await self._host.app(scope, receive, self._send)
        except asyncio.CancelledError:
            raise
        except Exception as exc:  # vLLM has sent its answer, if it has one: nobody else is to be told
            error = exc
        finally:
            self._deliver(_End(error))

    async def _send(self, message: Any) -> None:
        self._deliver(message)

    def _deliver(self, message: Any) -> None:
        self._messages.append(message)
        if not self._is_waking:
            self._is_waking = True
            try:
                self._loop.call_soon_threadsafe(self._wake)
            except RuntimeError:  # the caller's loop is closed
                self._left.set()


class _End:
    """Nothing more comes."""

    def __init__(self, error: BaseException | None) -> None:
        self.error = error


def in_process_client(host: Host) -> InProcessClient:
    """The running loop's client of ``host``."""
    client: InProcessClient = host.clients.setdefault(asyncio.get_running_loop(), InProcessClient(host))
    return client
