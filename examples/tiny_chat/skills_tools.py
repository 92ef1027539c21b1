"""Tool calls, answers from tool results, and loops of both."""

from __future__ import annotations

import json
from typing import Any

from dialog import Example, Message, assistant, call_text, system, tool_calls, tool_result, user
from prompts import AGENT_SYSTEM_PROMPTS
from small_talk import fixed_turn, greeting_turn
from tool_requests import ARITHMETIC, Request, any_request, declare, weather, with_others
from words import NOUNS, PARAMETERS, VERBS, WEATHERS, Values


def _with_system(values: Values, messages: list[Message]) -> list[Message]:
    return [system(values.pick(AGENT_SYSTEM_PROMPTS)), *messages] if values.chance(0.35) else messages


def _history(values: Values, request: Request) -> list[Message]:
    """Talk before the request: nothing, small talk, or a finished call of the same tool."""
    form = values.rng.random()
    if form < 0.8:
        return []
    if form < 0.9:
        question, answer = fixed_turn(values)
        return [user(question), assistant(answer)]
    earlier = next((r for r in (any_request(values) for _ in range(20)) if r.name == request.name), request)
    result, answer = result_and_answer(values, earlier)
    return [user(earlier.text), tool_calls(earlier.call), tool_result(result), assistant(answer)]


def tool_call(values: Values) -> Example:
    request = any_request(values)
    messages = _with_system(values, [*_history(values, request), user(request.text)])
    return Example("tool call", messages, call_text(request.call), with_others(values, request))


def parallel_calls(values: Values) -> Example:
    """Two cities, two calls; with both results in, one answer."""
    request = weather(values)
    while len(request.arguments) > 1:
        request = weather(values)
    first, second = values.several(2, values.place)
    key = next(iter(request.arguments))
    calls = [(request.name, {key: first}), (request.name, {key: second})]
    messages = [
        user(
            values.pick(["What is the weather in {} and {}?", "What is the weather in {} and in {}?"]).format(
                first, second
            )
        )
    ]
    if values.chance(0.5):
        return Example("tool call", _with_system(values, messages), call_text(*calls), [request.tool])
    results = [_weather_result(values) for _ in range(2)]
    answer = " ".join(_weather_answer(place, result) for place, result in zip((first, second), results, strict=True))
    messages += [tool_calls(*calls), *(tool_result(result) for result in results)]
    return Example("answer from tool result", _with_system(values, messages), answer, [request.tool])


def no_tool_needed(values: Values) -> Example:
    turn = values.pick([fixed_turn, greeting_turn])
    question, answer = turn(values)
    messages = _with_system(values, [user(question)])
    return Example("no tool needed", messages, answer, with_others(values, any_request(values)))


def _weather_result(values: Values) -> str:
    sky, degrees = values.pick(WEATHERS), values.rng.randint(-9, 40)
    return values.pick(
        [
            f"It's {sky}.",
            f"It is {sky} and {degrees} degrees.",
            f"{sky}, {degrees} degrees",
            f"{degrees} degrees and {sky}",
            sky,
            f"It's always {sky}.",
        ]
    )


def _weather_answer(place: str, result: str) -> str:
    return result if result.endswith(".") else f"The weather in {place} is {result}."


def _sentence_result(values: Values) -> str:
    return values.pick(
        [
            f"The {values.noun_phrase()} is {values.value()}.",
            f"Created {values.pick(NOUNS)}: {values.phrase()}.",
            f"{values.full_name()} has {values.integer()} {values.pick(NOUNS)}s.",
            f"Done. The {values.pick(NOUNS)} is {values.value()}.",
            f"The {values.pick(NOUNS)} {values.word()} was {values.pick(VERBS)}ed.",
        ]
    )


def _json_result(values: Values) -> tuple[str, str]:
    if values.chance(0.5):
        value: Any = values.pick([values.integer(), values.value(), values.word()])
        key = values.pick(["result", "result", "value", "answer", values.pick(ATTRIBUTE_KEYS)])
        return json.dumps({key: value}, ensure_ascii=False), f"The {key} is {value}."
    keys = values.several(2, lambda: values.pick(ATTRIBUTE_KEYS))
    pairs = {key: values.pick([values.integer(), values.word(), values.name()]) for key in keys}
    text = " and ".join(f"the {key} is {value}" for key, value in pairs.items())
    return json.dumps(pairs, ensure_ascii=False), f"{text[0].upper()}{text[1:]}."


ATTRIBUTE_KEYS = [
    "temperature",
    "status",
    "name",
    "price",
    "count",
    "city",
    "sum",
    "total",
    "owner",
    "code",
    "condition",
    "id",
]


def result_and_answer(values: Values, request: Request) -> tuple[str, str]:
    """What the tool returns and what to say then."""
    form = values.rng.random()
    if form < 0.1:
        error = values.pick(
            [
                f"Missing required argument '{values.pick(PARAMETERS)}'.",
                f"{values.word()} is not a valid {values.pick(NOUNS)}.",
                f"The {values.pick(NOUNS)} is not available.",
                f"Invalid {values.pick(PARAMETERS)}.",
            ]
        )
        return f"Error: {error}", f"The tool failed: {error}"
    if "weather" in request.name and form < 0.8:
        result = _weather_result(values)
        place = next(iter(request.arguments.values()))
        return result, _weather_answer(str(place), result)
    numeric = request.name in ARITHMETIC or "magic" in request.name or "function" in request.name
    if form < 0.3 or (numeric and form < 0.75):
        number = values.pick([str(values.integer()), str(values.rng.randint(0, 10**6)), values.decimal()])
        return number, f"The result is {number}."
    if form < 0.55:
        return _json_result(values)
    if form < 0.85:
        sentence = _sentence_result(values)
        return sentence, sentence
    text = values.pick([values.code, values.name, values.phrase, values.place])()
    return text, f"The result is {text}."


def from_tool_result(values: Values) -> Example:
    request = any_request(values)
    result, answer = result_and_answer(values, request)
    said = values.pick(["", "", "", "", "some text", "Let me check."])
    messages = [
        *_history(values, request),
        user(request.text),
        tool_calls(request.call, text=said),
        tool_result(result),
    ]
    return Example("answer from tool result", _with_system(values, messages), answer, with_others(values, request))


def two_steps(values: Values) -> Example:
    """Add, then multiply the result (or the other way round), at any point of the loop."""
    first_name, second_name = values.pick([("add", "multiply"), ("multiply", "add")])
    a, b, c, first_result, last_result = (values.rng.randint(2, 999) for _ in range(5))
    text = values.pick(
        [
            "Add {a} and {b}, then multiply the result by {c}.",
            "What is ({a} + {b}) * {c}?",
            "First add {a} and {b}. Then multiply by {c}.",
        ]
        if first_name == "add"
        else [
            "Multiply {a} by {b}, then add {c}.",
            "What is {a} * {b} + {c}?",
            "First multiply {a} and {b}. Then add {c}.",
        ]
    )
    tools = [
        declare(name, ARITHMETIC[name][0], {"a": {"type": "integer"}, "b": {"type": "integer"}})
        for name in ("add", "multiply")
    ]
    values.rng.shuffle(tools)
    first, second = (first_name, {"a": a, "b": b}), (second_name, {"a": first_result, "b": c})
    messages = [user(text.format(a=a, b=b, c=c))]
    stage = values.rng.randint(0, 2)
    if stage == 0:
        answer = call_text(first)
    messages += [tool_calls(first), tool_result(str(first_result))] if stage > 0 else []
    if stage == 1:
        answer = call_text(second)
    messages += [tool_calls(second), tool_result(str(last_result))] if stage == 2 else []
    if stage == 2:
        answer = f"The result is {last_result}."
    return Example("two-step agent", _with_system(values, messages), answer, tools)
