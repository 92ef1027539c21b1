"""Structured output: a schema or constraint -> what the request asks for, and the parser of what comes back. Pure.

vLLM holds the answer to the constraint token by token, so an answer that ended by itself always fits; one that was
cut off does not, and every parser here says so instead of mending it.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping, Sequence
from functools import partial as bind
from operator import itemgetter
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin

from langchain_core.exceptions import OutputParserException
from langchain_core.messages import AIMessage
from langchain_core.output_parsers import BaseCumulativeTransformOutputParser, BaseOutputParser, JsonOutputParser
from langchain_core.output_parsers.openai_tools import JsonOutputKeyToolsParser
from langchain_core.outputs import Generation
from langchain_core.runnables import Runnable, RunnableMap, RunnablePassthrough
from langchain_core.utils.function_calling import convert_to_openai_function
from langchain_core.utils.json import parse_json_markdown
from langchain_core.utils.pydantic import is_basemodel_subclass
from pydantic import TypeAdapter
from typing_extensions import is_typeddict

from langchain_vllm_local._errors import LengthFinishReasonError
from shared_engine.adapting.structured import CUT_OFF, JsonSchema, cut_off_message
from shared_engine.errors import InvalidInputError

if TYPE_CHECKING:
    from langchain_core.utils.pydantic import TBaseModel  # noqa: F401  # pydantic's plugin for mypy looks for it here

Method = Literal["json_schema", "function_calling", "json_mode", "regex", "choice", "grammar"]

CONSTRAINTS = ("regex", "choice", "grammar")
_DEFAULT_NAME = "output"


def check_method(method: str, schema: Any, strict: bool | None) -> None:
    """Refuse a call that could not do what it says.

    Raises:
        InvalidInputError: naming the argument.
    """
    known = get_args(Method)
    if method not in known:
        near = difflib.get_close_matches(method, known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
        raise InvalidInputError(f"method = {method!r}; {hint}")
    if schema is None and method != "json_mode":
        raise InvalidInputError(f"schema = None: method {method!r} needs one")
    if strict is not None and method not in ("json_schema", "function_calling"):
        raise InvalidInputError(f"strict = {strict}: of no use with method {method!r}; leave it out")


# ---- what is asked for


def json_schema(schema: Any, strict: bool | None) -> JsonSchema:
    """A pydantic class, TypedDict, other type, JSON schema, or one of OpenAI's forms around it.

    Raises:
        InvalidInputError: it is nothing that JSON could be held to.
    """
    if isinstance(schema, Mapping):
        return _named_schema(schema, strict)
    if isinstance(schema, type) and is_basemodel_subclass(schema):
        as_json: Any = getattr(schema, "model_json_schema", None) or schema.schema  # type: ignore[attr-defined]  # v1
        content = as_json()
        return JsonSchema(schema.__name__, content, content.get("description"), strict)
    if is_typeddict(schema):
        function = convert_to_openai_function(schema, strict=strict)
        return JsonSchema(function["name"], function["parameters"], function.get("description"), strict)
    try:
        return JsonSchema(getattr(schema, "__name__", _DEFAULT_NAME), TypeAdapter(schema).json_schema(), None, strict)
    except Exception as exc:  # pydantic has no common class for these
        raise InvalidInputError(f"schema = {schema!r:.80}: no JSON schema can be made of it: {exc}") from exc


def _named_schema(schema: Mapping[str, Any], strict: bool | None) -> JsonSchema:
    for form in ("json_schema", "function"):  # a response_format, a tool
        if isinstance(schema.get(form), Mapping) and schema.get("type") == form:
            return _named_schema(schema[form], strict)
    name = str(schema.get("name") or schema.get("title") or _DEFAULT_NAME)
    strict = strict if strict is not None else schema.get("strict")
    for key in ("schema", "parameters"):
        if isinstance(schema.get(key), Mapping) and "name" in schema:
            return JsonSchema(name, dict(schema[key]), schema.get("description"), strict)
    return JsonSchema(name, dict(schema), schema.get("description"), strict if isinstance(strict, bool) else None)


def traced(schema: Any, wanted: JsonSchema) -> Any:
    """The schema for core's traces, which make their own JSON of classes, and of a JSON schema that has a title."""
    is_class = is_typeddict(schema) or (isinstance(schema, type) and is_basemodel_subclass(schema))
    return schema if is_class else {"title": wanted.name, **wanted.schema}


def constraint(schema: Any, method: str) -> dict[str, Any]:
    """vLLM's structured_outputs for ``regex``, ``choice`` and ``grammar``."""
    return {method: _choices(schema) if method == "choice" else _pattern(schema, method)}


def _choices(schema: Any) -> list[str]:
    choices = get_args(schema) if get_origin(schema) is Literal else schema
    is_list = isinstance(choices, Sequence) and not isinstance(choices, str)
    if not is_list or not choices or not all(isinstance(choice, str) for choice in choices):
        raise InvalidInputError(
            f"schema = {schema!r:.80}: method 'choice' takes a list of strings, or a Literal of them"
        )
    return list(choices)


def _pattern(schema: Any, method: str) -> str:
    if not isinstance(schema, str) or not schema:
        raise InvalidInputError(f"schema = {schema!r:.80}: method {method!r} takes a string")
    return schema


# ---- what comes back


def output_parser(schema: Any, method: Method, tool_name: str = "") -> BaseOutputParser[Any]:
    """What makes the parsed value of an answer."""
    if method in CONSTRAINTS:
        return _WholeText()
    model = schema if isinstance(schema, type) and is_basemodel_subclass(schema) else None
    if method == "function_calling":
        return _WholeCall(key_name=tool_name, first_tool_only=True, model=model)
    return _WholeJson(model=model)


def with_raw(llm: Runnable[Any, AIMessage], parser: BaseOutputParser[Any]) -> Runnable[Any, Any]:
    """``{"raw": message, "parsed": value or None, "parsing_error": error or None}``."""
    parsed = RunnablePassthrough.assign(parsed=itemgetter("raw") | parser, parsing_error=lambda _: None)
    failed = RunnablePassthrough.assign(parsed=lambda _: None)
    return RunnableMap(raw=llm) | parsed.with_fallbacks([failed], exception_key="parsing_error")


def _whole(result: list[Generation], *, partial: bool) -> tuple[AIMessage, bool]:
    """The answer, and whether it is still coming.

    Raises:
        LengthFinishReasonError: it was cut off; with the answer up to there.
    """
    message = getattr(result[0], "message", None)
    if not isinstance(message, AIMessage):
        raise OutputParserException(f"only an answer of a chat model can be parsed, not a {type(result[0]).__name__}")
    reason = message.response_metadata.get("finish_reason")
    if reason in CUT_OFF:
        calls = "".join(str(call["args"] or "") for call in (*message.invalid_tool_calls, *message.tool_calls))
        raise LengthFinishReasonError(cut_off_message(reason), message.text or calls)
    return message, partial and getattr(message, "chunk_position", None) != "last"


def _instance(model: Any, value: Any, text: str) -> Any:
    """``value`` as an instance of a pydantic class.

    Raises:
        OutputParserException: the class refuses it.
    """
    make = model.model_validate if hasattr(model, "model_validate") else model.parse_obj
    try:
        return make(value)
    except ValueError as exc:  # pydantic's ValidationError is one, of either version
        raise OutputParserException(f"not valid for {model.__name__}: {exc}", llm_output=text) from exc


class _WholeText(BaseCumulativeTransformOutputParser[str]):
    diff: bool = True

    def parse_result(self, result: list[Generation], *, partial: bool = False) -> str:
        message, _ = _whole(result, partial=partial)
        return str(message.text)

    def parse(self, text: str) -> str:
        return text

    def _diff(self, prev: str | None, next: str) -> str:
        return next[len(prev or "") :]


class _WholeJson(JsonOutputParser):
    model: Any = None
    """The pydantic class that the value is made an instance of; half an answer may be valid for it, and wrong."""

    def parse_result(self, result: list[Generation], *, partial: bool = False) -> Any:
        message, partial = _whole(result, partial=partial)
        if message.tool_calls and not message.text:
            return None  # the model called one of the tools it was told of as well
        if partial:
            return None if self.model else super().parse_result(result, partial=True)
        text = str(message.text)
        try:
            value = parse_json_markdown(text, parser=bind(json.loads, strict=False))  # core's own would mend it
        except json.JSONDecodeError as exc:
            raise OutputParserException(f"not valid JSON: {exc}; the answer was: {text}", llm_output=text) from exc
        return _instance(self.model, value, text) if self.model else value


class _WholeCall(JsonOutputKeyToolsParser):
    model: Any = None

    def parse_result(self, result: list[Generation], *, partial: bool = False) -> Any:
        message, partial = _whole(result, partial=partial)
        if partial and self.model:
            return None
        value = super().parse_result(result, partial=partial)
        if partial:
            return value
        if value is None:
            raise _no_call(message)
        return _instance(self.model, value, json.dumps(value)) if self.model else value


def _no_call(message: AIMessage) -> OutputParserException:
    """The model was told to call: what came instead."""
    for call in message.invalid_tool_calls:
        return OutputParserException(
            f"the call of {call['name']} can't be read: {call['error']}", llm_output=call["args"]
        )
    return OutputParserException("the model made no call", llm_output=message.text)
