"""Requests for one tool call: the tool as declared, a sentence that asks for it, the arguments to be copied."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from dialog import Tool
from words import ADJECTIVES, NOUNS, PARAMETERS, VERBS, Values

Arguments = dict[str, Any]


@dataclass(frozen=True)
class Request:
    """A tool and a sentence that asks for one call of it."""

    tool: Tool
    text: str
    arguments: Arguments

    @property
    def name(self) -> str:
        return str(self.tool["function"]["name"])

    @property
    def call(self) -> tuple[str, Arguments]:
        return self.name, self.arguments


def declare(name: str, description: str, properties: dict[str, Any], required: list[str] | None = None) -> Tool:
    parameters = {
        "type": "object",
        "properties": properties,
        "required": list(properties) if required is None else required,
    }
    return {"type": "function", "function": {"name": name, "description": description, "parameters": parameters}}


def weather(values: Values) -> Request:
    name = values.pick(
        ["get_weather", "get_weather", "get_weather", "weather", "get_current_weather", "weather_lookup"]
    )
    key, place = values.pick(["location", "city", "location", "city", "place"]), values.place()
    described = values.pick([{}, {}, {"description": "The city."}, {"description": "City name, like Paris"}])
    properties: dict[str, Any] = {key: {"type": "string", **described}}
    about = values.pick(
        [
            "Get weather at a location.",
            "Get the weather at a location.",
            "Get the weather for a city.",
            "Get the current weather in a given location",
            "Look up the weather.",
            f"{name}({key}: str) -> str\nGet the weather.",
        ]
    )
    text = values.pick(
        [
            "What is the weather in {}?",
            "What is the weather in {}?",
            "What's the weather in {}?",
            "What's the weather like in {}?",
            "How is the weather in {}?",
            "Weather in {}?",
            "Tell me the weather in {}.",
            "Is it raining in {}?",
            "Get the weather for {}.",
            "what is the weather in {}",
            "What is the current weather in {}?",
        ]
    ).format(place)
    arguments: Arguments = {key: place}
    if values.chance(0.12):
        unit = values.pick(["celsius", "fahrenheit"])
        properties["unit"] = {"type": "string", "enum": ["celsius", "fahrenheit"]}
        arguments["unit"], text = unit, f"{text} Use {unit}."
    return Request(declare(name, about, properties), text, arguments)


def magic(values: Values) -> Request:
    if values.chance(0.2):
        name = values.pick(
            ["magic_function_no_args", f"{values.word()}_no_args", f"get_{values.word()}", "get_time", "list_files"]
        )
        text = values.pick(
            [f"What is the value of {name}()? Use the tool.", f"Call {name}.", f"Use {name}.", f"Run {name}()."]
        )
        return Request(declare(name, "Calculate a magic function.", {}), text, {})
    name = values.pick(
        ["magic_function", "magic_function", "magic_function", f"{values.word()}_function", values.word()]
    )
    key, number = (
        values.pick(["input", "input", "input", "x", "value", "n"]),
        values.pick([values.rng.randint(1, 9), values.integer()]),
    )
    about = values.pick(
        [
            "Apply a magic function to an input.",
            "Apply a magic function to an integer.",
            f"Apply {name} to a number.",
            "",
        ]
    )
    limits = {"exclusiveMaximum": 1000, "exclusiveMinimum": -1000} if values.chance(0.4) else {}
    text = values.pick(
        [
            "What is the value of {n}({i})? Use the tool.",
            "What is the value of {n}({i})?",
            "What is {n}({i})?",
            "Call {n} with {i}.",
            "Apply {n} to {i}.",
            "Use {n} on {i}.",
            "Compute {n}({i}).",
            "Use the tool {n} with input {i}.",
        ]
    )
    schema = {"type": "integer", **limits} if not limits else {**limits, "type": "integer"}
    return Request(declare(name, about, {key: schema}), text.format(n=name, i=number), {key: number})


ARITHMETIC: dict[str, tuple[str, list[str]]] = {
    "add": (
        "Add two integers.",
        [
            "What is {a} + {b}?",
            "What is {a} + {b}",
            "What is {a} plus {b}?",
            "Add {a} and {b}.",
            "Add {a} to {b}.",
            "Compute {a} + {b}.",
        ],
    ),
    "my_adder_tool": (
        "Take two integers, a and b, and return their sum.",
        ["What is {a} + {b}", "What is {a} + {b}?", "Add {a} and {b}."],
    ),
    "multiply": (
        "Multiply two integers and return the result.",
        [
            "What is {a} * {b}?",
            "What is {a} times {b}?",
            "Multiply {a} by {b}.",
            "Multiply {a} and {b}.",
            "What is {a} multiplied by {b}?",
        ],
    ),
    "subtract": ("Subtract b from a.", ["What is {a} - {b}?", "What is {a} minus {b}?"]),
    "divide": ("Divide a by b.", ["What is {a} / {b}?", "What is {a} divided by {b}?", "Divide {a} by {b}."]),
}


def arithmetic(values: Values, operation: str | None = None) -> Request:
    name = operation or values.pick(["add", "add", "multiply", "multiply", "my_adder_tool", "subtract", "divide"])
    about, texts = ARITHMETIC[name]
    if values.chance(0.3):
        about = f"{name}(a: int, b: int) -> int\n{about}"
    draw = values.integer if values.chance(0.5) else lambda: values.rng.randint(1, 99)
    first, second = draw(), draw()
    keys = ("a", "b") if values.chance(0.85) else ("x", "y")
    kind = {"type": "integer"} if values.chance(0.8) else {"type": "number"}
    text = values.pick([*texts, *texts, f"Use {name} with {{a}} and {{b}}."]).format(a=first, b=second)
    text += " Use the tool." if values.chance(0.1) else ""
    return Request(declare(name, about, dict.fromkeys(keys, kind)), text, {keys[0]: first, keys[1]: second})


def search(values: Values) -> Request:
    name, key = (
        values.pick(["search", "search", "web_search", "search_documents", "lookup"]),
        values.pick(["query", "query", "query", "input", "text"]),
    )
    query = values.pick([values.phrase, values.noun_phrase, values.full_name, values.place])()
    text = values.pick(
        [
            "Search for {}.",
            "Search for {}",
            "Search the web for {}.",
            "Look up {}.",
            "Find information about {}.",
            "Search: {}",
            "Use search to find {}.",
            "Please search for '{}'.",
        ]
    ).format(query)
    about = values.pick(
        [
            "Search the web.",
            "Search for information.",
            "Look things up on the internet.",
            "Search documents for a query.",
            "",
        ]
    )
    return Request(declare(name, about, {key: {"type": "string"}}), text, {key: query})


def customer(values: Values) -> Request:
    """The Unicode customers of langchain-tests, in any script."""
    who = values.foreign() if values.chance(0.7) else values.organization()
    gloss = f" ({values.organization()})" if values.chance(0.6) else ""
    what = values.pick(
        [
            f"a {values.word().capitalize()} {values.pick(NOUNS)} company",
            f"a {values.pick(ADJECTIVES)} {values.pick(NOUNS)}",
            f"a {values.word().capitalize()} company",
        ]
    )
    name = values.pick(["unicode_customer", "unicode_customer", "create_customer", "add_customer"])
    about = "Tool for creating a customer with Unicode name."
    if values.chance(0.5):
        about += (
            "\n\n    Args:\n        customer_name: The customer's name in their native language.\n"
            "        description: Description of the customer.\n\n"
            "    Returns:\n        A confirmation message about the customer creation."
        )
    properties = {"customer_name": {"type": "string"}, "description": {"type": "string"}}
    return Request(
        declare(name, about, properties),
        f"Create a customer named '{who}'{gloss} - {what}",
        {"customer_name": who, "description": what},
    )


def styled(values: Values) -> Request:
    style = values.pick(["Pirate", "Cowboy", "Robot", "King", values.word().capitalize()])
    about = "Generate a greeting in a particular style of speaking."
    text = values.pick(
        [f"Using the tool, generate a {style} greeting.", f"Generate a greeting in the style of a {style}."]
    )
    return Request(
        declare("greeting_generator", about, {"answer_style": {"type": "string"}}), text, {"answer_style": style}
    )


def _typed_value(values: Values, kind: str) -> tuple[dict[str, Any], Any, str]:
    """A parameter schema, a value for it, and how a person writes that value."""
    if kind == "integer":
        number = values.integer()
        return {"type": "integer"}, number, str(number)
    if kind == "number":
        decimal = values.decimal() if values.chance(0.7) else str(values.integer())
        return {"type": "number"}, json.loads(decimal), str(json.loads(decimal))
    if kind == "boolean":
        flag = values.chance(0.5)
        return {"type": "boolean"}, flag, json.dumps(flag)
    if kind == "enum":
        options = values.several(
            values.rng.randint(2, 4), values.word if values.chance(0.5) else lambda: values.pick(ADJECTIVES + NOUNS)
        )
        choice = values.pick(options)
        return {"type": "string", "enum": options}, choice, choice
    text = values.pick(
        [values.name, values.place, values.phrase, values.code, values.word, values.noun_phrase, values.full_name]
    )()
    return {"type": "string"}, text, text


def _parameter_name(values: Values) -> str:
    return values.word() if values.chance(0.2) else values.pick(PARAMETERS)


def invented(values: Values) -> Request:
    """A tool nobody has seen: made-up name, one to three typed parameters."""
    verb, noun = values.pick([values.pick(VERBS), values.word()]), values.pick([values.pick(NOUNS), values.word()])
    name = values.pick(
        [
            f"{verb}_{noun}",
            f"{verb}_{noun}",
            f"{noun}_{verb}",
            f"{verb}_{values.pick(ADJECTIVES)}_{noun}",
            verb,
            f"{verb}{noun.capitalize()}",
        ]
    )
    keys = values.several(values.rng.choices((1, 2, 3), (5, 4, 2))[0], lambda: _parameter_name(values))
    properties, arguments, written = {}, {}, {}
    for key in keys:
        kind = values.pick(["string", "string", "string", "integer", "integer", "number", "boolean", "enum"])
        properties[key], arguments[key], written[key] = _typed_value(values, kind)
        if values.chance(0.25):
            properties[key]["description"] = values.pick(
                [
                    f"The {key.replace('_', ' ')}.",
                    f"The {key.replace('_', ' ')} of the {noun}",
                    f"{values.pick(ADJECTIVES)} {key}",
                ]
            )
    about = values.pick(
        [
            f"{verb.capitalize()} the {noun}.",
            f"{verb.capitalize()} a {noun}.",
            f"{verb.capitalize()} {noun}s.",
            f"This will {verb} the {noun}.",
            "",
        ]
    )
    if values.chance(0.12):  # how LlamaIndex describes a Python function
        signature = ", ".join(
            f"{key}: {'int' if schema['type'] == 'integer' else 'str'}" for key, schema in properties.items()
        )
        about = f"{name}({signature}) -> str\n{about}"
    return Request(declare(name, about, properties), _invented_text(values, name, verb, noun, written), arguments)


def _invented_text(values: Values, name: str, verb: str, noun: str, written: dict[str, str]) -> str:
    pairs = [(key if values.chance(0.5) else key.replace("_", " "), value) for key, value in written.items()]
    joined = values.pick([", ", " and ", ", "]).join(
        values.pick([f"{k} {v}", f"{k} {v}", f"{k} '{v}'"]) for k, v in pairs
    )
    equal = ", ".join(f"{k}={v}" for k, v in written.items())
    only = ", ".join(written.values())
    texts = [
        f"Call {name} with {joined}.",
        f"Use {name} with {joined}.",
        f"{verb.capitalize()} the {noun} with {joined}.",
        f"Please {verb} the {noun} with {joined}.",
        f"{name}({equal})",
        f"Call {name}({equal}).",
        f"I want to {verb} a {noun}: {joined}.",
        f"{verb.capitalize()} a {noun} with {joined}",
        f"Run {name} using {joined}. Use the tool.",
    ]
    if len(written) == 1:
        texts += [
            f"{verb.capitalize()} the {noun} {only}.",
            f"{verb.capitalize()} {noun} {only}",
            f"Call {name} with {only}.",
            f"What is the value of {name}({only})? Use the tool.",
            f"{verb.capitalize()} the {noun} for {only}.",
        ]
    return values.pick(texts)


REQUESTS: list[Callable[[Values], Request]] = [
    weather,
    weather,
    magic,
    magic,
    arithmetic,
    arithmetic,
    search,
    customer,
    styled,
    invented,
    invented,
    invented,
    invented,
    invented,
    invented,
]


def any_request(values: Values) -> Request:
    return values.pick(REQUESTS)(values)


def with_others(values: Values, request: Request) -> list[Tool]:
    """The request's tool among up to three others, shuffled."""
    tools = {request.name: request.tool}
    for _ in range(values.rng.choices((0, 1, 2, 3), (8, 6, 3, 1))[0]):
        other = any_request(values)
        tools.setdefault(other.name, other.tool)
    offered = list(tools.values())
    values.rng.shuffle(offered)
    return offered
