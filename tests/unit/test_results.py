"""GenerationParams: refused early, named clearly."""

from __future__ import annotations

import pytest

from shared_engine import GenerationParams, InvalidInputError


@pytest.mark.parametrize(
    ("values", "parts"),
    [
        ({"temperature": -1}, ["temperature = -1", "greater than or equal to 0"]),
        ({"top_p": 0}, ["top_p = 0", "greater than 0"]),
        ({"max_tokens": 0}, ["max_tokens = 0"]),
        ({"min_p": 2}, ["min_p = 2"]),
        ({"presence_penalty": 3}, ["presence_penalty = 3"]),
        ({"n": 0}, ["n = 0"]),
        ({"max_token": 5}, ["unknown parameter 'max_token'", "did you mean 'max_tokens'"]),
        ({"temprature": 1}, ["did you mean 'temperature'"]),
        ({"zzz": 1}, ["unknown parameter 'zzz'", "known: "]),
        ({"stop": 3}, ["stop"]),
    ],
)
def test_a_bad_parameter_is_refused_by_name(values: dict[str, object], parts: list[str]) -> None:
    with pytest.raises(InvalidInputError) as caught:
        GenerationParams(**values)
    for part in parts:
        assert part in str(caught.value)


def test_overrides_win_and_are_checked() -> None:
    params = GenerationParams(temperature=0.5, max_tokens=10)
    merged = params.merged({"max_tokens": 20})
    assert (merged.temperature, merged.max_tokens) == (0.5, 20)
    assert params.max_tokens == 10
    with pytest.raises(InvalidInputError):
        params.merged({"max_tokens": -1})


def test_an_explicit_none_takes_a_default_away() -> None:
    assert GenerationParams(temperature=0.5).merged({"temperature": None}).temperature is None
