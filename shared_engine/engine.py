"""Engine: text, chat, embedding, rerank and token-count requests to one shared vLLM.

Constructing one starts nothing, opens nothing and imports neither torch nor vLLM. Every request exists twice: ``achat``
waits on the running event loop, ``chat`` in the calling thread. The second is made from the first (request/twins.py).
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from shared_engine.conversations.reshaping import reshaped
from shared_engine.conversations.templates import refused_here
from shared_engine.conversations.traits import MERGED, NONE, Trait, traits_of
from shared_engine.params import GenerationParams
from shared_engine.request.adapter_loading import AdapterLoading
from shared_engine.request.answers import parse_token_strings, parse_tokens
from shared_engine.request.bodies import (
    Request,
    ToolChoice,
    Tools,
    chat_request,
    completion_request,
    offered,
    text_tokens_request,
    tokenize_request,
    without_traits,
)
from shared_engine.request.checks import Message, check_number, check_prompt, check_text
from shared_engine.request.engine_batches import Batches
from shared_engine.request.engine_pooling import PoolingRequests
from shared_engine.request.forms import answer_form, with_held_arguments
from shared_engine.request.io_loop import run_sync
from shared_engine.request.refused_traits import say_reshaped
from shared_engine.request.threads import in_a_thread
from shared_engine.request.twins import blocking, iterating
from shared_engine.results import GenerationChunk, GenerationResult
from shared_engine.settings import EngineSettings
from shared_engine.token_count.budget import ContextBudget
from shared_engine.token_count.chunks import (
    ChunkPlan,
    check_sizes,
    plan_by_tokens,
    plan_by_words,
    share,
    spans_of,
)
from shared_engine.token_count.local_tokenizer import LocalTokenizer

if TYPE_CHECKING:
    import openai


class Engine(Batches, PoolingRequests, AdapterLoading):
    """One shared vLLM engine, or a remote vLLM server.

    Args:
        settings: an EngineSettings; or its fields as keywords: ``Engine(model="Qwen/Qwen3-4B")``,
            ``Engine(base_url="http://gpu:8000/v1")``.

    Equal settings share one engine process, whatever object, thread, event loop or OS process asks. It starts on the
    first request (or ``warmup``) and leaves memory ``idle_ttl_s`` seconds after the end of the last one. Objects are
    cheap, thread-safe, and pickle (without secrets: the other process reads VLLM_API_KEY, ...).

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
        super().__init__(settings, **fields)
        self._refused: Trait | None = None
        self._local_tokenizer = LocalTokenizer(self.settings, self._is_up)
        self._budget = ContextBudget(
            self.settings, self._local_tokenizer, lambda: self._requests, lambda: self.context_window
        )

    # ---- text and chat

    async def agenerate(
        self, /, prompt: str, params: GenerationParams | None = None, **overrides: Any
    ) -> GenerationResult:
        """Continue one prompt, as it is, without a chat template."""
        request = self._text_request(prompt, params, overrides)
        return await self._requests.generate(request)

    generate = blocking(agenerate)

    def astream_generate(
        self, /, prompt: str, params: GenerationParams | None = None, **overrides: Any
    ) -> AsyncGenerator[GenerationChunk, None]:
        """Continue one prompt, piece by piece; the last chunk carries the usage.

        Bad input is refused by this call, not at the first chunk. Closing the stream aborts the request in vLLM.
        """
        request = self._text_request(prompt, params, overrides, stream=True)
        return self._requests.stream(request)

    stream_generate = iterating(astream_generate)

    async def achat(
        self,
        /,
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
            tool_choice: ``auto``, ``none`` (a local engine is not shown the tools), ``required`` or
                ``{"type": "function", "function": {"name": ...}}``.
        """
        request = self._chat_request(messages, self._params(params, overrides), tools, tool_choice)
        return await self._requests.generate(request)

    chat = blocking(achat)

    def astream_chat(
        self,
        /,
        messages: Sequence[Message],
        params: GenerationParams | None = None,
        *,
        tools: Tools | None = None,
        tool_choice: ToolChoice | None = None,
        **overrides: Any,
    ) -> AsyncGenerator[GenerationChunk, None]:
        """Answer one conversation, piece by piece; see ``achat`` and ``astream_generate``."""
        request = self._chat_request(messages, self._params(params, overrides), tools, tool_choice, stream=True)
        return self._requests.stream(request)

    stream_chat = iterating(astream_chat)

    # ---- tokens

    async def acount_tokens(
        self,
        text: str | Sequence[Message],
        *,
        tools: Tools | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        continue_final_message: bool = False,
        response_format: Mapping[str, Any] | None = None,
    ) -> int:
        """Tokens of a prompt, or of a conversation with the chat template around it: ``usage.prompt_tokens`` of the
        same request, exactly.

        They are counted here, without an engine, by the tokenizer and the chat template that vLLM's own Python
        exports: once for each model, which takes as long as an import of vLLM (some 10 seconds), then from a file in
        the user's cache; meanwhile the engine counts if it runs. The server counts, and a local engine is started for
        it, where that is not all there is to a prompt (images, slow tokenizers, mistral-common, code that comes with
        the model); for a model that was not downloaded yet; and without the packages ``tokenizers`` and ``jinja2``,
        which come with the extras ``langchain`` and ``llama-index``. With ``base_url`` the server always counts. The
        log (INFO) says why.

        Args:
            text: a prompt as for ``agenerate``, or messages as for ``achat``.
            tools: as for ``achat``.
            chat_template_kwargs: as in ``extra_body``, such as ``{"enable_thinking": False}``.
            continue_final_message: as for ``achat``. The server counts then.
            response_format: as for ``achat``: its schema is said in the prompt (``show_schema``).

        Raises:
            RequestRejectedError: the chat template refuses the conversation; with the template's own message.
        """
        request, here = await in_a_thread(
            partial(self._counted, text, tools, chat_template_kwargs, continue_final_message, response_format)
        )
        return await self._requests.count_tokens(request) if here is None else here

    def count_tokens(
        self,
        text: str | Sequence[Message],
        *,
        tools: Tools | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        continue_final_message: bool = False,
        response_format: Mapping[str, Any] | None = None,
    ) -> int:
        """The blocking form of ``acount_tokens``; see there."""
        # In this thread: by way of the background loop it would take several times as long.
        request, here = self._counted(text, tools, chat_template_kwargs, continue_final_message, response_format)
        return run_sync(self._requests.count_tokens(request)) if here is None else here

    async def atokenize(self, text: str) -> list[int]:
        """The tokens of a text by itself, without special ones before or after it.

        Without an engine where ``acount_tokens`` counts so; fast enough to be called for each word of a long text, as
        frameworks do that cut texts to a number of tokens. The server is asked otherwise, each time.
        """
        check_text(text, "text")
        here = await in_a_thread(partial(self._tokens_here, text, add_special_tokens=False))
        return await self._ask_for_tokens(text) if here is None else here

    def tokenize(self, text: str) -> list[int]:
        """The blocking form of ``atokenize``; see there."""
        check_text(text, "text")
        here = self._tokens_here(text, add_special_tokens=False)  # as in count_tokens: called for each word
        return run_sync(self._ask_for_tokens(text)) if here is None else here

    async def atoken_strings(self, text: str) -> list[str]:
        """The tokens of ``atokenize`` as the model's vocabulary spells them, which has marks of its own for spaces."""
        check_text(text, "text")
        here = await in_a_thread(partial(self._local_tokenizer.encoding, text, add_special_tokens=False))
        if here is not None:
            return list(here.tokens)
        request = text_tokens_request(text, add_special_tokens=False, strings=True)
        return await self._requests.ask(request, parse_token_strings)

    token_strings = blocking(atoken_strings)

    # ---- long texts

    def plan_chunks(
        self,
        text: str | int,
        *,
        size: int | None = None,
        overlap: float = 0.1,
        reserve: float = 0.25,
    ) -> ChunkPlan:
        """How to cut a text that is too long for one request, by the model's own tokens.

        No piece has more than ``size`` tokens by itself, nor is a character cut in two; the tokens that a model puts
        around a prompt are not counted. Cuts are between tokens where texts are tokenized here (``count_tokens``), else
        between words, and the server counts.

        Args:
            text: or only how many tokens it has.
            size: of a piece. Default: the context window without ``reserve``, for which a local engine is started
                where it decides its window itself (``max_model_len="auto"``).
            overlap: what a piece shares with the one before: a share of ``size`` below 1, or a number of tokens.
            reserve: of the context window, for the instruction and the answer: a share of it below 1, or tokens.

        Raises:
            InvalidInputError: a value is out of range, or the overlap is not below the size.
        """
        if size is None:
            window = run_sync(self._budget.limit())
            size = window - share("reserve", reserve, window)
        check_number("size", size, 1)
        overlap_tokens = share("overlap", overlap, size)
        check_sizes(size, overlap_tokens)
        if isinstance(text, int):
            check_number("text", text, 0)
            return ChunkPlan(size, overlap_tokens, text, spans_of(text, size, overlap_tokens))
        check_text(text, "text")
        encoding = self._local_tokenizer.encoding(text, add_special_tokens=False)

        def count(piece: str) -> int:
            return len(self.tokenize(piece))

        if encoding is None:
            return plan_by_words(text, size, overlap_tokens, count)
        return plan_by_tokens(text, encoding.offsets, size, overlap_tokens, count)

    async def aplan_chunks(
        self,
        text: str | int,
        *,
        size: int | None = None,
        overlap: float = 0.1,
        reserve: float = 0.25,
    ) -> ChunkPlan:
        """The asynchronous form of ``plan_chunks``; see there."""
        return await in_a_thread(partial(self.plan_chunks, text, size=size, overlap=overlap, reserve=reserve))

    # ---- an openai client

    def openai_client(self, **options: Any) -> openai.OpenAI:
        """A client of the package ``openai``, whose requests go to this engine: for whatever takes such a client.

        It starts nothing. The first request starts the engine, and each keeps it loaded until its answer was read or
        closed. No port is opened. ``model="default"`` is the engine's model, as are its name in the settings and its
        folder's; any other name is sent as it is. Needs the extra ``openai``.

        The settings ``timeout`` and ``max_retries`` hold here too. A ``timeout`` given to the client or to a call is
        openai's: seconds that the engine may take to be ready, and then seconds without a byte.

        Args:
            options: any keyword of ``openai.OpenAI``, but those that say where requests go.

        What the server refuses raises openai's error for the status. Where there is no answer, that is
        ``openai.APIConnectionError`` (``APITimeoutError``) with our words and our error as ``__cause__``.
        """
        from shared_engine.openai_client.clients import make_client

        return make_client(self.settings, self._requests.endpoint, options)

    def async_openai_client(self, **options: Any) -> openai.AsyncOpenAI:
        """The asynchronous form of ``openai_client``; any number of event loops may use it."""
        from shared_engine.openai_client.clients import make_async_client

        return make_async_client(self.settings, self._requests.endpoint, options)

    # ---- one request

    async def _fit(self, request: Request) -> Request:
        if request.traits and self.settings.merge_messages != "never":
            if self._refused is None and not self.settings.is_remote:
                await in_a_thread(partial(self._refused_traits, request.traits))  # reads the model's files
            request = without_traits(request, self._refused_traits(request.traits))
        return await self._budget.fitted(request)

    def _refused_traits(self, traits: Trait) -> Trait:
        """What a conversation with these is not sent with; what is not known here, the server refuses
        (request/refused_traits.py).
        """
        if not traits or self.settings.merge_messages == "never":
            return NONE
        if self._refused is None:
            self._refused = refused_here(self.settings)
        if self._refused and self._refused & traits:
            say_reshaped(str(self.settings.model), self._refused & traits, "its chat template does not show it")
        return (self._refused or NONE) | (MERGED if self.settings.merge_messages == "always" else NONE)

    def _in_form(self, text: str | Sequence[Message], *, is_continued: bool) -> str | Sequence[Message]:
        """A conversation as it is sent."""
        if isinstance(text, str):
            return text
        text = self._checked(text)
        traits = traits_of(text, is_continued=is_continued)
        refused = self._refused_traits(traits)
        return reshaped(text, refused) if traits & refused else text

    def _text_request(
        self, prompt: str, params: GenerationParams | None, overrides: Mapping[str, Any], *, stream: bool = False
    ) -> Request:
        form = answer_form(self._params(params, overrides), self.settings)
        return completion_request(check_prompt(prompt), form.params, stream=stream)

    def _chat_request(
        self,
        messages: Sequence[Message],
        params: GenerationParams,
        tools: Tools | None,
        tool_choice: ToolChoice | None,
        *,
        stream: bool = False,
    ) -> Request:
        tools, tool_choice = offered(tools, tool_choice, is_remote=self.settings.is_remote)
        tools = with_held_arguments(tools, params, self.settings)
        form = answer_form(params, self.settings)
        said = form.of(self._checked(messages))
        return chat_request(said, form.params, tools=tools, tool_choice=tool_choice, stream=stream)

    async def _ask_for_tokens(self, text: str) -> list[int]:
        return await self._requests.ask(text_tokens_request(text, add_special_tokens=False), parse_tokens)

    def _counted(
        self,
        text: str | Sequence[Message],
        tools: Tools | None,
        chat_template_kwargs: Mapping[str, Any] | None,
        continue_final_message: bool,
        response_format: Mapping[str, Any] | None,
    ) -> tuple[Request, int | None]:
        """The request that asks for the number of tokens; and the number, where it is known here."""
        given = _given(response_format=response_format, chat_template_kwargs=chat_template_kwargs)
        form = answer_form(GenerationParams(**given), self.settings)
        tools = with_held_arguments(tools, form.params, self.settings)
        chat_template_kwargs = form.params.chat_template_kwargs
        text = text if isinstance(text, str) else form.of(self._checked(text))
        text = self._in_form(text, is_continued=continue_final_message)
        request = tokenize_request(text, tools, chat_template_kwargs, continue_final_message=continue_final_message)
        if isinstance(text, str):
            tokens = self._tokens_here(text)
            return request, None if tokens is None else len(tokens)
        if continue_final_message:
            return request, None
        return request, self._local_tokenizer.chat_tokens(text, tools, chat_template_kwargs or {})

    def _is_up(self) -> bool:
        return self._requests.endpoint.is_up()

    def _tokens_here(self, text: str, *, add_special_tokens: bool = True) -> list[int] | None:
        return self._local_tokenizer.tokens(text, add_special_tokens=add_special_tokens)


def _given(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}
