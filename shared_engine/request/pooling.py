"""Embeddings and scores: many texts as requests of bounded size, in flight together, and which text is at fault.

Knows nothing of leases and retries: those are sending.py's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

from shared_engine.errors import ContextLengthError, RequestError, RequestRejectedError, ServerError
from shared_engine.request.answers import parse_embeddings, parse_rerank, parse_token_count
from shared_engine.request.batches import gather
from shared_engine.request.bodies import Request, embedding_request, rerank_request, text_tokens_request
from shared_engine.request.call import Call
from shared_engine.request.refusals import remedy_for_texts, says_no_base64, says_rerank_misread
from shared_engine.request.routes import RERANK, RERANK_UNREAD
from shared_engine.request.sending import MAX_COUNTED_BYTES, Requests
from shared_engine.results import EmbeddingResult, RerankResult, TokenUsage

# Below, the API server handles requests instead of texts: 600 texts/s one by one, 2,000-3,400 in 64s, the same in 256s
# (a BERT of one layer on 2 cores).
DEFAULT_BATCH_SIZE = 64

MAX_COUNTED_TEXTS = 8
"""To find the one at fault, the longest first: nearly always it is the first."""


def _remedy(options: Mapping[str, Any]) -> str:
    if options.get("truncate_prompt_tokens") is None:
        return "pass truncate_prompt_tokens=-1 to leave out what does not fit"
    return "truncate_prompt_tokens was sent, and has not reached the model: a router before it leaves it out"


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

    async def embed(
        self,
        texts: Sequence[str],
        options: Mapping[str, Any],
        batch_size: int,
        on_progress: Callable[[int], object] | None,
        call: Call,
    ) -> EmbeddingResult:
        """One vector for each text, in order; the first refused request ends the others."""
        size = min(batch_size, max(1, self._max_texts // 4))

        async def embed(start: int) -> EmbeddingResult:
            chunk = texts[start : start + size]
            result = await self._embed_chunk(chunk, start, options, call)
            if on_progress is not None:
                on_progress(len(chunk))
            return result

        starts = range(0, len(texts), size)
        results = cast("list[EmbeddingResult]", await gather(starts, embed, max(1, self._max_texts // size), False))
        return EmbeddingResult(
            embeddings=[vector for result in results for vector in result.embeddings],
            usage=TokenUsage(prompt_tokens=sum(result.usage.prompt_tokens for result in results)),
            model=results[0].model,
        )

    async def _embed_chunk(
        self, texts: Sequence[str], start: int, options: Mapping[str, Any], call: Call
    ) -> EmbeddingResult:
        encoding_format = self._encoding_format
        request = embedding_request(texts, encoding_format, options)
        try:
            result = await self._requests.ask(request, parse_embeddings, call)
        except ContextLengthError as exc:
            raise await self._naming_text(exc, texts, start, options, call) from exc
        except RequestRejectedError as exc:
            if encoding_format != "float" and says_no_base64(exc):
                self._encoding_format = "float"
                return await self._embed_chunk(texts, start, options, call)
            remedy = remedy_for_texts(exc, texts, start)
            if remedy is None:
                raise
            raise RequestRejectedError(f"{exc.message} ({remedy})", exc.status) from exc
        if len(result.embeddings) != len(texts):
            raise ServerError(f"the server sent {len(result.embeddings)} embeddings for {len(texts)} texts")
        return result

    async def rerank(
        self, query: str, documents: Sequence[str], top_n: int | None, options: Mapping[str, Any], call: Call
    ) -> RerankResult:
        """The documents' scores, best first. One request: some models score each document in view of the others."""
        path = self._rerank_path
        request = rerank_request(path, query, documents, top_n, options)
        try:
            result = await self._requests.ask(request, parse_rerank, call)
        except ServerError as exc:
            if path == RERANK_UNREAD or not says_rerank_misread(exc):
                raise
            self._rerank_path = RERANK_UNREAD
            return await self.rerank(query, documents, top_n, options, call)
        except ContextLengthError as exc:
            raise await self._naming_document(exc, query, documents, options, call) from exc
        wanted = min(top_n or len(documents), len(documents))
        ranked = result.results[:wanted]  # not every server knows top_n
        if len({each.index for each in ranked} & set(range(len(documents)))) != wanted:
            raise ServerError(f"the server ranked {len(ranked)} of {len(documents)} documents instead of {wanted}")
        return RerankResult(results=ranked, usage=result.usage, model=result.model)

    # ---- what is at fault. A long text is not counted, which would hold up the server, but sent alone: vLLM refuses it
    # at once.

    async def _naming_text(
        self, error: ContextLengthError, texts: Sequence[str], start: int, options: Mapping[str, Any], call: Call
    ) -> ContextLengthError:
        limit = error.max_model_len
        for index in _longest(texts):
            text = texts[index]
            if len(text) > MAX_COUNTED_BYTES:
                refusal = await self._refusal(embedding_request([text], self._encoding_format, options), call)
                if refusal is not None:
                    what = f"texts[{start + index}] is too long ({len(text)} characters): {refusal.message}"
                    return ContextLengthError(f"{what}; {_remedy(options)}", *refusal.args[1:])
                continue
            count = await self._length(text, call)
            if count is None or limit is None:
                break
            if count > limit:
                what = f"texts[{start + index}] has {count} tokens, and the model's limit is {limit}"
                return ContextLengthError(f"{what}; {_remedy(options)}", error.status, limit, count)
        where = f"texts[{start}]" if len(texts) == 1 else f"one of texts[{start}:{start + len(texts)}]"
        return ContextLengthError(f"{where}: {error.message}; {_remedy(options)}", *error.args[1:])

    async def _naming_document(
        self, error: ContextLengthError, query: str, documents: Sequence[str], options: Mapping[str, Any], call: Call
    ) -> ContextLengthError:
        longest = _longest(documents)
        first = documents[longest[0]]
        if len(query) + len(first) > MAX_COUNTED_BYTES:
            refusal = await self._refusal(rerank_request(self._rerank_path, query, [first], None, options), call)
            if refusal is not None:
                lengths = f"({len(first)} characters) with the query ({len(query)} characters)"
                message = f"documents[{longest[0]}] {lengths} is too long: {refusal.message}; {_remedy(options)}"
                return ContextLengthError(message, *refusal.args[1:])
            return ContextLengthError(f"{error.message}; {_remedy(options)}", *error.args[1:])
        query_tokens = await self._length(query, call)
        counts = {
            index: await self._length(documents[index], call) or 0 for index in longest if query_tokens is not None
        }
        if not counts:
            return ContextLengthError(f"{error.message}; {_remedy(options)}", *error.args[1:])
        # A pair has tokens of its own between the two, so sums are not exact; but the longest is surely too long.
        index = max(counts, key=counts.__getitem__)
        what = (
            f"documents[{index}] ({counts[index]} tokens) with the query ({query_tokens} tokens) exceeds the model's "
            f"limit of {error.max_model_len}"
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


def _longest(texts: Sequence[str]) -> list[int]:
    """Where the longest are, the longest first."""
    return sorted(range(len(texts)), key=lambda index: -len(texts[index]))[:MAX_COUNTED_TEXTS]
