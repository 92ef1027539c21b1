"""JSON objects from text and a schema, with and without the schema in the prompt."""

from __future__ import annotations

import json
from typing import Any

from dialog import Example, user
from prompts import JSON_INSTRUCTIONS, LLAMA_JSON_END, LLAMA_JSON_START
from skills_chat import with_system
from small_talk import fixed_turn
from words import ATTRIBUTES, COLORS, JOBS, PARAMETERS, Values

FIELDS = [
    "name",
    "age",
    "city",
    "job",
    "email",
    "color",
    "price",
    "country",
    "title",
    "year",
    "company",
    "phone",
    "height",
    "weight",
    "hobby",
    "team",
    "language",
    "score",
    "address",
    "quantity",
]


def _person(values: Values) -> tuple[str, dict[str, Any]]:
    name, age, city, job = values.full_name(), values.rng.randint(1, 99), values.place(), values.pick(JOBS)
    he, color = values.pick(["He", "She"]), values.pick(COLORS)
    sentences: list[tuple[str, dict[str, Any]]] = [
        (f"{name} is {age} years old.", {"name": name, "age": age}),
        (f"{name} is {age}.", {"name": name, "age": age}),
        (f"My name is {name} and I am {age} years old.", {"name": name, "age": age}),
        (f"{name}, {age} years old, lives in {city}.", {"name": name, "age": age, "city": city}),
        (f"{name} is {age} years old and lives in {city}.", {"name": name, "age": age, "city": city}),
        (f"{name} is a {job} from {city}.", {"name": name, "job": job, "city": city}),
        (f"{name} is a {age} year old {job}.", {"name": name, "age": age, "job": job}),
        (f"{name} lives in {city}. {he} is {age} years old.", {"name": name, "city": city, "age": age}),
        (f"{name} likes the color {color} and is {age} years old.", {"name": name, "color": color, "age": age}),
    ]
    return values.pick(sentences)


def _record(values: Values) -> tuple[str, dict[str, Any]]:
    """Any fields: `The price is 12 and the owner is Zorvik.`"""
    keys = values.several(
        values.rng.randint(1, 3), lambda: values.pick([*FIELDS, *ATTRIBUTES, *PARAMETERS, values.word()])
    )
    data = {
        key: values.integer()
        if values.chance(0.35)
        else values.pick([values.name, values.word, values.place, values.phrase])()
        for key in keys
    }
    link = values.pick([" is ", ": ", " is ", " = "])
    joined = values.pick([" and ", ", ", ". "]).join(
        f"{'the ' * (link == ' is ')}{key.replace('_', ' ')}{link}{value}" for key, value in data.items()
    )
    return f"{joined[0].upper()}{joined[1:]}.", data


def _schema(values: Values, title: str, data: dict[str, Any]) -> str:
    titled = values.chance(0.7)
    properties = {}
    for key, value in data.items():
        kind = {"type": "integer" if isinstance(value, int) else "string"}
        properties[key] = {"title": key.replace("_", " ").title(), **kind} if titled else kind
    tail: dict[str, Any] = {"title": title, "type": "object"} if values.chance(0.6) else {}
    return json.dumps({"properties": properties, "required": list(data), **tail}, ensure_ascii=False)


def extract(values: Values) -> Example:
    text, data = _person(values) if values.chance(0.55) else _record(values)
    title = values.pick(["Person", "Person", "Record", "Item", values.word().capitalize()])
    return values.rng.choices((_under_grammar, _named_keys, _by_schema), (35, 30, 35))[0](values, text, data, title)


def _under_grammar(values: Values, text: str, data: dict[str, Any], title: str) -> Example:
    """A grammar writes the keys; the prompt names none. What the text does not say is "unknown" or 0."""
    frames = ["{t}", "Extract the {n}: {t}", "Extract: {t}", "Extract the information: {t}", "{t} Answer in JSON."]
    asked = values.pick(frames).format(t=text, n=title.lower())
    if values.chance(0.1):
        asked, data = fixed_turn(values)[0], dict.fromkeys(data)
    if values.chance(0.1):
        data = {**data, values.pick(FIELDS): None}
    filled = {key: values.pick(["unknown", 0]) if value is None else value for key, value in data.items()}
    answer = json.dumps(filled, ensure_ascii=False)
    return Example("json", with_system(values, [user(asked)]), answer, forced=('{"', *filled))


def _named_keys(values: Values, text: str, data: dict[str, Any], _title: str) -> Example:
    keys = list(data)
    listed = " and ".join([", ".join(keys[:-1]), keys[-1]]) if len(keys) > 1 else keys[0]
    frame = values.pick(
        [
            "Extract {k} as JSON: {t}",
            "Extract {k} as JSON from: {t}",
            "{t} Return the {k} as JSON.",
            "{t}\nExtract {k} as JSON.",
            "Extract the {k} from the text as JSON.\nText: {t}",
            "Return JSON with the keys {k}. {t}",
            "Give me {k} as JSON: {t}",
        ]
    )
    asked = frame.format(k=listed, t=text)
    return Example("json", with_system(values, [user(asked)]), json.dumps(data, ensure_ascii=False))


def _by_schema(values: Values, text: str, data: dict[str, Any], title: str) -> Example:
    """The schema is in the prompt, as the JSON output parsers of LangChain and LlamaIndex put it."""
    schema = _schema(values, title, data)
    asked = values.pick(
        [
            f"{text}\n{JSON_INSTRUCTIONS}{schema}\n```",
            f"{text}\n\n{LLAMA_JSON_START}{schema}{LLAMA_JSON_END}",
            f"{text}\n\n{LLAMA_JSON_START}{schema}{LLAMA_JSON_END}",
            f"Answer in JSON with this schema: {schema}\n{text}",
            f"{text}\nReturn JSON that follows this schema: {schema}",
        ]
    )
    lead = values.pick(["", "", "Extract the data: ", f"Extract the {title.lower()}. "])
    return Example("json", with_system(values, [user(lead + asked)]), json.dumps(data, ensure_ascii=False))
