"""Conversations rendered here: the forms that are known, those that are the server's, and templates that differ."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from shared_engine.token_count.chat_template import ChatTemplate
from shared_engine.token_count.source import ServerOnlyError

ALL = "{{ bos_token }}{% for m in messages %}{{ m | tojson }}\n{% endfor %}{{ tools | tojson if tools }}{{ thinking }}"
HELLO: list[Any] = [{"role": "user", "content": "Hello"}]
CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}


def exported(template: str = ALL, content_format: str = "string", probes: Any = ()) -> dict[str, Any]:
    one = {"template": template, "content_format": content_format}
    return {"plain": one, "tools": one, "special_tokens": {"bos_token": "<s>"}, "probes": probes}


@pytest.mark.parametrize(
    ("message", "rendered"),
    [
        ({"role": "user", "content": "é"}, '{"role": "user", "content": "é"}'),
        ({"role": "user", "content": None}, '{"role": "user", "content": ""}'),
        (
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], "name": "Ann"},
            '{"role": "user", "content": "a\\nb", "name": "Ann"}',
        ),
        (
            {"role": "assistant", "content": "a", "reasoning_content": "b", "tool_calls": []},
            '{"role": "assistant", "content": "a", "reasoning": "b", "reasoning_content": "b"}',
        ),
        (
            {"role": "assistant", "tool_calls": [CALL, {**CALL, "function": {"name": "g", "arguments": ""}}]},
            '{"role": "assistant", "content": "", "tool_calls": [{"id": "1", "function": {"arguments": {"a": 1}, '
            '"name": "f"}, "type": "function"}, {"id": "1", "function": {"arguments": {}, "name": "g"}, '
            '"type": "function"}]}',
        ),
        (
            {"role": "tool", "tool_call_id": "1", "content": "x"},
            '{"role": "tool", "content": "x", "tool_call_id": "1"}',
        ),
    ],
)
def test_plain_forms(message: dict[str, Any], rendered: str) -> None:
    assert ChatTemplate(exported()).prompt([message], None, {}) == f"<s>{rendered}\n"


def test_parts_stay_parts_where_the_template_takes_them() -> None:
    prompt = ChatTemplate(exported(content_format="openai")).prompt(HELLO, None, {"thinking": "on"})
    assert prompt == '<s>{"role": "user", "content": [{"type": "text", "text": "Hello"}]}\non'


def test_tools_get_the_fields_that_vllm_gives_them() -> None:
    tools = [
        {"type": "function", "function": {"name": "f"}},
        {"type": "function", "function": {"strict": True, "parameters": {}, "name": "g", "description": "d"}},
    ]
    prompt = ChatTemplate(exported("{{ tools | tojson }}")).prompt(HELLO, tools, {})
    assert prompt == (
        '[{"type": "function", "function": {"name": "f", "description": null, "parameters": null}}, '
        '{"type": "function", "function": {"name": "g", "description": "d", "parameters": {}, "strict": true}}]'
    )


@pytest.mark.parametrize(
    "message",
    [
        {"role": "developer", "content": "a"},
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]},
        {"role": "user", "content": [{"type": "text", "text": "a", "cache_control": {}}]},
        {"role": "user", "content": ["a"]},
        {"role": "user", "content": 5},
        {"role": "user", "content": "a", "task": "b"},
        {"role": "system", "content": "x-anthropic-billing-header: a"},
        {"role": "assistant", "tool_calls": [{**CALL, "function": {"name": "f", "arguments": "{"}}]},
        {"role": "assistant", "tool_calls": [{**CALL, "function": {"name": "f", "arguments": "[1]"}}]},
        {"role": "assistant", "tool_calls": [{**CALL, "type": "custom"}]},
        {"role": "assistant", "tool_calls": [{"function": CALL["function"]}]},
        {"role": "assistant", "tool_calls": "f"},
        {"content": "a"},
    ],
)
def test_other_forms_are_the_servers(message: dict[str, Any]) -> None:
    assert ChatTemplate(exported()).prompt([message], None, {}) is None


@pytest.mark.parametrize("tool", [{"type": "custom", "function": {"name": "f"}}, {"name": "f"}, {"type": "function"}])
def test_other_tools_are_the_servers(tool: dict[str, Any]) -> None:
    assert ChatTemplate(exported()).prompt(HELLO, [tool], {}) is None


@pytest.mark.parametrize("name", ["add_generation_prompt", "continue_final_message", "chat_template", "documents"])
def test_switches_of_the_rendering_are_the_servers(name: str) -> None:
    assert ChatTemplate(exported()).prompt(HELLO, None, {name: True}) is None


def test_what_the_template_refuses_is_left_to_the_server_to_say() -> None:
    assert ChatTemplate(exported("{{ raise_exception('no') }}")).prompt(HELLO, None, {}) is None


def test_a_template_reaches_nothing_of_this_process() -> None:
    attack = "{{ ().__class__.__base__.__subclasses__() }}{{ messages.append(1) }}"
    assert ChatTemplate(exported(attack)).prompt(HELLO, None, {}) is None


def test_where_a_probe_differs_nothing_is_counted_here() -> None:
    probe: Any = (HELLO, None, {}, "Hello")
    assert ChatTemplate(exported("{{ messages[0].content }}", probes=[probe]))
    with pytest.raises(ServerOnlyError, match=r"another prompt here than in vLLM: \[\{'role': 'user'"):
        ChatTemplate(exported("{{ messages[0].content }}!", probes=[probe]))
    with pytest.raises(ServerOnlyError, match="another prompt"):
        ChatTemplate(exported("{{ raise_exception('no') }}", probes=[probe]))


def test_a_template_that_tells_the_day_is_known_on_other_days_too() -> None:
    day = "{{ strftime_now('%Y-%m-%d') }}"
    assert ChatTemplate(exported(day, probes=[(HELLO, None, {}, "1999-12-31")]))
    with pytest.raises(ServerOnlyError, match="another prompt"):
        ChatTemplate(exported(day, probes=[(HELLO, None, {}, "1999-12-31!")]))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"refusal": "of its kind"}, "of its kind"),
        (exported("{% nonsense %}"), "jinja2 here can't read its chat template"),
    ],
)
def test_what_can_t_be_rendered_here_says_why(given: dict[str, Any], words: str) -> None:
    with pytest.raises(ServerOnlyError, match=words):
        ChatTemplate(given)


def test_without_jinja2_the_server_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(ServerOnlyError, match="jinja2 is not installed here: pip install jinja2"):
        ChatTemplate(exported())
