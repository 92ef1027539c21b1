"""What a request is refused with: a status, and a body in the form of its protocol. All of it is made here."""

from __future__ import annotations

import json
import math

from starlette.responses import Response

from shared_engine.errors import (
    EngineBusyError,
    EngineDiedError,
    EngineStartError,
    EngineStartTimeoutError,
    EngineStoppedError,
    InvalidInputError,
    RequestError,
    RequestTimeoutError,
    ServerConnectionError,
    ServerError,
    VLLMError,
)
from shared_engine.request.routes import MESSAGES
from shared_engine.runtime.redacted import redacted

_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
}
RETRY_AFTER_S = 5


class RefusedError(Exception):
    """What is said instead of an answer.

    Attributes:
        code: for programs, such as ``model_not_found``.
        param: what of the request it is about, in OpenAI's form.
        retry_after_s: when trying again may help.
        should_retry: False where that can't help, though the status may look like it.
    """

    def __init__(
        self,
        status: int,
        message: str,
        code: str,
        *,
        retry_after_s: float | None = None,
        should_retry: bool | None = None,
        headers: dict[str, str] | None = None,
        param: str | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.param = param
        self._headers = dict(headers or {})
        if retry_after_s is not None:
            self._headers["Retry-After"] = str(math.ceil(retry_after_s))
        if should_retry is not None:
            self._headers["x-should-retry"] = str(should_retry).lower()

    def body(self, route: str = "") -> bytes:
        """In the form of the protocol that has this route: OpenAI's, Anthropic's or Ollama's."""
        if is_ollamas(route):
            return json.dumps({"error": self.message}).encode()
        if route.startswith(MESSAGES):
            kind = _TYPES.get(self.status, "api_error" if self.status >= 500 else "invalid_request_error")
            return json.dumps({"type": "error", "error": {"type": kind, "message": self.message}}).encode()
        kind = _TYPES.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        error = {"message": self.message, "type": kind, "param": self.param, "code": self.code}
        return json.dumps({"error": error}).encode()

    def event(self, route: str = "") -> bytes:
        """As the last one of a stream."""
        if is_ollamas(route):
            return self.body(route) + b"\n"
        # What was sent is whole events (whole_events.py), but for one that was too long to be held back.
        return b"\n\n" + error_event(self.body(route), route)

    def response(self, route: str = "") -> Response:
        return Response(self.body(route), self.status, self._headers, "application/json")


SHUT_DOWN = RefusedError(503, "the gateway is shut down", "shutting_down", retry_after_s=1)
"""What still runs when the gateway has drained for long enough."""


def error_event(body: bytes, route: str) -> bytes:
    """An event with an error in one line of JSON. Anthropic's clients read no event without a name."""
    name = b"event: error\n" if route.startswith(MESSAGES) else b""
    return name + b"data: " + body + b"\n\n"


def is_ollamas(route: str) -> bool:
    """Whether Ollama's protocol has it; what is the gateway's own stands under ``/api/v1``."""
    return route.startswith("/api/") and not route.startswith("/api/v1/")


def refusal_of(error: VLLMError, model: str) -> RefusedError:
    """What an error of the engine's, or on the way to it, is for a client.

    Its log is not shown: it is the gateway's own to read.
    """
    # Of an engine's error without the log lines, which are in str(error).
    message = f"{model}: {redacted(str(getattr(error, 'message', error)))}"
    if isinstance(error, EngineStartTimeoutError):
        return RefusedError(504, message, "load_timeout", retry_after_s=RETRY_AFTER_S)
    if isinstance(error, EngineStartError):
        if error.is_of_device:
            return RefusedError(503, message, "no_room", retry_after_s=RETRY_AFTER_S)
        return RefusedError(500, message, "load_failed", should_retry=False)
    if isinstance(error, EngineDiedError):
        return RefusedError(502, message, "engine_died")
    if isinstance(error, EngineStoppedError):
        return RefusedError(503, message, "engine_stopped", retry_after_s=RETRY_AFTER_S)
    if isinstance(error, EngineBusyError):
        return RefusedError(503, message, "engine_busy", retry_after_s=RETRY_AFTER_S)
    if isinstance(error, RequestTimeoutError):
        return RefusedError(504, message, "timeout")
    if isinstance(error, ServerConnectionError):
        return RefusedError(502, message, "server_unreachable")
    if isinstance(error, RequestError) and error.status is not None and error.status >= 400:
        return RefusedError(
            error.status, message, "upstream_error", retry_after_s=error.retry_after_s, should_retry=error.should_retry
        )
    if isinstance(error, ServerError):
        return RefusedError(502, message, "upstream_error")  # whose answer nobody understands
    if isinstance(error, RequestError) and error.status is not None and error.status >= 300:
        return RefusedError(502, message, "upstream_error", should_retry=False)  # a redirect, which is not followed
    if isinstance(error, InvalidInputError):
        return RefusedError(400, message, "invalid_request")
    return RefusedError(500, message, "internal_error")


def model_not_found(name: str | None, known: list[str]) -> RefusedError:
    there = ", ".join(known) or "none"
    if name is None:
        return RefusedError(404, f"name a model; there are: {there}", "model_not_found")
    return RefusedError(404, f"the model {name!r:.200} does not exist; there are: {there}", "model_not_found")
