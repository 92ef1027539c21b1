"""Structured output for both frameworks: a named schema as the server wants it, and whether an answer is whole.

vLLM holds the answer to the schema token by token, so a complete answer always fits; one that was cut off
does not, and is an error instead of half a value.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from shared_engine.errors import InvalidInputError
from shared_engine.params import GenerationParams
from shared_engine.request.forms import CHECKED, answer_form
from shared_engine.schemas.holding import held
from shared_engine.settings import EngineSettings

_NOT_IN_NAMES = re.compile(r"[^a-zA-Z0-9_-]+")
_LONGEST_NAME = 64

# Finish reasons of an answer that was cut off.
CUT_OFF = ("length", "repetition")


@dataclass(frozen=True)
class JsonSchema:
    """A schema in the form the server takes.

    Attributes:
        is_checked: whoever parses the answer checks it against the schema, so what vLLM can't hold an answer to is left
            out, and no error.
    """

    name: str
    schema: dict[str, Any]
    description: str | None = None
    strict: bool | None = None
    is_checked: bool = False

    @property
    def sent_name(self) -> str:
        """The name in a form that every server takes."""
        return _NOT_IN_NAMES.sub("_", self.name)[:_LONGEST_NAME]

    def _sent(self, **more: Any) -> dict[str, Any]:
        fields = {"name": self.sent_name, "description": self.description, "strict": self.strict, **more}
        return {name: value for name, value in fields.items() if value is not None}

    def response_format(self) -> dict[str, Any]:
        """As OpenAI's response_format, for the engine to bring into the form that its server holds."""
        return {
            "type": "json_schema",
            "json_schema": self._sent(schema=self.schema, **{CHECKED: self.is_checked or None}),
        }

    def tool(self) -> dict[str, Any]:
        """As OpenAI's tool.

        Raises:
            InvalidInputError: the schema is not that of an object, as the arguments of a call must be.
        """
        if not self.schema.keys() & {"properties", "$ref"} and self.schema.get("type") != "object":
            raise InvalidInputError(
                f"schema = {self.schema!r:.80}: the arguments of a tool call are an object; use method 'json_schema'"
            )
        parameters = held(self.schema, leaves_out=True, is_shown=True).schema if self.is_checked else self.schema
        return {"type": "function", "function": self._sent(parameters=parameters)}


def check_form(response_format: dict[str, Any], settings: EngineSettings) -> None:
    """Refuse a form that requests could not be sent with.

    Raises:
        InvalidInputError: see answer_form.
    """
    answer_form(GenerationParams(response_format=response_format), settings)


def asked_form(params: GenerationParams) -> Mapping[str, Any] | None:
    """The response_format of requests with these parameters; None where they ask for no schema."""
    schema = (params.structured_outputs or {}).get("json")
    return params.response_format or (None if schema is None else JsonSchema("output", schema).response_format())


def cut_off_message(finish_reason: str) -> str:
    """What to do about an answer that is not whole."""
    return (
        f"the answer was cut off (finish_reason {finish_reason!r}) before it was complete: raise max_tokens, or "
        "max_model_len where that is the limit"
    )
