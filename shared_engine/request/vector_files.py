"""Vectors of many texts into a file, which a later process goes on with: what was asked for is not asked for again."""

from __future__ import annotations

import sys
from array import array
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from shared_engine.answer_file.identity import Digests, Identity, digest_of, how_digest
from shared_engine.answer_file.out_file import OutFile
from shared_engine.answer_file.vectors import VectorFile, failed_line_of, line_of
from shared_engine.errors import InvalidInputError
from shared_engine.request.answering_model import answering_model
from shared_engine.request.batches import gather
from shared_engine.request.checks import check_text
from shared_engine.request.threads import in_a_thread
from shared_engine.results import EmbeddingResult, OnError
from shared_engine.settings import EngineSettings

PRIVATE = 0o600


class Texts(Digests):
    """The texts of a job, of which what each says is known."""

    def __init__(self, texts: Sequence[str], on_error: OnError) -> None:
        """
        Raises:
            InvalidInputError: one is not a string, and is to end the others.
        """
        super().__init__()
        if isinstance(texts, (str, bytes)) or not isinstance(texts, Sequence):
            raise InvalidInputError(f"texts must be a list of strings, got {type(texts).__name__}: {texts!r:.80}")
        self.texts = texts
        for index, text in enumerate(texts):
            if on_error == "raise":
                check_text(text, f"texts[{index}]")
            said = text.encode(errors="surrogatepass") if isinstance(text, str) else repr(text).encode() + b"\0"
            self.digests.append(digest_of(said))


class Vectors:
    """The file of one job, open for writing."""

    def __init__(self, path: Path, texts: Texts, how: str, *, retry_errors: bool) -> None:
        """
        Raises:
            VLLMError: see ``OutFile``.
        """
        self._texts, self._how = texts, how
        self.file = OutFile(path, texts, [how], unit="text", mode=PRIVATE)
        try:
            self.file.begin()
            if retry_errors and self.file.errors:
                self.file.drop_errors()
        except BaseException:
            self.file.close()
            raise
        answered = self.file.answered
        self.missing = array("Q", (index for index in range(len(texts.texts)) if not answered[index]))

    def write(self, positions: Sequence[int], result: EmbeddingResult, on_error: OnError) -> None:
        """Put down what has come of the texts at ``positions``, asked for with ``on_error="none"``.

        Raises:
            VLLMError: that of the first text that failed, where that is to end the others; they are put down before.
        """
        errors = {failure.index: failure.error for failure in result.failures}
        for at, position in enumerate(positions):
            identity = Identity(position + 1, self._texts.digests[position], self._how)
            if at not in errors:
                self.file.append(line_of(identity, result.embeddings[at]), position + 1)
            elif on_error != "raise":
                self.file.append(failed_line_of(identity, errors[at]), position + 1)
        if errors and on_error == "raise":
            at, error = next(iter(errors.items()))
            raise type(error)(f"texts[{positions[at]}]: {error.args[0]}", *error.args[1:]) from error


def how_of(settings: EngineSettings, model: str | None, asked: Mapping[str, Any]) -> str:
    """Digest of what decides vectors beside the texts: the model and its files, its settings, and what is asked for."""
    model_facts = answering_model(settings, model, asked.get("lora"))
    return how_digest({**model_facts, "asked": asked, "byteorder": sys.byteorder})


async def embed_into(
    path: Path,
    texts: Sequence[str],
    how: Callable[[], str],
    embed: Callable[[list[str]], Awaitable[EmbeddingResult]],
    *,
    size: int,
    at_once: int,
    on_error: OnError,
    retry_errors: bool,
    on_progress: Callable[[int], object] | None,
) -> VectorFile:
    """Embed the texts that are missing in the file.

    Args:
        how: digest of what decides the vectors beside the texts.
        embed: asks for some texts, with ``on_error="none"``.
        size: how many of them at a time.
        at_once: how many times so many.
    """
    given = await in_a_thread(lambda: Texts(texts, on_error))
    vectors = await in_a_thread(lambda: Vectors(path, given, how(), retry_errors=retry_errors))
    try:
        missing = vectors.missing
        if on_progress is not None and len(missing) < len(texts):
            on_progress(len(texts) - len(missing))

        async def embed_some(start: int) -> None:
            positions = missing[start : start + size]
            result = await embed([texts[position] for position in positions])
            vectors.write(positions, result, on_error)
            if on_progress is not None:
                on_progress(len(positions))

        await gather(range(0, len(missing), size), embed_some, lambda _: at_once, False)
    finally:
        vectors.file.close()
    return await in_a_thread(lambda: VectorFile(path))
