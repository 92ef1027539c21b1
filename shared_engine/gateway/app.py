"""The gateway as an ASGI application: its routes, and who they go to."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from shared_engine.gateway.asked import asked_of, is_of_an_answer
from shared_engine.gateway.catalog import Catalog
from shared_engine.gateway.config import Key
from shared_engine.gateway.generation import routes as generation
from shared_engine.gateway.guard import Guard
from shared_engine.gateway.life import routes as life
from shared_engine.gateway.numbers import metrics_page
from shared_engine.gateway.ollama import routes as ollama
from shared_engine.gateway.page.files import routes as page
from shared_engine.gateway.passing import PassedOn
from shared_engine.gateway.reference import routes as reference
from shared_engine.gateway.refusals import RETRY_AFTER_S, RefusedError
from shared_engine.request.routes import CHAT, COMPLETIONS, EMBEDDINGS, MESSAGES, RESPONSES
from shared_engine.request.threads import in_a_thread

PASSED = {
    "/v1/{rest:path}": ["GET", "POST", "DELETE"],
    "/v2/{rest:path}": ["GET", "POST", "DELETE"],
    **{f"/{name}": ["POST"] for name in ("tokenize", "detokenize", "pooling", "classify", "score", "rerank")},
}
"""What goes to a model. What else vLLM serves is about one server, not for everybody who may ask a model."""
ASKED_MOST = frozenset((CHAT, COMPLETIONS, EMBEDDINGS, RESPONSES, MESSAGES))
logger = logging.getLogger(__name__)


def gateway_app(catalog: Catalog, *, is_loopback: bool) -> Starlette:
    """
    Args:
        is_loopback: it is reached on an address of this machine alone.
    """
    routes = Routes(catalog)
    app = Starlette(
        routes=[
            Route("/health", routes.health),
            Route("/ready", routes.ready),
            Route("/metrics", routes.metrics),
            Route("/v1/models", routes.models),
            Route("/v1/models/{name:path}", routes.model),
            *life.routes(catalog),
            *generation.routes(catalog),
            *ollama.routes(catalog),
            *reference.routes(catalog),
            *page(),
            *(_PassedRoute(path, routes.pass_on, methods=methods) for path, methods in PASSED.items()),
        ],
        middleware=[
            Middleware(Guard, config=lambda: catalog.config, is_loopback=is_loopback),
            Middleware(FirstLook, answer=routes.pass_on),
        ],
        exception_handlers={RefusedError: _refused, HTTPException: _not_there, Exception: _failed},
    )
    app.router.redirect_slashes = False  # a path with another end is another path
    return app


class _PassedRoute(Route):
    """Without HEAD, which Starlette adds to each GET: vLLM has no such routes."""

    def __init__(self, path: str, endpoint: Callable[..., Any], *, methods: list[str]) -> None:
        super().__init__(path, endpoint, methods=methods)
        self.methods = set(methods)


class FirstLook:
    """What is asked most goes to a model at once; to find its route takes Starlette longer than all that is done here.

    Args:
        answer: as its route has it.
    """

    def __init__(self, app: ASGIApp, answer: Callable[[Request], Awaitable[Any]]) -> None:
        self._app = app
        self._answer = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST" or scope["path"] not in ASKED_MOST:
            await self._app(scope, receive, send)
            return
        try:
            answer = await self._answer(Request(scope, receive))
        except RefusedError as refusal:
            answer = refusal.response(scope["path"])
        await answer(scope, receive, send)


class Routes:
    """What each route does."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog

    async def health(self, _: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def ready(self, _: Request) -> Response:
        if not self._catalog.is_preloaded:
            told = "models with preload are not loaded yet; see /v1/models"
            raise RefusedError(503, told, "not_ready", retry_after_s=RETRY_AFTER_S)
        return JSONResponse({"status": "ready"})

    async def metrics(self, request: Request) -> Response:
        key = _key(request)
        if key is not None and key.models is not None and not key.is_admin:
            told = "this shows all models: it needs an API key without models, or one with admin: true"
            raise RefusedError(403, told, "admin_only")
        body, kind = await in_a_thread(lambda: metrics_page(self._catalog))
        return Response(body, media_type=kind)

    async def models(self, request: Request) -> Response:
        return JSONResponse({"object": "list", "data": await self._catalog.listed(_key(request))})

    async def model(self, request: Request) -> Response:
        return JSONResponse(await self._catalog.entry(request.path_params["name"], _key(request)))

    async def pass_on(self, request: Request) -> Any:
        fields = self._catalog.config.fields
        try:
            asked = await asked_of(request, fields.max_body_bytes)
        except ClientDisconnect:
            return Response(status_code=400)  # to nobody
        model, target = self._catalog.find(asked.model, _key(request))
        settings = model.config.settings
        if is_of_an_answer(request.method, request.scope["path"]) and not await model.is_loaded():
            told = f"{model.config.id} is not loaded, and its answers left with it: ask again"
            told = f"{request.scope['path']!r:.200}: {told}"
            raise RefusedError(404, told, "not_loaded")
        forwarded, is_stream = asked.forwarded(target, settings.model if settings.is_remote else None)
        return PassedOn(
            model, forwarded, is_stream=is_stream, comment_interval_s=fields.comment_interval_s,
            keep_alive_s=asked.keep_alive_s,
        )  # fmt: skip


def _key(request: Request) -> Key | None:
    key: Key | None = request.scope["state"]["key"]
    return key


async def _refused(request: Request, exc: Exception) -> Response:
    assert isinstance(exc, RefusedError)
    return exc.response(request.scope["path"])


async def _not_there(request: Request, exc: Exception) -> Response:
    assert isinstance(exc, HTTPException)
    code = {404: "not_found", 405: "method_not_allowed"}.get(exc.status_code, "invalid_request")
    message = f"{request.method:.20} {request.scope['path']!r:.200}: {exc.detail}"
    return RefusedError(exc.status_code, message, code, headers=dict(exc.headers or {})).response(request.scope["path"])


async def _failed(request: Request, _: Exception) -> Response:
    """The server logs it; a client learns nothing of its insides."""
    told = "the gateway has failed at this request; its log says why"
    return RefusedError(500, told, "internal_error").response(request.scope["path"])
