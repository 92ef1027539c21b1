"""Whether prompt and answer fit in the model's context, before anything is sent; and the answer made to fit."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache, partial
from typing import Any

import msgspec

from shared_engine.errors import (
    ContextLengthError,
    InvalidInputError,
    RequestError,
    RequestTimeoutError,
    ServerConnectionError,
)
from shared_engine.params import CallParams, GenerationParams
from shared_engine.request.answers import window_of
from shared_engine.request.bodies import (
    PROMPT_SWITCHES,
    Request,
    encode,
    max_tokens_field,
    prompt_tokens_request,
    prompt_variables,
)
from shared_engine.request.routes import CHAT, COMPLETIONS
from shared_engine.request.sending import Requests
from shared_engine.request.threads import in_a_thread
from shared_engine.settings import EngineSettings
from shared_engine.token_count.local_tokenizer import LocalTokenizer

_log = logging.getLogger("shared_engine")


class ContextBudget:
    """Of one engine.

    Args:
        window: the model's limit as far as it is known without asking a server. Where the engine decides it
            (``max_model_len="auto"``), that is the most it can be.
    """

    def __init__(
        self,
        settings: EngineSettings,
        tokenizer: LocalTokenizer,
        requests: Callable[[], Requests],
        window: Callable[[], int | None],
    ) -> None:
        self._settings = settings
        self._tokenizer = tokenizer
        self._requests = requests
        self._window = window
        self._limits: dict[str | None, int | None] = {}

    async def fitted(self, request: Request) -> Request:
        """The request as it is to be sent: itself, but where its max_tokens is lowered.

        Raises:
            ContextLengthError: it does not fit, and what there is to lower would not be enough.
        """
        checks, lowers = self._wishes(request.params)
        if not (checks or lowers) or request.path not in (CHAT, COMPLETIONS):
            return request
        body = msgspec.json.decode(request.body)
        if body.get("truncate_prompt_tokens") is not None:  # the server makes the prompt fit
            return request
        count = await self._count(request, body)
        if count is None:
            _say_uncounted(repr(self._settings.base_url or self._settings.model))
            return request
        other = self._other_model(request, body)
        most = None if other is not None else self._window()
        if most is not None:
            fitted = _fitted(request, body, count, most, checks=checks, lowers=lowers)
            if self._is_exact():
                return fitted
        limit = await self._limit(request.params, other)
        return request if limit is None else _fitted(request, body, count, limit, checks=checks, lowers=lowers)

    async def limit(self) -> int:
        """The model's limit, exactly; by the server, where only it knows.

        Raises:
            InvalidInputError: it does not say.
        """
        window = self._window()
        if window is not None and self._is_exact():
            return window
        limit = await self._limit(CallParams(), None)
        if limit is None:
            raise InvalidInputError(f"{self._settings.base_url} does not report its max_model_len: pass size=...")
        return limit

    def _wishes(self, params: CallParams) -> tuple[bool, bool]:
        checks, lowers = self._settings.check_context, self._settings.truncate_completion
        if isinstance(params, GenerationParams):
            checks = checks if params.check_context is None else params.check_context
            lowers = lowers if params.truncate_completion is None else params.truncate_completion
        return checks, lowers

    def _is_exact(self) -> bool:
        """False where ``window`` is only the most that the limit can be."""
        return isinstance(self._settings.max_model_len, int) or self._requests().endpoint.max_model_len is not None

    async def _count(self, request: Request, body: Mapping[str, Any]) -> int | None:
        """The prompt's tokens, exactly; None where nobody can say."""
        here = await in_a_thread(partial(self._count_here, request, body))
        if here is not None:
            return here
        tokenize = prompt_tokens_request(request)
        assert tokenize is not None
        try:
            return await self._requests().count_tokens(tokenize)
        except RequestError as exc:
            if isinstance(exc, ServerConnectionError | RequestTimeoutError):
                raise
            return None  # it has no such route; or it refuses the prompt, as it will refuse the request

    def _count_here(self, request: Request, body: Mapping[str, Any]) -> int | None:
        is_others = self._other_model(request, body) is not None
        if is_others or not body.keys().isdisjoint(PROMPT_SWITCHES) or "documents" in body:
            return None
        if request.path == CHAT:
            return self._tokenizer.chat_tokens(body["messages"], body.get("tools"), prompt_variables(body))
        tokens = self._tokenizer.tokens(body["prompt"], add_special_tokens=True)
        return None if tokens is None else len(tokens)

    def _other_model(self, request: Request, body: Mapping[str, Any]) -> str | None:
        """Of a remote server the model that is asked for in place of the engine's. An adapter is none: it has the
        model's own tokens and limit.
        """
        named = body["model"] if request.names_model else request.model
        is_adapter = isinstance(request.params, GenerationParams) and request.params.lora is not None
        return named if self._settings.is_remote and not is_adapter else None

    async def _limit(self, params: CallParams, model: str | None) -> int | None:
        """The server's own word for it, for which a local engine is started; None where it does not say.

        Args:
            model: another one than the engine's, on a remote server.
        """
        endpoint = self._requests().endpoint
        if model is None and endpoint.max_model_len is not None:
            return endpoint.max_model_len
        if model not in self._limits:
            listed = await self._requests().limits(params)
            own = endpoint.max_model_len or window_of(list(listed.items()), self._settings.model)
            self._limits = {None: own}
            self._limits.update(listed)
        return self._limits.get(model)


def _fitted(
    request: Request, body: Mapping[str, Any], count: int, limit: int, *, checks: bool, lowers: bool
) -> Request:
    field = max_tokens_field(body)
    asked = 1 if field is None else body[field]
    left = limit - count
    if asked <= left:
        return request
    least = max(1, body.get("min_tokens") or 0)
    if lowers and field is not None and left >= least:
        return replace(request, body=encode({**body, field: left}), lowered_to=left)
    if not checks and not lowers:
        return request
    wish = "there is no room for an answer" if field is None else f"{field} = {asked} more were asked for"
    message = (
        f"the prompt has {count} tokens, {wish}, and the model's limit is {limit}: {count + asked - limit} too many; "
        "nothing was sent"
    )
    raise ContextLengthError(message, None, limit, count, asked)


@cache
def _say_uncounted(where: str) -> None:
    _log.warning("%s can't count the tokens of prompts, so check_context and truncate_completion do nothing", where)
