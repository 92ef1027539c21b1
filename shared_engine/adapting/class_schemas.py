"""The JSON schema of a class, or of another type: pydantic's own, with what its types take said more exactly.

Where pydantic takes less than its schema says, an answer that follows the schema is refused all the same: a decimal as
any text, a time with a zone for a field that is to have none, a key of ``dict[int, str]`` that is no number.
"""

from __future__ import annotations

import json
import re
from functools import lru_cache
from typing import Any

from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic.json_schema import GenerateJsonSchema

from shared_engine.schemas.patterns import FORMATS

_ZONES = {"aware": "date-time", "naive": "naive-date-time", None: "any-date-time"}
_USER = r"(?:[\w.~-]+(?::[\w.~-]+){0,1}@){0,1}"
# A name that ends in a number is taken for an address, and refused.
_HOST = rf"(?:{FORMATS['ipv4'][1:-1]}|(?:[A-Za-z0-9]+[.-])*[A-Za-z][A-Za-z0-9]*)(?::\d{{1,4}}){{0,1}}"
_PATH = r"(?:/[\w.~:/?#@!$&'()*+,;=%-]*){0,1}"
_NUMBERS_AS_NAMES = {"int": "integer", "decimal": "decimal"}


class ExactSchema(GenerateJsonSchema):
    """Writes formats that schemas/patterns.py has patterns for, instead of pydantic's wider ones."""

    def decimal_schema(self, schema: Any) -> Any:
        written = super().decimal_schema(schema)
        if "anyOf" not in written:
            return written
        number = written["anyOf"][0]
        digits = _digits(schema)
        if digits is not None:
            return {"type": "string", "pattern": digits}
        if schema.keys() & {"ge", "gt", "le", "lt", "multiple_of"}:
            return number
        return {"anyOf": [number, {"type": "string", "format": "decimal"}]}

    def complex_schema(self, schema: Any) -> Any:
        return {**super().complex_schema(schema), "format": "complex"}

    def datetime_schema(self, schema: Any) -> Any:
        return {**super().datetime_schema(schema), "format": _ZONES.get(schema.get("tz_constraint"), "date-time")}

    def time_schema(self, schema: Any) -> Any:
        zone = _ZONES.get(schema.get("tz_constraint"), "date-time")
        return {**super().time_schema(schema), "format": zone.replace("date-", "")}

    def url_schema(self, schema: Any) -> Any:
        return self._with_scheme(super().url_schema(schema), schema)

    def multi_host_url_schema(self, schema: Any) -> Any:
        return self._with_scheme(super().multi_host_url_schema(schema), schema)

    def _with_scheme(self, written: Any, schema: Any) -> Any:
        schemes = schema.get("allowed_schemes")
        if not schemes:
            return written
        url = f"^(?:{'|'.join(map(re.escape, schemes))})://{_USER}{_HOST}{_PATH}$"
        return {"type": "string", "pattern": url}

    def dict_schema(self, schema: Any) -> Any:
        written = super().dict_schema(schema)
        names = _NUMBERS_AS_NAMES.get(schema.get("keys_schema", {}).get("type"))
        return {**written, "propertyNames": {"format": names}} if names else written


def class_schema(kind: Any) -> dict[str, Any]:
    """The schema of a pydantic class, or of any other type that pydantic knows.

    Raises:
        Exception: it has none; pydantic has no common class for these.
    """
    own: Any = getattr(kind, "model_json_schema", None)
    if own is None:
        return _adapter(kind).json_schema(schema_generator=ExactSchema)
    is_pydantics = getattr(own, "__func__", None) is BaseModel.model_json_schema.__func__  # type: ignore[attr-defined]
    written: dict[str, Any] = own(schema_generator=ExactSchema) if is_pydantics else own()
    return written


def read_as(kind: Any, text: str) -> Any:
    """A JSON text as an instance of ``kind``. Its strings may have raw tabs and line ends: xgrammar lets them into
    those of a limited length.

    Raises:
        ValueError: it is not JSON, or not valid for it (pydantic's ValidationError is one).
    """
    read = kind.model_validate_json if hasattr(kind, "model_validate_json") else _adapter(kind).validate_json
    try:
        return read(text)
    except ValidationError as exc:
        if not any(error["type"] == "json_invalid" for error in exc.errors(include_url=False)):
            raise
        try:
            value = json.loads(text, strict=False)
        except ValueError:
            raise exc from None
        return read(json.dumps(value))


def _adapter(kind: Any) -> TypeAdapter[Any]:
    try:
        return _kept_adapter(kind)
    except TypeError:  # not hashable, or not a type
        return TypeAdapter(kind)


@lru_cache(maxsize=64)
def _kept_adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def _digits(schema: Any) -> str | None:
    """A pattern for a decimal of so many digits before and after its point; None where neither is limited."""
    most, places = schema.get("max_digits"), schema.get("decimal_places")
    if places is None or (most is not None and most < places):
        return None
    sign = "" if (schema.get("ge", -1) >= 0 or schema.get("gt", -1) >= 0) else "-?"
    before = r"\d+" if most is None else "0" if most == places else rf"(?:0|[1-9]\d{{0,{most - places - 1}}})"
    return rf"^{sign}{before}(?:\.\d{{1,{places}}}){{0,1}}$" if places else rf"^{sign}{before}$"
