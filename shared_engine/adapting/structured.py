"""Structured output for both frameworks: a named schema as the server wants it, and whether an answer is whole.

vLLM holds the answer to the schema token by token, so a complete answer always fits; one that was cut off
does not, and is an error instead of half a value.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from shared_engine.errors import InvalidInputError

# What vLLM refuses to hold an answer to; the framework checks it when it parses the answer.
_REFUSED = "uniqueItems"
# Keywords of a schema with schemas under names of the user's choice, and those with values that are no schemas.
_NAMED_SCHEMAS = ("properties", "patternProperties", "dependentSchemas", "$defs", "definitions")
_VALUES = ("default", "const", "enum", "examples")

# Finish reasons of an answer that was cut off.
CUT_OFF = ("length", "repetition")


@dataclass(frozen=True)
class JsonSchema:
    """A schema in the form the server takes. Keywords that vLLM refuses are not sent."""

    name: str
    schema: dict[str, Any]
    description: str | None = None
    strict: bool | None = None

    def _sent(self, key: str) -> dict[str, Any]:
        fields = {"name": self.name, "description": self.description, "strict": self.strict, key: holdable(self.schema)}
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


def holdable(schema: Any) -> Any:
    """A copy of ``schema`` with only what vLLM can hold an answer to."""
    if isinstance(schema, list):
        return [holdable(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    return {keyword: _holdable_keyword(keyword, value) for keyword, value in schema.items() if keyword != _REFUSED}


def _holdable_keyword(keyword: str, value: Any) -> Any:
    if keyword in _VALUES:
        return value
    if keyword in _NAMED_SCHEMAS and isinstance(value, dict):
        return {name: holdable(schema) for name, schema in value.items()}
    return holdable(value)


def cut_off_message(finish_reason: str) -> str:
    """What to do about an answer that is not whole."""
    return (
        f"the answer was cut off (finish_reason {finish_reason!r}) before it was complete: raise max_tokens, or "
        "max_model_len where that is the limit"
    )
