"""The eight endpoints on real vLLM: text, usage, streams, concurrency, errors."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import Callable
from typing import Any

import pytest
from llama_index.core import PromptTemplate
from llama_index.core.base.llms.types import TextBlock, ThinkingBlock
from llama_index.core.callbacks import LlamaDebugHandler
from llama_index.core.llms import ChatMessage, ChatResponse

from llama_index_vllm_local import VLLM
from shared_engine import ContextLengthError, Engine
from tests.llama_index.ways import ENDPOINTS, MESSAGES, QUESTION, STREAMS, text_of
from tests.support.waiting import wait_until

pytestmark = pytest.mark.engine

SETTLE_S = 15.0
ABORT_S = 60.0


def generated(engine: Engine) -> float:
    return engine.metrics().get("generation_tokens", 0.0)


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_every_endpoint_gives_the_same_answer_through_the_chat_template(llm: VLLM, endpoint: str) -> None:
    expected = llm.engine.chat([{"role": "user", "content": QUESTION}], temperature=0.0, max_tokens=48)
    last = ENDPOINTS[endpoint](llm)[-1]
    assert text_of(last) == expected.text
    assert last.raw["usage"]["prompt_tokens"] == expected.usage.prompt_tokens
    assert last.raw["choices"][0]["finish_reason"] == expected.finish_reason


@pytest.mark.parametrize("endpoint", STREAMS)
def test_a_stream_arrives_in_pieces_that_add_up(llm: VLLM, endpoint: str) -> None:
    # Long, and each token visible: a busy machine gets the tokens of a short answer in one piece.
    pieces = ENDPOINTS[endpoint](llm, max_tokens=200, extra_body={"ignore_eos": True, "skip_special_tokens": False})
    assert len([piece for piece in pieces if piece.delta]) > 1
    assert "".join(piece.delta or "" for piece in pieces) == text_of(pieces[-1])
    lengths = [len(text_of(piece)) for piece in pieces]
    assert lengths == sorted(lengths)


def test_formatted_text_is_continued_as_it_is(llm: VLLM) -> None:
    prompt = "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n<think></think>"
    as_text = llm.complete(prompt, formatted=True)
    assert as_text.raw["usage"]["prompt_tokens"] == llm.engine.count_tokens(prompt)
    assert as_text.text == llm.complete("Hello").text
    assert list(llm.stream_complete(prompt, formatted=True))[-1].text == as_text.text


def test_predict_goes_through_the_chat_template_with_the_system_prompt(llm: VLLM) -> None:
    llm.system_prompt = "You are a helpful assistant."
    llm.predict(PromptTemplate("Hello, {name}."), name="Ann")
    sent = [{"role": "system", "content": llm.system_prompt}, {"role": "user", "content": "Hello, Ann."}]
    (event,) = llm.callback_manager.handlers[0].llm_token_counts
    assert event.prompt_token_count == llm.engine.count_tokens(sent)


def test_64_concurrent_chats_are_all_answered(llm: VLLM) -> None:
    async def ask_all() -> list[ChatResponse]:
        return await asyncio.gather(
            *(llm.achat([ChatMessage(content=f"What is {number} + 1?")], max_tokens=8) for number in range(64))
        )

    answers = asyncio.run(ask_all())
    assert len(answers) == 64
    assert len({answer.raw["id"] for answer in answers}) == 64
    assert all(answer.raw["usage"]["completion_tokens"] > 0 for answer in answers)


def test_one_object_serves_one_event_loop_after_the_other(llm: VLLM) -> None:
    answers = [asyncio.run(llm.acomplete("Hello")).text for _ in range(3)]
    assert len(set(answers)) == 1


def test_a_pickled_llm_shares_the_engine(llm: VLLM) -> None:
    other = pickle.loads(pickle.dumps(llm))
    assert other.complete("Hello").text == llm.complete("Hello").text
    assert other.engine.status().server_pid == llm.engine.status().server_pid


LONG: dict[str, Any] = {"max_tokens": 1800, "extra_body": {"ignore_eos": True}}


def assert_aborts(llm: VLLM, leave: Callable[[], None]) -> None:
    """Hold that ``leave`` ends a request of LONG before it is done.

    On a busy machine vLLM may be done before its first piece arrives here; then it is asked again.
    """
    llm.warmup()

    def was_cut_off() -> bool:
        before = generated(llm.engine)
        leave()
        wait_until(lambda: llm.engine.metrics()["num_requests_running"] == 0, SETTLE_S, "the request to end")
        return bool(generated(llm.engine) - before < LONG["max_tokens"])

    wait_until(was_cut_off, ABORT_S, "an abort")


@pytest.mark.parametrize("formatted", [False, True])
def test_leaving_a_stream_aborts_its_request(llm: VLLM, formatted: bool) -> None:
    def leave() -> None:
        for _ in llm.stream_complete(QUESTION, formatted=formatted, **LONG):
            break

    assert_aborts(llm, leave)


def test_leaving_an_async_stream_aborts_its_request(llm: VLLM) -> None:
    async def leave() -> None:
        async for _ in await llm.astream_chat(MESSAGES, **LONG):
            break

    assert_aborts(llm, lambda: asyncio.run(leave()))


def test_leaving_a_stream_aborts_its_request_though_a_handler_keeps_the_exception(llm: VLLM) -> None:
    llm.callback_manager.add_handler(LlamaDebugHandler(print_trace_on_end=False))

    def leave() -> None:
        for _ in llm.stream_chat(MESSAGES, **LONG):
            break

    assert_aborts(llm, leave)


def test_cancelling_a_task_aborts_its_request(llm: VLLM) -> None:
    async def cancel() -> None:
        task = asyncio.create_task(llm.achat(MESSAGES, **LONG))
        while (await llm.engine.ametrics())["num_requests_running"] == 0 and not task.done():
            await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.wait([task])

    assert_aborts(llm, lambda: asyncio.run(cancel()))


@pytest.mark.parametrize("endpoint", ["complete", "stream_complete"])
def test_a_prompt_over_the_limit_is_a_typed_error_with_both_numbers(llm: VLLM, endpoint: str) -> None:
    with pytest.raises(ContextLengthError) as refused:
        list(getattr(llm, endpoint)("hello " * 3000))
    assert refused.value.max_model_len == 2048
    assert refused.value.prompt_tokens is not None
    assert refused.value.prompt_tokens > 2048


@pytest.mark.parametrize("formatted", [False, True])
def test_logprobs_are_the_same_whole_and_streamed(llm: VLLM, formatted: bool) -> None:
    how: dict[str, Any] = {"max_tokens": 3, "logprobs": 2, "extra_body": {"ignore_eos": True}, "formatted": formatted}
    whole = llm.complete(QUESTION, **how).logprobs
    *_, last = llm.stream_complete(QUESTION, **how)
    for tokens in (whole, last.logprobs):
        assert tokens is not None
        assert len(tokens) == 3
        assert all(len(alternatives) >= 2 and alternatives[0].logprob <= 0 for alternatives in tokens)
    assert [alternatives[0].token for alternatives in whole or ()] == [
        alternatives[0].token for alternatives in last.logprobs or ()
    ]


SUM = [ChatMessage(role="user", content="What is 2 + 3?")]


@pytest.mark.parametrize("switch", [{"enable_thinking": True}, {"reasoning_effort": "high"}])
async def test_a_thought_is_a_block_of_its_own_whole_and_streamed(llm: VLLM, switch: dict[str, Any]) -> None:
    whole = llm.chat(SUM, **switch)
    pieces = [piece async for piece in await llm.astream_chat(SUM, **switch)]
    assert [type(block) for block in whole.message.blocks] == [ThinkingBlock, TextBlock]
    assert pieces[-1].message.blocks == whole.message.blocks
    thought = whole.message.blocks[0].content
    assert "".join(piece.additional_kwargs.get("thinking_delta", "") for piece in pieces) == thought
    # vLLM says 0 for a thought that the chat template opened, as tiny_chat's does: then it says nothing.
    assert "reasoning_tokens" not in pieces[-1].additional_kwargs


def test_a_call_switches_thinking_off_and_on(llm: VLLM) -> None:
    assert not [block for block in llm.chat(SUM).message.blocks if isinstance(block, ThinkingBlock)]
    llm.enable_thinking = True
    assert llm.complete("What is 2 + 3?").raw["choices"][0]["reasoning"]
    quick = llm.chat(SUM, enable_thinking=False)
    assert [type(block) for block in quick.message.blocks] == [TextBlock]
    assert quick.additional_kwargs["reasoning_tokens"] == 0


def test_several_choices_are_in_raw(llm: VLLM) -> None:
    response = llm.complete(QUESTION, n=3, temperature=1.0, max_tokens=4)
    assert len(response.raw["choices"]) == 3
    assert response.text == response.raw["choices"][0]["text"]
