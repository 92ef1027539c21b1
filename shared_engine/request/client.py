"""Requests to one vLLM server. One I/O path, asynchronous, bound to its event loop; HttpClient's is HTTP to a URL,
engine_socket.py has the one over a Unix socket, in_process.py the one without either.

Knows nothing of leases or settings. aiohttp's exceptions end here: callers see ours.
"""

from __future__ import annotations

import contextlib
import copy
import errno
import math
import os
import re
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import urlencode

from shared_engine.errors import RequestError, RequestTimeoutError, ServerConnectionError, ServerUnreachableError
from shared_engine.request.aiohttp_quirks import connector_class, is_used_again, response_class, session_class
from shared_engine.request.http_options import DEFAULT, HeaderPairs, HttpOptions
from shared_engine.request.open_connections import hang_up
from shared_engine.request.proxies import proxy_of, shown, with_credentials
from shared_engine.request.refusals import error_from_response

if TYPE_CHECKING:
    from typing import Self

    import aiohttp

# A server closes an idle connection after 5 s (uvicorn) or later; a client must let go of it first.
KEEP_ALIVE_S = 4.0
CONNECT_TIMEOUT_S = 10.0
# A connection that the server has closed meanwhile shows it at once: later it is the request that failed.
STALE_WITHIN_S = 1.0
OFTEN_A_PROXYS = frozenset((407, 502, 503, 504))
BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class Answer(Protocol):
    """An answer that has begun. aiohttp's ClientResponse is one."""

    @property
    def status(self) -> int: ...

    @property
    def headers(self) -> Mapping[str, str]:
        """Found by names in any case."""

    @property
    def content_type(self) -> str: ...

    @property
    def content(self) -> Any:
        """Has ``readany``: what has come of the body, and nothing at its end."""

    async def read(self) -> bytes:
        """All of the body."""

    def release(self) -> Any:
        """Nothing more is read; what was not read to its end is ended."""

    def close(self) -> Any:
        """As ``release``; what carried the answer is not used again."""


class Client(ABC):
    """Requests to one vLLM server, from one event loop.

    Attributes:
        where: the server, as errors name it.
        url: its root; of a socket or this process a matter of form.
        socket_path: the Unix socket that it listens on; None for any other.
    """

    where: str
    url: str = ""
    socket_path: str | None = None
    _base: Self | None = None
    _headers: HeaderPairs = ()

    def with_headers(self, headers: HeaderPairs) -> Self:
        """A client over the same connections, whose requests have ``headers`` too; it must not be closed."""
        if not headers:
            return self
        client = copy.copy(self)
        client._base, client._headers = self.base, (*self._headers, *headers)
        return client

    @property
    def base(self) -> Self:
        """The client whose connections these are."""
        return self._base or self

    async def request(self, method: str, path: str, body: bytes | None = None, timeout: float | None = None) -> bytes:
        """The body of a 2xx answer.

        Raises:
            RequestError: see errors.py.
        """
        with self.our_errors(timeout, time.monotonic()):
            response = await self.begin(method, path, body, timeout)
            try:
                return await response.read()
            finally:
                response.release()

    def stream(self, path: str, body: bytes, timeout: float | None = None) -> EventStream:
        """The ``data:`` lines of a server-sent stream, until ``[DONE]``; to be opened, and closed."""
        return EventStream(self, path, body, timeout)

    async def begin(self, method: str, path: str, body: bytes | None, timeout: float | None) -> Answer:
        """A 2xx answer, whose body is still to be read; inside ``our_errors``.

        Raises:
            RequestError: see errors.py.
        """
        response = await self.send(method, path, body, timeout)
        if response.status >= 300:
            try:
                if response.status < 400:
                    raise self.redirect(response)
                body = await response.read()
                raise refusal(response.status, response.headers, body, self.through(response.status))
            finally:
                response.release()
        return response

    @abstractmethod
    async def send(
        self,
        method: str,
        path: str,
        body: bytes | None,
        timeout: float | None,
        headers: HeaderPairs = (),
    ) -> Answer:
        """An answer with any status, whose body is still to be read; inside ``our_errors``.

        Args:
            headers: beside those of all requests to this server, and over them.
        """

    def through(self, status: int) -> str:  # noqa: ARG002
        """What to put after a server's words where the answer may be a proxy's."""
        return ""

    def redirect(self, response: Answer) -> RequestError:
        """The error of an answer with status 3xx: redirects are not followed."""
        target = response.headers.get("Location", "nowhere")
        return RequestError(f"{self.where} redirects to {target}: use that as base_url", response.status)

    def silent(self, timeout: float | None) -> RequestTimeoutError:
        """The error of a server that has sent nothing for ``timeout`` seconds."""
        return RequestTimeoutError(f"{self.where} sent nothing for timeout = {timeout or 0:g} s")

    @abstractmethod
    def our_errors(
        self, timeout: float | None, began: float, *, has_begun: bool = False
    ) -> contextlib.AbstractContextManager[None]:
        """What is raised inside by whatever carries the requests, as our errors.

        Args:
            began: when the request was sent, by time.monotonic().
            has_begun: whether the answer has.
        """

    @abstractmethod
    async def close(self) -> None:
        """Keep no connection; one that carries a request, perhaps another object's, is closed when that has ended."""

    async def end(self) -> None:
        """Close all connections, as the loop ends; nothing where it was closed before."""
        await self.close()

    def hang_up(self) -> None:  # noqa: B027
        """Close the connections of a loop that is gone without having closed them."""


class HttpClient(Client):
    """A pool of connections to one server, for one event loop.

    Args:
        base_url: the server's root, without ``/v1``.
    """

    def __init__(self, base_url: str, options: HttpOptions = DEFAULT) -> None:
        self.url = base_url
        self._query = f"?{urlencode(options.query)}" if options.query else ""
        proxy = proxy_of(base_url, options.proxy)
        self._proxy = "" if proxy is None else f" through the proxy {shown(proxy)}"
        self.where = base_url + self._proxy
        self._connector: Any = connector_class()(keepalive_timeout=KEEP_ALIVE_S, ssl=options.ssl_context(base_url))
        self._session = session_class()(
            connector=self._connector,
            headers={"Content-Type": "application/json", **dict(options.headers)},
            proxy=with_credentials(proxy, options.proxy_auth),
            read_bufsize=1 << 18,
            response_class=response_class(),
        )

    async def send(
        self,
        method: str,
        path: str,
        body: bytes | None,
        timeout: float | None,
        headers: HeaderPairs = (),
    ) -> aiohttp.ClientResponse:
        """See Client.

        A connection that was used before may have been closed by the server just when it was used again: then the
        request is sent again, on another one. Nobody counts that as a retry.
        """
        import aiohttp

        limits = aiohttp.ClientTimeout(total=None, sock_read=timeout, sock_connect=_connect_s(timeout))
        query = self._query.replace("?", "&", 1) if "?" in path else self._query
        url = self.url + path + query
        sent = {**dict(self._headers), **dict(headers)}
        while True:
            sent_at = time.monotonic()
            is_used_again.set(False)  # as long as there is no connection
            try:
                return await self._session.request(
                    method, url, data=body, headers=sent, timeout=limits, allow_redirects=False
                )
            except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError):
                if not is_used_again.get() or time.monotonic() - sent_at > STALE_WITHIN_S:
                    raise

    def through(self, status: int) -> str:
        return self._proxy if status in OFTEN_A_PROXYS else ""

    @contextlib.contextmanager
    def our_errors(self, timeout: float | None, began: float, *, has_begun: bool = False) -> Iterator[None]:
        import aiohttp

        def passed() -> str:
            until = "the answer was whole" if has_begun else "it had answered"
            return f"before {until}, {time.monotonic() - began:.1f} s after the request"

        try:
            yield
        except aiohttp.ServerTimeoutError as exc:
            if isinstance(exc, aiohttp.ConnectionTimeoutError):
                message = f"{self.where} did not accept a connection in {_connect_s(timeout):g} s"
                raise ServerUnreachableError(message) from exc
            raise self.silent(timeout) from exc
        except aiohttp.ClientSSLError as exc:
            # Before aiohttp 3.14 the error of a certificate has no os_error.
            why = exc.certificate_error if isinstance(exc, aiohttp.ClientConnectorCertificateError) else exc.os_error
            error = ServerUnreachableError(
                f"{self.where} can't be reached by TLS: {why}; for a certificate of your own "
                "authority pass ssl_ca_certs"
            )
            error.should_retry = False
            raise error from exc
        except aiohttp.ClientHttpProxyError as exc:
            message = f"{self.where} can't be reached: the proxy answered {exc.status} {exc.message}"
            raise ServerUnreachableError(message) from None  # aiohttp's shows the proxy's password
        except aiohttp.ClientConnectorError as exc:
            raise ServerUnreachableError(f"{self.where} can't be reached: {why_not(exc.os_error)}") from exc
        except (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError, ConnectionError) as exc:
            raise ServerConnectionError(f"{self.where} closed the connection {passed()}") from exc
        except OSError as exc:  # no socket could be made
            raise ServerUnreachableError(f"{self.where} can't be reached: {exc}") from exc
        except aiohttp.ClientError as exc:
            raise ServerConnectionError(f"{self.where} did not send a valid HTTP answer: {exc}") from exc

    async def close(self) -> None:
        await self._connector.keep_none()

    async def end(self) -> None:
        if self._connector.keeps:  # else a request of another object's may still be under way
            await self._session.close()

    def hang_up(self) -> None:
        hang_up(self._connector.noted)


def why_not(error: OSError) -> str:
    """In the system's words, of each address: ``Connection refused``."""
    # asyncio's "[Errno 111] Connect call failed ('::1', 80, 0, 0)", or "Multiple exceptions:" and several of these.
    numbers = dict.fromkeys(map(int, re.findall(r"\[Errno (\d+)\]", str(error))))
    why = ", ".join(map(os.strerror, numbers)) or error.strerror or str(error)
    return f"{why}: no server listens there" if list(numbers) == [errno.ECONNREFUSED] else why


def _connect_s(timeout: float | None) -> float:
    """How long a connection may take: no longer than silence after it."""
    return CONNECT_TIMEOUT_S if timeout is None else min(CONNECT_TIMEOUT_S, timeout)


class EventStream:
    """The events of one streamed answer. Closing it early aborts the request in vLLM.

    Not an asynchronous generator: a loop that shuts down closes all of those at once, and this one would be in the way
    of the one that reads it.

    Attributes:
        is_done: ``[DONE]`` has come.

    Raises:
        RequestError: see errors.py.
    """

    def __init__(self, client: Client, path: str, body: bytes, timeout: float | None) -> None:
        self._client = client
        self._path = path
        self._body = body
        self._timeout = timeout
        self._began = time.monotonic()
        self._response: Answer | None = None
        self._buffer = bytearray()
        self._events: deque[bytes] = deque()
        self._has_begun = False
        self.is_done = False

    async def open(self) -> None:
        """Send the request; return when the answer begins."""
        with self._client.our_errors(self._timeout, self._began):
            self._response = await self._client.begin("POST", self._path, self._body, self._timeout)

    def close(self) -> None:
        """Closes the connection too, where the answer was not read to its end."""
        if self._response is not None:
            self._response.release()

    def __aiter__(self) -> EventStream:
        return self

    async def __anext__(self) -> bytes:
        assert self._response is not None
        while not self._events:
            with self._client.our_errors(self._timeout, self._began, has_begun=self._has_begun):
                data = await self._response.content.readany()
                if not self._has_begun and is_a_page(data):
                    data += await self._response.read()
                    self._events.append(data)  # a whole answer, or a page: of a server that does not stream
                    break
            self._has_begun = True
            if b"\r" in data:  # CRLF, or CR alone; none is within a line, where JSON has it escaped
                data = data.replace(b"\r", b"\n")
            self._buffer += data or b"\n"  # at the end: a last line without its end
            self._events.extend(split_events(self._buffer))
            if not data and not self._events:
                raise StopAsyncIteration
        event = self._events.popleft()
        if event == b"[DONE]":
            self.is_done = True
            raise StopAsyncIteration
        return event


def is_a_page(beginning: bytes) -> bool:
    """True for what begins as JSON or HTML does, where a stream of events was asked for."""
    return beginning.removeprefix(BYTE_ORDER_MARK).lstrip()[:1] in (b"{", b"[", b"<")


def split_events(buffer: bytearray) -> Iterable[bytes]:
    """Take the complete lines out of ``buffer``: ``data:`` lines without their prefix; comments and blanks are dropped.

    llama.cpp, up to 2025, has errors in the field ``error:``.
    """
    while (end := buffer.find(b"\n")) >= 0:
        line = bytes(buffer[:end]).strip()
        del buffer[: end + 1]
        if line.startswith(BYTE_ORDER_MARK):
            line = line[3:]
        if line.startswith(b"data:"):
            yield line[5:].lstrip()
        elif line.startswith(b"error:"):
            yield b'{"error":' + line[6:] + b"}"


def refusal(status: int, headers: Mapping[str, str], body: bytes, through: str = "") -> RequestError:
    """The error of an answer with status 400 or more.

    Args:
        headers: found by names in any case.
    """
    error = error_from_response(status, body, through)
    error.retry_after_s = retry_after_s(headers.get("Retry-After", ""), headers.get("retry-after-ms", ""))
    said = {"true": True, "false": False}.get(headers.get("x-should-retry", "").lower())
    error.should_retry = error.should_retry if said is None else said
    return error


def retry_after_s(seconds: str, milliseconds: str = "") -> float | None:
    """Seconds from now that a ``Retry-After`` asks for: a number of them, or a date; None for anything else.

    Args:
        milliseconds: OpenAI's own header, which is more exact.
    """
    for value, unit in ((milliseconds, 0.001), (seconds, 1.0)):
        with contextlib.suppress(ValueError):
            asked = float(value) * unit
            if 0 <= asked < math.inf:
                return asked
    try:
        then = parsedate_to_datetime(seconds)
    except ValueError:
        return None
    if then.tzinfo is None:
        then = then.replace(tzinfo=UTC)
    return max(0.0, then.timestamp() - time.time())
