"""The routes of models' life: ``/api/v1/inference/...``, ``/events`` and ``/shutdown``."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Annotated, Any

import msgspec
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from shared_engine.errors import VLLMError
from shared_engine.gateway.asked import decoded
from shared_engine.gateway.catalog import Catalog, ServedModel
from shared_engine.gateway.config import Key
from shared_engine.gateway.keep_alive import keep_alive_of
from shared_engine.gateway.life.board import Board
from shared_engine.gateway.life.event_stream import EventStream, event
from shared_engine.gateway.life.logs import MAX_LINES, follow, last_lines, log_file_of
from shared_engine.gateway.refusals import RefusedError, refusal_of

BASE = "/api/v1/inference"
EVENTS_S = 0.5
MAX_SHOWN = 100
"""Requests in an event, the oldest."""
LOG_LINES = 200
logger = logging.getLogger(__name__)


class OfModel(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of what is done to a model.

    Attributes:
        keep_alive: of ``load``: how long it is to stay.
        wait: of ``load``: until it is ready, or answer at once.
        timeout: of ``unload``: seconds that requests in flight may take to end.
    """

    model: str | None = None
    keep_alive: Any = None
    wait: bool = True
    timeout: Annotated[float, msgspec.Meta(ge=0, le=3600)] = 30.0


class Shutdown(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of ``/shutdown``.

    Attributes:
        unload: models leave memory too, those of this machine that nobody else uses.
    """

    unload: bool = False


def routes(catalog: Catalog) -> list[Route]:
    """All of them."""
    life = _Life(catalog)
    posts: dict[str, Callable[[Request], Awaitable[Any]]] = {
        f"{BASE}/load": life.load,
        f"{BASE}/unload": life.unload,
        f"{BASE}/pin": life.pin,
        f"{BASE}/unpin": life.unpin,
        f"{BASE}/requests/{{id}}/cancel": life.cancel,
        "/shutdown": life.shutdown,
    }
    gets: dict[str, Callable[[Request], Awaitable[Any]]] = {
        f"{BASE}/status": life.status,
        f"{BASE}/requests": life.requests,
        f"{BASE}/logs": life.logs,
        "/events": life.events,
    }
    return [
        *(Route(path, do, methods=["POST"]) for path, do in posts.items()),
        *(Route(path, do, methods=["GET"]) for path, do in gets.items()),
    ]


class _Life:
    """What each route does."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._board = Board(catalog)
        self._loads: set[asyncio.Task[None]] = set()

    # ---- models

    async def status(self, request: Request) -> Response:
        return JSONResponse(await self._board.status(_key(request), is_admin=_is_admin(request)))

    async def load(self, request: Request) -> Response:
        """A client that leaves does not end the load."""
        asked = await self._asked(request, OfModel)
        keep_alive_s = keep_alive_of(asked.keep_alive)
        model = self._model(asked.model, request)
        loading = asyncio.create_task(_load(model, keep_alive_s))
        self._loads.add(loading)
        loading.add_done_callback(self._loads.discard)
        if asked.wait:
            await _explained(model, asyncio.shield(loading))
        else:
            loading.add_done_callback(lambda done: _tell(model, done))
        return JSONResponse(await self._board.entry(model, _key(request)), 200 if asked.wait else 202)

    async def unload(self, request: Request) -> Response:
        asked = await self._asked(request, OfModel, is_for_admins=True)
        model = self._own_model(asked.model, request)
        await _explained(model, model.endpoint.evict(asked.timeout))
        return JSONResponse(await self._board.entry(model, _key(request)))

    async def pin(self, request: Request) -> Response:
        return await self._pinned(request, is_pinned=True)

    async def unpin(self, request: Request) -> Response:
        return await self._pinned(request, is_pinned=False)

    async def _pinned(self, request: Request, *, is_pinned: bool) -> Response:
        asked = await self._asked(request, OfModel, is_for_admins=True)
        model = self._own_model(asked.model, request)
        await _explained(model, model.pin(is_pinned=is_pinned))
        return JSONResponse(await self._board.entry(model, _key(request)))

    def _model(self, name: str | None, request: Request) -> ServedModel:
        return self._catalog.find(name, _key(request))[0]

    def _own_model(self, name: str | None, request: Request) -> ServedModel:
        """
        Raises:
            RefusedError: its engine is not one of this machine.
        """
        model = self._model(name, request)
        if model.config.settings.is_remote:
            raise RefusedError(400, f"{model.config.id}: its server is remote, and keeps it", "remote_model")
        return model

    # ---- requests

    async def requests(self, request: Request) -> Response:
        return JSONResponse(self._requests(request))

    def _requests(self, request: Request, most: int | None = None) -> dict[str, Any]:
        key, is_admin = _key(request), _is_admin(request)
        found = [each for each in self._catalog.in_flight if is_admin or key is None or each.key == key.name]
        names = {model.config.id: name for model, name in self._catalog.opened(key).items()}
        shown = [each.to_json() | {"model": names.get(each.model, each.model)} for each in found[:most]]
        return {"requests": shown, "total": len(found)}

    async def cancel(self, request: Request) -> Response:
        id_, key = request.path_params["id"], _key(request)
        found = self._catalog.in_flight.get(id_)
        is_own = found is not None and key is not None and found.key == key.name
        if found is None or not (is_own or _is_admin(request)):
            raise RefusedError(404, f"there is no request {id_!r:.100} in flight", "request_not_found")
        found.cancel()
        return JSONResponse({"id": found.id, "cancelled": True})

    # ---- events and logs

    async def events(self, request: Request) -> Any:
        return self._stream(request, self._events(request, await self._now(request)))

    def _stream(self, request: Request, events: AsyncIterator[bytes]) -> EventStream:
        """It ends when the configuration no longer has the key that asked, as it was then."""
        key, catalog = _key(request), self._catalog

        def may_read() -> bool:
            keys = catalog.config.keys
            return key in keys if key is not None else not keys

        return EventStream(events, catalog.leaving, may_read, catalog.config.fields.comment_interval_s)

    async def _now(self, request: Request) -> dict[str, Any]:
        return {
            "status": await self._board.status(_key(request), is_admin=_is_admin(request)),
            "requests": self._requests(request, MAX_SHOWN),
        }

    async def _events(self, request: Request, now: dict[str, Any]) -> AsyncIterator[bytes]:
        sent: dict[str, Any] = {}
        while True:
            for name, found in now.items():
                if sent.get(name) != found:
                    yield event(found, name)
            sent = now
            await asyncio.sleep(EVENTS_S)
            now = await self._now(request)

    async def logs(self, request: Request) -> Any:
        _check_admin(request)
        query = request.query_params
        count = _number(query.get("lines"), LOG_LINES, MAX_LINES)
        is_followed = query.get("follow", "").lower() in ("1", "true", "yes")
        name = query.get("model")
        if name is None:
            own = self._catalog.log
            lines, following = own.last(count), own.follow(count)
        else:
            model = self._model(name, request)
            file = await _explained(model, log_file_of(model, query.get("member")))
            lines, following = [] if is_followed else await last_lines(file, count), follow(file, count)
        if not is_followed:
            return JSONResponse({"lines": lines})
        return self._stream(request, (event(line) async for line in following))

    # ---- the end

    async def shutdown(self, request: Request) -> Response:
        """As after SIGTERM."""
        asked = await self._asked(request, Shutdown, is_for_admins=True)
        logger.info("asked to shut down")
        self._catalog.unloads_at_end = asked.unload
        self._catalog.leaving.set()
        return JSONResponse({"status": "leaving"}, 202)

    async def _asked(self, request: Request, kind: type[Any], *, is_for_admins: bool = False) -> Any:
        """The body; an empty one is an empty object.

        Raises:
            RefusedError: it is not this, or the key may not.
        """
        if is_for_admins:
            _check_admin(request)
        return await decoded(request, self._catalog.config.fields.max_body_bytes, kind)


def _key(request: Request) -> Key | None:
    key: Key | None = request.state.key
    return key


def _is_admin(request: Request) -> bool:
    is_admin: bool = request.state.is_admin
    return is_admin


def _check_admin(request: Request) -> None:
    if not _is_admin(request):
        raise RefusedError(
            403, "this needs an API key with admin: true, or, without api_keys, a gateway on loopback", "admin_only"
        )


def _number(text: str | None, default: int, most: int) -> int:
    if text is None:
        return default
    if not text.isascii() or not text.isdecimal() or len(text) > 9:
        raise RefusedError(400, f"lines = {text!r:.40}: must be a number", "invalid_request")
    return min(int(text), most)


async def _load(model: ServedModel, keep_alive_s: float | None) -> None:
    await model.load()
    await model.keep_alive(keep_alive_s)


async def _explained(model: ServedModel, doing: Awaitable[Any]) -> Any:
    try:
        return await doing
    except VLLMError as exc:
        raise refusal_of(exc, model.config.id) from exc


def _tell(model: ServedModel, done: asyncio.Task[None]) -> None:
    if not done.cancelled() and (error := done.exception()) is not None:
        logger.warning("%s was not loaded: %s", model.config.id, error)
