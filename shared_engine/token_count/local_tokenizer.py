"""The tokenizer of a model's own files, kept for a moment: looking at the files takes longer than tokenizing a word."""

from __future__ import annotations

import time
from collections.abc import Callable

from shared_engine.settings import EngineSettings
from shared_engine.token_count.tokens import local_tokenizer

KEPT_S = 1.0

Tokenize = Callable[[str], list[int]]


class LocalTokenizer:
    """See the module's docstring. Threads may share it."""

    def __init__(self, settings: EngineSettings) -> None:
        self._settings = settings
        self._known: tuple[float, Tokenize | None] = (0.0, None)

    def get(self) -> Tokenize | None:
        """From a text to its tokens, without special ones around them; None where only the server knows them."""
        until, tokenize = self._known
        now = time.monotonic()
        if now > until:
            tokenize = local_tokenizer(self._settings)
            self._known = (now + KEPT_S, tokenize)
        return tokenize
