"""VLLM: the shared engine as a LlamaIndex LLM. Eight endpoints over one request and one way back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Generator, Mapping, Sequence
from contextlib import AbstractContextManager, aclosing, closing
from typing import Any, NamedTuple

from llama_index.core.base.llms.generic_utils import messages_to_prompt as generic_messages_to_prompt
from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    ChatResponseAsyncGen,
    ChatResponseGen,
    CompletionResponse,
    CompletionResponseAsyncGen,
    CompletionResponseGen,
    MessageRole,
)
from llama_index.core.llms.callbacks import llm_chat_callback, llm_completion_callback
from llama_index.core.llms.custom import CustomLLM
from llama_index.core.llms.function_calling import FunctionCallingLLM
from llama_index.core.llms.llm import default_completion_to_prompt
from llama_index.core.types import PydanticProgramMode
from pydantic import ConfigDict

from llama_index_vllm_local._answers import StreamedAnswer, to_chat_response, to_completion_response
from llama_index_vllm_local._batches import Batches
from llama_index_vllm_local._capabilities import Capabilities
from llama_index_vllm_local._decorators import typed
from llama_index_vllm_local._messages import check_text_only, name_files, to_conversation, wording
from llama_index_vllm_local._streams import AsyncResponseStream, ResponseStream
from llama_index_vllm_local._structured import StructuredPrediction
from llama_index_vllm_local._tool_calling import ToolCalling
from llama_index_vllm_local._tools import in_order_of_calls
from shared_engine.adapting.checks import check_prompt
from shared_engine.adapting.framework_model import ChatModel
from shared_engine.adapting.left_calls import with_left_calls
from shared_engine.adapting.media_errors import media_errors
from shared_engine.adapting.tools import with_strict_arguments
from shared_engine.errors import InvalidInputError
from shared_engine.params import ChatFields, GenerationParams, merge_parameters
from shared_engine.results import GenerationChunk, GenerationResult


class _Request(NamedTuple):
    """What one call asks of the engine: the answer to a conversation, or the continuation of a text."""

    params: GenerationParams
    messages: list[dict[str, Any]] | None = None
    prompt: str = ""
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    positions: Sequence[Sequence[str]] = ()
    """Of the messages, for each part of their contents: the block that it was made of."""

    @property
    def offered(self) -> list[dict[str, Any]] | None:
        """The tools that the model may call."""
        return None if self.tool_choice == "none" else self.tools


class VLLM(Capabilities, ChatModel, Batches, ToolCalling, StructuredPrediction, CustomLLM, FunctionCallingLLM):
    """A LlamaIndex LLM on a local vLLM, which starts on the first call and is shared by every object and process with
    equal settings.

    Setup::

        pip install "vllm-local[llama-index]" && vllm-local install

    The settings of shared_engine.EngineSettings are arguments, under their own names, with their environment
    variables. A request's parameters (shared_engine.GenerationParams; ``seed`` is one of them) are keywords of every
    call, and all but ``n`` and ``response_format`` arguments too, as defaults. ``chat`` and ``complete`` both use the
    model's own chat template::

        from llama_index_vllm_local import VLLM

        llm = VLLM(model="Qwen/Qwen3-4B", temperature=0.0, max_tokens=512)  # starts nothing yet
        print(llm.complete("Name three rivers.").text)

    Stream; leaving the loop early aborts the request in vLLM::

        for response in llm.stream_chat([ChatMessage(role="user", content="Name three rivers.")]):
            print(response.delta, end="", flush=True)

    Structured output; vLLM constrains the answer to the schema, token by token, and the prompt says it::

        class Person(BaseModel):
            name: str
            age: int

        prompt = PromptTemplate("Extract name and age: {text}")
        person = llm.structured_predict(Person, prompt, text="Anna is 31 years old.")

    Token counts are in ``response.raw["usage"]`` and ``response.additional_kwargs``; of a stream, in its last
    response.

    docs/llama_index.md shows the rest: RAG, tools and agents, reasoning, images and other blocks, batches, models
    without a chat template, remote servers (``base_url``).

    Raises:
        SettingsError: on construction, for a setting that is missing, unknown (with the nearest name) or out of range.
        InvalidInputError: on a call, before anything starts, for input that can't be sent.
        VLLMError: on a call, any other of shared_engine.errors.
    """

    model_config = ConfigDict(extra="forbid")

    pydantic_program_mode: PydanticProgramMode = PydanticProgramMode.DEFAULT
    """How ``structured_predict`` asks: ``default`` by response_format, ``function`` by a tool that must be called,
    ``llm`` by words in the prompt; the others are LlamaIndex's own."""
    strict: bool | None = None
    """Whether vLLM holds the arguments of tool calls to the tools' schemas. Default: where a call is forced
    (``tool_required``, ``tool_choice``)."""

    @classmethod
    def class_name(cls) -> str:
        return "VLLM"

    # ---- the eight endpoints

    @typed(llm_chat_callback())
    def chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        return to_chat_response(self._answer(self._chat_request(messages, kwargs)))

    @typed(llm_chat_callback())
    async def achat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        return to_chat_response(await self._aanswer(await self._achat_request(messages, kwargs)))

    @typed(llm_chat_callback())
    def stream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseGen:
        chunks = self._stream(self._chat_request(messages, kwargs))
        return ResponseStream(chunks, StreamedAnswer().add_to_chat)

    @typed(llm_chat_callback())
    async def astream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseAsyncGen:
        chunks = self._astream(await self._achat_request(messages, kwargs))
        return AsyncResponseStream(chunks, StreamedAnswer().add_to_chat)

    @typed(llm_completion_callback())
    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        return to_completion_response(self._answer(self._completion_request(prompt, formatted, kwargs)))

    @typed(llm_completion_callback())
    async def acomplete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        return to_completion_response(await self._aanswer(self._completion_request(prompt, formatted, kwargs)))

    @typed(llm_completion_callback())
    def stream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponseGen:
        chunks = self._stream(self._completion_request(prompt, formatted, kwargs))
        return ResponseStream(chunks, StreamedAnswer().add_to_completion)

    @typed(llm_completion_callback())
    async def astream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponseAsyncGen:
        chunks = self._astream(self._completion_request(prompt, formatted, kwargs))
        return AsyncResponseStream(chunks, StreamedAnswer().add_to_completion)

    # ---- a request: made once, sent in one of four ways

    def _chat_request(self, messages: Sequence[ChatMessage], kwargs: Mapping[str, Any]) -> _Request:
        _check_conversation(messages)
        options = dict(kwargs)
        tools, tool_choice = self._take_tools(options)
        if not self._uses_chat_template():
            to_prompt = self.messages_to_prompt or generic_messages_to_prompt
            if to_prompt is generic_messages_to_prompt:
                check_text_only(messages)
            return self._text_request(to_prompt(messages), options)
        params = self._params(options)
        if tool_choice == "auto" and (params.response_format or params.structured_outputs):
            # vLLM lets the model choose between a call and the answer's form only if it can hold it to both.
            tools = with_strict_arguments(tools)
        sent, positions = to_conversation(messages)
        order = in_order_of_calls(sent)
        sent, positions = [sent[index] for index in order], [positions[index] for index in order]
        return _Request(params, sent, tools=tools or None, tool_choice=tool_choice, positions=positions)

    async def _achat_request(self, messages: Sequence[ChatMessage], kwargs: Mapping[str, Any]) -> _Request:
        """See ``_chat_request``. Local files are read in a thread, while the event loop goes on."""
        _check_conversation(messages)
        if name_files(messages):
            return await asyncio.to_thread(self._chat_request, messages, kwargs)
        return self._chat_request(messages, kwargs)

    def _completion_request(self, prompt: str, formatted: bool, kwargs: Mapping[str, Any]) -> _Request:
        check_prompt(prompt)
        if formatted:
            return self._text_request(prompt, kwargs)
        if not self._uses_chat_template():
            return self._text_request((self.completion_to_prompt or default_completion_to_prompt)(prompt), kwargs)
        return self._chat_request([ChatMessage(role=MessageRole.USER, content=prompt)], kwargs)

    def _text_request(self, prompt: str, kwargs: Mapping[str, Any]) -> _Request:
        # The constructor's variables of the chat template are for requests that have one; a call's are refused.
        given = merge_parameters(kwargs)
        own = {name: given.get(name) for name in ChatFields.model_fields}
        return _Request(self._params(kwargs).merged(own), prompt=prompt)

    def _params(self, call: Mapping[str, Any]) -> GenerationParams:
        """The call's parameters over the constructor's. The engine decides the rest."""
        if "image_documents" in call:
            raise InvalidInputError("image_documents: give images to chat, as ImageBlocks of a ChatMessage")
        return GenerationParams(**merge_parameters(self._request_defaults(), call))

    def _answer(self, request: _Request) -> GenerationResult:
        params, messages, prompt, tools, tool_choice, positions = request
        if messages is None:
            return self._engine.generate(prompt, params)
        with media_errors(messages, self._engine.settings, wording(positions)):
            answer = self._engine.chat(messages, params, tools=tools, tool_choice=tool_choice)
        return with_left_calls(answer, request.offered)

    async def _aanswer(self, request: _Request) -> GenerationResult:
        params, messages, prompt, tools, tool_choice, positions = request
        if messages is None:
            return await self._engine.agenerate(prompt, params)
        with media_errors(messages, self._engine.settings, wording(positions)):
            answer = await self._engine.achat(messages, params, tools=tools, tool_choice=tool_choice)
        return with_left_calls(answer, request.offered)

    def _stream(self, request: _Request) -> Generator[GenerationChunk, None, None]:
        params, messages, prompt, tools, tool_choice, positions = _streamable(request)
        if messages is None:
            return self._engine.stream_generate(prompt, params)
        chunks = self._engine.stream_chat(messages, params, tools=tools, tool_choice=tool_choice)
        return _within(media_errors(messages, self._engine.settings, wording(positions)), chunks)

    def _astream(self, request: _Request) -> AsyncGenerator[GenerationChunk, None]:
        params, messages, prompt, tools, tool_choice, positions = _streamable(request)
        if messages is None:
            return self._engine.astream_generate(prompt, params)
        chunks = self._engine.astream_chat(messages, params, tools=tools, tool_choice=tool_choice)
        return _awithin(media_errors(messages, self._engine.settings, wording(positions)), chunks)


def _check_conversation(messages: object) -> None:
    if isinstance(messages, str | ChatMessage) or not isinstance(messages, Sequence):
        raise InvalidInputError(f"messages must be a list of ChatMessages, got {type(messages).__name__}")
    if not messages:
        raise InvalidInputError("messages is an empty conversation: it needs at least one message")


def _within(
    context: AbstractContextManager[None], chunks: Generator[GenerationChunk, None, None]
) -> Generator[GenerationChunk, None, None]:
    with context, closing(chunks):
        yield from chunks


async def _awithin(
    context: AbstractContextManager[None], chunks: AsyncGenerator[GenerationChunk, None]
) -> AsyncGenerator[GenerationChunk, None]:
    with context:
        async with aclosing(chunks):
            async for chunk in chunks:
                yield chunk


def _streamable(request: _Request) -> _Request:
    if (request.params.n or 1) > 1:
        raise InvalidInputError(f"n = {request.params.n}: LlamaIndex streams one answer; for more use chat or complete")
    return request
