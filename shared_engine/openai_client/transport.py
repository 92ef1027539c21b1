"""What openai's HTTP library sends goes to an engine; what has no answer is raised as openai's own errors.

openai 2 uses httpx, openai 3 httpx2: the same classes in two packages.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from typing import Any
from urllib.parse import urlsplit

from shared_engine.errors import EngineError, EngineStartTimeoutError, RequestError, RequestTimeoutError, VLLMError
from shared_engine.request.forwarded_answer import ForwardedAnswer
from shared_engine.request.forwarding import ForwardedRequest, Forwarding
from shared_engine.request.io_loop import iterate_sync, run_sync

# openai sends them where the environment has OPENAI_ORG_ID and OPENAI_PROJECT_ID, which are no business of a vLLM.
_OF_OPENAI = ("openai-organization", "openai-project")


class _Route:
    """From a request of openai's to one of ours.

    Args:
        root: the address that the client was given, without ``/v1``.
        key: the placeholder that the client was given, which is not sent.
    """

    def __init__(self, forwarding: Forwarding, root: str, key: str) -> None:
        self.forwarding = forwarding
        self._root = root
        self._prefix = urlsplit(root).path
        self._unsent = f"Bearer {key}"

    def request(self, request: Any, body: bytes) -> ForwardedRequest:
        import openai

        if not str(request.url).startswith(f"{self._root}/"):
            raise openai.APIConnectionError(
                message=f"this client's requests go to {self._root} only, not to {request.url}", request=request
            )
        limits = request.extensions.get("timeout", {})
        return ForwardedRequest(
            request.method,
            request.url.raw_path.decode("ascii").removeprefix(self._prefix),
            tuple(
                (name, value)
                for name, value in request.headers.multi_items()
                if name.lower() not in _OF_OPENAI and value != self._unsent
            ),
            body,
            wait_s=limits.get("pool"),
            silence_s=limits.get("read"),
        )


def openai_error(error: VLLMError, request: Any) -> Exception:
    """The class of openai's that says the same, with our words."""
    import openai

    if isinstance(error, RequestTimeoutError | EngineStartTimeoutError):
        timeout = openai.APITimeoutError(request=request)
        timeout.message = str(error)
        timeout.args = (timeout.message,)
        return timeout
    if isinstance(error, RequestError) and error.status is not None:  # in the middle of an answer, whose status was 200
        return openai.APIError(str(error), request, body=None)
    return openai.APIConnectionError(message=str(error), request=request)


@contextmanager
def _openai_errors(request: Any) -> Iterator[None]:
    """openai hands on its own errors as they are; any other it would try again, and hide."""
    try:
        yield
    except VLLMError as exc:
        raise openai_error(exc, request) from exc


@functools.cache
def transports() -> tuple[type[Any], type[Any]]:
    """The transports for threads and for event loops, of the HTTP library that the installed openai uses."""
    import openai

    (client,) = {kind for kind in openai.DefaultHttpxClient.__mro__ if kind.__name__ == "Client"}
    http: Any = importlib.import_module(client.__module__.partition(".")[0])

    class Body(http.SyncByteStream):  # type: ignore[misc]  # of one of two packages
        def __init__(self, answer: ForwardedAnswer, request: Any) -> None:
            self._answer = answer
            self._request = request

        def __iter__(self) -> Iterator[bytes]:
            with _openai_errors(self._request):
                yield from iterate_sync(self._answer.pieces())

        def close(self) -> None:
            with suppress(EngineError):  # the interpreter ends
                run_sync(self._answer.aclose())

    class AsyncBody(http.AsyncByteStream):  # type: ignore[misc]
        def __init__(self, answer: ForwardedAnswer, request: Any) -> None:
            self._answer = answer
            self._request = request

        def __aiter__(self) -> AsyncIterator[bytes]:
            return self

        async def __anext__(self) -> bytes:
            with _openai_errors(self._request):
                return await anext(self._answer)

        async def aclose(self) -> None:
            await self._answer.aclose()

    def response(answer: ForwardedAnswer, body: Any) -> Any:
        return http.Response(
            answer.status, headers=answer.headers, stream=body, extensions={"http_version": b"HTTP/1.1"}
        )

    def refusal(error: RequestError) -> Any:
        """As an answer: openai makes the error of its status."""
        message = {"message": error.message, "type": type(error).__name__, "code": error.status}
        return http.Response(error.status, json={"error": message})

    class Transport(http.BaseTransport):  # type: ignore[misc]
        def __init__(self, *route: Any) -> None:
            self._route = _Route(*route)

        def handle_request(self, request: Any) -> Any:
            forwarded = self._route.request(request, request.read())
            with _openai_errors(request):
                try:
                    answer = run_sync(self._route.forwarding.forward(forwarded))
                except RequestError as exc:
                    if exc.status is None:
                        raise
                    return refusal(exc)
            return response(answer, Body(answer, request))

    class AsyncTransport(http.AsyncBaseTransport):  # type: ignore[misc]
        def __init__(self, *route: Any) -> None:
            self._route = _Route(*route)

        async def handle_async_request(self, request: Any) -> Any:
            forwarded = self._route.request(request, await request.aread())
            with _openai_errors(request):
                try:
                    answer = await self._route.forwarding.forward(forwarded)
                except RequestError as exc:
                    if exc.status is None:
                        raise
                    return refusal(exc)
            return response(answer, AsyncBody(answer, request))

    return Transport, AsyncTransport
