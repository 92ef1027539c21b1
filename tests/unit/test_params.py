"""GenerationParams: refused early, named clearly, and merged by one rule."""

from __future__ import annotations

import math
from typing import Any

import pytest

from shared_engine import Engine, GenerationParams, InvalidInputError
from shared_engine.params import merge_parameters

FORMAT = {"type": "json_object"}
REGEX = {"regex": "a"}
OFF = {"thinking": False}
NUMBERS = ("temperature", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty")
WHOLE_NUMBERS = ("top_k", "max_tokens", "min_tokens", "n", "seed", "priority", "truncate_prompt_tokens")


@pytest.mark.parametrize(
    ("values", "parts"),
    [
        ({"temperature": -1}, ["temperature = -1", "greater than or equal to 0"]),
        ({"top_p": 0}, ["top_p = 0", "greater than 0"]),
        ({"max_tokens": 0}, ["max_tokens = 0"]),
        ({"min_p": 2}, ["min_p = 2"]),
        ({"presence_penalty": 3}, ["presence_penalty = 3"]),
        ({"n": 0}, ["n = 0"]),
        ({"min_tokens": -1}, ["min_tokens = -1"]),
        ({"stop_token_ids": [-1]}, ["stop_token_ids.0 = -1"]),
        ({"bad_words": [""]}, ["bad_words.0 = ''"]),
        ({"bad_words": "one"}, ["bad_words = 'one'", "valid list"]),
        ({"logit_bias": {-1: 5}}, ["logit_bias", "-1"]),
        ({"logit_bias": {"word": 5}}, ["logit_bias", "word"]),
        ({"truncate_prompt_tokens": -2}, ["truncate_prompt_tokens = -2"]),
        ({"priority": 1 << 63}, ["priority"]),
        ({"ignore_eos": "often"}, ["ignore_eos = 'often'"]),
        ({"skip_special_tokens": 3}, ["skip_special_tokens = 3"]),
        ({"include_stop_str_in_output": "x"}, ["include_stop_str_in_output = 'x'"]),
        ({"max_token": 5}, ["unknown parameter 'max_token'", "did you mean 'max_tokens'"]),
        ({"temprature": 1}, ["did you mean 'temperature'"]),
        ({"zzz": 1}, ["unknown parameter 'zzz'", "known: "]),
        ({"stop": 3}, ["stop"]),
        ({"stop": ["a", ""]}, ["stop = ['a', '']", "an empty string"]),
        *(({name: value}, [f"{name} = {value}"]) for name in NUMBERS for value in (math.inf, -math.inf, math.nan)),
        *(({name: 1 << 63}, [name, "less than 9223372036854775808"]) for name in WHOLE_NUMBERS),
        ({"seed": -(1 << 63) - 1}, ["seed"]),
        ({"stop_token_ids": [1 << 63]}, ["stop_token_ids.0"]),
        ({"logit_bias": {1: math.inf}}, ["logit_bias.1 = inf"]),
    ],
)
def test_a_bad_parameter_is_refused_by_name(values: dict[str, Any], parts: list[str]) -> None:
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
    assert params.merged() is params.merged({}) is params


def test_token_ids_of_logit_bias_may_be_numbers_or_their_text() -> None:
    by_text: dict[Any, float] = {"5": 1}
    assert GenerationParams(logit_bias=by_text).logit_bias == GenerationParams(logit_bias={5: 1}).logit_bias == {5: 1}


def test_an_explicit_none_takes_a_default_away() -> None:
    assert GenerationParams(temperature=0.5).merged({"temperature": None}).temperature is None
    assert GenerationParams(extra_body={"a": 1}).merged({"extra_body": None}).extra_body is None


@pytest.mark.parametrize(
    ("layers", "merged"),
    [
        ([{"response_format": FORMAT}, {"structured_outputs": REGEX}], {"structured_outputs": REGEX}),
        ([{"structured_outputs": REGEX}, {"extra_body": {"response_format": FORMAT}}], {"response_format": FORMAT}),
        ([{"response_format": FORMAT}, {"response_format": None}], {"response_format": None}),
        ([{"reasoning_effort": "low"}, {"enable_thinking": False}], {"enable_thinking": False}),
        (
            [{"chat_template_kwargs": {"thinking": True, "x": 1}}, {"reasoning_effort": "low"}],
            {"chat_template_kwargs": {"x": 1}, "reasoning_effort": "low"},
        ),
        ([{"chat_template_kwargs": {"thinking": True}}, {"reasoning_effort": "low"}], {"reasoning_effort": "low"}),
        ([{"enable_thinking": True}, {"chat_template_kwargs": OFF}], {"chat_template_kwargs": OFF}),
        ([{"extra_body": {"a": 1, "b": 1}}, {"extra_body": {"b": 2}}], {"extra_body": {"a": 1, "b": 2}}),
        ([{"extra_body": {"n": 2, "a": 1}}], {"n": 2, "extra_body": {"a": 1}}),
        ([{"extra_body": {"chat_template_kwargs": {"x": 1}}}], {"chat_template_kwargs": {"x": 1}}),
        ([{"temperature": 1}, {"top_k": 2}, {"temperature": 0}], {"temperature": 0, "top_k": 2}),
        ([{"extra_body": "text"}], {"extra_body": "text"}),
    ],
)
def test_a_later_layer_replaces_what_contradicts_it(layers: list[dict[str, Any]], merged: dict[str, Any]) -> None:
    assert merge_parameters(*layers) == merged


def test_two_forms_in_one_layer_are_refused() -> None:
    both = {"response_format": FORMAT, "structured_outputs": REGEX}
    in_body = {"response_format": FORMAT, "extra_body": {"structured_outputs": REGEX}}
    for layers in ([both], [{}, both], [both, {}], [in_body]):
        with pytest.raises(InvalidInputError, match="both constrain the answer"):
            merge_parameters(*layers)


def test_an_engine_merges_as_a_chat_model_does() -> None:
    """Settings below params below keywords."""
    engine = Engine(base_url="http://127.0.0.1:1", temperature=0.5, top_k=3)
    merged = engine._params(
        GenerationParams(response_format=FORMAT, temperature=0.1), {"structured_outputs": REGEX, "max_tokens": 5}
    )
    assert merged.given == {"temperature": 0.1, "top_k": 3, "structured_outputs": REGEX, "max_tokens": 5}
    with pytest.raises(InvalidInputError, match="both constrain the answer"):
        engine.astream_chat([{"role": "user", "content": "Hi"}], response_format=FORMAT, structured_outputs=REGEX)
