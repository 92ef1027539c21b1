"""HTTP to one vLLM server, over a Unix socket or a URL. One I/O path, asynchronous, bound to its event loop.

Knows nothing of leases or settings. aiohttp's exceptions end here: callers see ours.
"""

from __future__ import annotations

import contextlib
import resource
import time
import urllib.request
from collections import deque
from collections.abc import Iterable, Iterator
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from shared_engine.errors import RequestTimeoutError, ServerConnectionError, ServerUnreachableError
from shared_engine.request.aiohttp_quirks import abandon, connectors, hang_up, response_class
from shared_engine.request.refusals import error_from_response

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
            self._connector = connectors()[0](limit=_max_connections(), keepalive_timeout=KEEP_ALIVE_S)
        else:
            self._connector = connectors()[1](socket_path, limit=_max_connections())
        headers = {"Content-Type": "application/json"}
        if api_key:
            headers["Authorization"] = f"Bearer {api_key}"
        self._session = aiohttp.ClientSession(
            connector=self._connector,
            headers=headers,
            proxy=None if socket_path is not None else proxy_of(base_url),
            read_bufsize=1 << 18,
            response_class=response_class(),
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
        """Close the connections of a loop that is gone without having closed them."""
        hang_up(self._connector)

    def __del__(self) -> None:
        # Still open here means that its loop is gone: ended without closing its generators, at the interpreter's end,
        # or left behind in the parent by a fork.
        with contextlib.suppress(AttributeError):
            abandon(self._session)


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


def split_events(buffer: bytearray) -> Iterable[bytes]:
    """Take the complete ``data:`` lines out of ``buffer``, without their prefix; comments and blanks are dropped."""
    while (end := buffer.find(b"\n")) >= 0:
        line = bytes(buffer[:end]).strip()
        del buffer[: end + 1]
        if line.startswith(b"data:"):
            yield line[5:].lstrip()


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
