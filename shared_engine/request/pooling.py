"""Embeddings and scores: many texts as requests of bounded size, in flight together, and which text is at fault.

Knows nothing of leases and retries: those are sending.py's.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

from shared_engine.errors import ContextLengthError, RequestError, RequestRejectedError, ServerError, VLLMError
from shared_engine.request.answers import parse_embeddings, parse_rerank, parse_token_count
from shared_engine.request.batches import gather
from shared_engine.request.bodies import Request, embedding_request, rerank_request, text_tokens_request
from shared_engine.request.call import Call
from shared_engine.request.dividing import Dividing, may_be_of_an_item
from shared_engine.request.pooling_forms import NOT_FINITE, ZEROS, Form, fault_of
from shared_engine.request.refusals import (
    NOTHING_TO_EMBED,
    remedy_for_texts,
    says_empty,
    says_no_base64,
    says_no_number,
    says_rerank_misread,
    texts_at_once,
)
from shared_engine.request.routes import RERANK, RERANK_UNREAD
from shared_engine.request.sending import MAX_COUNTED_BYTES, Requests
from shared_engine.results import (
    Embedded,
    EmbeddingResult,
    ItemFailure,
    OnError,
    RankedDocument,
    RerankResult,
    TokenUsage,
)

logger = logging.getLogger(__name__)

# Below, the API server handles requests instead of texts: 600 texts/s one by one, 2,000-3,400 in 64s, the same in 256s
# (a BERT of one layer on 2 cores).
DEFAULT_BATCH_SIZE = 64

TOO_LARGE = 413
MAX_COUNTED_TEXTS = 8
"""To find the one at fault, the longest first: nearly always it is the first."""

_TOO_SHORT_NUMBERS = 'mostly 16 bits are too short for what the model computes: dtype="bfloat16" or dtype="float32"'

Failures = dict[int, VLLMError]
"""What is known to be at fault, by position."""


def _remedy(options: Mapping[str, Any]) -> str:
    if options.get("truncate_prompt_tokens") is None:
        return "pass truncate_prompt_tokens=-1 to leave out what does not fit"
    return "truncate_prompt_tokens was sent, and has not reached the model: a router before it leaves it out"


def _named(what: str, on_error: OnError) -> str:
    """How an error calls its text: of a failure, the position stands beside the error."""
    return what if on_error == "raise" else f"the {what.partition('[')[0].removesuffix('s')}"


class Pooling:
    """The embedding and reranking requests of one Engine.

    Args:
        max_texts: how many texts may be in flight together.
    """

    def __init__(self, requests: Requests, max_texts: int) -> None:
        self._requests = requests
        self._max_texts = max_texts
        # A quarter of the bytes, and half the time to decode, of JSON's numbers; the values are the same.
        self._encoding_format = "base64"
        self._rerank_path = RERANK
        self._texts_at_once: int | None = None

    def shares(self, batch_size: int) -> tuple[int, int]:
        """How many texts go into one request, and how many requests are in flight together."""
        size = min(batch_size, max(1, self._max_texts // 4))
        return size, max(1, self._max_texts // size)

    async def embed(
        self,
        texts: Sequence[Any],
        options: Mapping[str, Any],
        batch_size: int,
        on_progress: Callable[[int], object] | None,
        call: Call,
        on_error: OnError = "raise",
        failures: Failures | None = None,
        form: Form | None = None,
    ) -> EmbeddingResult:
        """One vector for each text, in order; the first refused request ends the others, unless it is divided.

        Args:
            failures: texts that are known to be at fault: they are not sent.
            form: of what is asked for; by default an EmbeddingResult.
        """
        asking = _Embedding(self, texts, options, call, on_error, dict(failures or {}), form)
        positions = [position for position in range(len(texts)) if position not in asking.failures]
        dividing = asking.dividing(positions)
        size, at_once = self.shares(1 if form is not None and form.is_single else batch_size)

        async def embed(start: int) -> None:
            chunk = positions[start : start + size]
            await dividing.answer(chunk)
            if on_progress is not None:
                on_progress(len(chunk))

        starts = range(0, len(positions), size)
        if on_progress is not None and asking.failures:
            on_progress(len(asking.failures))
        await gather(starts, embed, lambda _: at_once, False)
        dividing.end()
        return asking.result()

    async def _embed_some(
        self, texts: Mapping[int, str], options: Mapping[str, Any], call: Call, on_error: OnError
    ) -> EmbeddingResult:
        """The vectors of texts by their positions, in one request, or in as many as the server needs."""
        if len(texts) > (self._texts_at_once or len(texts)):
            return await self._embed_in_parts(texts, options, call, on_error, self._texts_at_once or 1)
        encoding_format = self._encoding_format
        request = embedding_request(list(texts.values()), encoding_format, options)
        try:
            result = await self._requests.ask(request, parse_embeddings, call)
        except ContextLengthError as exc:
            if on_error == "raise" or len(texts) == 1:
                raise await self._naming_text(exc, texts, options, call, on_error) from exc
            raise
        except RequestRejectedError as exc:
            if encoding_format != "float" and says_no_base64(exc):
                self._encoding_format = "float"
                return await self._embed_some(texts, options, call, on_error)
            limit = texts_at_once(exc, len(texts))
            if limit is not None:
                if exc.status != TOO_LARGE:  # which is about bytes: the next texts may be shorter
                    self._texts_at_once = limit
                return await self._embed_in_parts(texts, options, call, on_error, limit)
            remedy = remedy_for_texts(exc, texts) if on_error == "raise" else None
            if remedy is None:
                raise
            raise RequestRejectedError(f"{exc.message} ({remedy})", exc.status) from exc
        if len(result.embeddings) != len(texts):
            raise ServerError(f"the server sent {len(result.embeddings)} embeddings for {len(texts)} texts")
        return result

    async def _embed_in_parts(
        self, texts: Mapping[int, str], options: Mapping[str, Any], call: Call, on_error: OnError, size: int
    ) -> EmbeddingResult:
        positions = list(texts)
        results = []
        for start in range(0, len(positions), size):
            part = {position: texts[position] for position in positions[start : start + size]}
            results.append(await self._embed_some(part, options, call, on_error))
        return EmbeddingResult(
            embeddings=[vector for result in results for vector in result.embeddings],
            usage=TokenUsage(prompt_tokens=sum(result.usage.prompt_tokens for result in results)),
            model=results[0].model,
        )

    async def rerank(
        self,
        query: str,
        documents: Sequence[str],
        top_n: int | None,
        options: Mapping[str, Any],
        call: Call,
        on_error: OnError = "raise",
        failures: Failures | None = None,
    ) -> RerankResult:
        """The documents' scores, best first. All that can be scored are scored in one request, whose answer counts:
        some models score each document in view of the others.

        Args:
            failures: documents that are known to be at fault: they are not sent.
        """
        asking = _Reranking(self, query, documents, top_n, options, call, on_error, dict(failures or {}))
        return await asking.result()

    async def _rerank_some(
        self,
        query: str,
        documents: Mapping[int, str],
        top_n: int | None,
        options: Mapping[str, Any],
        call: Call,
        on_error: OnError,
    ) -> RerankResult:
        """The scores of documents by their positions, which the result has too; in one request."""
        path = self._rerank_path
        request = rerank_request(path, query, list(documents.values()), top_n, options)
        try:
            result = await self._requests.ask(request, parse_rerank, call)
        except ServerError as exc:
            if path == RERANK_UNREAD or not says_rerank_misread(exc):
                raise
            self._rerank_path = RERANK_UNREAD
            return await self._rerank_some(query, documents, top_n, options, call, on_error)
        except ContextLengthError as exc:
            if on_error == "raise" or len(documents) == 1:
                raise await self._naming_document(exc, query, documents, options, call, on_error) from exc
            raise
        positions = list(documents)
        wanted = min(top_n or len(documents), len(documents))
        ranked = result.results[:wanted]  # not every server knows top_n
        if len({each.index for each in ranked} & set(range(len(documents)))) != wanted:
            raise ServerError(f"the server ranked {len(ranked)} of {len(documents)} documents instead of {wanted}")
        placed = [RankedDocument(index=positions[each.index], relevance_score=each.relevance_score) for each in ranked]
        return RerankResult(results=tuple(placed), usage=result.usage, model=result.model)

    # ---- what is at fault. A long text is not counted, which would hold up the server, but sent alone: vLLM refuses it
    # at once.

    async def _naming_text(
        self,
        error: ContextLengthError,
        texts: Mapping[int, str],
        options: Mapping[str, Any],
        call: Call,
        on_error: OnError,
    ) -> ContextLengthError:
        limit = error.max_model_len
        for position in _longest(texts):
            text, name = texts[position], _named(f"texts[{position}]", on_error)
            if len(text) > MAX_COUNTED_BYTES:
                refusal: ContextLengthError | None = error
                if len(texts) > 1:
                    refusal = await self._refusal(embedding_request([text], self._encoding_format, options), call)
                if refusal is not None:
                    what = f"{name} is too long ({len(text)} characters): {refusal.message}"
                    return ContextLengthError(f"{what}; {_remedy(options)}", *refusal.args[1:])
                continue
            count = await self._length(text, call)
            if count is None or limit is None:
                break
            if count > limit:
                what = f"{name} has {count} tokens, and the model's limit is {limit}"
                return ContextLengthError(f"{what}; {_remedy(options)}", error.status, limit, count)
        positions = list(texts)
        where = f"one of texts[{positions[0]}:{positions[-1] + 1}]"
        if len(texts) == 1:
            where = _named(f"texts[{positions[0]}]", on_error)
        return ContextLengthError(f"{where}: {error.message}; {_remedy(options)}", *error.args[1:])

    async def _naming_document(
        self,
        error: ContextLengthError,
        query: str,
        documents: Mapping[int, str],
        options: Mapping[str, Any],
        call: Call,
        on_error: OnError,
    ) -> ContextLengthError:
        longest = _longest(documents)
        first = documents[longest[0]]
        if len(query) + len(first) > MAX_COUNTED_BYTES:
            request = rerank_request(self._rerank_path, query, [first], None, options)
            refusal = error if len(documents) == 1 else await self._refusal(request, call)
            if refusal is not None:
                lengths = f"({len(first)} characters) with the query ({len(query)} characters)"
                name = _named(f"documents[{longest[0]}]", on_error)
                message = f"{name} {lengths} is too long: {refusal.message}; {_remedy(options)}"
                return ContextLengthError(message, *refusal.args[1:])
            return ContextLengthError(f"{error.message}; {_remedy(options)}", *error.args[1:])
        query_tokens = await self._length(query, call)
        counts = {
            position: await self._length(documents[position], call) or 0
            for position in longest
            if query_tokens is not None
        }
        if not counts:
            return ContextLengthError(f"{error.message}; {_remedy(options)}", *error.args[1:])
        # A pair has tokens of its own between the two, so sums are not exact; but the longest is surely too long.
        position = max(counts, key=counts.__getitem__)
        what = (
            f"{_named(f'documents[{position}]', on_error)} ({counts[position]} tokens) with the query ({query_tokens} "
            f"tokens) exceeds the model's limit of {error.max_model_len}"
        )
        return ContextLengthError(f"{what}; {_remedy(options)}", *error.args[1:])

    async def _refusal(self, request: Request, call: Call) -> ContextLengthError | None:
        """What the server says about the length of one text alone; None where that is not too long."""
        try:
            await self._requests.ask(request, lambda _: None, call)
        except ContextLengthError as exc:
            return exc
        return None

    async def _length(self, text: str, call: Call) -> int | None:
        """Tokens of a text; None where the server can't count them."""
        try:
            return await self._requests.ask(text_tokens_request(text), parse_token_count, call)
        except RequestError:
            return None


class _Items:
    """The texts or documents of one call: what is known of them so far."""

    kind = "texts"

    def __init__(self, items: Sequence[Any], on_error: OnError, failures: Failures) -> None:
        self.items, self.on_error, self.failures = items, on_error, failures

    def dividing(self, positions: Sequence[int]) -> Dividing:
        return Dividing(
            positions,
            self.ask,
            self.failed,
            divides=says_no_number if self.on_error == "raise" else may_be_of_an_item,
            is_sure=self.is_sure,
            size=lambda position: len(self.items[position]),
            known=self.known,
        )

    async def ask(self, positions: Sequence[int]) -> None:
        raise NotImplementedError

    def is_sure(self, error: RequestError) -> bool:
        return says_no_number(error)

    def known(self, error: RequestError, positions: Sequence[int]) -> Sequence[int]:
        """The empty ones, where those can't be embedded."""
        return [position for position in positions if not self.items[position]] if says_empty(error) else []

    async def failed(self, position: int, error: RequestError) -> None:
        """Keep the error of an item that is at fault, or raise it."""
        if says_no_number(error):
            error = self.no_number(position)
        elif says_empty(error) and not self.items[position]:
            error = RequestRejectedError(f"{error.message} ({NOTHING_TO_EMBED})", error.status)
        if self.on_error == "raise":
            raise error
        self.failures[position] = error

    def no_number(self, position: int, fault: str = NOT_FINITE) -> ServerError:
        """What is computed for an item can't be used."""
        remedy = "" if fault == ZEROS else f"; {_TOO_SHORT_NUMBERS}"
        name = _named(f"{self.kind}[{position}]", self.on_error)
        error = ServerError(f"the model computes {fault} for {name}{remedy}")
        error.should_retry = False
        return error

    def put_down(self, position: int, fault: str) -> None:
        """Keep what is wrong with an item's answer, or raise it."""
        error = self.no_number(position, fault)
        if self.on_error == "raise":
            raise error
        self.failures[position] = error

    def listed(self) -> tuple[ItemFailure, ...]:
        """All failures, in order; also in the log."""
        listed = tuple(ItemFailure(position, self.failures[position]) for position in sorted(self.failures))
        if listed:
            logger.warning("%d of %d %s failed: %s%s", len(listed), len(self.items), self.kind, self.kind, listed[0])
        return listed


class _Embedding(_Items):
    """The texts of one call, and their vectors."""

    def __init__(
        self,
        pooling: Pooling,
        texts: Sequence[str],
        options: Mapping[str, Any],
        call: Call,
        on_error: OnError,
        failures: Failures,
        form: Form | None,
    ) -> None:
        super().__init__(texts, on_error, failures)
        self._pooling, self._options, self._call, self._form = pooling, options, call, form
        self.kind = "texts" if form is None else form.kind
        self._fault_of: Callable[[Any], str | None] = fault_of if form is None else form.fault
        self._vectors: list[Any] = [None] * len(texts)
        self._tokens = 0
        self._model = ""

    async def ask(self, positions: Sequence[int]) -> None:
        texts = {position: self.items[position] for position in positions}
        result: Embedded[Any]
        if self._form is None:
            result = await self._pooling._embed_some(texts, self._options, self._call, self.on_error)
        else:
            result = await self._ask_in_form(self._form, texts)
        self._tokens += result.usage.prompt_tokens
        self._model = self._model or result.model
        for position, vector in zip(positions, result.embeddings, strict=True):
            fault = self._fault_of(vector)
            if fault is None:
                self._vectors[position] = vector
            else:
                self.put_down(position, fault)

    async def _ask_in_form(self, form: Form, texts: Mapping[int, Any]) -> Embedded[Any]:
        try:
            return await form.ask(self._pooling._requests, list(texts.values()), self._options, self._call)
        except ContextLengthError as exc:
            named = [position for position in texts if len(texts) == 1]
            if not named and self.on_error != "raise":
                raise
            where = _named(f"{self.kind}[{named[0]}]", self.on_error) if named else f"one of {len(texts)} {self.kind}"
            message = f"{where} is too long: {exc.message}; {_remedy(self._options)}"
            raise ContextLengthError(message, *exc.args[1:]) from exc

    def is_sure(self, error: RequestError) -> bool:
        return isinstance(error, ContextLengthError) or says_empty(error) or super().is_sure(error)

    def result(self) -> EmbeddingResult:
        """What has come of all texts."""
        vectors = self._vectors
        if self.on_error == "skip":
            vectors = [vector for vector in vectors if vector is not None]
        return EmbeddingResult(
            embeddings=vectors,
            usage=TokenUsage(prompt_tokens=self._tokens),
            model=self._model,
            failures=self.listed(),
        )


class _Reranking(_Items):
    """The documents of one call, and their scores."""

    kind = "documents"

    def __init__(
        self,
        pooling: Pooling,
        query: str,
        documents: Sequence[str],
        top_n: int | None,
        options: Mapping[str, Any],
        call: Call,
        on_error: OnError,
        failures: Failures,
    ) -> None:
        super().__init__(documents, on_error, failures)
        self._pooling, self._query, self._top_n = pooling, query, top_n
        self._options, self._call = options, call
        self._answered: Sequence[int] = ()
        self._answer = RerankResult(results=(), usage=TokenUsage(), model="")

    async def ask(self, positions: Sequence[int]) -> None:
        documents = {position: self.items[position] for position in sorted(positions)}
        self._answer = await self._pooling._rerank_some(
            self._query, documents, self._top_n, self._options, self._call, self.on_error
        )
        self._answered = list(documents)
        for each in self._answer.results:
            if not math.isfinite(each.relevance_score):
                self.put_down(each.index, NOT_FINITE)

    def _left(self) -> list[int]:
        return [position for position in range(len(self.items)) if position not in self.failures]

    async def result(self) -> RerankResult:
        """What has come of all documents."""
        left = self._left()
        dividing = self.dividing(left)
        if left:
            await dividing.answer(left)
            dividing.end()
        # What was found in parts has to be scored together.
        while (left := self._left()) and left != self._answered and not self._has_all_of(left):
            await self.ask(left)
        results = [each for each in self._answer.results if each.index not in self.failures] if left else []
        if self.on_error == "none":
            nothing = cast("float", None)
            results += [RankedDocument(index=index, relevance_score=nothing) for index in sorted(self.failures)]
        return RerankResult(
            results=tuple(results[: self._top_n]),
            usage=self._answer.usage,
            model=self._answer.model,
            failures=self.listed(),
        )

    def _has_all_of(self, left: Sequence[int]) -> bool:
        """True where the last answer has all scores that count, beside some that do not."""
        scored = {each.index for each in self._answer.results} - set(self.failures)
        return set(left) <= scored


def _longest(texts: Mapping[int, str]) -> list[int]:
    """Where the longest are, the longest first."""
    return sorted(texts, key=lambda position: -len(texts[position]))[:MAX_COUNTED_TEXTS]
