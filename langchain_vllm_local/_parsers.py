"""Structured output: the parsers of answers. Pure.

A complete answer follows its schema or constraint. One that was cut off does not: it is an error here, never repaired.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial as bind
from typing import TYPE_CHECKING, Any

from langchain_core.exceptions import OutputParserException
from langchain_core.messages import AIMessage
from langchain_core.output_parsers import BaseCumulativeTransformOutputParser, BaseOutputParser, JsonOutputParser
from langchain_core.output_parsers.openai_tools import JsonOutputKeyToolsParser
from langchain_core.outputs import Generation
from langchain_core.utils.json import parse_json_markdown
from langchain_core.utils.pydantic import is_basemodel_subclass

from langchain_vllm_local._errors import LengthFinishReasonError
from langchain_vllm_local._typed_dicts import is_typed_dict, pydantic_class
from shared_engine.adapting.class_schemas import read_as
from shared_engine.adapting.structured import CUT_OFF, cut_off_message
from shared_engine.errors import InvalidInputError

if TYPE_CHECKING:
    from langchain_core.utils.pydantic import TBaseModel  # noqa: F401  # pydantic's plugin for mypy looks for it here


def output_parser(schema: Any, method: str, tool_name: str = "") -> BaseOutputParser[Any]:
    """The parser for the answers of ``with_structured_output(schema, method=method)``."""
    if method in ("regex", "choice", "grammar"):
        return _WholeText()
    kind = None if schema is None or isinstance(schema, Mapping) else answer_type(schema)
    gives_dicts = kind is None or is_typed_dict(schema)
    if method == "function_calling":
        return _WholeCall(key_name=tool_name, first_tool_only=True, kind=kind, gives_dicts=gives_dicts)
    return _WholeJson(kind=kind, gives_dicts=gives_dicts)


def answer_type(schema: Any) -> Any:
    """What answers are checked against: a pydantic class in place of a TypedDict, else the type itself.

    Raises:
        InvalidInputError: a TypedDict has a type that pydantic does not know.
    """
    if not is_typed_dict(schema):
        return schema
    try:
        return pydantic_class(schema)
    except Exception as exc:  # pydantic has no common class for these
        why = str(exc) or type(exc).__name__
        raise InvalidInputError(f"schema = {schema!r:.80}: it can't be converted to a JSON schema: {why}") from exc


def is_old_class(kind: Any) -> bool:
    """A class of pydantic's version 1."""
    return isinstance(kind, type) and is_basemodel_subclass(kind) and not hasattr(kind, "model_json_schema")


def _whole(result: list[Generation], *, partial: bool) -> tuple[AIMessage, bool]:
    """The answer, and whether it is still coming. A text is an answer too: LangChain's OutputFixingParser has no more.

    Raises:
        LengthFinishReasonError: it was cut off; has the part that arrived.
    """
    message = getattr(result[0], "message", None)
    if not isinstance(message, AIMessage):
        message = AIMessage(result[0].text, response_metadata=result[0].generation_info or {})
    reason = message.response_metadata.get("finish_reason")
    if reason in CUT_OFF:
        calls = "".join(str(call["args"] or "") for call in (*message.invalid_tool_calls, *message.tool_calls))
        raise LengthFinishReasonError(cut_off_message(reason), message.text or calls)
    return message, partial and getattr(message, "chunk_position", None) != "last"


def _instance(kind: Any, value: Any, text: str) -> Any:
    """``value`` as an instance of ``kind``.

    Raises:
        OutputParserException: it is not valid for it.
    """
    try:
        return kind.parse_obj(value) if is_old_class(kind) else read_as(kind, json.dumps(value))
    except ValueError as exc:  # pydantic's ValidationError is one, of either version
        name = getattr(kind, "__name__", repr(kind))
        raise OutputParserException(f"not valid for {name}: {exc}", llm_output=text) from exc


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
    kind: Any = None
    """What the value is checked against; half an answer may be valid for it, and wrong."""
    gives_dicts: bool = True
    """The value stays what the JSON says, and grows as it is streamed; else it is an instance of ``kind``."""

    def parse_result(self, result: list[Generation], *, partial: bool = False) -> Any:
        message, partial = _whole(result, partial=partial)
        if message.tool_calls and not message.text:
            return None  # the model called one of the tools instead
        if partial:
            return super().parse_result(result, partial=True) if self.gives_dicts else None
        text = str(message.text)
        try:
            value = parse_json_markdown(text, parser=bind(json.loads, strict=False))  # core's own would repair it
        except json.JSONDecodeError as exc:
            raise OutputParserException(f"not valid JSON: {exc}; the answer was: {text}", llm_output=text) from exc
        return _checked(value, text, self.kind, self.gives_dicts)


class _WholeCall(JsonOutputKeyToolsParser):
    kind: Any = None
    gives_dicts: bool = True

    def parse_result(self, result: list[Generation], *, partial: bool = False) -> Any:
        message, partial = _whole(result, partial=partial)
        if partial and not self.gives_dicts:
            return None
        value = super().parse_result(result, partial=partial)
        if partial:
            return value
        if value is None:
            raise _no_call(message)
        return _checked(value, json.dumps(value), self.kind, self.gives_dicts)


def _checked(value: Any, text: str, kind: Any, gives_dicts: bool) -> Any:
    instance = value if kind is None else _instance(kind, value, text)
    return value if gives_dicts else instance


def _no_call(message: AIMessage) -> OutputParserException:
    """The error for an answer without the forced call: what the model answered instead."""
    for call in message.invalid_tool_calls:
        return OutputParserException(
            f"the call of {call['name']} can't be parsed: {call['error']}", llm_output=call["args"]
        )
    return OutputParserException("the model called no tool", llm_output=message.text)
