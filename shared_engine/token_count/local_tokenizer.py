"""The tokens of an engine's model, of texts and conversations; where only the server knows them, the log says why."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

from shared_engine.settings import EngineSettings
from shared_engine.token_count.exported import ModelTokens, exported_tokenizer, tokenizer_if_exported
from shared_engine.token_count.source import ServerOnlyError, source_of

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer

_log = logging.getLogger("shared_engine")

KEPT_S = 1.0
"""Looking at the model's files takes longer than tokenizing a word."""

LONG = 10_000
"""Characters. ``encode`` lets no other thread of the app run, a batch does: 27 s for 10 MB."""


# Flags of the API server that decide how it writes conversations; the exporter does not know them.
_CHAT_FLAGS = frozenset(("chat_template", "chat_template_content_format", "default_chat_template_kwargs"))


class LocalTokenizer:
    """See the module's docstring. Constructing it does nothing; threads may share it.

    The first question about a model waits for vLLM's export, as long as an import of vLLM takes; but where a server can
    count meanwhile, it is left to that.

    Args:
        is_up: whether the engine answers at once. Fast.
    """

    def __init__(self, settings: EngineSettings, is_up: Callable[[], bool] = lambda: False) -> None:
        self._settings = settings
        self._is_up = is_up
        self._known: tuple[float, ModelTokens | None] = (0.0, None)

    def tokens(self, text: str, *, add_special_tokens: bool) -> list[int] | None:
        """The tokens that the server gives the text; None where only the server knows them, or does so sooner."""
        known = self._tokens_of_model(may_be_asked=True)
        encoding = None if known is None else _encoding(known.tokenizer, text, add_special_tokens, needs_offsets=False)
        return None if encoding is None else list(encoding.ids)

    def encoding(self, text: str, *, add_special_tokens: bool) -> Encoding | None:
        """As ``tokens``, with the place of each token in the text, for which vLLM's export is always awaited: a server
        does not know the places.
        """
        known = self._tokens_of_model(may_be_asked=False)
        return None if known is None else _encoding(known.tokenizer, text, add_special_tokens, needs_offsets=True)

    def chat_tokens(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None,
        variables: Mapping[str, Any],
    ) -> int | None:
        """How many tokens the server makes of a conversation; None where only the server knows, or does so sooner.

        Args:
            variables: of the chat template.
        """
        known = self._tokens_of_model(may_be_asked=True)
        if known is None or not _CHAT_FLAGS.isdisjoint(self._settings.engine_args):
            return None
        if known.chat is None:
            _say_once(str(self._settings.model), "conversations", known.chat_refusal)
            return None
        prompt = known.chat.prompt(messages, tools, variables)
        tokens = None if prompt is None else self.tokens(prompt, add_special_tokens=False)
        return None if tokens is None else len(tokens)

    def _tokens_of_model(self, *, may_be_asked: bool) -> ModelTokens | None:
        """
        Args:
            may_be_asked: a server can answer the same question.
        """
        until, known = self._known
        if time.monotonic() <= until or self._settings.is_remote:
            return known
        may_wait = not (may_be_asked and self._is_up())
        try:
            source = source_of(self._settings)
            known = exported_tokenizer(source) if may_wait else tokenizer_if_exported(source)
            if known is None:
                return None  # the next call asks again
        except ServerOnlyError as exc:
            _say_once(str(self._settings.model), "tokens", str(exc))
            known = None
        self._known = (time.monotonic() + KEPT_S, known)
        return known


def _encoding(tokenizer: Tokenizer, text: str, add_special_tokens: bool, *, needs_offsets: bool) -> Encoding | None:
    try:
        if len(text) <= LONG:
            return tokenizer.encode(text, add_special_tokens=add_special_tokens)
        encode = tokenizer.encode_batch if needs_offsets else tokenizer.encode_batch_fast
        return encode([text], add_special_tokens=add_special_tokens)[0]
    except TypeError:  # it is not Unicode, as the request to the server will say
        return None


@cache
def _say_once(model: str, what: str, reason: str) -> None:
    _log.info("%s of %s are counted by the server: %s", what, model, reason)
