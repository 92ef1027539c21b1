"""Schemas in the form that vLLM's grammars hold, bounded, and shown to the model: pure."""

from __future__ import annotations

import re
from typing import Any

import pytest

from shared_engine import InvalidInputError
from shared_engine.schemas.bounds import bounded
from shared_engine.schemas.holding import held
from shared_engine.schemas.patterns import FORMATS, InvalidPatternError, held_pattern, with_length
from shared_engine.schemas.showing import with_schema_shown

# ---- patterns


@pytest.mark.parametrize(
    ("pattern", "form"),
    [
        ("@", "^.*@.*$"),  # xgrammar would allow nothing but "@"
        ("^a", "^a.*$"),
        ("a$", "^.*a$"),
        ("^a|b$", "^(?:a.*|.*b)$"),
        (r"\Aab\z", "^ab$"),
        (r"^[A-Z]{2}\d+$", r"^[A-Z]{2}\d+$"),
        ("^(?P<year>[0-9]+)(?<month>-[0-9]+)$", "^(?:[0-9]+)(?:-[0-9]+)$"),
        ("^(?:a|b)$", "^(?:a|b)$"),
        (r"^\d+(\.\d+)?$", r"^\d+(\.\d+){0,1}$"),  # xgrammar lets "1" + "5" without the point pass
        ("(?i)^abc$", "(?i)^abc$"),
        (r"^[^\n]+$", r"^[^\n]+$"),
        ("", "^.*.*$"),
    ],
)
def test_a_pattern_is_written_as_xgrammar_reads_it(pattern: str, form: str) -> None:
    assert held_pattern(pattern) == form
    assert held_pattern(form) == form, "the adapter and the engine may both bring it into its form"


@pytest.mark.parametrize(
    "pattern",
    [
        r"^(?=.*\d).+$", r"^(?!x).+$", r"(?<=a)b", r"^\w+\b", r"^\p{L}+$", r"^(a)\1$", r"^(?i:a)$", r'^a"b$', r"^a\\b$",
        r"^a\nb$", r"^\x22$", r"^(^a|b)$", "^a$b", "^a{,3}$", "^[[:alpha:]]$", "^[a-z&&[^b]]$", "^[]a]$",
    ],
)  # fmt: skip
def test_a_pattern_that_xgrammar_refuses_or_ignores_has_no_form(pattern: str) -> None:
    assert held_pattern(pattern) is None


@pytest.mark.parametrize("pattern", ["(", "a)", "[a"])
def test_what_is_no_pattern_is_refused(pattern: str) -> None:
    with pytest.raises(InvalidPatternError):
        held_pattern(pattern)
    schema = {"type": "object", "properties": {"code": {"type": "string", "pattern": pattern}}}
    with pytest.raises(InvalidInputError, match=r"schema\.properties\.code\.pattern = .* is not a regular expression"):
        held(schema, leaves_out=True)
    with pytest.raises(InvalidInputError, match=r"schema\.propertyNames\.pattern = .* is not a regular expression"):
        held({"type": "object", "propertyNames": {"pattern": pattern}}, leaves_out=True)


@pytest.mark.parametrize(
    ("pattern", "least", "most", "form"),
    [
        ("^[A-Z]+$", 2, 4, "^[A-Z]{2,4}$"),
        ("^[A-Z]+$", 0, 4, "^[A-Z]{1,4}$"),
        (r"^\d*$", 0, 3, r"^\d{0,3}$"),
        ("^.*$", 2, None, "^.{2,}$"),
        ("^[a-z]{2,}$", 0, 9, "^[a-z]{2,9}$"),
        ("^[a-z]{3}$", 2, 3, "^[a-z]{3,3}$"),
        ("^[a-z]{2,3}$", 4, 9, None),
        ("^ab+$", 0, 3, None),
        ("^(?:a|b)+$", 0, 3, None),
    ],
)
def test_a_pattern_of_one_kind_of_characters_takes_a_length(
    pattern: str, least: int, most: int | None, form: str | None
) -> None:
    assert with_length(pattern, least, most) == form


@pytest.mark.parametrize(
    ("name", "right", "wrong"),
    [
        ("date", ["2024-02-29", "2000-02-29", "2023-12-31"], ["2023-02-29", "1900-02-29", "2023-04-31", "0000-01-01"]),
        ("time", ["10:00:00Z", "23:59:59.5+02:00"], ["10:00:60Z", "10:00:00", "24:00:00Z", "10:00:005Z"]),
        ("date-time", ["2024-05-01T10:00:00Z"], ["2024-05-01T10:00:00", "2024-04-31T10:00:00Z"]),
        ("naive-date-time", ["2024-05-01T10:00:00"], ["2024-05-01T10:00:00Z"]),
        ("any-date-time", ["2024-05-01T10:00:00", "2024-05-01T10:00:00+02:00"], ["2024-05-01"]),
        ("ipv4", ["192.168.0.1"], ["192.168.00.1", "256.1.1.1"]),
        ("uuid4", ["0b2a9a3e-6a58-4c3a-9d0f-3d1c7a6f2b10"], ["0b2a9a3e-6a58-1c3a-9d0f-3d1c7a6f2b10"]),
        ("decimal", ["1", "-1.50"], ["", ".", "1.", "1e5"]),
        ("integer", ["0", "-12"], ["01", "1.0", "a"]),
        ("base64", ["", "YQ==", "YWI=", "YWJj"], ["YQ=", "Y"]),
    ],
)
def test_a_format_is_a_pattern_where_xgrammars_own_would_not_do(name: str, right: list[str], wrong: list[str]) -> None:
    assert held_pattern(FORMATS[name]) == FORMATS[name]
    matches = re.compile(FORMATS[name]).match
    assert [each for each in right if not matches(each)] == []
    assert [each for each in wrong if matches(each)] == []


# ---- schemas


@pytest.mark.parametrize(
    ("schema", "form"),
    [
        ({"type": "string", "pattern": "@"}, {"type": "string", "pattern": "^.*@.*$"}),
        ({"type": "string", "format": "uuid4"}, {"type": "string", "pattern": FORMATS["uuid4"]}),
        ({"type": "string", "format": "path"}, {"type": "string"}),
        ({"type": "string", "format": "uri", "minLength": 1}, {"type": "string", "format": "uri"}),
        (
            {"type": "string", "pattern": "^[A-Z]+$", "minLength": 2, "maxLength": 4},
            {"type": "string", "pattern": "^[A-Z]{2,4}$"},
        ),
        ({"type": "integer", "multipleOf": 1}, {"type": "integer"}),
        (
            {"type": "integer", "multipleOf": 5, "exclusiveMinimum": 0, "maximum": 20},
            {"type": "integer", "enum": [5, 10, 15, 20]},
        ),
        (
            {"type": "integer", "multipleOf": 5, "minimum": 5.5, "exclusiveMaximum": 20.5},
            {"type": "integer", "enum": [10, 15, 20]},
        ),
        (
            {"type": "integer", "multipleOf": 2, "exclusiveMinimum": 5.5, "maximum": 9.9},
            {"type": "integer", "enum": [6, 8]},
        ),
        ({"type": "integer", "multipleOf": 5, "minimum": 5, "maximum": 5}, {"type": "integer", "enum": [5]}),
        ({"type": "array", "uniqueItems": True}, {"type": "array"}),
        (
            {"type": "object", "propertyNames": {"enum": ["a", "b"]}, "additionalProperties": {"type": "integer"}},
            {
                "type": "object",
                "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
                "additionalProperties": False,
            },
        ),
        (
            {"type": "object", "propertyNames": {"format": "integer"}, "additionalProperties": {"type": "string"}},
            {"type": ["object"], "patternProperties": {FORMATS["integer"]: {"type": "string"}}},
        ),
        (
            {"type": "object", "propertyNames": {"maxLength": 3}, "additionalProperties": True},
            {"type": ["object"], "patternProperties": {"^.{0,3}$": {}}},
        ),
        ({"type": "object", "propertyNames": {"type": "string"}}, {"type": "object"}),
        (
            {"type": "object", "patternProperties": {"^x": {"type": "integer"}}},
            {"type": ["object"], "patternProperties": {"^x.*$": {"type": "integer"}}},
        ),
        (
            {"allOf": [{"type": "object", "properties": {"a": {}}, "required": ["a"]}, {"properties": {"b": {}}}]},
            {"type": "object", "properties": {"a": {}, "b": {}}, "required": ["a"]},
        ),
        ({"allOf": [{"type": "integer"}], "minimum": 3}, {"type": "integer", "minimum": 3}),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_can_be_said_in_another_way_is(schema: dict[str, Any], form: dict[str, Any]) -> None:
    before = repr(schema)
    for leaves_out in (True, False):
        found = held(schema, leaves_out=leaves_out)
        assert (found.schema, found.lost) == (form, None)
    assert held(form, leaves_out=False).schema == form, "the adapter and the engine may both bring it into its form"
    assert repr(schema) == before


def test_names_of_a_dict_are_found_behind_a_reference() -> None:
    colours = {"$defs": {"Colour": {"enum": ["red", "blue"], "type": "string"}}}
    counts = {
        "type": "object",
        "propertyNames": {"$ref": "#/$defs/Colour"},
        "additionalProperties": {"type": "integer"},
    }
    form = held({**colours, "type": "object", "properties": {"counts": counts}}, leaves_out=True).schema
    assert form["properties"]["counts"]["properties"] == {"red": {"type": "integer"}, "blue": {"type": "integer"}}


@pytest.mark.parametrize(
    ("part", "where"),
    [
        ({"type": "integer", "multipleOf": 5}, "multipleOf"),
        ({"type": "number", "multipleOf": 0.1, "minimum": 0, "maximum": 1}, "multipleOf"),
        ({"type": "string", "pattern": r"\bword\b"}, "pattern"),
        ({"type": "string", "pattern": "^ab+$", "maxLength": 5}, "maxLength"),
        ({"type": "string", "format": "email", "maxLength": 5}, "maxLength"),
        ({"type": "array", "contains": {}}, "contains"),
        ({"type": "object", "properties": {"a": {}}, "patternProperties": {"^b$": {}}}, "patternProperties"),
        ({"type": "object", "patternProperties": {"^a$": {}, "^b$": {}}}, "patternProperties"),
        ({"allOf": [{"enum": ["a"]}, {"minLength": 1, "type": "string"}]}, "allOf"),
        ({"allOf": [{"type": "string"}, {"type": "integer"}]}, "allOf"),
        ({"not": {}}, "not"),
        ({"if": {}}, "if"),
        ({"minimum": 5}, "minimum"),
        ({"type": "date"}, "type"),
        ({"$ref": "#/$defs/Missing"}, "$ref"),
        ({"$ref": "https://example.com/a.json"}, "$ref"),
        ({"$ref": "#name"}, "$ref"),
        ({"$ref": 5}, "$ref"),
        ({"type": "integer", "multipleOf": 5, "minimum": 6, "maximum": 9}, "multipleOf"),
        ({"type": "integer", "multipleOf": 5, "minimum": 0, "maximum": "20"}, "multipleOf"),
        ({"type": "integer", "multipleOf": 5, "minimum": 0, "maximum": 10**20}, "multipleOf"),
        ({"type": "integer", "multipleOf": 5, "minimum": 0, "maximum": 10**400}, "multipleOf"),
        ({"type": {}}, "type"),
        ({"type": ["string", 5]}, "type"),
        ({"type": "string", "pattern": 5}, "pattern"),
        ({"type": "string", "pattern": "^a+$", "minLength": "3"}, "minLength"),
        ({"type": "string", "format": {}}, "format"),
        ({"type": "array", "prefixItems": 5}, "prefixItems"),
        ({"type": "object", "properties": [1]}, "properties"),
        ({"type": "object", "patternProperties": 5}, "patternProperties"),
        ({"type": "object", "minProperties": "x"}, "minProperties"),
        ({"type": "object", "propertyNames": {"pattern": 5}}, "propertyNames"),
        ({"type": "object", "propertyNames": {"enum": 5}}, "propertyNames"),
        ({"type": "object", "propertyNames": {"pattern": "^a+$", "maxLength": "3"}}, "propertyNames"),
        ({"allOf": 5}, "allOf"),
        ({"allOf": [{"required": True}, {}]}, "allOf"),
        ({"allOf": [{"properties": 5}, {}]}, "allOf"),
        ({"required": True, "allOf": [{"required": ["a"]}, {}]}, "allOf"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_can_not_be_said_is_named_or_left_out(part: dict[str, Any], where: str) -> None:
    schema = {"type": "object", "properties": {"default": {"type": "array", "items": part}}, "default": {"not": 1}}
    found = held(schema, leaves_out=False)
    assert found.lost == f"schema.properties.default.items.{where}"
    assert where in found.schema["properties"]["default"]["items"], "another server may hold it"
    assert where not in held(schema, leaves_out=True).schema["properties"]["default"]["items"]
    assert found.schema["default"] == {"not": 1}
    assert bounded(found.schema, 5, 5)["default"] == {"not": 1}


def test_what_is_no_schema_is_left_as_it_is() -> None:
    remarks = {"x-kind": {"type": {}, "pattern": "("}, "examples": [{"not": 1}], "default": {"pattern": 5}}
    schema = {"type": "string", "maxLength": None, "required": True, **remarks}
    found = held(schema, leaves_out=False)
    assert (found.schema, found.lost) == (schema, None)
    assert bounded(schema, 5, 5)["x-kind"] == remarks["x-kind"]


@pytest.mark.slow
def test_a_schema_that_is_nested_too_deeply_is_refused() -> None:
    schema: dict[str, Any] = {}
    for _ in range(5000):
        schema = {"items": schema}
    with pytest.raises(InvalidInputError, match="the schema is nested too deeply"):
        held(schema, leaves_out=True)


def test_where_the_model_sees_the_form_it_keeps_the_words_that_models_know() -> None:
    schema = {"type": "object", "properties": {"day": {"type": "string", "format": "date"}}}
    assert held(schema, leaves_out=True, is_shown=True).schema == schema
    assert "pattern" in held(schema, leaves_out=True).schema["properties"]["day"]
    any_time = {"type": "string", "format": "any-date-time"}
    assert held(any_time, leaves_out=True, is_shown=True).schema == {"type": "string", "format": "date-time"}
    naive = {"type": "string", "format": "naive-date-time"}
    assert held(naive, leaves_out=True, is_shown=True).schema["pattern"] == FORMATS["naive-date-time"]


# ---- bounds


def test_what_has_no_end_gets_one_and_no_other_does() -> None:
    schema: dict[str, Any] = {
        "type": "object",
        "properties": {
            "text": {"type": "string"},
            "short": {"type": "string", "maxLength": 3},
            "long": {"type": "string", "minLength": 50},
            "day": {"type": "string", "format": "date"},
            "colour": {"type": "string", "enum": ["a"]},
            "letters": {"type": "string", "pattern": "^[A-Z]+$"},
            "mail": {"type": "string", "pattern": "^.*@.*$"},
            "maybe": {"type": ["string", "null"]},
            "tags": {"type": "array", "items": {"$ref": "#/$defs/Tag"}},
            "pair": {"type": "array", "prefixItems": [{"type": "integer"}] * 3},
            "counts": {"type": "object", "additionalProperties": {"type": "integer"}},
        },
        "$defs": {"Tag": {"anyOf": [{"type": "string"}, {"type": "integer"}]}},
    }
    found = bounded(schema, 20, 2)
    assert {name: value for name, part in found["properties"].items() for value in [part.get("maxLength")]} == {
        "text": 20, "short": 3, "long": 50, "day": None, "colour": None, "maybe": 20, "tags": None, "pair": None,
        "counts": None, "letters": None, "mail": None,
    }  # fmt: skip
    assert (found["properties"]["tags"]["maxItems"], found["properties"]["pair"]["maxItems"]) == (2, 3)
    assert found["properties"]["counts"]["maxProperties"] == 2
    assert found["properties"]["letters"]["pattern"] == "^[A-Z]{1,20}$"
    assert found["properties"]["mail"] == schema["properties"]["mail"]
    assert found["$defs"]["Tag"]["anyOf"] == [{"type": "string", "maxLength": 20}, {"type": "integer"}]
    assert "maxProperties" not in found
    assert bounded(schema, None, None) == schema


# ---- shown

SCHEMA = {"type": "object", "properties": {"day": {"type": "string", "format": "any-date-time", "description": "é"}}}
TEXT = (
    "\n\nHere's a JSON schema to follow:\n"
    '{"type": "object", "properties": {"day": {"type": "string", "format": "date-time", "description": "é"}}}'
    "\n\nOutput a valid JSON object but do not repeat the schema.\n"
)


@pytest.mark.parametrize(
    ("roles", "shown"),
    [
        (["user"], 0),
        (["system", "user"], 1),
        (["user", "assistant", "user", "assistant", "tool"], 2),
        (["system", "assistant"], 0),
        (["developer"], 0),
        (["assistant"], None),
    ],
)
def test_the_users_last_message_says_the_schema(roles: list[str], shown: int | None) -> None:
    messages = [{"role": role, "content": "Hi"} for role in roles]
    found = with_schema_shown(messages, SCHEMA)
    assert [message["content"] for message in found] == [
        "Hi" + TEXT if index == shown else "Hi" for index in range(len(roles))
    ]
    assert all(message["content"] == "Hi" for message in messages)


def test_beside_images_the_schema_is_a_part_of_its_own() -> None:
    parts = [{"type": "text", "text": "Hi"}, {"type": "image_url", "image_url": {"url": "data:"}}]
    (found,) = with_schema_shown([{"role": "user", "content": parts}], SCHEMA)
    assert found["content"] == [*parts, {"type": "text", "text": TEXT.lstrip()}]
    assert len(parts) == 2
