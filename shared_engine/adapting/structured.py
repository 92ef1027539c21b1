"""Structured output for both frameworks: a named schema as the server wants it, and whether an answer is whole.

vLLM holds the answer to the schema token by token, so a complete answer always fits; one that was cut off
does not, and is an error instead of half a value.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from shared_engine.errors import InvalidInputError

# What xgrammar, which engines use (launch/spec.py), can't hold an answer to: vLLM refuses to try
# (vllm/v1/structured_output/backend_xgrammar.py), or it is ignored. The first is so common that it is left out of every
# schema, as are formats that are not known: by the standard they are remarks.
_UNIQUE = "uniqueItems"
_UNKNOWN = frozenset((_UNIQUE, "multipleOf", "contains", "minContains", "maxContains", "propertyNames"))
_IGNORED = frozenset((
    "not", "if", "then", "else", "dependentSchemas", "dependentRequired", "dependencies", "unevaluatedProperties",
    "unevaluatedItems",
))  # fmt: skip
_REMARKS = frozenset((
    "title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly", "$comment", "$defs",
    "definitions", "type",
))  # fmt: skip
_FORMATS = frozenset((
    "email", "date", "time", "date-time", "duration", "ipv4", "ipv6", "hostname", "uuid", "uri", "uri-reference",
    "uri-template", "json-pointer", "relative-json-pointer",
))  # fmt: skip
_LEFT_OUT = {_UNIQUE, "format"}
# Keywords of a schema with schemas under names of the user's choice, and those with values that are no schemas.
_NAMED_SCHEMAS = ("properties", "patternProperties", "dependentSchemas", "$defs", "definitions")
_VALUES = ("default", "const", "enum", "examples")

# Finish reasons of an answer that was cut off.
CUT_OFF = ("length", "repetition")


@dataclass(frozen=True)
class JsonSchema:
    """A schema in the form the server takes.

    Attributes:
        is_checked: whoever parses the answer checks it against the schema, so what vLLM can't hold an answer to is not
            sent.
    """

    name: str
    schema: dict[str, Any]
    description: str | None = None
    strict: bool | None = None
    is_checked: bool = False

    def _sent(self, key: str) -> dict[str, Any]:
        schema = holdable(self.schema, is_checked=self.is_checked)
        fields = {"name": self.name, "description": self.description, "strict": self.strict, key: schema}
        return {name: value for name, value in fields.items() if value is not None}

    def response_format(self) -> dict[str, Any]:
        """As OpenAI's response_format."""
        return {"type": "json_schema", "json_schema": self._sent("schema")}

    def tool(self) -> dict[str, Any]:
        """As OpenAI's tool.

        Raises:
            InvalidInputError: the schema is not that of an object, as the arguments of a call must be.
        """
        if not self.schema.keys() & {"properties", "$ref"} and self.schema.get("type") != "object":
            raise InvalidInputError(
                f"schema = {self.schema!r:.80}: the arguments of a tool call are an object; use method 'json_schema'"
            )
        return {"type": "function", "function": self._sent("parameters")}


def holdable(schema: Any, *, is_checked: bool) -> Any:
    """A copy of ``schema`` without remarks that vLLM refuses; where answers are checked, with only what it can hold
    them to.
    """
    if isinstance(schema, list):
        return [holdable(each, is_checked=is_checked) for each in schema]
    if not isinstance(schema, dict):
        return schema
    left_out = _too_much(schema) if is_checked else _too_much(schema) & _LEFT_OUT
    return {
        keyword: _holdable_keyword(keyword, value, is_checked)
        for keyword, value in schema.items()
        if keyword not in left_out
    }


def _too_much(schema: dict[str, Any]) -> set[str]:
    """The keywords of this schema, but not of those in it, that vLLM refuses as they are or together."""
    refused = set(_UNKNOWN)
    if schema.get("format") not in _FORMATS:
        refused.add("format")
    if "pattern" in schema or ("format" in schema and "format" not in refused):
        refused |= {"minLength", "maxLength"}
    if "properties" in schema or len(schema.get("patternProperties") or ()) > 1:
        refused.add("patternProperties")
    if len(schema.get("allOf") or ()) > 1:
        refused.add("allOf")
    return refused


def unheld(schema: Any, path: str = "schema") -> str | None:
    """Where ``schema`` first has something that vLLM can't hold an answer to; None where it can."""
    if isinstance(schema, list):
        found = (unheld(each, f"{path}[{index}]") for index, each in enumerate(schema))
        return next(filter(None, found), None)
    if not isinstance(schema, dict):
        return None
    for keyword, value in schema.items():
        if keyword in _VALUES:
            continue
        here = f"{path}.{keyword}"
        if (
            keyword in (_too_much(schema) - _LEFT_OUT) | _IGNORED
            or (keyword == "$ref" and not str(value).startswith("#"))
            or (keyword == "allOf" and schema.keys() - _REMARKS - {"allOf"})
        ):
            return here
        if keyword in _NAMED_SCHEMAS and isinstance(value, dict):
            found = (unheld(each, f"{here}.{name}") for name, each in value.items())
            below = next(filter(None, found), None)
        else:
            below = unheld(value, here)
        if below is not None:
            return below
    return None


def _holdable_keyword(keyword: str, value: Any, is_checked: bool) -> Any:
    if keyword in _VALUES:
        return value
    if keyword in _NAMED_SCHEMAS and isinstance(value, dict):
        return {name: holdable(schema, is_checked=is_checked) for name, schema in value.items()}
    return holdable(value, is_checked=is_checked)


def cut_off_message(finish_reason: str) -> str:
    """What to do about an answer that is not whole."""
    return (
        f"the answer was cut off (finish_reason {finish_reason!r}) before it was complete: raise max_tokens, or "
        "max_model_len where that is the limit"
    )
