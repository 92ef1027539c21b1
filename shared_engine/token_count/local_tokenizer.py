"""The tokenizer of an engine's model, for texts; where there is none without the server, the log says why."""

from __future__ import annotations

import logging
import time
from functools import cache
from typing import TYPE_CHECKING

from shared_engine.settings import EngineSettings
from shared_engine.token_count.exported import exported_tokenizer
from shared_engine.token_count.source import ServerOnlyError, source_of

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_log = logging.getLogger("shared_engine")

KEPT_S = 1.0
"""Looking at the model's files takes longer than tokenizing a word."""

LONG = 10_000
"""Characters. ``encode`` lets no other thread of the app run, a batch does: 27 s for 10 MB."""


class LocalTokenizer:
    """See the module's docstring. Constructing it does nothing; threads may share it."""

    def __init__(self, settings: EngineSettings) -> None:
        self._settings = settings
        self._known: tuple[float, Tokenizer | None] = (0.0, None)

    def tokens(self, text: str, *, add_special_tokens: bool) -> list[int] | None:
        """The tokens that the server gives the text; None where only the server knows them.

        The first call for a model takes as long as an import of vLLM.
        """
        until, tokenizer = self._known
        if time.monotonic() > until:
            tokenizer = self._find()
            self._known = (time.monotonic() + KEPT_S, tokenizer)
        if tokenizer is None:
            return None
        try:
            if len(text) <= LONG:
                ids: list[int] = tokenizer.encode(text, add_special_tokens=add_special_tokens).ids
            else:
                ids = tokenizer.encode_batch_fast([text], add_special_tokens=add_special_tokens)[0].ids
        except TypeError:  # it is not Unicode, as the request to the server will say
            return None
        return ids

    def _find(self) -> Tokenizer | None:
        if self._settings.is_remote:
            return None
        try:
            return exported_tokenizer(source_of(self._settings))
        except ServerOnlyError as exc:
            _say_once(str(self._settings.model), str(exc))
            return None


@cache
def _say_once(model: str, reason: str) -> None:
    _log.info("tokens of %s are counted by the server: %s", model, reason)
