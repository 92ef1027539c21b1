"""The routes of Ollama's protocol."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import msgspec
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from shared_engine.adapting.model_facts import has_chat_template, parsed
from shared_engine.errors import InvalidInputError, VLLMError
from shared_engine.gateway.asked import Asked, decoded, passed_headers
from shared_engine.gateway.catalog import LOOK_S, Catalog, ServedModel
from shared_engine.gateway.config import Key, Target
from shared_engine.gateway.keep_alive import keep_alive_of
from shared_engine.gateway.ollama.answers import (
    Embedded,
    EmbeddedOne,
    Generated,
    Loaded,
    OllamaAnswer,
    said_in_chat,
    said_in_text,
)
from shared_engine.gateway.ollama.models import Shown
from shared_engine.gateway.ollama.requests import (
    ChatRequest,
    EmbeddingsRequest,
    EmbedRequest,
    GenerateRequest,
    OfModel,
    ShowRequest,
)
from shared_engine.gateway.passing import PassedOn
from shared_engine.gateway.refusals import RefusedError
from shared_engine.request.forwarding import ForwardedRequest
from shared_engine.request.routes import CHAT, COMPLETIONS, EMBEDDINGS, MODELS
from shared_engine.request.threads import in_a_thread
from shared_engine.runtime.record import EngineState

VERSION = "0.33.0"
"""The release of Ollama whose protocol this is: programs compare it with what they need."""
_LATEST = ":latest"
_OF_THE_FORM = ("accept", "content-type")
"""Headers that say what only holds on this side."""
_LOADED = (EngineState.READY, EngineState.ASLEEP)
T = TypeVar("T")


def routes(catalog: Catalog) -> list[Route]:
    """All of them."""
    ollama = _Ollama(catalog)
    posts: dict[str, Callable[[Request], Awaitable[Any]]] = {
        "/api/chat": ollama.chat,
        "/api/generate": ollama.generate,
        "/api/embed": ollama.embed,
        "/api/embeddings": ollama.embeddings,
        "/api/show": ollama.show,
    }
    gets: dict[str, Callable[[Request], Awaitable[Any]]] = {
        "/api/tags": ollama.tags,
        "/api/ps": ollama.ps,
        "/api/version": ollama.version,
    }
    return [
        *(Route(path, do, methods=["POST"]) for path, do in posts.items()),
        *(Route(path, do, methods=["GET"]) for path, do in gets.items()),
    ]


class _Ollama:
    """What each route does."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog

    # ---- generation

    async def chat(self, request: Request) -> Any:
        """Chat, as Ollama has it; without messages: load the model, or with keep_alive 0 unload it."""
        asked = await self._asked(request, ChatRequest)
        model, target = self._find(asked.model, request)
        if asked.asks_nothing:
            return await self._loaded(asked, model, said_in_chat)
        _check_answers(asked, model, "chat")
        _check_thinking(asked, model)
        if asked.tools and not _reads(model, "tool_calls"):
            why = "no tool-call parser is known for it, and none is named in engine_args"
            raise _refused(f'"{asked.model}" does not support tools: {why}')
        body = _understood(asked.body)
        answer = Generated(asked.model, said_in_chat)
        return self._passed(asked, model, _forwarded(request, target, CHAT, body), answer)

    async def generate(self, request: Request) -> Any:
        """Continue a prompt, as Ollama has it; without one: load the model, or with keep_alive 0 unload it."""
        asked = await self._asked(request, GenerateRequest)
        model, target = self._find(asked.model, request)
        if asked.asks_nothing:
            return await self._loaded(asked, model, said_in_text)
        _check_answers(asked, model, "generate")
        asked.check(asked.model)
        settings = model.config.settings
        if asked.raw or has_chat_template(settings) is False:
            path, body = COMPLETIONS, _understood(lambda: asked.text_body(model.context_window))
        else:
            _check_thinking(asked, model)
            path, body = CHAT, _understood(asked.body)
        answer = Generated(asked.model, said_in_text)
        return self._passed(asked, model, _forwarded(request, target, path, body), answer)

    async def _loaded(
        self,
        asked: ChatRequest | GenerateRequest,
        model: ServedModel,
        said: Callable[..., dict[str, Any]],
    ) -> Any:
        """What asks nothing loads the model, or has it leave."""
        keep_alive_s = keep_alive_of(asked.keep_alive)
        if keep_alive_s == 0:
            await model.keep_alive(0)
            return _json(Loaded(asked.model, said, "unload").whole())
        return self._passed(asked, model, ForwardedRequest("GET", MODELS), Loaded(asked.model, said))

    # ---- embeddings

    async def embed(self, request: Request) -> Any:
        """A vector for each text, as Ollama has it; without any: load the model."""
        asked = await self._asked(request, EmbedRequest)
        answer = Embedded(asked.model, len(asked.texts()), max(0, asked.dimensions or 0))
        return self._embedded(request, asked, answer)

    async def embeddings(self, request: Request) -> Any:
        """The vector of one text, as Ollama's older clients ask for it."""
        asked = await self._asked(request, EmbeddingsRequest)
        return self._embedded(request, asked, EmbeddedOne(asked.model, len(asked.texts())))

    def _embedded(self, request: Request, asked: EmbedRequest | EmbeddingsRequest, answer: OllamaAnswer) -> Any:
        model, target = self._find(asked.model, request)
        forwarded = _forwarded(request, target, EMBEDDINGS, asked.body())
        if not asked.texts():
            forwarded = ForwardedRequest("GET", MODELS)
        return self._passed(asked, model, forwarded, answer)

    # ---- models

    async def tags(self, request: Request) -> Response:
        """The models, as Ollama lists them."""
        since = self._catalog.began
        found = self._catalog.shown(_key(request))
        tags = await in_a_thread(lambda: [Shown(name, model, since).tag() for name, model in found])
        return JSONResponse({"models": tags})

    async def ps(self, request: Request) -> Response:
        """The models that are loaded, as Ollama lists them."""
        opened = self._catalog.opened(_key(request)).items()
        models = [(name, model) for model, name in opened if not model.config.settings.is_remote]
        found = await asyncio.gather(*(_looked_at(model) for _, model in models))
        shown = [
            Shown(name, model, self._catalog.began).process(info)
            for (name, model), info in zip(models, found, strict=True)
            if info is not None and info.state in _LOADED
        ]
        shown.sort(key=lambda each: str(each["expires_at"]), reverse=True)
        return JSONResponse({"models": shown})

    async def show(self, request: Request) -> Response:
        """One model, as Ollama shows it."""
        asked = await self._asked(request, ShowRequest)
        name = asked.model or asked.name
        model, target = self._find(name, request)
        own_name = target.adapter or model.config.id
        shown = await in_a_thread(lambda: Shown(own_name, model, self._catalog.began).whole(target.set_params))
        return JSONResponse(shown)

    async def version(self, _: Request) -> Response:
        """The release of Ollama whose protocol this is."""
        return JSONResponse({"version": VERSION})

    # ---- all of them

    async def _asked(self, request: Request, kind: type[T]) -> T:
        return await decoded(request, self._catalog.config.fields.max_body_bytes, kind)

    def _find(self, name: str, request: Request) -> tuple[ServedModel, Target]:
        """By its name; a name without a tag is the same with ``:latest``.

        Raises:
            RefusedError: there is no such model.
        """
        if not name:
            raise _refused("model is required")
        known = name in self._catalog.config.names or not name.endswith(_LATEST)
        return self._catalog.find(name if known else name.removesuffix(_LATEST), _key(request))

    def _passed(
        self,
        asked: OfModel,
        model: ServedModel,
        forwarded: ForwardedRequest,
        answer: OllamaAnswer,
    ) -> PassedOn:
        return PassedOn(
            model,
            forwarded,
            is_stream=asked.is_stream,
            comment_interval_s=self._catalog.config.fields.comment_interval_s,
            keep_alive_s=keep_alive_of(asked.keep_alive),
            translation=answer,
        )


def _forwarded(request: Request, target: Target, path: str, body: dict[str, Any]) -> ForwardedRequest:
    headers = tuple((name, value) for name, value in passed_headers(request) if name not in _OF_THE_FORM)
    fields = {name: msgspec.Raw(msgspec.json.encode(value)) for name, value in body.items()}
    return Asked("POST", path, (*headers, ("content-type", "application/json")), b"", fields, None).forwarded(
        target, None
    )[0]


def _understood(body: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    try:
        return body()
    except InvalidInputError as exc:
        raise _refused(str(exc)) from None


def _check_answers(asked: OfModel, model: ServedModel, what: str) -> None:
    known = model.capabilities()
    if known is not None and "completions" not in known:  # which all have that generate
        raise _refused(f'"{asked.model}" does not support {what}')


def _check_thinking(asked: ChatRequest | GenerateRequest, model: ServedModel) -> None:
    if asked.think not in (None, False) and not _reads(model, "reasoning"):
        raise _refused(f'"{asked.model}" does not support thinking')


def _reads(model: ServedModel, what: str) -> bool:
    """Whether vLLM finds that in the model's answers; True where nobody knows."""
    known = parsed(model.config.settings)
    return known is None or bool(getattr(known, what))


async def _looked_at(model: ServedModel) -> Any:
    try:
        async with asyncio.timeout(LOOK_S):
            return await model.endpoint.status(processes=True)
    except (VLLMError, TimeoutError):
        return None


def _key(request: Request) -> Key | None:
    key: Key | None = request.state.key
    return key


def _json(body: bytes) -> Response:
    return Response(body, media_type="application/json")


def _refused(message: str) -> RefusedError:
    return RefusedError(400, message, "invalid_request")
