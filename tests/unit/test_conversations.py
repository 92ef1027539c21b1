"""What chat templates don't take of a conversation, and the forms that they take."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared_engine.conversations.reshaping import ASSISTANT_GOES_ON, NO_RESULT, USER_GOES_ON, reshaped
from shared_engine.conversations.templates import refused_by, refused_here
from shared_engine.conversations.traits import NONE, Trait, answered_calls, traits_of
from shared_engine.settings import EngineSettings
from tests.support.generated import few
from tests.support.paths import TINY_CHAT
from tests.support.small_tokenizers import make_folder
from tests.support.strict_templates import TEMPLATES, rendered

SYSTEM, LATE, NEIGHBOURS, OPENING, ENDING, EMPTY, TOOLS, AFTER_TOOL, UNPAIRED, CALL_IDS, MEDIA = Trait

s, u, a = ({"role": role, "content": role[0]} for role in ("system", "user", "assistant"))
d: dict[str, Any] = {"role": "developer", "content": "d"}
e: dict[str, Any] = {"role": "assistant", "content": ""}
picture: dict[str, Any] = {"type": "image_url", "image_url": {"url": "https://x.example/a.png"}}


def said(role: str, content: Any, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


def calling(*ids: str | None, name: str = "f") -> dict[str, Any]:
    calls = [{"type": "function", "function": {"name": name, "arguments": '{"a": 1}'}} for _ in ids]
    return said("assistant", None, tool_calls=[{**call, "id": each} for call, each in zip(calls, ids, strict=True)])


def result(call_id: str | None = None, content: Any = "r", **more: Any) -> dict[str, Any]:
    return said("tool", content, **({} if call_id is None else {"tool_call_id": call_id}), **more)


ID, OTHER = "abcdefghi", "abcdefghj"


@pytest.mark.parametrize(
    ("messages", "traits"),
    [
        ([u], NONE),
        ([u, a, u], NONE),
        ([s, u], SYSTEM),
        ([d, u], SYSTEM),
        ([s, s, u], SYSTEM | LATE),
        ([s, d, u], SYSTEM | LATE),
        ([u, a, s, u], SYSTEM | LATE),
        ([u, s, u], SYSTEM | LATE | NEIGHBOURS),
        ([u, u], NEIGHBOURS),
        ([u, a, a, u], NEIGHBOURS),
        ([u, calling(ID), a, u], NEIGHBOURS | TOOLS | UNPAIRED),
        ([a, u], OPENING),
        ([s], SYSTEM | OPENING),
        ([s, a, u], SYSTEM | OPENING),
        ([u, a], ENDING),
        ([u, calling(ID)], TOOLS | UNPAIRED),
        ([u, e, u], EMPTY),
        ([u, said("assistant", None), u], EMPTY),
        ([u, said("assistant", [{"type": "text", "text": ""}]), u], EMPTY),
        ([u, calling(ID), result(ID)], TOOLS),
        ([u, calling(ID), result(ID), a, u], TOOLS),
        ([u, calling(ID), result(ID), u], TOOLS | AFTER_TOOL),
        ([u, calling("call_1"), result("call_1")], TOOLS | CALL_IDS),
        ([u, calling(None), result()], TOOLS | CALL_IDS),
        ([u, calling(ID, OTHER), result(ID)], TOOLS | UNPAIRED),
        ([result(ID), u], TOOLS | UNPAIRED | OPENING | AFTER_TOOL),
        ([said("user", [picture])], NONE),
        ([said("user", [picture]), u], NEIGHBOURS),
        ([said("user", [picture]), a, u], MEDIA),
        ([u, calling(ID), result(ID, [picture])], TOOLS | MEDIA),
        ([u, said("assistant", [picture]), u], MEDIA),
        ([u, said("assistant", None, tool_calls="f")], TOOLS),
        ([u, said("assistant", None, tool_calls=[{"id": 5}])], TOOLS | UNPAIRED | CALL_IDS),
    ],
)
def test_a_conversation_has_these_traits(messages: list[dict[str, Any]], traits: Trait) -> None:
    assert traits_of(messages) == traits


def test_an_answer_to_be_continued_is_no_end() -> None:
    assert traits_of([u, a], is_continued=True) == NONE


@pytest.mark.parametrize(
    ("messages", "refused", "made"),
    [
        ([s, u, said("system", "t"), u], LATE, [said("system", "s\n\nt"), u, u]),
        ([u, a, s, u], LATE, [s, u, a, u]),
        ([d, said("developer", "t"), u], LATE, [said("developer", "d\n\nt"), u]),
        ([s, d, u], LATE, [said("system", "s\n\nd"), u]),
        ([s, u], LATE, [s, u]),
        ([u, said("user", "v"), a], NEIGHBOURS, [said("user", "u\n\nv"), a]),
        ([u, a, said("assistant", "b")], NEIGHBOURS, [u, said("assistant", "a\n\nb")]),
        ([u, said("user", "")], NEIGHBOURS, [u]),
        (
            [said("user", [picture]), u],
            NEIGHBOURS,
            [said("user", [picture, {"type": "text", "text": "u"}])],
        ),
        (
            [said("user", [picture, {"type": "text", "text": "v"}]), u],
            NEIGHBOURS,
            [said("user", [picture, {"type": "text", "text": "v\n\nu"}])],
        ),
        (
            [said("user", "one", name="Ann"), said("user", "two", name="Bob")],
            NEIGHBOURS,
            [said("user", "Ann: one\n\nBob: two")],
        ),
        (
            [said("user", "one", name="Ann"), said("user", "two", name="Ann")],
            NEIGHBOURS,
            [said("user", "one\n\ntwo", name="Ann")],
        ),
        (
            [said("assistant", "a", reasoning="x"), said("assistant", "b", reasoning="y")],
            NEIGHBOURS,
            [said("assistant", "a\n\nb", reasoning="x\n\ny")],
        ),
        (
            [a, calling(ID), result(ID)],
            NEIGHBOURS,
            [said("assistant", "a", tool_calls=calling(ID)["tool_calls"]), result(ID)],
        ),
        ([calling(ID), calling(OTHER)], NEIGHBOURS, [calling(ID, OTHER)]),
        ([s, u], SYSTEM, [said("user", "s\n\nu")]),
        ([s, a, u], SYSTEM, [said("user", "s"), a, u]),
        ([s], SYSTEM, [said("user", "s")]),
        ([s, said("user", [picture])], SYSTEM, [said("user", [{"type": "text", "text": "s"}, picture])]),
        ([s], OPENING, [said("user", "s")]),
        ([s, a, u], OPENING, [s, said("user", USER_GOES_ON), a, u]),
        ([u, a], ENDING, [u, a, said("user", USER_GOES_ON)]),
        ([u, calling(ID)], ENDING, [u, calling(ID)]),
        ([u, e, u], EMPTY, [u, u]),
        ([u, e, u], EMPTY | NEIGHBOURS, [said("user", "u\n\nu")]),
        ([e], EMPTY, [e]),
        (
            [u, calling(ID), result(ID), u],
            AFTER_TOOL,
            [u, calling(ID), result(ID), said("assistant", ASSISTANT_GOES_ON), u],
        ),
        (
            [u, calling(ID, OTHER), result(OTHER), u],
            UNPAIRED,
            [u, calling(ID, OTHER), result(OTHER), result(ID, NO_RESULT), u],
        ),
        ([u, calling(ID)], UNPAIRED, [u, calling(ID), result(ID, NO_RESULT)]),
        ([result(ID, name="f"), u], UNPAIRED, [said("user", "[result of f]\nr"), u]),
        (
            [u, calling(ID), result(ID), a],
            TOOLS,
            [u, said("assistant", '[call of f: {"a": 1}]'), said("user", "[result of f]\nr"), a],
        ),
        ([result(), u], TOOLS, [said("user", "[result of a tool]\nr"), u]),
        ([u, a, said("user", [picture])], MEDIA, [u, a, said("user", [picture])]),
        (
            [said("user", [picture]), a, u],
            MEDIA,
            [said("user", [{"type": "text", "text": "[image at https://x.example/a.png is not shown]"}]), a, u],
        ),
        (
            [u, calling(ID), result(ID, [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}])],
            MEDIA,
            [u, calling(ID), result(ID, [{"type": "text", "text": "[image (image/png) is not shown]"}])],
        ),
    ],
)  # fmt: skip
def test_what_is_refused_is_said_in_another_form(
    messages: list[dict[str, Any]], refused: Trait, made: list[dict[str, Any]]
) -> None:
    before = json.dumps(messages)
    assert reshaped(messages, refused) == made
    assert json.dumps(messages) == before


def test_ids_become_mistrals_and_stay_with_their_results() -> None:
    messages = [
        u,
        calling("call_1", "call_1", ID),
        result("call_1"),
        result("call_1"),
        result(ID),
        calling(None),
        result(),
    ]
    made = reshaped(messages, CALL_IDS)
    ids = [call["id"] for call in made[1]["tool_calls"]] + [made[5]["tool_calls"][0]["id"]]
    assert len(set(ids)) == 4
    assert ids[2] == ID
    assert [message["tool_call_id"] for message in made if message["role"] == "tool"] == ids
    assert traits_of(made) == TOOLS
    assert reshaped([*messages, a, u], CALL_IDS)[:7] == made  # as the conversation goes on


def test_a_result_that_names_no_call_is_of_the_first_without_one_or_of_its_tool() -> None:
    both = said("assistant", None, tool_calls=calling("1")["tool_calls"] + calling("2", name="g")["tool_calls"])
    assert answered_calls([both, result(), result()])[0] == {1: (0, 0), 2: (0, 1)}
    assert answered_calls([both, result(name="g"), result(name="f")])[0] == {1: (0, 1), 2: (0, 0)}
    assert answered_calls([both, result("2"), u, result("1")]) == ({1: (0, 1)}, {(0, 0)})


# ---- templates


@pytest.mark.parametrize(
    ("family", "refused"),
    [
        ("gemma 2", SYSTEM | LATE | NEIGHBOURS | OPENING | TOOLS | AFTER_TOOL | UNPAIRED | CALL_IDS),
        ("gemma 3", LATE | NEIGHBOURS | OPENING | TOOLS | AFTER_TOOL | UNPAIRED | CALL_IDS),
        ("qwen 3.5", LATE | OPENING),
        ("mistral", LATE | NEIGHBOURS | OPENING | EMPTY | AFTER_TOOL | UNPAIRED | CALL_IDS),
        ("mistral-common", LATE | OPENING | ENDING | TOOLS | AFTER_TOOL | UNPAIRED | CALL_IDS),
        ("drops", LATE | TOOLS | AFTER_TOOL | UNPAIRED | CALL_IDS),
    ],
)
def test_a_template_is_asked_what_it_refuses_or_leaves_out(family: str, refused: Trait) -> None:
    assert refused_by(TEMPLATES[family], {}) == refused


PARTS = "{% for m in messages %}{% for part in m.content %}{{ part.text }}{% endfor %}{% endfor %}"


def test_a_template_that_goes_through_parts_is_given_parts() -> None:
    assert refused_by(PARTS, {}) is not None
    assert LATE not in (refused_by(PARTS, {}) or LATE)


@pytest.mark.parametrize("template", ["{% nonsense %}", "{{ raise_exception('no') }}", "Hello"])
def test_of_a_template_that_can_not_be_asked_nothing_is_known(template: str) -> None:
    assert refused_by(template, {}) is None


_letters = st.lists(st.sampled_from("sduaect"), min_size=1, max_size=9)


def conversation(letters: list[str]) -> list[dict[str, Any]]:
    kinds = {"s": "system", "d": "developer", "u": "user", "a": "assistant"}
    made: list[dict[str, Any]] = []
    for at, letter in enumerate(letters):
        if letter == "c":
            made.append(calling(f"call_{at}", name=f"<f{at}>"))
        elif letter == "t":
            made.append(result(f"call_{at - 1}", f"<{at}>"))
        elif letter == "e":
            made.append(e)
        else:
            made.append(said(kinds[letter], f"<{at}>"))
    return made


@pytest.mark.slow
@pytest.mark.parametrize("family", TEMPLATES)
def test_each_template_takes_any_conversation_in_its_form_and_shows_all_of_it(family: str) -> None:
    refused = refused_by(TEMPLATES[family], {})
    assert refused

    @few
    @given(_letters)
    def holds(letters: list[str]) -> None:
        messages = conversation(letters)
        if all(message == e for message in messages):
            return
        made = reshaped(messages, refused) if traits_of(messages) & refused else messages
        prompt = rendered(TEMPLATES[family], made)
        for message in messages:
            assert (message["content"] or "") in prompt
            assert all(call["function"]["name"] in prompt for call in message.get("tool_calls", ()))
        others = [message["content"] for message in messages if message["role"] in ("user", "assistant", "tool")]
        places = [prompt.index(content) for content in others if content]
        assert places == sorted(places)

    holds()


# ---- of a model's files


def settings(folder: Path, **more: Any) -> EngineSettings:
    return EngineSettings(model=str(folder), **more)


def test_the_template_is_that_of_the_model_or_the_one_that_is_given(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "model", files={"chat_template.jinja": TEMPLATES["qwen 3.5"]})
    assert refused_here(settings(folder)) == LATE | OPENING
    file = tmp_path / "own.jinja"
    file.write_text(TEMPLATES["gemma 2"])
    for given_template in (TEMPLATES["gemma 2"], str(file)):
        assert SYSTEM in (refused_here(settings(folder, engine_args={"chat_template": given_template})) or NONE)
    assert refused_here(settings(folder, engine_args={"chat_template": "template_of_vllm.jinja"})) is None
    other = make_folder(tmp_path / "other", files={"chat_template.jinja": TEMPLATES["gemma 2"]})
    assert SYSTEM in (refused_here(settings(folder, tokenizer=str(other))) or NONE)


def test_where_the_template_is_not_known_here_nothing_is_refused_before(tmp_path: Path) -> None:
    oss = make_folder(tmp_path, model={"model_type": "gpt_oss"}, files={"chat_template.jinja": TEMPLATES["drops"]})
    assert refused_here(settings(oss)) is None
    assert refused_here(EngineSettings(model="nobody/never-downloaded")) is None
    assert refused_here(EngineSettings(base_url="http://127.0.0.1:9", model="served")) is None


def test_tiny_chat_takes_all() -> None:
    assert refused_here(settings(TINY_CHAT)) == NONE
