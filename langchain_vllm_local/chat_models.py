"""ChatVLLM: the shared engine as a LangChain chat model. One request and one way back (_convert) for four methods."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing, closing
from typing import TYPE_CHECKING, Any, TypedDict

from langchain_core.language_models.chat_models import BaseChatModel
from pydantic import ConfigDict

from langchain_vllm_local._base import EngineBacked
from langchain_vllm_local._convert import (
    to_chat_chunk,
    to_chat_result,
    to_openai_messages,
    to_openai_tool_choice,
    to_openai_tools,
    with_strict_arguments,
)
from langchain_vllm_local._errors import langchain_errors
from shared_engine.errors import InvalidInputError
from shared_engine.results import GenerationParams

if TYPE_CHECKING:
    from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
    from langchain_core.language_models.base import LangSmithParams, LanguageModelInput
    from langchain_core.messages import AIMessage, BaseMessage
    from langchain_core.outputs import ChatGenerationChunk, ChatResult
    from langchain_core.runnables import Runnable, RunnableConfig
    from langchain_core.tools import BaseTool


class _Request(TypedDict):
    """The arguments of ``Engine.chat`` and its three siblings."""

    messages: list[dict[str, Any]]
    params: GenerationParams
    tools: list[dict[str, Any]] | None
    tool_choice: str | dict[str, Any] | None


class ChatVLLM(EngineBacked, BaseChatModel):
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

    Batch; keeps the engine full unless ``config={"max_concurrency": ...}`` says otherwise::

        messages = llm.batch(questions)

    Tool calling::

        def add(a: int, b: int) -> int:
            \"\"\"Add two numbers.\"\"\"
            return a + b

        print(llm.bind_tools([add]).invoke("What is 2 + 3?").tool_calls)

    Reasoning, of a model that thinks before it answers::

        print(message.additional_kwargs.get("reasoning_content"))

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

    @property
    def _llm_type(self) -> str:
        return "chat-vllm-local"

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        return self._ls_params("chat", stop, kwargs)

    # ---- the four ways to ask

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,  # noqa: ARG002
        **kwargs: Any,
    ) -> ChatResult:
        with langchain_errors():
            return to_chat_result(self.engine.chat(**self._request(messages, stop, kwargs)))

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,  # noqa: ARG002
        **kwargs: Any,
    ) -> ChatResult:
        with langchain_errors():
            return to_chat_result(await self.engine.achat(**self._request(messages, stop, kwargs)))

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        with langchain_errors():
            request = self._request(messages, stop, kwargs, stream=True)
            with closing(self.engine.stream_chat(**request)) as pieces:
                for piece in pieces:
                    chunk = to_chat_chunk(piece)
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
            request = self._request(messages, stop, kwargs, stream=True)
            async with aclosing(self.engine.astream_chat(**request)) as pieces:
                async for piece in pieces:
                    chunk = to_chat_chunk(piece)
                    if run_manager is not None:
                        await run_manager.on_llm_new_token(chunk.text, chunk=chunk)
                    yield chunk

    def _request(
        self,
        messages: Sequence[BaseMessage],
        stop: list[str] | None,
        kwargs: Mapping[str, Any],
        *,
        stream: bool = False,
    ) -> _Request:
        call = dict(kwargs)
        tools = to_openai_tools(call.pop("tools", None) or ())
        tool_choice = to_openai_tool_choice(call.pop("tool_choice", None), tools)
        in_parallel = call.pop("parallel_tool_calls", None)
        body = {} if in_parallel is None or not tools else {"parallel_tool_calls": in_parallel}
        params = self._params(stop, call, stream=stream, **body)
        return _Request(
            messages=to_openai_messages(messages), params=params, tools=tools or None, tool_choice=tool_choice
        )

    # ---- tools

    def bind_tools(
        self,
        tools: Sequence[dict[str, Any] | type | Callable[..., Any] | BaseTool],
        *,
        tool_choice: str | dict[str, Any] | bool | None = None,
        strict: bool | None = None,
        parallel_tool_calls: bool | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, AIMessage]:
        """This model, told of tools that it may call.

        Args:
            tools: functions, pydantic classes, TypedDicts, LangChain tools, or dicts in OpenAI's form.
            tool_choice: ``auto`` (the model decides), ``none``, ``required`` (also: ``any``, True), or the one tool to
                call, by its name or in OpenAI's form.
            strict: True: arguments always follow the tool's schema. Default: where ``tool_choice`` forces a call, which
                vLLM's structural tags would otherwise hold to any JSON.
            parallel_tool_calls: False: at most one call in an answer.
            kwargs: parameters of the requests, as for ``bind``.

        Raises:
            InvalidInputError: ``tool_choice`` names none of the tools.
        """
        with langchain_errors():
            sent = to_openai_tools(tools, strict)
            choice = to_openai_tool_choice(tool_choice, sent)
        if strict is None and choice not in (None, "auto", "none"):
            sent = with_strict_arguments(sent)
        chosen = {"tool_choice": choice, "parallel_tool_calls": parallel_tool_calls}
        given = {name: value for name, value in chosen.items() if value is not None}
        return self.bind(tools=sent, **given, **kwargs)

    # ---- many at once

    def batch(
        self,
        inputs: list[LanguageModelInput],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[AIMessage]:
        """Answer each input, in order, with as many in flight as the engine takes; see Runnable.batch."""
        configs = self._configs(config, len(inputs))
        return super().batch(inputs, configs, return_exceptions=return_exceptions, **kwargs)

    async def abatch(
        self,
        inputs: list[LanguageModelInput],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[AIMessage]:
        """See ``batch``."""
        configs = self._configs(config, len(inputs))
        return await super().abatch(inputs, configs, return_exceptions=return_exceptions, **kwargs)

    # ---- tokens

    def get_num_tokens(self, text: str) -> int:
        """Tokens of a text; exact, counted by the engine, which this starts."""
        if self.custom_get_token_ids is not None:
            return super().get_num_tokens(text)
        with langchain_errors():
            return self.engine.count_tokens(text)

    def get_num_tokens_from_messages(self, messages: list[BaseMessage], tools: Sequence[Any] | None = None) -> int:
        """Tokens of a conversation with the chat template around it; exact, counted by the engine, which this starts.

        Raises:
            InvalidInputError: ``tools`` are given, which can't be counted yet.
        """
        with langchain_errors():
            if tools:
                raise InvalidInputError("tools can't be counted yet: leave them out")
            return self.engine.count_tokens(to_openai_messages(messages))
