"""The tokens of an engine's model, of texts and conversations; where only the server knows them, the log says why."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

from shared_engine.settings import EngineSettings
from shared_engine.token_count.exported import ModelTokens, exported_tokenizer
from shared_engine.token_count.source import ServerOnlyError, source_of

if TYPE_CHECKING:
    from tokenizers import Encoding

_log = logging.getLogger("shared_engine")

KEPT_S = 1.0
"""Looking at the model's files takes longer than tokenizing a word."""

LONG = 10_000
"""Characters. ``encode`` lets no other thread of the app run, a batch does: 27 s for 10 MB."""


# Flags of the API server that decide how it writes conversations; the exporter does not know them.
_CHAT_FLAGS = frozenset(("chat_template", "chat_template_content_format", "default_chat_template_kwargs"))


class LocalTokenizer:
    """See the module's docstring. Constructing it does nothing; threads may share it."""

    def __init__(self, settings: EngineSettings) -> None:
        self._settings = settings
        self._known: tuple[float, ModelTokens | None] = (0.0, None)

    def tokens(self, text: str, *, add_special_tokens: bool) -> list[int] | None:
        """The tokens that the server gives the text; None where only the server knows them.

        The first call for a model takes as long as an import of vLLM.
        """
        encoding = self.encoding(text, add_special_tokens=add_special_tokens, needs_offsets=False)
        return None if encoding is None else list(encoding.ids)

    def encoding(self, text: str, *, add_special_tokens: bool, needs_offsets: bool = True) -> Encoding | None:
        """As ``tokens``, with the place of each token in the text."""
        known = self._tokens_of_model()
        if known is None:
            return None
        tokenizer = known.tokenizer
        try:
            if len(text) <= LONG:
                return tokenizer.encode(text, add_special_tokens=add_special_tokens)
            encode = tokenizer.encode_batch if needs_offsets else tokenizer.encode_batch_fast
            return encode([text], add_special_tokens=add_special_tokens)[0]
        except TypeError:  # it is not Unicode, as the request to the server will say
            return None

    def chat_tokens(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None,
        variables: Mapping[str, Any],
    ) -> int | None:
        """How many tokens the server makes of a conversation; None where only the server knows.

        Args:
            variables: of the chat template.
        """
        known = self._tokens_of_model()
        if known is None or not _CHAT_FLAGS.isdisjoint(self._settings.engine_args):
            return None
        if known.chat is None:
            _say_once(str(self._settings.model), "conversations", known.chat_refusal)
            return None
        prompt = known.chat.prompt(messages, tools, variables)
        tokens = None if prompt is None else self.tokens(prompt, add_special_tokens=False)
        return None if tokens is None else len(tokens)

    def _tokens_of_model(self) -> ModelTokens | None:
        until, known = self._known
        if time.monotonic() > until:
            known = self._find()
            self._known = (time.monotonic() + KEPT_S, known)
        return known

    def _find(self) -> ModelTokens | None:
        if self._settings.is_remote:
            return None
        try:
            return exported_tokenizer(source_of(self._settings))
        except ServerOnlyError as exc:
            _say_once(str(self._settings.model), "tokens", str(exc))
            return None


@cache
def _say_once(model: str, what: str, reason: str) -> None:
    _log.info("%s of %s are counted by the server: %s", what, model, reason)
