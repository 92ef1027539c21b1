"""HTTP to one vLLM server, over a Unix socket or a URL. One I/O path, asynchronous, bound to its event loop.

Knows nothing of leases or settings. aiohttp's exceptions end here: callers see ours.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import importlib
import os
import resource
import sys
import time
import urllib.request
import weakref
from collections import deque
from collections.abc import AsyncIterator, Iterator
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from shared_engine.errors import EngineStartError, RequestTimeoutError, ServerConnectionError, ServerUnreachableError
from shared_engine.request.answers import split_events
from shared_engine.request.refusals import error_from_response
from shared_engine.request.threads import in_a_thread

if TYPE_CHECKING:
    import aiohttp
    from aiohttp.client import _RequestContextManager as _SentRequest

# A server closes an idle connection after 5 s (uvicorn) or later; a client must let go of it first.
KEEP_ALIVE_S = 4.0
CONNECT_TIMEOUT_S = 10.0


class Client:
    """A pool of connections to one server, for one event loop.

    Args:
        base_url: the server's root, without ``/v1``. For a socket any host will do.
        socket_path: Unix socket to connect to; None for TCP.
    """

    def __init__(self, base_url: str, socket_path: str | None = None, api_key: str | None = None) -> None:
        import aiohttp

        self._base_url = base_url
        self.where = base_url if socket_path is None else f"the engine's socket {socket_path}"
        self._connector: Any
        if socket_path is None:
            self._connector = _connectors()[0](limit=_max_connections(), keepalive_timeout=KEEP_ALIVE_S)
        else:
            self._connector = _connectors()[1](socket_path, limit=_max_connections())
        headers = {"Content-Type": "application/json"}
        if api_key:
            headers["Authorization"] = f"Bearer {api_key}"
        self._session = aiohttp.ClientSession(
            connector=self._connector,
            headers=headers,
            proxy=None if socket_path is not None else proxy_of(base_url),
            read_bufsize=1 << 18,
            response_class=_response_class(),
        )

    async def request(self, method: str, path: str, body: bytes | None = None, timeout: float | None = None) -> bytes:
        """The body of a 2xx answer.

        Raises:
            RequestError: see errors.py.
        """
        with self.our_errors(timeout):
            async with self._send(method, path, body, timeout) as response:
                await _refuse_failure(response)
                return await response.read()

    def stream(self, path: str, body: bytes, timeout: float | None = None) -> EventStream:
        """The ``data:`` lines of a server-sent stream, until ``[DONE]``; to be entered with ``async with``."""
        return EventStream(self, self._send("POST", path, body, timeout), timeout)

    def _send(self, method: str, path: str, body: bytes | None, timeout: float | None) -> _SentRequest:
        import aiohttp

        limits = aiohttp.ClientTimeout(total=None, sock_read=timeout, sock_connect=CONNECT_TIMEOUT_S)
        return self._session.request(method, self._base_url + path, data=body, timeout=limits)

    @contextlib.contextmanager
    def our_errors(self, timeout: float | None) -> Iterator[None]:
        """What aiohttp raises inside, as our errors."""
        import aiohttp

        try:
            yield
        except aiohttp.ServerTimeoutError as exc:
            if isinstance(exc, aiohttp.ConnectionTimeoutError):
                message = f"{self.where} did not accept a connection in {CONNECT_TIMEOUT_S:g} s"
                raise ServerUnreachableError(message) from exc
            raise RequestTimeoutError(f"{self.where} sent nothing for timeout = {timeout:g} s") from exc
        except aiohttp.ClientConnectorError as exc:
            raise ServerUnreachableError(f"{self.where} can't be reached: {exc.os_error or exc}") from exc
        except (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError, ConnectionError) as exc:
            raise ServerConnectionError(f"{self.where} closed the connection before it had answered") from exc
        except OSError as exc:  # no socket could be made
            raise ServerUnreachableError(f"{self.where} can't be reached: {exc}") from exc
        except aiohttp.ClientError as exc:
            raise ServerConnectionError(f"{self.where} did not send a valid HTTP answer: {exc}") from exc

    async def close(self) -> None:
        await self._session.close()

    def hang_up(self) -> None:
        """Close the connections of a loop that is gone, and whose generators nobody closed, as LlamaIndex's asyncio_run
        leaves it in a notebook. asyncio could do that on the loop only; Python, once it collects them, with a warning.
        """
        for transport in self._connector.noted:
            socket = getattr(transport, "_sock", None)  # uvloop's have none: they are closed with their loop
            if socket is not None:
                socket.close()
                transport._sock = None

    def __del__(self) -> None:
        # Still open here means that its loop is gone: ended without closing its generators, at the interpreter's end,
        # or left behind in the parent by a fork. There is nothing to close it on, and nothing the user should read.
        with contextlib.suppress(AttributeError):
            self._session.detach()


class EventStream:
    """The events of one streamed answer, inside ``async with``. Leaving it early aborts the request in vLLM.

    Not an asynchronous generator: a loop that shuts down closes all of those at once, and this one would be in the way
    of the one that reads it.

    Raises:
        RequestError: on entering and reading, see errors.py; ServerConnectionError also for an end without ``[DONE]``.
    """

    def __init__(self, client: Client, sent: _SentRequest, timeout: float | None) -> None:
        self._client = client
        self._sent = sent
        self._timeout = timeout
        self._buffer = bytearray()
        self._events: deque[bytes] = deque()

    async def __aenter__(self) -> EventStream:
        with self._client.our_errors(self._timeout):
            self._response = await self._sent
            try:
                await _refuse_failure(self._response)
            except BaseException:
                self._response.release()
                raise
        return self

    async def __aexit__(self, *_: object) -> None:
        self._response.release()  # closes the connection, where the answer was not read to its end

    def __aiter__(self) -> EventStream:
        return self

    async def __anext__(self) -> bytes:
        while not self._events:
            with self._client.our_errors(self._timeout):
                data = await self._response.content.readany()
            if not data:
                raise ServerConnectionError(f"{self._client.where} closed the connection in the middle of an answer")
            self._buffer += data
            self._events.extend(split_events(self._buffer))
        event = self._events.popleft()
        if event == b"[DONE]":
            raise StopAsyncIteration
        return event


_connections: weakref.WeakSet[asyncio.BaseTransport] = weakref.WeakSet()


@functools.cache
def _connectors() -> tuple[type[aiohttp.TCPConnector], type[aiohttp.UnixConnector]]:
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
            """See Client.__del__: aiohttp would close the connections, on a loop that may be the parent's."""

    class NotingTCP(Noting, aiohttp.TCPConnector):
        pass

    class NotingUnix(Noting, aiohttp.UnixConnector):
        pass

    return NotingTCP, NotingUnix


@functools.cache
def _response_class() -> type[aiohttp.ClientResponse]:
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


def _max_connections() -> int:
    """Half of the files that this process may have open; 0 for no limit. Requests beyond wait for their turn."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 0 if soft == resource.RLIM_INFINITY else max(1, soft // 2)


def proxy_of(url: str) -> str | None:
    """The proxy that the environment names for ``url`` (HTTPS_PROXY, NO_PROXY, ...).

    aiohttp's ``trust_env`` would do this too, but also send what ~/.netrc holds for the host.
    """
    parts = urlsplit(url)
    if urllib.request.proxy_bypass(parts.hostname or ""):
        return None
    return urllib.request.getproxies().get(parts.scheme)


async def _refuse_failure(response: aiohttp.ClientResponse) -> None:
    if response.status >= 400:
        error = error_from_response(response.status, await response.read())
        error.retry_after_s = retry_after_s(response.headers.get("Retry-After", ""))
        raise error


def retry_after_s(header: str) -> float | None:
    """Seconds from now that a ``Retry-After`` asks for: a number of them, or a date; None for anything else."""
    if header.strip().isdigit():
        return float(header)
    try:
        then = parsedate_to_datetime(header)
    except ValueError:
        return None
    return max(0.0, then.timestamp() - time.time())


class LoopClients:
    """The clients of one server, one for each event loop that uses it; a client never outlives its loop."""

    def __init__(self, base_url: str, socket_path: str | None = None, api_key: str | None = None) -> None:
        self._arguments = (base_url, socket_path, api_key)
        # The scope is kept as long as the client: when both are dropped, Python has the scope's loop close the client.
        self._clients: dict[asyncio.AbstractEventLoop, tuple[Client, AsyncIterator[Client]]] = {}

    async def get(self) -> Client:
        """The running loop's client."""
        loop = asyncio.get_running_loop()
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


async def _client_scope(base_url: str, socket_path: str | None, api_key: str | None) -> AsyncIterator[Client]:
    client = Client(base_url, socket_path, api_key)
    try:
        yield client
    finally:
        await client.close()


_shared: dict[tuple[str, str | None, str | None], LoopClients] = {}


def loop_clients(base_url: str, socket_path: str | None = None, api_key: str | None = None) -> LoopClients:
    """This process's clients of one server, shared by all objects: frameworks construct and copy models freely."""
    return _shared.setdefault((base_url, socket_path, api_key), LoopClients(base_url, socket_path, api_key))


def drop_socket(base_url: str, socket_path: str) -> None:
    """Let go of the connections to a socket nobody will listen on again."""
    _shared.pop((base_url, socket_path, None), None)


_inherited: list[object] = []


def _let_go_in_child() -> None:
    """A forked child has none of the parent's loops, and must neither use nor keep its connections.

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
    _inherited.append(dict(_shared))
    _shared.clear()


os.register_at_fork(after_in_child=_let_go_in_child)
