"""Every type that pydantic's schemas are written for, in each mode, on real vLLM: what an answer is held to."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from llama_index.core import PromptTemplate
from pydantic import ValidationError, create_model

from llama_index_vllm_local import VLLM
from shared_engine import LengthFinishReasonError
from tests.llama_index.predictions import in_mode
from tests.support.answer_types import TYPES, AnswerType

PROMPT = PromptTemplate("Give me an answer.")
HOT: dict[str, Any] = {"temperature": 1.5, "max_tokens": 250, "show_schema": False}


async def outcome(llm: VLLM, each: AnswerType) -> str:
    kind = create_model("Answer", value=(each.kind, ...))
    try:
        assert isinstance(await llm.astructured_predict(kind, PROMPT, llm_kwargs=HOT), kind)
    except LengthFinishReasonError:
        return "cut"  # a number may have any length
    except ValidationError as exc:
        return str(exc)
    except ValueError as exc:
        # By vLLM's parser, where a text without a limit has the marks of a call's end in it.
        return "cut" if "is not made: its arguments are not valid JSON" in str(exc) else str(exc)
    return "held"


@pytest.mark.parametrize("mode", ["default", "function"])
async def test_an_answer_of_every_type_is_held_to_it_or_checked(tiny_chat: dict[str, Any], mode: str) -> None:
    llm = in_mode(VLLM(**tiny_chat, schema_max_length=8, schema_max_items=2), mode)
    found = await asyncio.gather(*(outcome(llm, each) for each in TYPES))
    told = {each.name: what for each, what in zip(TYPES, found, strict=True) if what != "held"}
    held = [each for each in TYPES if not (each.left or (each.left_in_calls and mode == "function"))]
    assert {each.name: told[each.name] for each in held if told.get(each.name, "cut") != "cut"} == {}
    assert list(found).count("cut") <= len(TYPES) // 2, told
