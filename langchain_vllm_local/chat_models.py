"""ChatVLLM: the shared engine as a LangChain chat model. Six methods over one request and one way back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Generator, Iterator, Mapping, Sequence
from contextlib import aclosing, closing
from typing import TYPE_CHECKING, Any, ClassVar, TypedDict

from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.messages import HumanMessage
from pydantic import ConfigDict

from langchain_vllm_local._answers import to_chat_chunk, to_chat_result, with_standard_blocks
from langchain_vllm_local._batches import ChatBatches
from langchain_vllm_local._block_events import AnswerEvents, listening_to_chunks, message_id
from langchain_vllm_local._capabilities import Capabilities
from langchain_vllm_local._errors import langchain_errors
from langchain_vllm_local._language_model import LanguageModel
from langchain_vllm_local._messages import name_files, to_openai_messages, wording
from langchain_vllm_local._streamed_calls import StreamedCalls
from langchain_vllm_local._structured import StructuredOutput
from langchain_vllm_local._tool_calling import ToolCalling
from shared_engine.adapting.framework_model import ChatModel
from shared_engine.adapting.left_calls import with_left_calls
from shared_engine.adapting.media_errors import media_errors
from shared_engine.adapting.structured import asked_form
from shared_engine.adapting.tools import with_strict_arguments
from shared_engine.params import ChatFields, template_variables

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
    from langchain_core.language_models.base import LangSmithParams
    from langchain_core.messages import BaseMessage
    from langchain_core.outputs import ChatGenerationChunk, ChatResult
    from langchain_protocol.protocol import MessagesData

    from shared_engine.params import GenerationParams
    from shared_engine.results import GenerationChunk, GenerationResult


class _Request(TypedDict):
    """The arguments of ``Engine.chat`` and its three siblings."""

    messages: list[dict[str, Any]]
    params: GenerationParams
    tools: list[dict[str, Any]] | None
    tool_choice: str | dict[str, Any] | None


class ChatVLLM(Capabilities, LanguageModel, ChatModel, ChatBatches, ToolCalling, StructuredOutput, BaseChatModel):
    """A LangChain chat model on a local vLLM, which starts on the first call and is shared by every object and process
    with equal settings.

    Setup::

        pip install "vllm-local[langchain]" && vllm-local install

    Every setting of shared_engine.EngineSettings is an argument, under its own name, with its environment variable. A
    request's parameters (shared_engine.GenerationParams) are arguments too, as defaults, and keywords of every call
    and of ``bind``, which win::

        from langchain_vllm_local import ChatVLLM

        llm = ChatVLLM(model="Qwen/Qwen3-4B", temperature=0.0, max_tokens=512)  # starts nothing yet
        message = llm.invoke([("system", "Answer in French."), ("human", "Name three rivers.")])
        print(message.content, message.usage_metadata, message.response_metadata["finish_reason"])

    Stream; leaving the loop early aborts the request in vLLM::

        for chunk in llm.stream("Name three rivers."):
            print(chunk.text, end="", flush=True)

    Structured output; vLLM constrains the answer to the schema, token by token::

        class Person(BaseModel):
            name: str
            age: int

        person = llm.with_structured_output(Person).invoke("Anna is 31 years old.")

    docs/langchain.md shows the rest: tools and agents, reasoning, images and audio, batches that keep the engine full,
    exact token counts, the profile, remote servers (``base_url``).

    Raises:
        SettingsError: on construction, for a setting that is missing, unknown (with the nearest name) or out of range.
        InvalidInputError: on a call, before anything starts, for input that can't be sent.
        VLLMError: on a call, any other of shared_engine.errors; each is also a class of langchain_core.exceptions,
            such as ContextOverflowError or ModelTimeoutError.
    """

    model_config = ConfigDict(extra="forbid")

    _request_fields: ClassVar[tuple[str, ...]] = (*LanguageModel._request_fields, *ChatFields.model_fields)

    @property
    def _llm_type(self) -> str:
        return "chat-vllm-local"

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        return self._ls_params("chat", stop, kwargs)

    # ---- the ways to ask

    def _streaming_disabled(self, **kwargs: Any) -> bool:
        # Where a graph streams the tokens of an invoke ("messages"), several answers still come, each whole.
        # Core's stream() says stream=True: it is refused, as it would give the first answer only.
        gives_several = (kwargs.get("n") or self.n or 1) > 1 and not kwargs.get("stream")
        return gives_several or super()._streaming_disabled(**kwargs)

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,  # noqa: ARG002
        **kwargs: Any,
    ) -> ChatResult:
        with langchain_errors():
            request = self._request(messages, stop, kwargs)
            with self._media_errors(messages, request):
                return _to_chat_result(self.engine.chat(**request), request)

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,  # noqa: ARG002
        **kwargs: Any,
    ) -> ChatResult:
        with langchain_errors():
            request = await self._arequest(messages, stop, kwargs)
            with self._media_errors(messages, request):
                return _to_chat_result(await self.engine.achat(**request), request)

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        calls = StreamedCalls()
        with closing(self._pieces(messages, stop, kwargs)) as pieces:
            for piece in pieces:
                chunk = self._chunk(piece, calls)
                if run_manager is not None:
                    run_manager.on_llm_new_token(chunk.text, chunk=chunk)
                yield chunk

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        calls = StreamedCalls()
        async with aclosing(self._apieces(messages, stop, kwargs)) as pieces:
            async for piece in pieces:
                chunk = self._chunk(piece, calls)
                if run_manager is not None:
                    await run_manager.on_llm_new_token(chunk.text, chunk=chunk)
                yield chunk

    # Core looks for these two by name, and calls them in place of the two above for ``stream_events(version="v3")``.

    def _stream_chat_model_events(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Generator[MessagesData, None, None]:
        events, calls = AnswerEvents(message_id(run_manager)), StreamedCalls()
        listening = listening_to_chunks(run_manager)
        with closing(self._pieces(messages, stop, kwargs)) as pieces:
            for piece in pieces:
                if listening is not None:
                    chunk = self._chunk(piece, calls)
                    listening.on_llm_new_token(chunk.text, chunk=chunk)
                yield from events.of(piece)
        yield from events.end()

    async def _astream_chat_model_events(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncGenerator[MessagesData, None]:
        events, calls = AnswerEvents(message_id(run_manager)), StreamedCalls()
        listening = listening_to_chunks(run_manager)
        async with aclosing(self._apieces(messages, stop, kwargs)) as pieces:
            async for piece in pieces:
                if listening is not None:
                    chunk = self._chunk(piece, calls)
                    await listening.on_llm_new_token(chunk.text, chunk=chunk)
                for event in events.of(piece):
                    yield event
        for event in events.end():
            yield event

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        super().__pydantic_init_subclass__(**kwargs)
        # A class with chunks of its own has events of its own, or those that core makes of its chunks.
        for chunks in ("_stream", "_astream"):
            events = f"{chunks}_chat_model_events"
            if not _is_ours(cls, chunks) and _is_ours(cls, events):
                setattr(cls, events, None)

    def _pieces(
        self, messages: list[BaseMessage], stop: list[str] | None, kwargs: Mapping[str, Any]
    ) -> Generator[GenerationChunk, None, None]:
        with langchain_errors():
            request = self._request(messages, stop, kwargs, stream=True)
            with self._media_errors(messages, request), closing(self.engine.stream_chat(**request)) as pieces:
                yield from pieces

    async def _apieces(
        self, messages: list[BaseMessage], stop: list[str] | None, kwargs: Mapping[str, Any]
    ) -> AsyncGenerator[GenerationChunk, None]:
        with langchain_errors():
            request = await self._arequest(messages, stop, kwargs, stream=True)
            with self._media_errors(messages, request):
                async with aclosing(self.engine.astream_chat(**request)) as pieces:
                    async for piece in pieces:
                        yield piece

    def _chunk(self, piece: GenerationChunk, calls: StreamedCalls) -> ChatGenerationChunk:
        chunk = to_chat_chunk(calls.checked(piece))
        return with_standard_blocks(chunk, calls.made) if self.output_version == "v1" else chunk

    # ---- a request: made once, sent in one of these ways

    def _request(
        self,
        messages: Sequence[BaseMessage],
        stop: list[str] | None,
        kwargs: Mapping[str, Any],
        *,
        stream: bool = False,
    ) -> _Request:
        call = dict(kwargs)
        tools, tool_choice = self._take_tools(call)
        params = self._params(stop, call, stream=stream)
        if tools and tool_choice in (None, "auto") and (params.response_format or params.structured_outputs):
            # vLLM lets the model choose between a call and the answer's form only if it can hold it to both.
            tools = with_strict_arguments(tools)
        return _Request(
            messages=to_openai_messages(messages), params=params, tools=tools or None, tool_choice=tool_choice
        )

    async def _arequest(
        self,
        messages: Sequence[BaseMessage],
        stop: list[str] | None,
        kwargs: Mapping[str, Any],
        *,
        stream: bool = False,
    ) -> _Request:
        """See ``_request``. Local files are read in a thread, while the event loop goes on."""
        if name_files(messages):
            return await asyncio.to_thread(self._request, messages, stop, kwargs, stream=stream)
        return self._request(messages, stop, kwargs, stream=stream)

    def _media_errors(self, messages: Sequence[BaseMessage], request: _Request) -> AbstractContextManager[None]:
        """Errors of the request leave it naming the image or sound that they are about."""
        return media_errors(request["messages"], self.engine.settings, wording(messages))

    # ---- tokens

    def get_num_tokens_from_messages(self, messages: list[BaseMessage], tools: Sequence[Any] | None = None) -> int:
        """Tokens of a conversation with the chat template, and tools, around it: ``input_tokens`` of the same request,
        exactly (Engine.count_tokens).

        Without messages it is what the tools add to one; without tools, too, it is 0, and no server is asked.
        """
        if messages:
            return self._count_tokens(messages, tools)
        if not tools:
            return 0
        any_message = [HumanMessage("Hi")]
        return self._count_tokens(any_message, tools) - self._count_tokens(any_message, None)

    def _count_tokens(self, messages: Sequence[BaseMessage], tools: Sequence[Any] | None) -> int:
        with langchain_errors():
            request = self._request(messages, None, {"tools": tools} if tools else {})
            with self._media_errors(messages, request):
                return self.engine.count_tokens(
                    request["messages"],
                    tools=request["tools"],
                    chat_template_kwargs=template_variables(request["params"]),
                    response_format=asked_form(request["params"]),
                )


def _is_ours(cls: type[ChatVLLM], method: str) -> bool:
    return getattr(cls, method) is getattr(ChatVLLM, method)


def _to_chat_result(result: GenerationResult, request: _Request) -> ChatResult:
    offered = None if request["tool_choice"] == "none" else request["tools"]
    return to_chat_result(with_left_calls(result, offered))
