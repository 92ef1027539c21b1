"""Templates: rendered as transformers does, given what vLLM gives them. Expectations were read off vLLM 0.32."""

from __future__ import annotations

import time
from typing import Any

import pytest

from shared_engine import InvalidInputError
from shared_engine.token_count.chat_template import ChatTemplate
from shared_engine.token_count.vllm_messages import (
    ContentFormat,
    doubt_of_messages,
    doubt_of_tools,
    template_messages,
    template_tools,
)

HELLO = [{"role": "user", "content": "Hello"}]


def rendered(text: str, messages: Any = HELLO, tools: Any = None, **variables: Any) -> str:
    return ChatTemplate(text).render(messages, tools, variables, {"bos_token": "<s>"})


# ---- rendering


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{{ bos_token }}{{ messages[0]['content'] }}{{ eos_token }}", "<s>Hello"),
        ("a\n  {% if true %}\nb\n  {% endif %}\nc", "a\nb\nc"),
        ("{% for i in range(9) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}", "01"),
        ("{% generation %}{{ messages[0].content }}{% endgeneration %}", "Hello"),
        ("{{ {'b': '<é> & \\'', 'a': none} | tojson }}", '{"b": "<é> & \'", "a": null}'),
        (
            "{{ {'b': 1, 'a': [1.0, true]} | tojson(indent=1, sort_keys=true) }}",
            '{\n "a": [\n  1.0,\n  true\n ],\n "b": 1\n}',
        ),
        ("{{ add_generation_prompt }} {{ tools }} {{ documents }}", "True None None"),
        ("{{ level }} {{ bos_token }}", "high <B>"),
        ("{{ range(3) | list }}", "[0, 1, 2]"),  # a variable does not replace what jinja has
        ("{{ messages | tojson }}", '[{"role": "user", "content": "Hello"}]'),
    ],
)
def test_it_is_rendered_as_transformers_does(text: str, expected: str) -> None:
    assert rendered(text, level="high", range=1, bos_token="<B>" if "level" in text else "<s>") == expected


def test_the_date_is_todays() -> None:
    assert rendered("{{ strftime_now('%d %b %Y') }}") in {time.strftime("%d %b %Y"), time.strftime("%d %b %Y")}


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("{{ raise_exception('Roles must alternate') }}", "Roles must alternate$"),
        ("{{ messages[0].content + 1 }}", "concatenate"),
        ("{% if %}", "Expected an expression"),
        ("{{ 1 | no_such_filter }}", "no_such_filter"),
        ("{{ messages.append(1) }}", "unsafe"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
    ],
)
def test_what_it_refuses_or_can_not_do_is_told(text: str, match: str) -> None:
    with pytest.raises(InvalidInputError, match=match):
        rendered(text)


# ---- the format of the content

OPENAI = "{% for message in messages %}{% for part in message['content'] %}{{ part }}{% endfor %}{% endfor %}"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{{ messages }}", "string"),
        ("{% for message in messages %}{{ message['content'] }}{% endfor %}", "string"),
        (OPENAI, "openai"),
        (OPENAI.replace("['content']", ".content"), "openai"),
        (OPENAI.replace("['content']", ".content | reverse"), "openai"),
        (OPENAI.replace("in messages", "in messages[1:]"), "openai"),
        (OPENAI.replace("['content']", ".parts"), "string"),
        ("{% set loop_messages = messages %}" + OPENAI.replace("in messages", "in loop_messages"), "openai"),
        ("{% set a = messages[1:] %}{% set b = a %}" + OPENAI.replace("in messages", "in b"), "openai"),
        ("{% set messages = messages[1:] %}" + OPENAI, "openai"),
        (
            "{% for m in messages %}{% set content = m.content %}{% for c in content %}{{ c }}{% endfor %}{% endfor %}",
            "openai",
        ),
        (
            "{% for m in messages %}{% set text = m.content %}{% for c in text %}{{ c }}{% endfor %}{% endfor %}",
            "string",
        ),
        (
            "{% macro show(x) %}{% for c in x %}{{ c }}{% endfor %}{% endmacro %}"
            "{% for m in messages %}{{ show(m.content) }}{% endfor %}",
            "openai",
        ),
        (
            "{% macro show(y, x=1) %}{% for c in x %}{{ c }}{% endfor %}{% endmacro %}"
            "{% for m in messages %}{{ show(1, x=m['content']) }}{% endfor %}",
            "openai",
        ),
        (
            "{% macro show(content) %}{% for c in content %}{{ c }}{% endfor %}{% endmacro %}"
            "{% for m in messages %}{{ show(m.role) }}{% endfor %}",
            "string",
        ),
        ("{% for role, content in messages %}{% for c in content %}{{ c }}{% endfor %}{% endfor %}", "string"),
        ("{% if %}", "string"),
    ],
)
def test_the_content_format_is_found_out_as_vllm_does(text: str, expected: str) -> None:
    assert ChatTemplate(text).content_format == expected


def test_a_content_format_that_was_given_wins() -> None:
    message = [{"role": "user", "content": "a"}]
    assert ChatTemplate(OPENAI, "string").render(message, None, {}, {}) == "a"
    assert ChatTemplate(OPENAI).render(message, None, {}, {}) == "{'type': 'text', 'text': 'a'}"


def test_templates_that_assign_in_a_circle_end() -> None:
    assert ChatTemplate("{% set a = messages %}{% set messages = a %}" + OPENAI).content_format == "openai"


# ---- what a template gets


def parts(*texts: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": text} for text in texts]


def call(arguments: str) -> dict[str, Any]:
    return {"type": "function", "id": "c1", "function": {"name": "f", "arguments": arguments}}


@pytest.mark.parametrize(
    ("message", "as_string", "as_parts"),
    [
        ({"role": "user", "content": "a"}, {"content": "a"}, {"content": parts("a")}),
        ({"role": "user", "content": ""}, {"content": ""}, {"content": parts("")}),
        ({"role": "user", "content": []}, {"content": ""}, {"content": []}),
        ({"role": "user", "content": parts("a", "b")}, {"content": "a\nb"}, {"content": parts("a", "b")}),
        (
            {"content": "a", "name": "Bob", "role": "user"},
            {"content": "a", "name": "Bob"},
            {"content": parts("a"), "name": "Bob"},
        ),
        (
            {"role": "developer", "content": "a"},
            {"content": "a", "tools": None},
            {"content": parts("a"), "tools": None},
        ),
        ({"role": "assistant"}, {"content": ""}, {"content": []}),
        ({"role": "assistant", "content": None, "tool_calls": []}, {"content": ""}, {"content": []}),
        (
            {"role": "assistant", "content": "a", "reasoning": "why"},
            {"content": "a", "reasoning": "why", "reasoning_content": "why"},
            {"content": parts("a"), "reasoning": "why", "reasoning_content": "why"},
        ),
        ({"role": "assistant", "content": "a", "reasoning": None}, {"content": "a"}, {"content": parts("a")}),
        # Tools' answers are strings in either format.
        (
            {"role": "tool", "tool_call_id": "c1", "name": "f", "content": parts("a", "b")},
            {"content": "a\nb", "tool_call_id": "c1", "name": "f"},
            {"content": "a\nb", "tool_call_id": "c1", "name": "f"},
        ),
    ],
)
def test_a_message_becomes_what_vllm_makes_of_it(
    message: dict[str, Any], as_string: dict[str, Any], as_parts: dict[str, Any]
) -> None:
    formats: list[tuple[ContentFormat, dict[str, Any]]] = [("string", as_string), ("openai", as_parts)]
    for content_format, expected in formats:
        assert doubt_of_messages([message]) is None
        (sent,) = template_messages([message], content_format)
        assert list(sent.items()) == list({"role": message["role"], **expected}.items())  # templates may print it whole


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ('{"b": 1, "a": [2.0, null]}', {"b": 1, "a": [2.0, None]}),
        ("", {}),
        ("not json", {}),
        ("[1, 2]", {}),
        ("null", {}),
    ],
)
def test_arguments_of_tool_calls_are_objects(arguments: str, expected: dict[str, Any]) -> None:
    (sent,) = template_messages([{"role": "assistant", "tool_calls": [call(arguments)]}], "string")
    (told,) = sent["tool_calls"]
    assert told == {"id": "c1", "function": {"arguments": expected, "name": "f"}, "type": "function"}
    assert list(told["function"]) == ["arguments", "name"]


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        ({"name": "f"}, {"name": "f", "description": None, "parameters": None}),
        (
            {"strict": True, "parameters": {"z": 1, "a": 2}, "name": "f"},
            {"name": "f", "description": None, "parameters": {"z": 1, "a": 2}, "strict": True},
        ),
        ({"name": "f", "description": "d", "strict": None}, {"name": "f", "description": "d", "parameters": None}),
    ],
)
def test_a_tool_becomes_what_vllm_makes_of_it(function: dict[str, Any], expected: dict[str, Any]) -> None:
    for tool in ({"type": "function", "function": function}, {"function": function}):
        assert doubt_of_tools([tool]) is None
        (sent,) = template_tools([tool])
        assert list(sent) == ["type", "function"]
        assert list(sent["function"].items()) == list(expected.items())


ROLES = "{% for message in messages %}[{{ message.role }}: {{ message.content }}]{% endfor %}"


@pytest.mark.parametrize(
    ("text", "roles", "expected"),
    [
        (ROLES, "developer user", "[system: 0][user: 1]"),
        (ROLES, "system developer user", "[system: 0\n\n1][user: 2]"),
        (ROLES, "user developer system", "[system: 1\n\n2][user: 0]"),
        (ROLES + "{# 'developer' #}", "system developer user", "[system: 0][developer: 1][user: 2]"),
        (ROLES, "user system", "[user: 0][system: 1]"),
    ],
)
def test_developers_are_system_where_the_template_does_not_know_them(text: str, roles: str, expected: str) -> None:
    messages = [{"role": role, "content": str(index)} for index, role in enumerate(roles.split())]
    assert rendered(text, messages) == expected


def test_developers_parts_are_joined_when_they_are_made_one() -> None:
    messages = [{"role": "user", "content": "u"}, {"role": "developer", "content": parts("a", "b")}]
    goes_through_parts = "{% for m in messages %}{% for c in m.content %}{% endfor %}{% endfor %}"
    assert (
        rendered("{{ messages[0].role }}: {{ messages[0].content }}" + goes_through_parts, messages) == "system: a\nb"
    )
