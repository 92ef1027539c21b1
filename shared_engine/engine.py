"""Engine: text, chat and embedding requests to one shared vLLM, sync and async. Lease, then client.

Constructing one starts nothing, opens nothing and imports neither torch nor vLLM. Every method exists twice:
``chat`` waits in the calling thread, ``achat`` on the running event loop; both do the same.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, overload

from shared_engine.errors import InvalidInputError
from shared_engine.model_files.folder import text_prefixes
from shared_engine.params import GenerationParams
from shared_engine.request.answers import parse_tokens
from shared_engine.request.batches import SPARE_GENERATIONS, SPARE_TEXTS, gather, max_in_flight
from shared_engine.request.bodies import ToolChoice, Tools, chat_request, completion_request, text_tokens_request
from shared_engine.request.checks import (
    Message,
    check_messages,
    check_number,
    check_prompt,
    check_prompts,
    check_text,
    check_texts,
)
from shared_engine.request.endpoint import EngineStatus
from shared_engine.request.io_loop import iterate_sync, run_sync
from shared_engine.request.local import LocalEndpoint
from shared_engine.request.pooling import DEFAULT_BATCH_SIZE, Pooling
from shared_engine.request.remote import RemoteEndpoint
from shared_engine.request.sending import Requests
from shared_engine.results import (
    EmbeddingResult,
    GenerationChunk,
    GenerationResult,
    RerankResult,
    TokenUsage,
)
from shared_engine.runtime.record import EngineState
from shared_engine.settings import SECRET, EngineSettings
from shared_engine.token_count.tokens import count_locally, local_tokenizer, tokenize_request

TOKENIZER_KEPT_S = 1.0


class Engine:
    """One shared vLLM engine, or a server somebody else runs.

    Args:
        settings: an EngineSettings; or its fields as keywords: ``Engine(model="Qwen/Qwen3-4B")``,
            ``Engine(base_url="http://gpu:8000/v1")``.

    Equal settings share one engine process, whatever object, thread, event loop or OS process asks. It starts on the
    first request (or ``warmup``) and leaves memory ``idle_ttl_s`` seconds after the end of the last one. Objects are
    cheap, thread-safe, and pickle (without ``api_key``: the other process reads VLLM_API_KEY).

    Request parameters are given as GenerationParams, as keywords, or both, where keywords win; the settings'
    defaults are below them.

    Every request raises:
        InvalidInputError: bad input; before anything starts, naming position or parameter.
        EngineStartError: the engine did not come up.
        EngineDiedError: it ended in the middle, and again when tried once more.
        EngineBusyError: ``engine_args={"max_num_queued_reqs": n}`` is set, and n requests are in the engine.
        RequestError: the server refused, failed, timed out or can't be reached; see errors.py.
    """

    def __init__(self, settings: EngineSettings | None = None, **fields: Any) -> None:
        if settings is not None and fields:
            raise TypeError(f"pass EngineSettings or keywords, not both (got {', '.join(sorted(fields))} as well)")
        self.settings = settings if settings is not None else EngineSettings(**fields)
        self._defaults = GenerationParams(**self.settings.sampling_defaults)
        self._made_requests: Requests | None = None
        self._made_pooling: Pooling | None = None
        self._prefixes: dict[str, str] | None = None
        self._context_window: int | None = None
        self._local_tokenizer: Callable[[str], list[int]] | None = None
        self._tokenizer_until = 0.0

    def __repr__(self) -> str:
        where = f"base_url={self.settings.base_url!r}, " if self.settings.is_remote else ""
        return f"Engine({where}model={self.settings.model!r})"

    def __deepcopy__(self, _: dict[int, Any]) -> Engine:
        return type(self)(self.settings)  # frozen; a copy in this process keeps the secret

    def __reduce__(self) -> tuple[Any, ...]:
        given = {name: getattr(self.settings, name) for name in self.settings.model_fields_set if name not in SECRET}
        return _engine_of, (type(self), given)

    @property
    def _requests(self) -> Requests:
        # Not a cached_property: before Python 3.12 it holds a lock, which a child forked meanwhile would never get.
        if self._made_requests is None:
            endpoint = RemoteEndpoint(self.settings) if self.settings.is_remote else LocalEndpoint(self.settings)
            self._made_requests = Requests(endpoint, self.settings.timeout, self.settings.max_retries)
        return self._made_requests

    @property
    def _pooling(self) -> Pooling:
        if self._made_pooling is None:
            self._made_pooling = Pooling(self._requests, max_in_flight(self.settings.engine_args, SPARE_TEXTS))
        return self._made_pooling

    @property
    def max_concurrency(self) -> int:
        """How many requests a batch keeps in flight: a quarter more than vLLM's max_num_seqs. More would only make
        others wait in vLLM's queue.
        """
        return max_in_flight(self.settings.engine_args, SPARE_GENERATIONS)

    @property
    def context_window(self) -> int | None:
        """Tokens of prompt and answer together: by the settings, the model's files, or what a server that was asked
        for something has told by the way. None where that is not known; asks nobody.
        """
        told = None if self._made_requests is None else self._made_requests.endpoint.max_model_len
        if told is None and self._context_window is None:  # looked for until it is known: adapters ask in every call
            self._context_window = self.settings.context_window()
        return told or self._context_window

    # ---- text

    async def agenerate(
        self, prompt: str, params: GenerationParams | None = None, **overrides: Any
    ) -> GenerationResult:
        """Continue one prompt, as it is, without a chat template."""
        request = completion_request(check_prompt(prompt), self._params(params, overrides))
        return await self._requests.generate(request)

    def generate(self, prompt: str, params: GenerationParams | None = None, **overrides: Any) -> GenerationResult:
        """See ``agenerate``."""
        return run_sync(self.agenerate(prompt, params, **overrides))

    @overload
    async def agenerate_batch(
        self,
        prompts: Sequence[str],
        params: GenerationParams | None = None,
        *,
        return_exceptions: Literal[False] = False,
        **overrides: Any,
    ) -> list[GenerationResult]: ...

    @overload
    async def agenerate_batch(
        self,
        prompts: Sequence[str],
        params: GenerationParams | None = None,
        *,
        return_exceptions: bool,
        **overrides: Any,
    ) -> list[GenerationResult | BaseException]: ...

    async def agenerate_batch(
        self,
        prompts: Sequence[str],
        params: GenerationParams | None = None,
        *,
        return_exceptions: bool = False,
        **overrides: Any,
    ) -> Any:
        """Continue each prompt, in order of the prompts; none gives an empty list.

        Each result has its own usage and finish reason. With ``return_exceptions`` a refused prompt leaves its error
        in its place; without, the first error ends the batch.
        """
        checked = check_prompts(prompts)
        request = self._params(params, overrides)

        def call(prompt: str) -> Awaitable[GenerationResult]:
            return self._requests.generate(completion_request(prompt, request))

        return await gather(checked, call, self.max_concurrency, return_exceptions)

    def generate_batch(
        self,
        prompts: Sequence[str],
        params: GenerationParams | None = None,
        *,
        return_exceptions: bool = False,
        **overrides: Any,
    ) -> list[Any]:
        """See ``agenerate_batch``."""
        return run_sync(self.agenerate_batch(prompts, params, return_exceptions=return_exceptions, **overrides))

    async def astream_generate(
        self, prompt: str, params: GenerationParams | None = None, **overrides: Any
    ) -> AsyncGenerator[GenerationChunk, None]:
        """Continue one prompt, piece by piece; the last chunk carries the usage. Leaving early aborts the request."""
        check_prompt(prompt)
        request = completion_request(prompt, self._params(params, overrides), stream=True)
        async for chunk in self._requests.stream(request):
            yield chunk

    def stream_generate(
        self, prompt: str, params: GenerationParams | None = None, **overrides: Any
    ) -> Generator[GenerationChunk, None, None]:
        """See ``astream_generate``."""
        request = completion_request(check_prompt(prompt), self._params(params, overrides), stream=True)
        return iterate_sync(self._requests.stream(request))

    # ---- chat

    async def achat(
        self,
        messages: Sequence[Message],
        params: GenerationParams | None = None,
        *,
        tools: Tools | None = None,
        tool_choice: ToolChoice | None = None,
        **overrides: Any,
    ) -> GenerationResult:
        """Answer one conversation, through the model's own chat template.

        Args:
            messages: in OpenAI's form, ``{"role": "user", "content": "Hello"}``.
            tools: in OpenAI's form, ``{"type": "function", "function": {...}}``.
            tool_choice: ``auto``, ``none``, ``required`` or ``{"type": "function", "function": {"name": ...}}``.
        """
        check_messages(messages)
        request = chat_request(messages, self._params(params, overrides), tools=tools, tool_choice=tool_choice)
        return await self._requests.generate(request)

    def chat(
        self,
        messages: Sequence[Message],
        params: GenerationParams | None = None,
        *,
        tools: Tools | None = None,
        tool_choice: ToolChoice | None = None,
        **overrides: Any,
    ) -> GenerationResult:
        """See ``achat``."""
        return run_sync(self.achat(messages, params, tools=tools, tool_choice=tool_choice, **overrides))

    @overload
    async def achat_batch(
        self,
        conversations: Sequence[Sequence[Message]],
        params: GenerationParams | None = None,
        *,
        tools: Tools | None = None,
        tool_choice: ToolChoice | None = None,
        return_exceptions: Literal[False] = False,
        **overrides: Any,
    ) -> list[GenerationResult]: ...

    @overload
    async def achat_batch(
        self,
        conversations: Sequence[Sequence[Message]],
        params: GenerationParams | None = None,
        *,
        tools: Tools | None = None,
        tool_choice: ToolChoice | None = None,
        return_exceptions: bool,
        **overrides: Any,
    ) -> list[GenerationResult | BaseException]: ...

    async def achat_batch(
        self,
        conversations: Sequence[Sequence[Message]],
        params: GenerationParams | None = None,
        *,
        tools: Tools | None = None,
        tool_choice: ToolChoice | None = None,
        return_exceptions: bool = False,
        **overrides: Any,
    ) -> Any:
        """Answer each conversation, in their order; see ``agenerate_batch`` for errors."""
        for index, messages in enumerate(conversations):
            check_messages(messages, f"conversations[{index}]")
        request = self._params(params, overrides)

        def call(messages: Sequence[Message]) -> Awaitable[GenerationResult]:
            return self._requests.generate(chat_request(messages, request, tools=tools, tool_choice=tool_choice))

        return await gather(conversations, call, self.max_concurrency, return_exceptions)

    def chat_batch(
        self,
        conversations: Sequence[Sequence[Message]],
        params: GenerationParams | None = None,
        *,
        tools: Tools | None = None,
        tool_choice: ToolChoice | None = None,
        return_exceptions: bool = False,
        **overrides: Any,
    ) -> list[Any]:
        """See ``achat_batch``."""
        return run_sync(
            self.achat_batch(
                conversations,
                params,
                tools=tools,
                tool_choice=tool_choice,
                return_exceptions=return_exceptions,
                **overrides,
            )
        )

    async def astream_chat(
        self,
        messages: Sequence[Message],
        params: GenerationParams | None = None,
        *,
        tools: Tools | None = None,
        tool_choice: ToolChoice | None = None,
        **overrides: Any,
    ) -> AsyncGenerator[GenerationChunk, None]:
        """Answer piece by piece; the last chunk carries the usage. Leaving early aborts the request."""
        check_messages(messages)
        request = chat_request(
            messages, self._params(params, overrides), tools=tools, tool_choice=tool_choice, stream=True
        )
        async for chunk in self._requests.stream(request):
            yield chunk

    def stream_chat(
        self,
        messages: Sequence[Message],
        params: GenerationParams | None = None,
        *,
        tools: Tools | None = None,
        tool_choice: ToolChoice | None = None,
        **overrides: Any,
    ) -> Generator[GenerationChunk, None, None]:
        """See ``astream_chat``. Bad input is refused here, not at the first chunk."""
        check_messages(messages)
        request = chat_request(
            messages, self._params(params, overrides), tools=tools, tool_choice=tool_choice, stream=True
        )
        return iterate_sync(self._requests.stream(request))

    # ---- embeddings and tokens

    async def aembed(
        self,
        texts: Sequence[str],
        *,
        input_type: Literal["query", "document"] | None = None,
        prefix: str | None = None,
        dimensions: int | None = None,
        truncate_prompt_tokens: int | None = None,
        batch_size: int = DEFAULT_BATCH_SIZE,
        on_progress: Callable[[int], object] | None = None,
        extra_body: Mapping[str, Any] | None = None,
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
            on_progress: called with the number of texts each time some more are done.
        """
        checked = check_texts(texts, "texts")
        check_number("dimensions", dimensions, 1)
        check_number("batch_size", batch_size, 1)
        check_number("truncate_prompt_tokens", truncate_prompt_tokens, -1)
        if not checked:
            return EmbeddingResult(embeddings=[], usage=TokenUsage(), model=self.settings.model or "")
        options = _given(dimensions=dimensions, truncate_prompt_tokens=truncate_prompt_tokens) | dict(extra_body or {})
        prefix = await self._prefix(input_type) if prefix is None else check_text(prefix, "prefix")
        prefixed = [prefix + text for text in checked] if prefix else checked
        return await self._pooling.embed(prefixed, options, batch_size, on_progress)

    def embed(
        self,
        texts: Sequence[str],
        *,
        input_type: Literal["query", "document"] | None = None,
        prefix: str | None = None,
        dimensions: int | None = None,
        truncate_prompt_tokens: int | None = None,
        batch_size: int = DEFAULT_BATCH_SIZE,
        on_progress: Callable[[int], object] | None = None,
        extra_body: Mapping[str, Any] | None = None,
    ) -> EmbeddingResult:
        """See ``aembed``. ``on_progress`` is called in another thread."""
        return run_sync(
            self.aembed(
                texts,
                input_type=input_type,
                prefix=prefix,
                dimensions=dimensions,
                truncate_prompt_tokens=truncate_prompt_tokens,
                batch_size=batch_size,
                on_progress=on_progress,
                extra_body=extra_body,
            )
        )

    async def arerank(
        self,
        query: str,
        documents: Sequence[str],
        *,
        top_n: int | None = None,
        truncate_prompt_tokens: int | None = None,
        extra_body: Mapping[str, Any] | None = None,
    ) -> RerankResult:
        """The ``top_n`` documents (default: all) that fit the query best, best first.

        The engine must serve a cross-encoder with one label, or an embedding model, whose cosine then is the score
        (``engine_args={"runner": "pooling"}``).

        Args:
            truncate_prompt_tokens: use only so many tokens of a query and document together; -1: as many as the model
                takes. Default: what is too long is an error, which names it.
        """
        check_text(query, "query")
        checked = check_texts(documents, "documents")
        check_number("top_n", top_n, 1)
        check_number("truncate_prompt_tokens", truncate_prompt_tokens, -1)
        if not checked:
            return RerankResult(results=(), usage=TokenUsage(), model=self.settings.model or "")
        options = _given(truncate_prompt_tokens=truncate_prompt_tokens) | dict(extra_body or {})
        return await self._pooling.rerank(query, checked, top_n, options)

    def rerank(
        self,
        query: str,
        documents: Sequence[str],
        *,
        top_n: int | None = None,
        truncate_prompt_tokens: int | None = None,
        extra_body: Mapping[str, Any] | None = None,
    ) -> RerankResult:
        """See ``arerank``."""
        return run_sync(
            self.arerank(
                query,
                documents,
                top_n=top_n,
                truncate_prompt_tokens=truncate_prompt_tokens,
                extra_body=extra_body,
            )
        )

    async def acount_tokens(
        self,
        text: str | Sequence[Message],
        *,
        tools: Tools | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> int:
        """Tokens of a prompt, or of a conversation with the chat template around it: ``usage.prompt_tokens`` of the
        same request, exactly.

        Counted here, from the model's own tokenizer.json and chat template, without starting anything. The server
        counts, and a local engine is started for it, where that can't be known to be exact: with ``base_url``; for a
        model that was not downloaded yet, or has no tokenizer.json, or another tokenizer than that file says; for
        content other than text; with ``trust_remote_code``; without the packages ``tokenizers`` and ``jinja2``, which
        come with the extras ``langchain`` and ``llama-index``. The log (INFO) says why.

        Args:
            text: a prompt as for ``agenerate``, or messages as for ``achat``.
            tools: as for ``achat``.
            chat_template_kwargs: as in ``extra_body``, such as ``{"enable_thinking": False}``.

        Raises:
            InvalidInputError: the chat template refuses the conversation; says it in the template's words.
        """
        request = tokenize_request(text, tools, chat_template_kwargs)
        counted = None if self.settings.is_remote else await asyncio.to_thread(count_locally, self.settings, request)
        return await self._requests.count_tokens(request) if counted is None else counted

    def count_tokens(
        self,
        text: str | Sequence[Message],
        *,
        tools: Tools | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> int:
        """See ``acount_tokens``."""
        request = tokenize_request(text, tools, chat_template_kwargs)
        counted = count_locally(self.settings, request)
        return run_sync(self._requests.count_tokens(request)) if counted is None else counted

    def tokenize(self, text: str) -> list[int]:
        """The tokens of a text by itself, without special ones before or after it.

        From the model's own tokenizer.json, without starting anything, where ``count_tokens`` counts so too; fast
        enough to be called for each word of a long text, as frameworks do that cut texts to a number of tokens. The
        server is asked otherwise, each time.
        """
        now = time.monotonic()
        if now > self._tokenizer_until:  # looking at the files takes longer than tokenizing a word
            self._local_tokenizer = local_tokenizer(self.settings)
            self._tokenizer_until = now + TOKENIZER_KEPT_S
        if self._local_tokenizer is not None:
            return self._local_tokenizer(text)
        return run_sync(self._requests.ask(text_tokens_request(text, add_special_tokens=False), parse_tokens))

    # ---- life

    async def awarmup(self) -> None:
        """Return when the engine is ready, starting it if need be. A remote server is only asked for its health."""
        await self._requests.check_health()

    def warmup(self) -> None:
        """See ``awarmup``."""
        run_sync(self.awarmup())

    async def ais_ready(self) -> bool:
        """True when a request would be answered at once. Starts nothing and keeps nothing awake."""
        return (await self.astatus()).state is EngineState.READY

    def is_ready(self) -> bool:
        """See ``ais_ready``."""
        return run_sync(self.ais_ready())

    async def astatus(self) -> EngineStatus:
        """The engine as it is now. Starts nothing and keeps nothing awake."""
        return await self._requests.endpoint.status()

    def status(self) -> EngineStatus:
        """See ``astatus``."""
        return run_sync(self.astatus())

    async def astats(self) -> dict[str, float]:
        """vLLM's gauges and counters, such as ``num_requests_running``; empty while no server is up.

        On a remote server they count other users' requests too.
        """
        return await self._requests.metrics()

    def stats(self) -> dict[str, float]:
        """See ``astats``."""
        return run_sync(self.astats())

    async def aevict(self, timeout: float = 30.0) -> None:
        """Take the model out of memory; return when its processes are gone. The next request brings it back.

        Raises:
            EngineBusyError: requests, of any process, were in flight for all of ``timeout`` seconds.
            EngineError: the engine is remote.
        """
        await self._requests.endpoint.evict(timeout)

    def evict(self, timeout: float = 30.0) -> None:
        """See ``aevict``."""
        run_sync(self.aevict(timeout))

    async def ashutdown(self, timeout: float = 30.0, *, force: bool = False) -> None:
        """As ``aevict``, and leave no process behind: neither the standby nor the supervisor.

        Args:
            force: do not wait for requests in flight; they fail.
        """
        await self._requests.endpoint.shutdown(timeout, force=force)

    def shutdown(self, timeout: float = 30.0, *, force: bool = False) -> None:
        """See ``ashutdown``."""
        run_sync(self.ashutdown(timeout, force=force))

    async def aclose(self) -> None:
        """Let go of this loop's connections. The engine itself is shared: it stays until idle."""
        await self._requests.endpoint.close()

    def close(self) -> None:
        """See ``aclose``."""
        run_sync(self.aclose())

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def __aenter__(self) -> Engine:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    # ---- one request

    async def _prefix(self, input_type: str | None) -> str:
        if input_type not in (None, "query", "document"):
            raise InvalidInputError(f"input_type = {input_type!r}: must be 'query' or 'document'")
        if input_type is None or self.settings.is_remote:
            return ""
        if self._prefixes is None:
            if not Path(self.settings.model or "").expanduser().is_dir():
                await self.awarmup()  # a model of the hub may be here in part, or not at all, until it was served
            folder = self.settings.model_folder()
            self._prefixes = text_prefixes(folder) if folder else {}
        return self._prefixes.get(input_type, "")

    def _params(self, params: GenerationParams | None, overrides: Mapping[str, Any]) -> GenerationParams:
        given = self._defaults if params is None else self._defaults.merged(params.model_dump(exclude_unset=True))
        return given.merged(overrides)


def _given(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _engine_of(kind: type[Engine], given: dict[str, Any]) -> Engine:
    """An unpickled Engine: its settings, and the secret of the process that reads it."""
    return kind(**given)
