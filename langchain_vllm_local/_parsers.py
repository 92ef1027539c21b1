"""Structured output: the parsers of answers. Pure.

A complete answer follows its schema or constraint. One that was cut off does not: it is an error here, never repaired.
"""

from __future__ import annotations

import json
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
from shared_engine.adapting.structured import CUT_OFF, cut_off_message

if TYPE_CHECKING:
    from langchain_core.utils.pydantic import TBaseModel  # noqa: F401  # pydantic's plugin for mypy looks for it here


def output_parser(schema: Any, method: str, tool_name: str = "") -> BaseOutputParser[Any]:
    """The parser for the answers of ``with_structured_output(schema, method=method)``."""
    if method in ("regex", "choice", "grammar"):
        return _WholeText()
    model = schema if isinstance(schema, type) and is_basemodel_subclass(schema) else None
    if method == "function_calling":
        return _WholeCall(key_name=tool_name, first_tool_only=True, model=model)
    return _WholeJson(model=model)


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
            return None  # the model called one of the tools instead
        if partial:
            return None if self.model else super().parse_result(result, partial=True)
        text = str(message.text)
        try:
            value = parse_json_markdown(text, parser=bind(json.loads, strict=False))  # core's own would repair it
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
    """The error for an answer without the forced call: what the model answered instead."""
    for call in message.invalid_tool_calls:
        return OutputParserException(
            f"the call of {call['name']} can't be parsed: {call['error']}", llm_output=call["args"]
        )
    return OutputParserException("the model called no tool", llm_output=message.text)
