"""The engine's answers as LlamaIndex's responses, whole and streamed."""

from __future__ import annotations

import json
from typing import Any

from llama_index.core.base.llms.types import (
    MessageRole,
    TextBlock,
    ThinkingBlock,
    ToolCallBlock,
)
from llama_index.core.callbacks.token_counting import get_tokens_from_response

from llama_index_vllm_local._answers import StreamedAnswer, to_chat_response, to_completion_response
from llama_index_vllm_local._messages import to_openai_messages
from llama_index_vllm_local._tools import to_tool_selections
from shared_engine import (
    Choice,
    GenerationChunk,
    GenerationResult,
    TokenUsage,
    ToolCall,
    ToolCallDelta,
)

ADD_CALL = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 2, "b": 3}'}}
ADD_TOOL = {"type": "function", "function": {"name": "add", "description": "", "parameters": {}}}
USAGE = TokenUsage(prompt_tokens=7, completion_tokens=5)
COUNTS = {"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12}


def result(**choice: Any) -> GenerationResult:
    return GenerationResult(
        choices=(Choice(**{"text": "", "finish_reason": "stop", **choice}),), usage=USAGE, request_id="r1", model="m"
    )


def test_a_whole_answer_carries_text_usage_and_finish_reason() -> None:
    response = to_chat_response(result(text="Hi"))
    assert (response.message.role, response.message.content) == (MessageRole.ASSISTANT, "Hi")
    assert response.additional_kwargs == COUNTS
    assert response.raw["usage"] == COUNTS
    assert (response.raw["id"], response.raw["model"]) == ("r1", "m")
    assert response.raw["choices"][0]["finish_reason"] == "stop"
    assert get_tokens_from_response(response) == (7, 5)
    assert get_tokens_from_response(to_completion_response(result(text="Hi"))) == (7, 5)


def test_what_the_server_tells_of_the_tokens_is_in_openais_form_in_raw_and_flat_beside_it() -> None:
    usage = TokenUsage(prompt_tokens=7, completion_tokens=5, cached_tokens=0, reasoning_tokens=3)
    response = to_completion_response(
        GenerationResult(choices=(Choice(text="Hi"),), usage=usage, request_id="r1", model="m")
    )
    assert response.raw["usage"] == {
        **COUNTS,
        "prompt_tokens_details": {"cached_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": 3},
    }
    assert response.additional_kwargs == {**COUNTS, "cached_tokens": 0, "reasoning_tokens": 3}
    assert get_tokens_from_response(response) == (7, 5)


def test_an_empty_answer_is_empty_text_not_none() -> None:
    assert to_chat_response(result()).message.content == ""


def test_all_choices_are_in_raw() -> None:
    several = GenerationResult(
        choices=(Choice(text="a"), Choice(text="b", index=1)), usage=USAGE, request_id="r1", model="m"
    )
    response = to_completion_response(several)
    assert response.text == "a"
    assert [choice["text"] for choice in response.raw["choices"]] == ["a", "b"]


def test_reasoning_becomes_a_thinking_block_apart_from_the_text() -> None:
    message = to_chat_response(result(text="Hi", reasoning="hm")).message
    assert [type(block) for block in message.blocks] == [ThinkingBlock, TextBlock]
    assert message.content == "Hi"


def test_tool_calls_are_in_blocks_and_in_additional_kwargs() -> None:
    call = ToolCall(id="c1", name="add", arguments='{"a": 2, "b": 3}')
    response = to_chat_response(result(tool_calls=(call,)))
    message = response.message
    assert [type(block) for block in message.blocks] == [ToolCallBlock]
    assert message.additional_kwargs["tool_calls"] == [ADD_CALL]
    (selection,) = to_tool_selections(response)
    assert (selection.tool_id, selection.tool_name, selection.tool_kwargs) == ("c1", "add", {"a": 2, "b": 3})
    assert to_openai_messages([message]) == [{"role": "assistant", "content": None, "tool_calls": [ADD_CALL]}]


def test_logprobs_list_the_sampled_token_first() -> None:
    chat = {
        "content": [
            {
                "token": "b",
                "logprob": -2.0,
                "bytes": [98],
                "top_logprobs": [
                    {"token": "a", "logprob": -0.1, "bytes": None},
                    {"token": "b", "logprob": -2.0, "bytes": [98]},
                ],
            }
        ]
    }
    text = {"tokens": ["b"], "token_logprobs": [-2.0], "top_logprobs": [{"a": -0.1, "b": -2.0}]}
    for logprobs in (chat, text):
        (token,) = to_chat_response(result(text="b", logprobs=logprobs)).logprobs or []
        assert [(entry.token, entry.logprob) for entry in token] == [("b", -2.0), ("a", -0.1)]
    plain = {"tokens": ["b"], "token_logprobs": [-2.0], "top_logprobs": None}
    assert to_completion_response(result(text="b", logprobs=plain)).logprobs is not None


def test_the_first_token_of_an_echoed_prompt_has_no_probability() -> None:
    echoed = {"tokens": ["a", "b"], "token_logprobs": [None, -2.0], "top_logprobs": [None, {"b": -2.0, "c": -3.0}]}
    (token,) = to_completion_response(result(text="ab", logprobs=echoed)).logprobs or []
    assert [entry.token for entry in token] == ["b", "c"]


# ---- streamed answers in

CHUNKS = [
    GenerationChunk(reasoning="h", request_id="r1", model="m"),
    GenerationChunk(reasoning="m", request_id="r1", model="m"),
    GenerationChunk(text="H", request_id="r1", model="m"),
    GenerationChunk(text="i", request_id="r1", model="m"),
    GenerationChunk(finish_reason="stop", request_id="r1", model="m"),
    GenerationChunk(usage=USAGE, request_id="r1", model="m"),
]


def test_each_piece_of_a_stream_holds_its_delta_and_the_whole_so_far() -> None:
    answer = StreamedAnswer()
    responses = [answer.add_to_chat(chunk) for chunk in CHUNKS]
    assert [response.delta for response in responses] == ["", "", "H", "i", "", ""]
    assert [response.message.content for response in responses] == ["", "", "H", "Hi", "Hi", "Hi"]
    assert [response.additional_kwargs.get("thinking_delta") for response in responses[:3]] == ["h", "m", None]
    assert responses[-1].message.blocks[0] == ThinkingBlock(content="hm")


def test_only_the_last_piece_has_the_usage_and_the_whole_summary() -> None:
    answer = StreamedAnswer()
    responses = [answer.add_to_completion(chunk) for chunk in CHUNKS]
    assert ["usage" in response.raw for response in responses] == [False] * 5 + [True]
    last = responses[-1]
    assert last.additional_kwargs == COUNTS
    assert get_tokens_from_response(last) == (7, 5)
    assert last.raw["choices"][0]["finish_reason"] == "stop"
    assert last.text == "Hi"
    assert not any(set(COUNTS) & set(response.additional_kwargs) for response in responses[:-1])


def test_probabilities_of_a_stream_are_those_of_all_its_tokens_so_far() -> None:
    answer = StreamedAnswer()
    pieces = [{"content": [{"token": token, "logprob": -1.0}]} for token in "ab"]
    chunks = [GenerationChunk(text="a", logprobs=pieces[0]), GenerationChunk(text="b", logprobs=pieces[1])]
    responses = [answer.add_to_chat(chunk) for chunk in [*chunks, GenerationChunk(usage=USAGE)]]
    seen = [[token[0].token for token in response.logprobs or []] for response in responses]
    assert seen == [["a"], ["a", "b"], ["a", "b"]]


def test_streamed_tool_calls_grow_piece_by_piece() -> None:
    deltas = [
        ToolCallDelta(index=0, id="c1"),
        ToolCallDelta(index=0, name="add"),
        ToolCallDelta(index=0, arguments='{"a": 2'),
        ToolCallDelta(index=1, id="c2", name="now", arguments="{}"),
        ToolCallDelta(index=0, arguments=', "b": 3}'),
    ]
    answer = StreamedAnswer()
    seen = [to_tool_selections(answer.add_to_chat(GenerationChunk(tool_calls=(delta,)))) for delta in deltas]
    assert [[call.tool_name for call in calls] for calls in seen] == [
        [], ["add"], ["add"], ["add", "now"], ["add", "now"],
    ]  # fmt: skip
    assert [calls[0].tool_kwargs for calls in seen[1:]] == [{}, {"a": 2}, {"a": 2}, {"a": 2, "b": 3}]
    assert [call.tool_id for call in seen[-1]] == ["c1", "c2"]


def test_raw_is_json() -> None:
    call = ToolCall(id="c1", name="add", arguments="{}")
    response = to_chat_response(result(text="Hi", tool_calls=(call,), reasoning="hm"))
    assert json.loads(json.dumps(response.raw))["choices"][0]["tool_calls"][0]["name"] == "add"
