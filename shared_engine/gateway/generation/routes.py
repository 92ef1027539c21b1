"""The routes: ``/api/v1/inference/generate`` for one, ``/generate`` and ``/chat`` for many."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from shared_engine.errors import InvalidInputError
from shared_engine.gateway.asked import Asked, decoded, passed_headers
from shared_engine.gateway.catalog import Catalog, ServedModel
from shared_engine.gateway.config import Target
from shared_engine.gateway.generation.batch import Batch
from shared_engine.gateway.generation.outputs import Generated, Outputs
from shared_engine.gateway.generation.requests import (
    ChatMany,
    Generate,
    GenerateMany,
    of_messages,
    of_prompt,
    params_of,
)
from shared_engine.gateway.keep_alive import keep_alive_of
from shared_engine.gateway.passing import PassedOn
from shared_engine.gateway.refusals import RefusedError
from shared_engine.request.batches import max_in_flight
from shared_engine.request.window import SPARE

MAX_ITEMS = 10_000
_OF_THE_FORM = ("accept", "content-type")
"""Headers that say what only holds on this side."""
_Made = tuple[str, dict[str, Any]]


def routes(catalog: Catalog) -> list[Route]:
    """All of them."""
    generation = _Generation(catalog)
    return [
        Route("/api/v1/inference/generate", generation.generate, methods=["POST"]),
        Route("/generate", generation.generate_many, methods=["POST"]),
        Route("/chat", generation.chat_many, methods=["POST"]),
    ]


class _Generation:
    """What each route does."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog

    async def generate(self, request: Request) -> Any:
        asked = await self._asked(request, Generate)
        model, target = self._catalog.find(asked.model, request.state.key)
        if (asked.prompt is None) == (asked.messages is None):
            raise _refused("give prompt or messages, one of them")

        def made() -> _Made:
            params = params_of(asked.params)
            if asked.messages is not None:
                return of_messages(asked.messages, params, asked.tools, asked.tool_choice, stream=asked.stream)
            if asked.tools:
                raise InvalidInputError("tools go with messages, not with a prompt")
            return of_prompt(asked.prompt, params, model.context_window, stream=asked.stream)

        answer = Generated(asked.model or model.config.id)
        return self._passed_on(
            request, model, target, _understood(made), answer, is_stream=asked.stream, keep_alive=asked.keep_alive
        )

    async def generate_many(self, request: Request) -> Any:
        asked = await self._asked(request, GenerateMany)
        model, target = self._catalog.find(asked.model, request.state.key)
        params = _understood(lambda: params_of(asked.params))

        def made(prompt: Any) -> _Made:
            return of_prompt(prompt, params, model.context_window)

        return self._batch(request, model, target, asked.prompts, "prompts", made, asked.keep_alive)

    async def chat_many(self, request: Request) -> Any:
        asked = await self._asked(request, ChatMany)
        model, target = self._catalog.find(asked.model, request.state.key)
        params = _understood(lambda: params_of(asked.params))

        def made(messages: Any) -> _Made:
            return of_messages(messages, params, asked.tools, asked.tool_choice)

        return self._batch(request, model, target, asked.conversations, "conversations", made, asked.keep_alive)

    def _batch(
        self,
        request: Request,
        model: ServedModel,
        target: Target,
        items: list[Any],
        name: str,
        made: Callable[[Any], _Made],
        keep_alive: Any,
    ) -> Any:
        if len(items) > MAX_ITEMS:
            raise RefusedError(413, f"{name} has {len(items)} items, and may have {MAX_ITEMS}", "too_many_items")
        bodies = [_understood(lambda: made(item), f"{name}[{at}]") for at, item in enumerate(items)]  # noqa: B023
        keep_alive_of(keep_alive)
        if not items:
            return JSONResponse([])

        def passed_on(at: int) -> PassedOn:
            return self._passed_on(
                request, model, target, bodies[at], Outputs(), is_stream=False, keep_alive=keep_alive
            )

        settings, fields = model.config.settings, model.config.fields
        at_once = min(max_in_flight(settings, SPARE, model.endpoint.max_num_seqs), fields.concurrency_limit)
        return Batch(len(items), passed_on, at_once, name)

    def _passed_on(
        self,
        request: Request,
        model: ServedModel,
        target: Target,
        made: _Made,
        answer: Outputs,
        *,
        is_stream: bool,
        keep_alive: Any,
    ) -> PassedOn:
        path, body = made
        kept = tuple((name, value) for name, value in passed_headers(request) if name not in _OF_THE_FORM)
        headers = (*kept, ("content-type", "application/json"))
        fields = {name: msgspec.Raw(msgspec.json.encode(value)) for name, value in body.items()}
        settings = model.config.settings
        own_name = settings.model if settings.is_remote else None
        forwarded, _ = Asked("POST", path, headers, b"", fields, None).forwarded(target, own_name)
        return PassedOn(
            model,
            forwarded,
            is_stream=is_stream,
            comment_interval_s=self._catalog.config.fields.comment_interval_s,
            keep_alive_s=keep_alive_of(keep_alive),
            translation=answer,
        )

    async def _asked(self, request: Request, kind: type[Any]) -> Any:
        return await decoded(request, self._catalog.config.fields.max_body_bytes, kind)


def _understood(make: Callable[[], Any], place: str | None = None) -> Any:
    """
    Args:
        place: what is made, where it is one of many.

    Raises:
        RefusedError: something in it is not as it should be; says what.
    """
    try:
        return make()
    except InvalidInputError as exc:
        raise _refused(str(exc) if place is None else f"{place}: {exc}", place) from None


def _refused(why: str, place: str | None = None) -> RefusedError:
    return RefusedError(400, why, "invalid_request", param=place)
