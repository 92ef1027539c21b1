"""Arguments of calls: as they are read, and as they are sent again."""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from shared_engine.adapting.tools import arguments_of, is_stand_in, sent_arguments, stand_in, without_stand_in
from shared_engine.errors import InvalidInputError


class City(BaseModel):
    name: str


@pytest.mark.parametrize(
    ("text", "arguments"),
    [("", {}), ("{}", {}), ("null", {}), ('{"a": 1}', {"a": 1}), ('{"a": "two\nlines"}', {"a": "two\nlines"})],
)
def test_arguments_are_an_object_or_nothing(text: str, arguments: dict[str, Any]) -> None:
    assert arguments_of(text) == arguments
    assert json.loads(sent_arguments(text, "here")) == arguments  # by a strict reader


@pytest.mark.parametrize("text", ['{"a": 1', '{"a": oops}', "[1]", "3", '"a"', "<xml>"])
def test_what_is_no_object_is_an_error_and_is_sent_as_an_empty_one(text: str) -> None:
    with pytest.raises(ValueError, match=r"not (valid JSON|a JSON object)"):
        arguments_of(text)
    assert sent_arguments(text, "here") == "{}"


def test_values_of_python_are_sent_as_their_json() -> None:
    given = {"day": datetime.date(2026, 1, 2), "file": Path("/a"), "city": City(name="Köln"), "some": {1}, "n": None}
    sent = {"day": "2026-01-02", "file": "/a", "city": {"name": "Köln"}, "some": [1], "n": None}
    assert json.loads(sent_arguments(given, "here")) == sent
    assert "Köln" in sent_arguments(given, "here")


def test_a_value_without_json_is_refused_with_its_position() -> None:
    with pytest.raises(InvalidInputError, match=r"messages\[1\]: the call's arguments can't be written as JSON"):
        sent_arguments({"a": object()}, "messages[1]")


def test_a_stand_in_has_a_name_of_its_own_and_tells_the_real_one() -> None:
    name = stand_in("add")
    assert name != "add" and is_stand_in(name) and not is_stand_in("add")
    assert (without_stand_in(name), without_stand_in("add")) == ("add", "add")
    assert name.replace("_", "").isalnum()  # other services refuse other characters
