"""Vectors and scores: what an Engine with a pooling model is asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, Literal

from shared_engine.answer_file.vectors import VectorFile
from shared_engine.errors import InvalidInputError, RequestError, SettingsError
from shared_engine.machine.home import expanded
from shared_engine.model_files.folder import text_prefixes
from shared_engine.model_files.pooling_recipes import ranks_at_random, with_recipe
from shared_engine.params import CallParams
from shared_engine.request.batches import SPARE_TEXTS, max_in_flight
from shared_engine.request.call import Call
from shared_engine.request.checks import Message, check_items, check_messages, check_number, check_text
from shared_engine.request.lifecycle import Lifecycle
from shared_engine.request.pooling import DEFAULT_BATCH_SIZE, Pooling
from shared_engine.request.pooling_forms import MESSAGES, TOKENS, VOCABULARY, WEIGHTS, sparse_of, weights_by_token
from shared_engine.request.refusals import says_without_embeddings
from shared_engine.request.threads import in_a_thread
from shared_engine.request.twins import blocking, reporting
from shared_engine.request.vector_files import embed_into, how_of
from shared_engine.results import EmbeddingResult, MultiVectorResult, OnError, RerankResult, SparseResult, TokenUsage
from shared_engine.settings import EngineSettings


class PoolingRequests(Lifecycle):
    """See the module's docstring; Engine has the promises."""

    def __init__(self, settings: EngineSettings | None = None, **fields: Any) -> None:
        super().__init__(settings, **fields)
        self._made_pooling: Pooling | None = None
        self._prefixes: dict[str, str] | None = None
        self._is_reranker = False
        self._gives_weights = False

    async def aembed(
        self,
        texts: Sequence[str],
        *,
        input_type: Literal["query", "document"] | None = None,
        prefix: str | None = None,
        dimensions: int | None = None,
        truncate_prompt_tokens: int | None = None,
        lora: str | None = None,
        batch_size: int = DEFAULT_BATCH_SIZE,
        on_progress: Callable[[int], object] | None = None,
        on_error: OnError = "raise",
        extra_body: Mapping[str, Any] | None = None,
        timeout: float | None = None,
        max_retries: int | None = None,
        extra_headers: Mapping[str, str] | None = None,
    ) -> EmbeddingResult:
        """One vector for each text, in order; as requests of ``batch_size`` texts, several in flight.

        The engine must serve an embedding model (``engine_args={"runner": "pooling"}``).

        Args:
            input_type: puts before each text what the model's own config_sentence_transformers.json has for it, if
                anything; nothing on a remote server, whose files can't be seen.
            prefix: put before each text instead.
            dimensions: shorten the vectors, of a model that was trained for it (Matryoshka).
            truncate_prompt_tokens: use only so many tokens of a text; -1: as many as the model takes. Default: a text
                that is too long is an error, which names it.
            lora: the LoRA adapter that answers, as for every request.
            on_progress: called with the number of texts each time some more are done, in the thread of the call.
            on_error: what a text does to the others that is too long, empty or otherwise refused by the server, is not
                a string, or whose vector has NaN or only zeros. ``raise``: an error, which names it. ``skip``: it is
                left out. ``none``: its vector is None. Which, and why, is in ``failures``; what would meet every text
                (no engine, a wrong key, an option that the model does not take) is an error all the same.
            timeout: seconds that all of it may take; this and the next two are those of every call (CallParams).
        """
        call = Call.begin(CallParams(timeout=timeout, max_retries=max_retries, extra_headers=extra_headers))
        checked, failures = check_items(texts, "texts", on_error)
        check_number("dimensions", dimensions, 1)
        check_number("batch_size", batch_size, 1)
        check_number("truncate_prompt_tokens", truncate_prompt_tokens, -1)
        if not checked:
            return EmbeddingResult(embeddings=[], usage=TokenUsage(), model=self.settings.model or "")
        sent = _given(dimensions=dimensions, truncate_prompt_tokens=truncate_prompt_tokens)
        options = self._pooling_options(sent, lora, extra_body)
        if prefix is None:
            prefix = await call.deadline.wait("the model's own prefix", self._prefix(input_type))
        prefixed = [prefix + text for text in checked] if check_text(prefix, "prefix") else checked
        return await self._pooling.embed(prefixed, options, batch_size, on_progress, call, on_error, failures)

    embed = reporting(aembed)

    async def aembed_file(
        self,
        texts: Sequence[str],
        path: str | PathLike[str],
        *,
        input_type: Literal["query", "document"] | None = None,
        prefix: str | None = None,
        dimensions: int | None = None,
        truncate_prompt_tokens: int | None = None,
        lora: str | None = None,
        batch_size: int = DEFAULT_BATCH_SIZE,
        on_progress: Callable[[int], object] | None = None,
        on_error: OnError = "none",
        retry_errors: bool = False,
        extra_body: Mapping[str, Any] | None = None,
        max_retries: int | None = None,
        extra_headers: Mapping[str, str] | None = None,
    ) -> VectorFile:
        """The vectors of many texts in a file, from which they are read when they are asked for.

        For jobs that take long: whatever ends this process, the next call with the same texts and options asks only for
        what is missing in the file. Neither the vectors nor the texts need be in memory: ``texts`` may be any sequence.
        The file is private (mode 600) and locked while it is written.

        Args:
            on_progress: called with the number of texts each time some more are done; first with those of before.
            on_error: as for ``aembed``; a text that failed has a line with its error, and is not asked for again. With
                ``raise`` it has none, and the error comes when its neighbours are in the file.
            retry_errors: ask again for the texts that have failed.

        The other arguments are those of ``aembed``.

        Raises:
            VLLMError: the file is of other texts, another model, other settings or options; or another process writes
                it. Nothing in it was changed.
        """
        sent = _given(dimensions=dimensions, truncate_prompt_tokens=truncate_prompt_tokens)
        options = self._pooling_options(sent, lora, extra_body)
        check_number("batch_size", batch_size, 1)
        if prefix is None:
            prefix = await self._prefix(input_type)
        await self._afetched()  # its files are part of what the file says of its vectors
        model = self.settings.model or next(iter(await self._requests.limits(CallParams())), None)

        async def embed(some: list[str]) -> EmbeddingResult:
            return await self.aembed(
                some,
                prefix=prefix,
                dimensions=dimensions,
                truncate_prompt_tokens=truncate_prompt_tokens,
                lora=lora,
                batch_size=size,
                on_error="none",
                extra_body=extra_body,
                max_retries=max_retries,
                extra_headers=extra_headers,
            )

        size, at_once = self._pooling.shares(batch_size)
        return await embed_into(
            Path(path),
            texts,
            lambda: how_of(self.settings, model, {**options, "prefix": prefix, "lora": lora}),
            embed,
            size=size,
            at_once=at_once,
            on_error=on_error,
            retry_errors=retry_errors,
            on_progress=on_progress,
        )

    embed_file = reporting(aembed_file)

    async def aembed_tokens(
        self,
        texts: Sequence[str],
        *,
        prefix: str = "",
        truncate_prompt_tokens: int | None = None,
        lora: str | None = None,
        batch_size: int = DEFAULT_BATCH_SIZE,
        on_progress: Callable[[int], object] | None = None,
        on_error: OnError = "raise",
        extra_body: Mapping[str, Any] | None = None,
        timeout: float | None = None,
        max_retries: int | None = None,
        extra_headers: Mapping[str, str] | None = None,
    ) -> MultiVectorResult:
        """A vector for each token of each text: for late interaction (ColBERT, ColPali).

        The engine must serve a model of that kind, or be started for it:
        ``engine_args={"runner": "pooling", "pooler_config": {"task": "token_embed"}}``. ``rerank`` scores by late
        interaction on such an engine. The arguments are those of ``aembed``.

        Raises:
            SettingsError: the engine was started for another task.
        """
        call = Call.begin(CallParams(timeout=timeout, max_retries=max_retries, extra_headers=extra_headers))
        checked, failures = check_items(texts, "texts", on_error)
        options = self._checked_options(truncate_prompt_tokens, batch_size, lora, extra_body)
        prefixed = [prefix + text for text in checked]
        result = await self._pooling.embed(
            prefixed, options, batch_size, on_progress, call, on_error, failures, form=TOKENS
        )
        return MultiVectorResult(**_parts(result))

    embed_tokens = reporting(aembed_tokens)

    async def aembed_sparse(
        self,
        texts: Sequence[str],
        *,
        truncate_prompt_tokens: int | None = None,
        lora: str | None = None,
        batch_size: int = DEFAULT_BATCH_SIZE,
        on_progress: Callable[[int], object] | None = None,
        on_error: OnError = "raise",
        extra_body: Mapping[str, Any] | None = None,
        timeout: float | None = None,
        max_retries: int | None = None,
        extra_headers: Mapping[str, str] | None = None,
    ) -> SparseResult:
        """A sparse vector for each text: weights by token id, without those that are 0.

        Of SPLADE as the model gives it; of BGE-M3, on an engine that was started for it
        (``engine_args={"runner": "pooling", "hf_overrides": {"architectures": ["BgeM3EmbeddingModel"]},
        "pooler_config": {"task": "token_classify"}}``), the highest weight of each token. The arguments are those of
        ``aembed``.

        Raises:
            SettingsError: the model's vectors are dense.
        """
        call = Call.begin(CallParams(timeout=timeout, max_retries=max_retries, extra_headers=extra_headers))
        checked, failures = check_items(texts, "texts", on_error)
        options = self._checked_options(truncate_prompt_tokens, batch_size, lora, extra_body)
        rest = (options, batch_size, on_progress, call, on_error, failures)
        if not self._gives_weights:
            try:
                result = await self._pooling.embed(checked, *rest, form=VOCABULARY)
            except RequestError as exc:
                if not says_without_embeddings(exc):
                    raise
                self._gives_weights = True
            else:
                sparse = [None if vector is None else sparse_of(vector) for vector in result.embeddings]
                return SparseResult(**{**_parts(result), "embeddings": sparse})
        result = await self._pooling.embed(checked, *rest, form=WEIGHTS)
        places = result.indices if on_error == "skip" else range(len(checked))
        weighted: list[Any] = list(result.embeddings)
        for at, place in enumerate(places):
            if weighted[at] is not None:
                tokens = await self.atokenize(checked[place])
                weighted[at] = weights_by_token(weighted[at], tokens, is_cut=truncate_prompt_tokens is not None)
        return SparseResult(**{**_parts(result), "embeddings": weighted})

    embed_sparse = reporting(aembed_sparse)

    async def aembed_messages(
        self,
        conversations: Sequence[Sequence[Message]],
        *,
        dimensions: int | None = None,
        truncate_prompt_tokens: int | None = None,
        lora: str | None = None,
        on_progress: Callable[[int], object] | None = None,
        on_error: OnError = "raise",
        extra_body: Mapping[str, Any] | None = None,
        timeout: float | None = None,
        max_retries: int | None = None,
        extra_headers: Mapping[str, str] | None = None,
    ) -> EmbeddingResult:
        """One vector for each conversation, through the model's chat template: for models that embed images.

        An image as ``aembed_messages([[{"role": "user", "content": [{"type": "image_url", "image_url": {"url":
        "data:image/png;base64,..."}}]}]])``. Each is a request of its own, several in flight. The other arguments are
        those of ``aembed``.
        """
        call = Call.begin(CallParams(timeout=timeout, max_retries=max_retries, extra_headers=extra_headers))
        if isinstance(conversations, (str, bytes, Mapping)) or not isinstance(conversations, Sequence):
            raise InvalidInputError(f"conversations must be a list, got {type(conversations).__name__}")
        checked = [check_messages(each, f"conversations[{index}]") for index, each in enumerate(conversations)]
        check_number("dimensions", dimensions, 1)
        options = self._checked_options(truncate_prompt_tokens, 1, lora, extra_body, dimensions=dimensions)
        return await self._pooling.embed(checked, options, 1, on_progress, call, on_error, form=MESSAGES)

    embed_messages = reporting(aembed_messages)

    async def arerank(
        self,
        query: str,
        documents: Sequence[str],
        *,
        top_n: int | None = None,
        truncate_prompt_tokens: int | None = None,
        lora: str | None = None,
        on_error: OnError = "raise",
        extra_body: Mapping[str, Any] | None = None,
        timeout: float | None = None,
        max_retries: int | None = None,
        extra_headers: Mapping[str, str] | None = None,
    ) -> RerankResult:
        """The ``top_n`` documents (default: all) that fit the query best, best first.

        The engine must serve a cross-encoder with one label, or an embedding model, whose cosine then is the score
        (``engine_args={"runner": "pooling"}``). What vLLM must be told of Qwen3-Reranker, mxbai-rerank-v2 and other
        language models that rerank, a local engine is told; one of which nobody knows how is refused (SettingsError).

        Args:
            truncate_prompt_tokens: use only so many tokens of a query and document together; -1: as many as the model
                takes. Default: what is too long is an error, which names it.
            lora: the LoRA adapter that answers, as for every request.
            on_error: as for ``aembed``: what a document does to the others that can't be scored. With ``none`` it
                comes last, and has None for its score.
            timeout: seconds that all of it may take; this and the next two are those of every call (CallParams).
        """
        call = Call.begin(CallParams(timeout=timeout, max_retries=max_retries, extra_headers=extra_headers))
        check_text(query, "query")
        checked, failures = check_items(documents, "documents", on_error)
        check_number("top_n", top_n, 1)
        check_number("truncate_prompt_tokens", truncate_prompt_tokens, -1)
        if not checked:
            return RerankResult(results=(), usage=TokenUsage(), model=self.settings.model or "")
        sent = _given(truncate_prompt_tokens=truncate_prompt_tokens)
        options = self._pooling_options(sent, lora, extra_body)
        await call.deadline.wait("the model's own files", self._check_reranker())
        return await self._pooling.rerank(query, checked, top_n, options, call, on_error, failures)

    rerank = blocking(arerank)

    # ---- one request

    @property
    def _pooling(self) -> Pooling:
        if self._made_pooling is None:
            self._made_pooling = Pooling(self._requests, self._servers * max_in_flight(self.settings, SPARE_TEXTS))
        return self._made_pooling

    def _pooling_options(
        self, sent: Mapping[str, Any], lora: str | None, extra_body: Mapping[str, Any] | None
    ) -> dict[str, Any]:
        """The body's fields beside the texts."""
        options = {**sent, **_given(model=lora), **(extra_body or {})}
        if options.get("model") is not None:
            self._requests.endpoint.check_model(options["model"], "model" if lora is None else "lora")
        return options

    def _checked_options(
        self,
        truncate_prompt_tokens: int | None,
        batch_size: int,
        lora: str | None,
        extra_body: Mapping[str, Any] | None,
        **more: Any,
    ) -> dict[str, Any]:
        check_number("batch_size", batch_size, 1)
        check_number("truncate_prompt_tokens", truncate_prompt_tokens, -1)
        sent = _given(truncate_prompt_tokens=truncate_prompt_tokens, **more)
        return self._pooling_options(sent, lora, extra_body)

    async def atokenize(self, text: str) -> list[int]:
        """See ``Engine``."""
        raise NotImplementedError

    async def _prefix(self, input_type: str | None) -> str:
        if input_type not in (None, "query", "document"):
            raise InvalidInputError(f"input_type = {input_type!r}: must be 'query' or 'document'")
        if input_type is None or self.settings.is_remote:
            return ""
        if self._prefixes is None:
            if not await in_a_thread(expanded(self.settings.model or "").is_dir):
                await self.awarmup()  # a model of the hub may be here in part, or not at all, until it was served
            self._prefixes = await in_a_thread(lambda: _read_prefixes(self.settings))
        return self._prefixes.get(input_type, "")

    async def _check_reranker(self) -> None:
        """
        Raises:
            SettingsError: the scores would mean nothing.
        """
        settings = self.settings
        if self._is_reranker or settings.is_remote or settings.engine_args.get("runner") != "pooling":
            return
        model, args = str(settings.model), settings.engine_args
        folder = await in_a_thread(settings.model_folder)
        before = with_recipe(model, folder, args)
        if folder is None:
            await self.awarmup()  # a model of the hub may be here in part, or not at all, until it was served
            folder = await in_a_thread(settings.model_folder)
        if folder is None:
            return
        matter = ranks_at_random(model, folder, args)
        if matter is None and with_recipe(model, folder, args) != before:
            matter = (
                f"{model} was downloaded by this start, which did not know yet how it reranks: make another object, "
                "which starts it again"
            )
        if matter is not None:
            raise SettingsError(matter)
        self._is_reranker = True


def _parts(result: EmbeddingResult) -> dict[str, Any]:
    return {
        "embeddings": result.embeddings,
        "usage": result.usage,
        "model": result.model,
        "failures": result.failures,
    }


def _read_prefixes(settings: EngineSettings) -> dict[str, str]:
    folder = settings.model_folder()
    return text_prefixes(folder) if folder else {}


def _given(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}
