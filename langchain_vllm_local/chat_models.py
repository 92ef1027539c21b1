"""ChatVLLM: the shared engine as a LangChain chat model. One request and one way back (_convert) for four methods."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing, closing, contextmanager
from typing import TYPE_CHECKING, Any, ClassVar, TypedDict

from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.outputs import LLMResult
from pydantic import ConfigDict, PrivateAttr, model_validator

from langchain_vllm_local import _structured
from langchain_vllm_local._base import LanguageModelBase
from langchain_vllm_local._batching import FullBatches, in_tasks, in_threads
from langchain_vllm_local._blocks import WORDING
from langchain_vllm_local._convert import (
    to_chat_chunk,
    to_chat_result,
    to_openai_messages,
    to_openai_tool_choice,
    to_openai_tools,
)
from langchain_vllm_local._errors import langchain_errors
from langchain_vllm_local._profile import ToldProfile, model_profile
from langchain_vllm_local._streamed_calls import StreamedCalls
from shared_engine.adapting.framework_model import CHAT_REQUEST_FIELDS, ChatModel
from shared_engine.adapting.media_errors import media_errors
from shared_engine.adapting.tools import with_strict_arguments
from shared_engine.errors import InvalidInputError
from shared_engine.model_files.parsers import known_tool_parsers
from shared_engine.request.wire import template_variables
from shared_engine.results import GenerationParams

if TYPE_CHECKING:
    from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun, Callbacks
    from langchain_core.language_models.base import LangSmithParams, LanguageModelInput
    from langchain_core.messages import AIMessage, BaseMessage
    from langchain_core.outputs import ChatGenerationChunk, ChatResult
    from langchain_core.runnables import Runnable
    from langchain_core.tools import BaseTool

    from langchain_vllm_local._structured import Method
    from shared_engine.settings import EngineSettings


class _Request(TypedDict):
    """The arguments of ``Engine.chat`` and its three siblings."""

    messages: list[dict[str, Any]]
    params: GenerationParams
    tools: list[dict[str, Any]] | None
    tool_choice: str | dict[str, Any] | None


class ChatVLLM(LanguageModelBase, ChatModel, FullBatches, BaseChatModel):
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

    _request_fields: ClassVar[tuple[str, ...]] = (*LanguageModelBase._request_fields, *CHAT_REQUEST_FIELDS)
    _told: ToldProfile = PrivateAttr()

    def _use(self, settings: EngineSettings) -> None:
        super()._use(settings)
        self._told = model_profile(settings)
        if self.profile is None or isinstance(self.profile, ToldProfile):
            self.__dict__["profile"] = self._told

    @model_validator(mode="before")
    @classmethod
    def _forget_told_profile(cls, values: Any) -> Any:
        """Core makes a model of another one's fields (configurable_fields): the profile is not the user's then."""
        if isinstance(values, Mapping) and isinstance(values.get("profile"), ToldProfile):
            return {name: value for name, value in values.items() if name != "profile"}
        return values

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
        with langchain_errors(), self._asking(messages, stop, kwargs) as request:
            return to_chat_result(self.engine.chat(**request))

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,  # noqa: ARG002
        **kwargs: Any,
    ) -> ChatResult:
        with langchain_errors(), self._asking(messages, stop, kwargs) as request:
            return to_chat_result(await self.engine.achat(**request))

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        with (
            langchain_errors(),
            self._asking(messages, stop, kwargs, stream=True) as request,
            closing(self.engine.stream_chat(**request)) as pieces,
        ):
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
        with langchain_errors(), self._asking(messages, stop, kwargs, stream=True) as request:
            calls = StreamedCalls()
            async with aclosing(self.engine.astream_chat(**request)) as pieces:
                async for piece in pieces:
                    chunk = to_chat_chunk(calls.checked(piece))
                    if run_manager is not None:
                        await run_manager.on_llm_new_token(chunk.text, chunk=chunk)
                    yield chunk

    @contextmanager
    def _asking(
        self,
        messages: Sequence[BaseMessage],
        stop: list[str] | None,
        kwargs: Mapping[str, Any],
        *,
        stream: bool = False,
    ) -> Iterator[_Request]:
        """A request, and the errors that it meets, which name the image or sound that they are about."""
        request = self._request(messages, stop, kwargs, stream=stream)
        with media_errors(request["messages"], self.engine.settings, WORDING):
            yield request

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
        if tools and call.get("tool_choice") != "none":
            self._check_tools_are_understood()
        tool_choice = to_openai_tool_choice(call.pop("tool_choice", None), tools)
        if tool_choice not in (None, "auto", "none"):
            call.setdefault("structured_outputs", None)  # a forced call has the form of its arguments
        in_parallel = call.pop("parallel_tool_calls", None)
        body = {} if in_parallel is None or not tools else {"parallel_tool_calls": in_parallel}
        params = self._params(stop, call, stream=stream, **body)
        if tools and tool_choice in (None, "auto") and (params.response_format or params.structured_outputs):
            # vLLM lets the model choose between a call and the answer's form only if it can hold it to both.
            tools = with_strict_arguments(tools)
        return _Request(
            messages=to_openai_messages(messages), params=params, tools=tools or None, tool_choice=tool_choice
        )

    # ---- tools

    def _check_tools_are_understood(self) -> None:
        """A model whose calls vLLM would not recognise must not be asked for any.

        Raises:
            InvalidInputError: no tool-call parser is known for the model, and none was named.
        """
        if self._told.get("tool_calling") is False:
            raise InvalidInputError(
                f"no tool-call parser is known for {self.model}: if it was trained to call tools, name the parser that "
                f"reads its calls, as in engine_args={{'tool_call_parser': 'hermes'}}; the common ones are "
                f"{', '.join(known_tool_parsers())}"
            )

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

    # ---- structured output

    def with_structured_output(
        self,
        schema: Any = None,
        *,
        method: Method = "json_schema",
        include_raw: bool = False,
        strict: bool | None = None,
        tools: Sequence[Any] | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, Any]:
        """This model, whose answers are parsed into values. vLLM holds the answer to the constraint, token by token.

        Args:
            schema: a pydantic class (answers are its instances); a TypedDict, a JSON schema, or one in OpenAI's forms
                (answers are dicts); any other type that JSON can hold, such as ``list[int]``; for ``choice`` a list of
                strings or a Literal; for ``regex`` and ``grammar`` a string (answers are strings).
            method: ``json_schema``; ``function_calling``: as arguments of a forced tool call; ``json_mode``: any JSON,
                which the prompt has to describe; ``regex``, ``choice``, ``grammar`` (EBNF): vLLM's own constraints.
            include_raw: give ``{"raw": message, "parsed": ..., "parsing_error": ...}``, and raise nothing that is wrong
                with the answer.
            strict: passed on with the schema; vLLM holds answers to it in any case.
            tools: the model may call one of these instead; ``parsed`` is then None. Needs ``include_raw``.
            kwargs: parameters of the requests, as for ``bind``.

        Raises:
            InvalidInputError: an argument that can't be meant.
            LengthFinishReasonError: on a call, when the answer was cut off; it has the text up to there.
            OutputParserException: on a call, when the answer can't be parsed or is not valid for the class.
        """
        with langchain_errors():
            _structured.check_method(method, schema, strict)
            if tools and not (include_raw and method == "json_schema"):
                raise InvalidInputError("tools: only with method 'json_schema' and include_raw=True, to see the calls")
            tool_name, bound = self._bound_to(schema, method, strict, tools, kwargs)
            parser = _structured.output_parser(schema, method, tool_name)
        return _structured.with_raw(bound, parser) if include_raw else bound | parser

    def _bound_to(
        self, schema: Any, method: Method, strict: bool | None, tools: Sequence[Any] | None, kwargs: dict[str, Any]
    ) -> tuple[str, Runnable[LanguageModelInput, AIMessage]]:
        """This model with what the schema asks for, and the name of the tool that is to be called, if one is."""
        if method in _structured.CONSTRAINTS:
            return "", self.bind(structured_outputs=_structured.constraint(schema, method), **kwargs)
        if method == "json_mode":
            return "", self.bind(response_format={"type": "json_object"}, **kwargs)
        wanted = _structured.json_schema(schema, strict)
        shown = {"kwargs": {"method": method, "strict": strict}, "schema": _structured.traced(schema, wanted)}
        traced: dict[str, Any] = {"ls_structured_output_format": shown}
        if method == "function_calling":
            tool = wanted.tool()
            return wanted.name, self.bind_tools([tool], tool_choice=wanted.name, strict=strict, **traced, **kwargs)
        asked = {"response_format": wanted.response_format(), **kwargs}
        return "", self.bind_tools(tools, **traced, **asked) if tools else self.bind(**traced, **asked)

    # ---- many at once

    def generate(
        self,
        messages: list[list[BaseMessage]],
        stop: list[str] | None = None,
        callbacks: Callbacks = None,
        **kwargs: Any,
    ) -> LLMResult:
        """Answer each conversation, in order; core's own asks one after the other, this keeps the engine full.

        An error is raised when all have ended, the first one of them in order.
        """
        if len(messages) < 2:
            return super().generate(messages, stop, callbacks, **kwargs)
        run_id = kwargs.pop("run_id", None)  # the first one's, as core has it

        def answer(index: int) -> LLMResult | Exception:
            own = {"run_id": run_id} if index == 0 else {}
            try:
                return super(ChatVLLM, self).generate([messages[index]], stop, callbacks, **own, **kwargs)
            except Exception as exc:
                return exc

        with closing(in_threads(answer, len(messages), self.engine.max_concurrency)) as outcomes:
            return self._in_one(dict(outcomes))

    async def agenerate(
        self,
        messages: list[list[BaseMessage]],
        stop: list[str] | None = None,
        callbacks: Callbacks = None,
        **kwargs: Any,
    ) -> LLMResult:
        """See ``generate``."""
        if len(messages) < 2:
            return await super().agenerate(messages, stop, callbacks, **kwargs)
        run_id = kwargs.pop("run_id", None)

        async def answer(index: int) -> LLMResult | Exception:
            own = {"run_id": run_id} if index == 0 else {}
            try:
                return await super(ChatVLLM, self).agenerate([messages[index]], stop, callbacks, **own, **kwargs)
            except Exception as exc:
                return exc

        async with aclosing(in_tasks(answer, len(messages), self.engine.max_concurrency)) as outcomes:
            return self._in_one({index: outcome async for index, outcome in outcomes})

    def _in_one(self, outcomes: Mapping[int, LLMResult | Exception]) -> LLMResult:
        results = [_result_of(outcomes[index]) for index in range(len(outcomes))]
        return LLMResult(
            generations=[result.generations[0] for result in results],
            llm_output=self._combine_llm_outputs([result.llm_output for result in results]),
            run=[run for result in results for run in result.run or ()] or None,
        )

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
        with langchain_errors(), self._asking(messages, None, {"tools": tools} if tools else {}) as request:
            return self.engine.count_tokens(
                request["messages"], tools=request["tools"], chat_template_kwargs=template_variables(request["params"])
            )


def _result_of(outcome: LLMResult | Exception) -> LLMResult:
    if isinstance(outcome, Exception):
        raise outcome
    return outcome
