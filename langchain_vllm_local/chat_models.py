"""ChatVLLM: the shared engine as a LangChain chat model. Four methods over one request and one way back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import aclosing, closing
from typing import TYPE_CHECKING, Any, ClassVar, TypedDict

from langchain_core.language_models.chat_models import BaseChatModel
from pydantic import ConfigDict

from langchain_vllm_local._answers import to_chat_chunk, to_chat_result
from langchain_vllm_local._batches import ChatBatches
from langchain_vllm_local._capabilities import Capabilities
from langchain_vllm_local._errors import langchain_errors
from langchain_vllm_local._language_model import LanguageModel
from langchain_vllm_local._messages import WORDING, name_files, to_openai_messages
from langchain_vllm_local._streamed_calls import StreamedCalls
from langchain_vllm_local._structured import StructuredOutput
from langchain_vllm_local._tool_calling import ToolCalling
from shared_engine.adapting.framework_model import CHAT_REQUEST_FIELDS, ChatModel
from shared_engine.adapting.media_errors import media_errors
from shared_engine.adapting.tools import with_strict_arguments
from shared_engine.params import template_variables

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
    from langchain_core.language_models.base import LangSmithParams
    from langchain_core.messages import BaseMessage
    from langchain_core.outputs import ChatGenerationChunk, ChatResult

    from shared_engine.params import GenerationParams


class _Request(TypedDict):
    """The arguments of ``Engine.chat`` and its three siblings."""

    messages: list[dict[str, Any]]
    params: GenerationParams
    tools: list[dict[str, Any]] | None
    tool_choice: str | dict[str, Any] | None


class ChatVLLM(Capabilities, LanguageModel, ChatModel, ChatBatches, ToolCalling, StructuredOutput, BaseChatModel):
    """A local vLLM that starts on the first call and is shared by every object and process with equal settings.

    Setup::

        pip install "vllm-local[langchain]" && vllm-local install

    Instantiate; this starts nothing yet. Every setting of shared_engine.EngineSettings is an argument here, under its
    own name, with its environment variable::

        from langchain_vllm_local import ChatVLLM

        llm = ChatVLLM(model="Qwen/Qwen3-4B", temperature=0.0, max_tokens=512)

    Invoke; the model's own chat template is applied by vLLM::

        message = llm.invoke([("system", "Answer in French."), ("human", "Name three rivers.")])
        print(message.content)
        print(message.usage_metadata)  # {'input_tokens': ..., 'output_tokens': ..., 'total_tokens': ...}
        print(message.response_metadata["finish_reason"])

    Stream; leaving the loop early aborts the request in vLLM::

        for chunk in llm.stream("Name three rivers."):
            print(chunk.text, end="", flush=True)

    Async; vLLM works on all of these at once::

        messages = await asyncio.gather(*(llm.ainvoke(question) for question in questions))

    Batch; keeps the engine full unless ``config={"max_concurrency": ...}`` says otherwise. So do ``generate``,
    ``abatch`` and ``batch_as_completed``; one bad question spoils none of the others with ``return_exceptions``::

        messages = llm.batch(questions, return_exceptions=True, use_tqdm=True)

    Tool calling::

        def add(a: int, b: int) -> int:
            \"\"\"Add two numbers.\"\"\"
            return a + b

        print(llm.bind_tools([add]).invoke("What is 2 + 3?").tool_calls)

    Structured output; vLLM holds the answer to the schema token by token::

        class Person(BaseModel):
            name: str
            age: int

        person = llm.with_structured_output(Person).invoke("Anna is 31 years old.")
        mood = llm.with_structured_output(["good", "bad"], method="choice").invoke("How is the mood in: 'Great!'?")

    Reasoning, of a model that thinks before it answers. It is replayed in tool loops::

        message = llm.invoke("What is 17 * 23?", enable_thinking=True)  # or reasoning_effort="high"
        print(message.additional_kwargs["reasoning_content"])
        print(message.content_blocks)  # [{'type': 'reasoning', ...}, {'type': 'text', ...}]

    Images, audio and video, for a model that takes them; as URL, base64 or file::

        image = {"type": "image", "path": "photo.jpg"}
        message = llm.invoke([HumanMessage([{"type": "text", "text": "What is this?"}, image])])

    Tokens of a conversation, counted without a start, and what the model can do::

        llm.get_num_tokens_from_messages([HumanMessage("Hello")], tools=[add])
        llm.profile  # {'max_input_tokens': ..., 'tool_calling': True, 'structured_output': True, ...}

    Load the model ahead of the first call, and give its memory back at once (it leaves by itself when idle)::

        llm.warmup()
        llm.engine.evict()

    A vLLM server that somebody else runs::

        llm = ChatVLLM(base_url="http://gpu-box:8000/v1", api_key="...")

    A request's parameters (shared_engine.GenerationParams: temperature, max_tokens, stop, response_format, ...) are
    keywords of every call, and of ``bind``, and win over the constructor's. A call's ``model=`` chooses among the
    models of a remote server; a local engine serves the one model it was made for.

    Raises:
        SettingsError: on construction, for a setting that is missing, unknown (names the nearest) or out of range.
        InvalidInputError: on a call, before anything starts, for input that can't be sent.
        VLLMError: on a call, any other of shared_engine.errors; each is also a class of langchain_core.exceptions,
            such as ContextOverflowError or ModelTimeoutError.
    """

    model_config = ConfigDict(extra="forbid")

    _request_fields: ClassVar[tuple[str, ...]] = (*LanguageModel._request_fields, *CHAT_REQUEST_FIELDS)

    @property
    def _llm_type(self) -> str:
        return "chat-vllm-local"

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        return self._ls_params("chat", stop, kwargs)

    # ---- the four ways to ask

    def _streaming_disabled(self, **kwargs: Any) -> bool:
        # Where others want the tokens of an invoke (a graph's "messages"), several answers are still given, whole.
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
            with self._media_errors(request):
                return to_chat_result(self.engine.chat(**request))

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,  # noqa: ARG002
        **kwargs: Any,
    ) -> ChatResult:
        with langchain_errors():
            request = await self._arequest(messages, stop, kwargs)
            with self._media_errors(request):
                return to_chat_result(await self.engine.achat(**request))

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        with langchain_errors():
            request = self._request(messages, stop, kwargs, stream=True)
            with self._media_errors(request), closing(self.engine.stream_chat(**request)) as pieces:
                calls = StreamedCalls()
                for piece in pieces:
                    chunk = to_chat_chunk(calls.checked(piece))
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
        with langchain_errors():
            request = await self._arequest(messages, stop, kwargs, stream=True)
            with self._media_errors(request):
                calls = StreamedCalls()
                async with aclosing(self.engine.astream_chat(**request)) as pieces:
                    async for piece in pieces:
                        chunk = to_chat_chunk(calls.checked(piece))
                        if run_manager is not None:
                            await run_manager.on_llm_new_token(chunk.text, chunk=chunk)
                        yield chunk

    # ---- a request: made once, sent in one of four ways

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

    def _media_errors(self, request: _Request) -> AbstractContextManager[None]:
        """Errors of the request leave it naming the image or sound that they are about."""
        return media_errors(request["messages"], self.engine.settings, WORDING)

    # ---- tokens

    def get_num_tokens(self, text: str) -> int:
        """Tokens of a text, exactly; counted without a start where the model's files are here (Engine.count_tokens)."""
        if self.custom_get_token_ids is not None:
            return super().get_num_tokens(text)
        with langchain_errors():
            return self.engine.count_tokens(text)

    def get_num_tokens_from_messages(self, messages: list[BaseMessage], tools: Sequence[Any] | None = None) -> int:
        """Tokens of a conversation with the chat template, and tools, around it: ``input_tokens`` of the same request,
        exactly; counted without a start where the model's files are here (Engine.count_tokens).
        """
        with langchain_errors():
            request = self._request(messages, None, {"tools": tools} if tools else {})
            with self._media_errors(request):
                variables = template_variables(request["params"])
                return self.engine.count_tokens(
                    request["messages"], tools=request["tools"], chat_template_kwargs=variables
                )
