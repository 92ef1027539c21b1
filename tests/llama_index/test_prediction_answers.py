"""Structured output: what comes back, whole, streamed, cut off or wrong."""

from __future__ import annotations

import itertools
import json
from typing import Any, Literal

import pytest
from llama_index.core.program.utils import FlexibleModel
from pydantic import BaseModel, Field, ValidationError, field_validator

from llama_index_vllm_local import VLLM, _predictions
from shared_engine import LengthFinishReasonError
from tests.llama_index.predictions import (
    ANNA,
    JSON,
    MODES,
    PROMPT,
    WAYS,
    Colour,
    Half,
    Person,
    every_stream,
    every_way,
    in_mode,
    says,
)
from tests.support.remote_server import RemoteServer


@pytest.fixture(autouse=True)
def anna_is_the_answer(server: RemoteServer) -> None:
    says(server, JSON)


class Node(BaseModel):
    """A tree."""

    label: str
    children: list[Node] = []


class Everything(BaseModel):
    person: Person
    people: list[Person]
    size: Literal["small", "big"]
    colour: Colour
    number_or_word: int | str
    nothing: Person | None = None
    tree: Node
    by_name: dict[str, float]
    aliased: int = Field(alias="other name")


EVERYTHING = {
    "person": {"name": 'Ann \\ "é" {x}', "age": 1},
    "people": [{"name": "A", "age": 1}, {"name": "B\n", "age": 2}],
    "size": "big",
    "colour": "blue",
    "number_or_word": "three",
    "tree": {"label": "a", "children": [{"label": "b", "children": []}]},
    "by_name": {"x": 0.5},
    "other name": 4,
}


@every_way
@pytest.mark.parametrize("mode", MODES)
def test_all_that_a_class_can_hold_comes_back(remote: VLLM, server: RemoteServer, way: str, mode: str) -> None:
    says(server, json.dumps(EVERYTHING))
    assert WAYS[way](in_mode(remote, mode), Everything)[-1] == Everything.model_validate(EVERYTHING)


@every_stream
@pytest.mark.parametrize("mode", MODES)
def test_a_stream_yields_what_there_is_and_last_the_whole(
    remote: VLLM, server: RemoteServer, way: str, mode: str
) -> None:
    class People(BaseModel):
        place: str
        people: list[Person]
        size: int

    whole = People(place="Paris", people=[ANNA, Person(name="Bob", age=5)], size=2)
    says(server, whole.model_dump_json())
    outputs = WAYS[way](in_mode(remote, mode), People)
    assert all(isinstance(output, FlexibleModel | People) for output in outputs)
    assert (outputs[-1], type(outputs[-1])) == (whole, People)
    assert outputs[0].people is None
    grown = [len(output.people) for output in outputs if output.people]
    assert grown == sorted(grown)
    assert set(grown) == {1, 2}
    assert "Pa" in [output.place for output in outputs]
    assert all(earlier != later for earlier, later in itertools.pairwise(outputs[:-1]))


@every_stream
@pytest.mark.slow
def test_a_long_stream_is_not_read_again_for_each_of_its_pieces(
    remote: VLLM, server: RemoteServer, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    class Story(BaseModel):
        words: list[str]

    text = Story(words=["word"] * 2000).model_dump_json()
    says(server, text)
    characters = []
    real = _predictions.from_json

    def from_json(text: str, **how: Any) -> Any:
        characters.append(len(text))
        return real(text, **how)

    monkeypatch.setattr(_predictions, "from_json", from_json)
    *before, last = WAYS[way](remote, Story)
    assert len(last.words) == 2000
    assert sum(characters) < 150 * len(text)  # for each piece it would be len(text) / 6 times as many
    seen = [len(output.words) for output in before if output.words]
    assert set(range(1, 15)) <= set(seen)
    assert all(later - earlier <= 1 + later / 50 for earlier, later in itertools.pairwise(seen))


class Picky(Half):
    @field_validator("b")
    @classmethod
    def third_letter(cls, value: str) -> str:
        return value if value[2] else ""


@every_stream
def test_a_class_that_cannot_judge_half_an_object_still_streams(remote: VLLM, server: RemoteServer, way: str) -> None:
    whole = Picky(a="xyz", b="xyz")
    says(server, whole.model_dump_json())
    *before, last = WAYS[way](remote, Picky)
    assert last == whole
    assert "xy" in [output.b for output in before]


@every_way
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("finish_reason", ["length", "repetition"])
@pytest.mark.parametrize("text", ['{"a": "Anna", "b": "An', '{"a": "Anna"}', ""])
@pytest.mark.slow
def test_an_answer_that_was_cut_off_is_a_typed_error_with_its_text(
    remote: VLLM, server: RemoteServer, way: str, mode: str, finish_reason: str, text: str
) -> None:
    says(server, text, finish_reason)
    with pytest.raises(LengthFinishReasonError, match=f"'{finish_reason}'.*raise max_tokens") as caught:
        WAYS[way](in_mode(remote, mode), Half)
    assert caught.value.text == text


def test_a_stream_that_is_cut_off_gives_what_came_before(remote: VLLM, server: RemoteServer) -> None:
    says(server, '{"a": "Anna", "b": "An', "length")
    seen: list[Any] = []
    with pytest.raises(LengthFinishReasonError):
        seen.extend(remote.stream_structured_predict(Half, PROMPT, fact=""))
    assert seen[-1] == Half(a="Anna", b="An")


@every_way
@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"name": "Anna", "age": 200}', "less than or equal to 150"),
        ('{"name": "Anna"}', "age\n  Field required"),
        ('{"name": "Anna", "age": 3', "Invalid JSON"),
        ("Anna is 31.", "Invalid JSON.*input_value='Anna is 31.'"),
        ("", "Invalid JSON"),
    ],
)
def test_an_answer_that_the_class_refuses_is_pydantics_error(
    remote: VLLM, server: RemoteServer, way: str, text: str, words: str
) -> None:
    says(server, text)
    with pytest.raises(ValidationError, match=words):
        WAYS[way](remote)


@every_way
def test_in_other_modes_a_wrong_answer_is_an_error_too(remote: VLLM, server: RemoteServer, way: str) -> None:
    says(server, '{"name": "Anna", "age": 200}')
    for mode in MODES:
        with pytest.raises(ValidationError, match="less than or equal to 150"):
            WAYS[way](in_mode(remote, mode))
    says(server, "Anna is 31.")
    with pytest.raises(ValueError, match=r"Could not extract json string from output: Anna is 31\."):
        WAYS[way](in_mode(remote, "llm"))
    with pytest.raises(ValueError, match=r"'Person' is not made: its arguments are not valid JSON.*Anna is 31\."):
        WAYS[way](in_mode(remote, "function"))


@every_way
def test_json_in_a_fence_is_read(remote: VLLM, server: RemoteServer, way: str) -> None:
    says(server, f"```json\n{JSON}\n```\n")
    assert WAYS[way](remote)[-1] == ANNA
