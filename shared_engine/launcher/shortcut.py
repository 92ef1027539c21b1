"""The shortest way from a request to vLLM's own function for it.

vLLM's application is FastAPI's: five middlewares, a search for the route, and dependencies to solve. That is a third of
what a short answer costs its API server. What is asked most goes to the same function at once, with the same model of
its body and the same handlers of errors. Whatever is not plain, as a body that its model refuses, goes the whole way,
so that all that is refused is refused by vLLM.
"""

from __future__ import annotations

import importlib
import inspect
import json
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any

PATHS = frozenset(("/v1/chat/completions", "/v1/completions"))
PASSED_BY = frozenset(
    ("CORSMiddleware", "PrometheusInstrumentatorMiddleware", "ScalingMiddleware", "WebSocketMetricsMiddleware")
)
"""Middlewares that do nothing for a request as it is taken here, but for counting it. With any other, nothing is."""

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


@dataclass(frozen=True)
class Function:
    """One of vLLM's, behind its route.

    Attributes:
        model: of its body.
    """

    call: Callable[[Any, Any], Awaitable[Any]]
    model: Any


class Shortcut:
    """vLLM's application, with shorter ways in it.

    Args:
        app: the application as it is served.
        inner: FastAPI's, which is within it.
    """

    def __init__(self, app: App, inner: Any) -> None:
        self._app = app
        self._inner = inner
        self._functions = functions_of(inner)
        self._request: Any = importlib.import_module("starlette.requests").Request

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        function = self._functions.get(scope["path"]) if scope["type"] == "http" else None
        if function is None or not is_plain(scope):
            return await self._app(scope, receive, send)
        came = [await receive()]
        while came[-1].get("more_body"):
            came.append(await receive())
        made = made_of(function.model, came)
        if made is None:
            return await self._app(scope, _again(came, receive), send)
        # The body has been read: what comes after it is the client's leaving.
        request = self._request({**scope, "app": self._inner, "path_params": {}}, receive)
        try:
            response = await function.call(made, request)
        except Exception as exc:
            kind = next((each for each in type(exc).__mro__ if each in self._handlers), None)
            if kind is None:
                raise
            response = await self._handlers[kind](request, exc)
            if kind is Exception:  # the server logs what is raised here: nobody has expected it
                await response(request.scope, receive, send)
                raise
        if response is not None:  # else the client has left
            await response(request.scope, receive, send)

    @property
    def _handlers(self) -> dict[Any, Any]:
        handlers: dict[Any, Any] = self._inner.exception_handlers
        return handlers


def functions_of(app: Any) -> dict[str, Function]:
    """By path; empty where the application is not as we know it."""
    middlewares = {getattr(each.cls, "__name__", "") for each in getattr(app, "user_middleware", ())}
    if not middlewares <= PASSED_BY:
        return {}
    found = {}
    for route in app.routes:
        path, call = getattr(route, "path", ""), getattr(route, "endpoint", None)
        if path not in PATHS or call is None or "POST" not in (getattr(route, "methods", None) or ()):
            continue
        taken = list(inspect.signature(call, eval_str=True).parameters.values())
        if [each.name for each in taken] == ["request", "raw_request"] and hasattr(taken[0].annotation, "model_fields"):
            found[path] = Function(call, taken[0].annotation)
    return found


def is_plain(scope: Scope) -> bool:
    """A request whose headers say nothing but that it has JSON."""
    kind = b""
    for name, value in scope["headers"]:
        if name == b"content-type":
            kind = value
        elif name in (b"origin", b"content-encoding"):
            return False
    return scope["method"] == "POST" and kind == b"application/json" and not scope["query_string"]


def made_of(model: Any, came: list[Message]) -> Any:
    """None for a body that the model refuses, or that has not come whole."""
    if came[-1]["type"] != "http.request":
        return None
    try:
        return model.model_validate(json.loads(b"".join(each.get("body", b"") for each in came)))
    except Exception:  # whatever it is, vLLM says it in its own words
        return None


def _again(came: list[Message], receive: Receive) -> Receive:
    """``receive``, with what has come still to come."""
    left = came[::-1]

    async def received() -> Message:
        return left.pop() if left else await receive()

    return received
