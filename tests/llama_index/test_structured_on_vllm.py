"""Structured output on real vLLM, and query engines that answer with an instance."""

from __future__ import annotations

import asyncio
from typing import Literal

import pytest
from llama_index.core import Document, SummaryIndex
from llama_index.core.callbacks import TokenCountingHandler
from llama_index.core.instrumentation.events import BaseEvent
from llama_index.core.response_synthesizers import Refine
from pydantic import BaseModel, Field

from llama_index_vllm_local import VLLM
from shared_engine import LengthFinishReasonError
from tests.llama_index.predictions import (
    PROMPT,
    QUESTION,
    WAYS,
    Colour,
    Person,
    every_way,
    in_mode,
)


@pytest.fixture
def real(llm: VLLM) -> VLLM:
    llm.repetition_penalty = 1.5  # tiny_chat may repeat itself within a string for ever
    return llm


@pytest.mark.parametrize("mode", ["default", "function"])
def test_answers_follow_the_class_on_vllm_and_cost_what_vllm_says(
    real: VLLM, counter: TokenCountingHandler, events: list[BaseEvent], mode: str
) -> None:
    llm = in_mode(real, mode)
    outputs = [WAYS[way](llm)[-1] for way in WAYS]
    assert {type(output) for output in outputs} == {Person}
    assert [output.age for output in outputs] == [31] * 4
    ends = [event.response.raw["usage"] for event in events if event.class_name() == "LLMChatEndEvent"]
    assert len(ends) == 4
    assert [count.total_token_count for count in counter.llm_token_counts] == [each["total_tokens"] for each in ends]


class Aged(BaseModel):
    age: int = Field(ge=0, le=150)


class Held(BaseModel):
    """Without strings, which tiny_chat would not end in a class so far from what it knows."""

    who: Aged
    size: Literal["small", "big"]
    colour: Colour
    other: Aged | None


def test_nested_classes_are_held_to_on_vllm(llm: VLLM) -> None:
    output = llm.structured_predict(Held, PROMPT, llm_kwargs={"max_tokens": 150}, fact="Anna is 31 years old.")
    assert isinstance(output, Held)
    assert isinstance(output.who, Aged)
    assert isinstance(output.colour, Colour)


class Palette(BaseModel):
    who: Aged
    colours: set[Colour] | None


def test_vllm_takes_a_class_with_sets(llm: VLLM) -> None:
    output = llm.structured_predict(Palette, PROMPT, llm_kwargs={"max_tokens": 150}, fact="Anna is 31 years old.")
    assert isinstance(output, Palette)


@every_way
def test_a_model_without_a_chat_template_is_held_to_the_class_as_well(
    real: VLLM, events: list[BaseEvent], way: str
) -> None:
    text = real.model_copy(update={"is_chat_model": False, "system_prompt": "Be exact."})
    assert isinstance(WAYS[way](text)[-1], Person)
    starts = [event for event in events if event.class_name() == "LLMCompletionStartEvent"]
    assert [start.prompt for start in starts] == [f"Be exact.\n\n{QUESTION}"]


@every_way
@pytest.mark.parametrize("mode", ["default", "function"])
def test_max_tokens_cuts_vllms_answer_off(real: VLLM, way: str, mode: str) -> None:
    with pytest.raises(LengthFinishReasonError):
        WAYS[way](in_mode(real, mode), max_tokens=4)


class Code(BaseModel):
    answer: Literal["4711", "unknown"]


@pytest.fixture
def index() -> SummaryIndex:
    facts = ["The access code of the archive is 4711.", "Anna is 31 years old.", "Bob lives in Paris."]
    return SummaryIndex.from_documents([Document(text=fact) for fact in facts])


@pytest.mark.parametrize("response_mode", ["compact", "refine", "tree_summarize"])
def test_query_engines_answer_with_an_instance(real: VLLM, index: SummaryIndex, response_mode: str) -> None:
    question = "What is the access code of the archive?"
    by_class = index.as_query_engine(llm=real, output_cls=Code, response_mode=response_mode)
    by_llm = index.as_query_engine(llm=real.as_structured_llm(Code), response_mode=response_mode)
    for answer in (by_class.query(question), asyncio.run(by_class.aquery(question)), by_llm.query(question)):
        assert isinstance(answer.response, Code)


def test_a_streaming_query_engine_gives_the_attribute_that_llama_index_reads(real: VLLM, index: SummaryIndex) -> None:
    engine = index.as_query_engine(llm=real, output_cls=Code, streaming=True)
    assert str(engine.query("What is the access code of the archive?")) in ("4711", "unknown")


@pytest.mark.skipif(not hasattr(Refine, "_update_response"), reason="core 0.14.13 leaves nothing out")
def test_a_query_engine_leaves_an_answer_out_that_was_cut_off_and_says_why(
    real: VLLM, index: SummaryIndex, caplog: pytest.LogCaptureFixture
) -> None:
    real.max_tokens = 2
    answer = index.as_query_engine(llm=real, output_cls=Code).query("What is the access code of the archive?")
    assert str(answer) == "Empty Response"
    assert "the answer was cut off (finish_reason 'length') before it was complete: raise max_tokens" in caplog.text
