"""Structured output: LangChain's ``with_structured_output``, and the requests that ask for it.

How answers are read is in _parsers.py.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from operator import itemgetter
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_args, get_origin, overload

from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.runnables import Runnable, RunnableMap, RunnablePassthrough
from langchain_core.utils.function_calling import convert_to_openai_function
from langchain_core.utils.pydantic import is_basemodel_subclass

from langchain_vllm_local._errors import langchain_errors
from langchain_vllm_local._parsers import answer_type, is_old_class, output_parser
from langchain_vllm_local._typed_dicts import is_typed_dict
from shared_engine.adapting.class_schemas import class_schema
from shared_engine.adapting.structured import JsonSchema, check_form
from shared_engine.errors import InvalidInputError

if TYPE_CHECKING:
    from langchain_core.language_models.base import LanguageModelInput
    from langchain_core.messages import AIMessage
    from langchain_core.output_parsers import BaseOutputParser

    from shared_engine import Engine

T = TypeVar("T")
Method = Literal["json_schema", "function_calling", "json_mode", "regex", "choice", "grammar"]

CONSTRAINTS = ("regex", "choice", "grammar")
_DEFAULT_NAME = "output"


class StructuredOutput(BaseChatModel):
    """Mixed into a chat model: ``with_structured_output``."""

    if TYPE_CHECKING:

        @property
        def engine(self) -> Engine: ...

    @overload
    def with_structured_output(
        self,
        schema: Any = None,
        *,
        method: Method = "json_schema",
        include_raw: Literal[True],
        strict: bool | None = None,
        tools: Sequence[Any] | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, dict[str, Any]]: ...

    @overload
    def with_structured_output(
        self,
        schema: type[T],
        *,
        method: Literal["json_schema", "function_calling", "json_mode"] = "json_schema",
        include_raw: Literal[False] = False,
        strict: bool | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, T]: ...

    @overload
    def with_structured_output(
        self,
        schema: Any,
        *,
        method: Literal["regex", "choice", "grammar"],
        include_raw: Literal[False] = False,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, str]: ...

    @overload
    def with_structured_output(
        self,
        schema: Any = None,
        *,
        method: Method = "json_schema",
        include_raw: bool = False,
        strict: bool | None = None,
        tools: Sequence[Any] | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, Any]: ...

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
            schema: a pydantic class, a dataclass, an Enum, ``list[int]`` or any other type that pydantic knows (answers
                are its instances); a TypedDict, a JSON schema, or one in OpenAI's forms (answers are dicts); for
                ``choice`` a list of strings or a Literal; for ``regex`` and ``grammar`` a string (answers are strings).
            method: ``json_schema``; ``function_calling``: as arguments of a forced tool call; ``json_mode``: any JSON,
                which the prompt has to describe; ``regex``, ``choice``, ``grammar`` (EBNF): vLLM's own constraints.
            include_raw: give ``{"raw": message, "parsed": ..., "parsing_error": ...}``, and raise nothing that is wrong
                with the answer.
            strict: passed on with the schema; vLLM holds answers to it in any case.
            tools: the model may call one of these instead; ``parsed`` is then None. Needs ``include_raw``.
            kwargs: parameters of the requests, as for ``bind``.

        Raises:
            InvalidInputError: an argument is invalid, or contradicts another.
            LengthFinishReasonError: on a call, when the answer was cut off; has the part that arrived.
            OutputParserException: on a call, when the answer can't be parsed or is not valid for the class.
        """
        with langchain_errors():
            check_method(method, schema, strict)
            if tools and not (include_raw and method == "json_schema"):
                raise InvalidInputError("tools: only with method 'json_schema' and include_raw=True, to see the calls")
            tool_name, bound = self._bound_to(schema, method, strict, tools, kwargs)
            parser = output_parser(schema, method, tool_name)
        return _with_raw(bound, parser) if include_raw else bound | parser

    def _bound_to(
        self, schema: Any, method: Method, strict: bool | None, tools: Sequence[Any] | None, kwargs: dict[str, Any]
    ) -> tuple[str, Runnable[LanguageModelInput, AIMessage]]:
        """This model with what the schema asks for, and the name of the tool that is to be called, if one is."""
        if method in CONSTRAINTS:
            return "", self.bind(structured_outputs=constraint(schema, method), **kwargs)
        if method == "json_mode":
            return "", self.bind(response_format={"type": "json_object"}, **kwargs)
        wanted = json_schema(schema, strict)
        check_form(wanted.response_format(), self.engine.settings)
        shown = {"kwargs": {"method": method, "strict": strict}, "schema": _traced_schema(schema, wanted)}
        traced: dict[str, Any] = {"ls_structured_output_format": shown}
        if method == "function_calling":
            tool = wanted.tool()
            name = wanted.sent_name
            return name, self.bind_tools([tool], tool_choice=name, strict=strict, **traced, **kwargs)
        asked = {"response_format": wanted.response_format(), **kwargs}
        return "", self.bind_tools(tools, **traced, **asked) if tools else self.bind(**traced, **asked)


def _with_raw(llm: Runnable[Any, AIMessage], parser: BaseOutputParser[Any]) -> Runnable[Any, Any]:
    """``{"raw": message, "parsed": value or None, "parsing_error": error or None}``."""
    parsed = RunnablePassthrough.assign(parsed=itemgetter("raw") | parser, parsing_error=lambda _: None)
    failed = RunnablePassthrough.assign(parsed=lambda _: None)
    return RunnableMap(raw=llm) | parsed.with_fallbacks([failed], exception_key="parsing_error")


# ---- what is asked for


def check_method(method: str, schema: Any, strict: bool | None) -> None:
    """Refuse arguments that contradict each other.

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
        raise InvalidInputError(f"strict = {strict}: has no effect with method {method!r}; leave it out")


def json_schema(schema: Any, strict: bool | None) -> JsonSchema:
    """A pydantic class, TypedDict, other type, JSON schema, or one of OpenAI's forms around it.

    Raises:
        InvalidInputError: it is nothing that JSON could be held to.
    """
    if isinstance(schema, Mapping):
        return _named_schema(schema, strict)
    kind = answer_type(schema)
    name = getattr(schema, "__name__", _DEFAULT_NAME)
    try:
        content = kind.schema() if is_old_class(kind) else class_schema(kind)
    except Exception as exc:  # pydantic has no common class for these
        why = str(exc) or type(exc).__name__
        raise InvalidInputError(f"schema = {schema!r:.80}: it can't be converted to a JSON schema: {why}") from exc
    return JsonSchema(name, content, content.get("description"), strict, is_checked=True)


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


def _traced_schema(schema: Any, wanted: JsonSchema) -> Any:
    """The schema for core's traces, which make their own JSON of classes, and of a JSON schema that has a title."""
    is_class = isinstance(schema, type) and (is_basemodel_subclass(schema) or _is_known_to_core(schema))
    return schema if is_class else {"title": wanted.name, **wanted.schema}


def _is_known_to_core(schema: Any) -> bool:
    """A TypedDict that core can make JSON of: it can't of one with ``NotRequired``, or that is recursive."""
    if not is_typed_dict(schema):
        return False
    try:
        convert_to_openai_function(schema)
    except Exception:  # TypeError, RecursionError, ...: whatever its own code fails with
        return False
    return True


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
