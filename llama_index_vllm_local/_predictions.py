"""One structured prediction: a prompt asked in one of three ways, and its answer read as an instance of a class.

Shared by the four ways to wait for it (whole, streamed, sync, async) and by conversations and text.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import AsyncGenerator, Generator, Mapping
from typing import TYPE_CHECKING, Any, Generic

from llama_index.core.base.llms.types import ChatMessage, ChatResponse, CompletionResponse, ToolCallBlock
from llama_index.core.output_parsers.pydantic import PydanticOutputParser
from llama_index.core.output_parsers.utils import extract_json_str
from llama_index.core.program.function_program import get_function_tool
from llama_index.core.program.utils import FlexibleModel, create_flexible_model
from llama_index.core.prompts.base import BasePromptTemplate
from llama_index.core.types import Model, PydanticProgramMode
from pydantic import BaseModel, PydanticUserError
from pydantic_core import from_json

from llama_index_vllm_local._tools import finish_reason
from shared_engine.adapting.class_schemas import class_schema, read_as
from shared_engine.adapting.structured import CUT_OFF, JsonSchema, cut_off_message
from shared_engine.errors import InvalidInputError, LengthFinishReasonError
from shared_engine.params import merge_parameters

if TYPE_CHECKING:
    from llama_index.core.llms.llm import LLM

    from llama_index_vllm_local._structured import StructuredPrediction

Response = ChatResponse | CompletionResponse

# The ways in which a Prediction asks: by response_format, by a tool that must be called, by the prompt alone.
OWN_MODES = (PydanticProgramMode.DEFAULT, PydanticProgramMode.FUNCTION, PydanticProgramMode.LLM)

# What core's programs take from llm_kwargs, because a prediction decides it.
_DECIDED = ("tool_required", "tool_choice", "allow_parallel_tool_calls")
_FENCED = re.compile(r"\s*```\w*\n(.*)```\s*", re.DOTALL)


class LastResponse:
    """What a prediction read last, of which the objects that it returns know nothing."""

    response: Response | None = None
    text: str = ""
    """Of the response, what the JSON is in: its content, or the arguments of its call."""
    json_text: str = ""
    """The JSON that the whole object was read from, and can be read from again; empty before."""


class RecordedKwargs(dict[str, Any]):
    """``llm_kwargs`` that bring along where the prediction leaves what it read; not as a keyword, which spans show."""

    def __init__(self, llm_kwargs: Mapping[str, Any], last: LastResponse) -> None:
        super().__init__(llm_kwargs)
        self.last = last


def program_mode(llm: LLM) -> PydanticProgramMode:
    """How the LLM is to be asked.

    Raises:
        InvalidInputError: in no way that LlamaIndex knows.
    """
    try:
        return PydanticProgramMode(llm.pydantic_program_mode)
    except ValueError:
        modes = ", ".join(repr(mode.value) for mode in PydanticProgramMode)
        raise InvalidInputError(
            f"pydantic_program_mode = {llm.pydantic_program_mode!r}: must be one of {modes}"
        ) from None


class Prediction(Generic[Model]):
    """A prompt to be answered with an instance of ``output_cls``.

    Raises:
        InvalidInputError: no such answer could be asked for.
    """

    def __init__(
        self,
        llm: StructuredPrediction,
        output_cls: type[Model],
        prompt: BasePromptTemplate,
        llm_kwargs: Mapping[str, Any] | None,
        prompt_args: Mapping[str, Any],
    ) -> None:
        self._llm, self._output_cls, self._mode = llm, output_cls, program_mode(llm)
        self._parser = SchemaOutputParser(output_cls)
        self._options = {name: value for name, value in (llm_kwargs or {}).items() if name not in _DECIDED}
        self._last = llm_kwargs.last if isinstance(llm_kwargs, RecordedKwargs) else LastResponse()
        self._seen: Any = None
        self._read_again_at = 0
        schema = _schema(output_cls)
        self._write(prompt, prompt_args)
        if self._mode == PydanticProgramMode.DEFAULT:
            self._options = _held_to(schema.response_format(), self._options)
        if self._mode == PydanticProgramMode.FUNCTION:
            self._options = self._forced_call(schema)

    # ---- what is asked

    def _write(self, prompt: BasePromptTemplate, prompt_args: Mapping[str, Any]) -> None:
        """The prompt as a conversation; for a model without a chat template, as text."""
        if self._mode == PydanticProgramMode.LLM:
            prompt = prompt.partial_format()  # a copy: the caller's keeps its own parser
            prompt.output_parser = self._parser
        self._messages: list[ChatMessage] | None = None
        self._prompt = ""
        llm = self._llm
        if llm._known_metadata().is_chat_model:  # ``metadata`` may wait for a server, and hold up the event loop
            self._messages = llm._extend_messages(prompt.format_messages(llm=llm, **prompt_args))
        else:
            to_prompt = {name: getattr(llm, name) for name in ("messages_to_prompt", "completion_to_prompt")}
            self._prompt = llm._extend_prompt(prompt.format(llm=llm, **to_prompt, **prompt_args))

    def _forced_call(self, schema: JsonSchema) -> dict[str, Any]:
        if not self._llm._known_metadata().is_function_calling_model:
            raise InvalidInputError(
                f"pydantic_program_mode = {self._mode.value!r} needs a tool call, which this model does not support; "
                f"{PydanticProgramMode.DEFAULT.value!r} uses response_format instead"
            )
        tool = get_function_tool(self._output_cls)
        options = self._llm._prepare_chat_with_tools(
            [tool], chat_history=self._messages, tool_choice=tool.metadata.name, **self._options
        )
        self._messages = options.pop("messages")
        parameters = schema.tool()["function"]["parameters"]  # core's own says less of the types
        (sent,) = options["tools"]
        return {**options, "tools": [{**sent, "function": {**sent["function"], "parameters": parameters}}]}

    # ---- asking, in four ways

    def whole(self) -> Model:
        llm, options = self._llm, self._options
        if self._messages is None:
            return self._read(llm.complete(self._prompt, formatted=True, **options))
        return self._read(llm.chat(self._messages, **options))

    async def awhole(self) -> Model:
        llm, options = self._llm, self._options
        if self._messages is None:
            return self._read(await llm.acomplete(self._prompt, formatted=True, **options))
        return self._read(await llm.achat(self._messages, **options))

    def stream(self) -> Generator[Model | FlexibleModel, None, None]:
        """Yield partial objects as the answer arrives, then the whole one."""
        llm, options = self._llm, self._options
        response: Response = CompletionResponse(text="")
        stream: Generator[Response, None, None] = (
            llm.stream_complete(self._prompt, formatted=True, **options)
            if self._messages is None
            else llm.stream_chat(self._messages, **options)
        )
        with contextlib.closing(stream):  # leaving this one early ends the request
            for response in stream:
                so_far = self._read_so_far(response)
                if so_far is not None:
                    yield so_far
        yield self._read(response)

    async def astream(self) -> AsyncGenerator[Model | FlexibleModel, None]:
        """See ``stream``."""
        llm, options = self._llm, self._options
        response: Response = CompletionResponse(text="")
        stream: AsyncGenerator[Response, None] = (
            await llm.astream_complete(self._prompt, formatted=True, **options)
            if self._messages is None
            else await llm.astream_chat(self._messages, **options)
        )
        async with contextlib.aclosing(stream):
            async for response in stream:
                so_far = self._read_so_far(response)
                if so_far is not None:
                    yield so_far
        yield self._read(response)

    # ---- what comes back

    def _read(self, response: Response) -> Model:
        """The answer, which has ended, as an instance of the class.

        Raises:
            LengthFinishReasonError: it was cut off; has the part that arrived.
            ValueError: it is not JSON, or the class refuses it (then pydantic's ValidationError); or it calls no tool.
        """
        self._keep(response)
        reason = finish_reason(response)
        if reason in CUT_OFF:
            raise LengthFinishReasonError(cut_off_message(reason), self._text(response) or _content(response))
        if self._mode == PydanticProgramMode.LLM:
            value: Model = self._parser.parse(_content(response))
            text = extract_json_str(_content(response))
        elif self._mode == PydanticProgramMode.FUNCTION:
            assert isinstance(response, ChatResponse)
            text = json.dumps(self._llm.get_tool_calls_from_response(response)[0].tool_kwargs)
            value = read_as(self._output_cls, text)
        else:
            value, text = _from_json(self._output_cls, _content(response))
        self._last.json_text = text
        return value

    def _read_so_far(self, response: Response) -> Model | FlexibleModel | None:
        """Read an unfinished answer: an instance of the class if already valid, else an object with what is there.

        None if less than a hundredth of the text was added since the last time: parsing takes time in proportion to the
        whole text, so that doing it for each token would hold up long answers, and the event loop.
        """
        text = self._keep(response)
        if len(text) < self._read_again_at:
            return None
        self._read_again_at = len(text) + len(text) // 100 + 1
        value = _partial_json(text)
        if value is None or value == self._seen:
            return None
        self._seen = value
        try:
            return self._output_cls.model_validate(value)
        except Exception:  # whatever the class's own validators raise for half a value
            return self._flexible(value) if isinstance(value, dict) else None

    def _flexible(self, value: dict[str, Any]) -> FlexibleModel:
        if not hasattr(self, "_flexible_cls"):  # making a class takes longer than a token
            self._flexible_cls = create_flexible_model(self._output_cls)
        return self._flexible_cls.model_validate(value)

    def _keep(self, response: Response) -> str:
        self._last.response, self._last.text = response, self._text(response)
        return self._last.text

    def _text(self, response: Response) -> str:
        """The text that holds the JSON: the content, or the arguments of the call."""
        if self._mode != PydanticProgramMode.FUNCTION:
            return _content(response)
        assert isinstance(response, ChatResponse)
        calls = [block for block in response.message.blocks if isinstance(block, ToolCallBlock)]
        return str(calls[0].tool_kwargs) if calls else ""


class SchemaOutputParser(PydanticOutputParser[Model]):
    """Core's own, without its doubled braces: the prompt has been formatted when these words are added."""

    def format(self, query: str) -> str:
        return f"{query}\n\n{self.get_format_string(escape_json=False)}"


def _schema(output_cls: Any) -> JsonSchema:
    if not (isinstance(output_cls, type) and issubclass(output_cls, BaseModel)):
        raise InvalidInputError(f"output_cls = {output_cls!r:.80}: must be a pydantic class")
    try:
        schema = class_schema(output_cls)
    except PydanticUserError as exc:
        raise InvalidInputError(
            f"output_cls = {output_cls.__name__}: it can't be converted to a JSON schema: {exc}"
        ) from exc
    return JsonSchema(output_cls.__name__, schema, schema.get("description"), is_checked=True)


def _held_to(response_format: dict[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """``options`` with this form, unless they have one of their own."""
    return merge_parameters({"response_format": response_format}, options)


def _content(response: Response) -> str:
    return response.text if isinstance(response, CompletionResponse) else response.message.content or ""


def _from_json(output_cls: type[Model], text: str) -> tuple[Model, str]:
    """The instance, and the JSON in ``text``."""
    fenced = _FENCED.fullmatch(text)  # by a server that holds no answer to a schema
    inner = fenced[1] if fenced else text
    value: Model = read_as(output_cls, inner)
    return value, inner


def _partial_json(text: str) -> Any:
    """The value of incomplete JSON, which may have other words before it. None if there is no JSON."""
    for start in (0, text.find("{")):
        with contextlib.suppress(ValueError):
            return from_json(text[max(start, 0) :], allow_partial="trailing-strings")
    return None
