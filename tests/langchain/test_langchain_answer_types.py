"""Every type that pydantic's schemas are written for, in each method, on real vLLM: what an answer is held to.

tiny_chat knows none of these types: what is right in its answers is what the grammar has held.
"""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from pydantic import create_model

from langchain_vllm_local import ChatVLLM
from langchain_vllm_local._structured import Method
from shared_engine import InvalidInputError, LengthFinishReasonError
from tests.support.answer_types import ROOTS, TYPES, AnswerType

QUESTION = "Give me an answer."
ASKED = 2
# So hot that the model writes whatever it may.
HOT: dict[str, Any] = {
    "temperature": 1.5, "max_tokens": 250, "schema_max_length": 8, "schema_max_items": 2, "show_schema": False,
}  # fmt: skip
each_method = pytest.mark.parametrize(
    "method", ["json_schema", pytest.param("function_calling", marks=pytest.mark.long)]
)


def is_checked(each: AnswerType, method: Method) -> bool:
    return bool(each.left or (each.left_in_calls and method == "function_calling"))


async def outcomes(llm: ChatVLLM, each: AnswerType, method: Method) -> list[str]:
    kind = create_model("Answer", value=(each.kind, ...))
    structured = llm.with_structured_output(kind, method=method, include_raw=True, **HOT)
    found = []
    for _ in range(ASKED):
        answer = await structured.ainvoke(QUESTION)  # no seed: on a CPU vLLM dies of one where prompts come in parts
        error = answer["parsing_error"]
        assert isinstance(answer["parsed"], kind) or error is not None
        # Numbers, some patterns and what may be anything have no limit. And where a text without one has the marks of a
        # call's end in it, vLLM's parser ends the call there.
        is_cut = isinstance(error, LengthFinishReasonError) or "can't be parsed" in str(error)
        found.append("held" if error is None else "cut" if is_cut else str(error))
    return found


@each_method
async def test_an_answer_of_every_type_is_held_to_it(tiny_chat: dict[str, Any], method: Method) -> None:
    llm = ChatVLLM(**tiny_chat)
    held = [each for each in TYPES if not is_checked(each, method)]
    found = await asyncio.gather(*(outcomes(llm, each, method) for each in held))
    told = {each.name: outcome for each, outcome in zip(held, found, strict=True)}
    assert {name: outcome for name, outcome in told.items() if set(outcome) - {"held", "cut"}} == {}
    cut = [name for name, outcome in told.items() if "held" not in outcome]
    assert len(cut) <= len(held) // 4, cut


@each_method
async def test_what_is_not_held_is_taken_all_the_same(tiny_chat: dict[str, Any], method: Method) -> None:
    llm = ChatVLLM(**tiny_chat)
    checked = [each for each in TYPES if is_checked(each, method)]
    found = await asyncio.gather(*(outcomes(llm, each, method) for each in checked))
    told = [outcome for each in found for outcome in each]
    assert all(outcome in ("held", "cut") or "not valid for Answer" in outcome for outcome in told), told


@each_method
@pytest.mark.parametrize("root", ROOTS, ids=lambda root: root.name)
def test_a_type_by_itself_gives_its_value(tiny_chat: dict[str, Any], root: Any, method: Method) -> None:
    llm = ChatVLLM(**tiny_chat)
    if method == "function_calling" and not root.is_object:
        with pytest.raises(InvalidInputError, match="use method 'json_schema'"):
            llm.with_structured_output(root.kind, method=method)
        return
    structured = llm.with_structured_output(root.kind, method=method, include_raw=True, **HOT)
    answers = structured.batch([QUESTION] * 6)
    values = [answer["parsed"] for answer in answers if answer["parsing_error"] is None]
    assert values, [answer["parsing_error"] for answer in answers]
    assert all(isinstance(value, root.gives) for value in values)
