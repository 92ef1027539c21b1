"""VLLM on real vLLM: what LangChain's standard tests ask of a chat model, by hand for a text model."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from typing import Any

import pytest
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.exceptions import ContextOverflowError, ModelInvalidRequestError
from langchain_core.outputs import Generation, LLMResult
from langchain_core.prompts import PromptTemplate

from langchain_vllm_local import VLLM
from tests.support.waiting import wait_until

PROMPT = "The capital of France"


@pytest.fixture
def llm(tiny_chat: dict[str, Any]) -> VLLM:
    # Raw text is nothing tiny_chat was trained on: without ignore_eos it may answer with nothing at all.
    return VLLM(**tiny_chat, temperature=0.0, max_tokens=12, extra_body={"ignore_eos": True})


def info(generation: Generation) -> dict[str, Any]:
    assert generation.generation_info is not None
    return generation.generation_info


async def test_all_ways_to_ask_give_the_same_text(llm: VLLM) -> None:
    texts = {
        await asyncio.to_thread(llm.invoke, PROMPT),
        await llm.ainvoke(PROMPT),
        "".join(await asyncio.to_thread(lambda: list(llm.stream(PROMPT)))),
        "".join([text async for text in llm.astream(PROMPT)]),
        *await asyncio.to_thread(llm.batch, [PROMPT, PROMPT]),
        *await llm.abatch([PROMPT, PROMPT]),
    }
    assert len(texts) == 1
    assert texts != {""}


def test_a_stream_comes_in_several_pieces(llm: VLLM) -> None:
    assert len([text for text in llm.stream(PROMPT) if text]) > 1


def test_each_prompt_has_its_own_usage_and_finish_reason(llm: VLLM) -> None:
    result = llm.generate([PROMPT, PROMPT + " and of Germany"])
    first, second = (info(generations[0]) for generations in result.generations)
    assert first["finish_reason"] == second["finish_reason"] == "length"
    assert first["usage_metadata"]["output_tokens"] == 12
    assert first["usage_metadata"]["input_tokens"] < second["usage_metadata"]["input_tokens"]
    assert result.llm_output is not None
    assert result.llm_output["token_usage"]["total_tokens"] == sum(
        each["usage_metadata"]["total_tokens"] for each in (first, second)
    )
    assert result.llm_output["model_name"].endswith("tiny_chat")


class Ends(BaseCallbackHandler):
    def __init__(self) -> None:
        self.tokens: list[str] = []
        self.results: list[LLMResult] = []

    def on_llm_new_token(self, token: str, **kwargs: Any) -> None:
        self.tokens.append(token)

    def on_llm_end(self, response: LLMResult, **kwargs: Any) -> None:
        self.results.append(response)


async def test_a_stream_tells_callbacks_each_token_and_the_usage(llm: VLLM) -> None:
    for_sync, for_async = Ends(), Ends()
    text = await asyncio.to_thread(lambda: "".join(llm.stream(PROMPT, config={"callbacks": [for_sync]})))
    async for _ in llm.astream(PROMPT, config={"callbacks": [for_async]}):
        pass
    for seen in (for_sync, for_async):
        assert "".join(seen.tokens) == text
        (result,) = seen.results
        assert info(result.generations[0][0])["usage_metadata"]["output_tokens"] == 12
        assert info(result.generations[0][0])["finish_reason"] == "length"


async def test_streaming_true_shows_tokens_of_invoke_to_callbacks(llm: VLLM, tiny_chat: dict[str, Any]) -> None:
    streaming = llm.model_copy(update={"streaming": True})
    seen = Ends()
    text = await asyncio.to_thread(streaming.invoke, PROMPT, config={"callbacks": [seen]})
    assert text == await streaming.ainvoke(PROMPT) == await llm.ainvoke(PROMPT) == "".join(seen.tokens)
    assert len([token for token in seen.tokens if token]) > 1


def test_n_answers(llm: VLLM) -> None:
    (generations,) = llm.generate([PROMPT], n=2, temperature=1.0).generations
    assert len(generations) == 2
    assert info(generations[0])["usage_metadata"]["output_tokens"] == 24


async def test_several_prompts_with_several_answers_each(llm: VLLM) -> None:
    prompts = [PROMPT, PROMPT + " and of Germany"]
    whole = await asyncio.to_thread(llm.generate, prompts, n=2, temperature=1.0, seed=7)
    result = await llm.agenerate(prompts, n=2, temperature=1.0, seed=7)
    texts = [[generation.text for generation in generations] for generations in whole.generations]
    assert [len(set(each)) for each in texts] == [2, 2]
    assert [[generation.text for generation in generations] for generations in result.generations] == texts
    for first, second in result.generations:
        assert info(first)["usage_metadata"]["output_tokens"] == 24  # of both answers
        assert "usage_metadata" not in info(second)  # so that it adds up
    assert whole.llm_output is not None and result.llm_output is not None
    assert result.llm_output["token_usage"]["completion_tokens"] == 48
    assert result.llm_output["token_usage"] == whole.llm_output["token_usage"]


def test_a_seed_repeats_a_text(llm: VLLM) -> None:
    one, two = ([llm.invoke(PROMPT, temperature=1.0, seed=seed) for _ in range(2)] for seed in (1, 2))
    assert (len(set(one)), len(set(two)), len({*one, *two})) == (1, 1, 2)


COLOR = {
    "type": "object",
    "properties": {"color": {"enum": ["red", "green"]}},
    "required": ["color"],
    "additionalProperties": False,
}


@pytest.mark.parametrize(
    ("constraint", "pattern"),
    [
        ({"regex": r"\d{3}-\d{2}"}, r"\d{3}-\d{2}"),
        ({"choice": ["red", "green"]}, "red|green"),
        ({"grammar": 'root ::= "yes" | "no"'}, "yes|no"),
        ({"json": COLOR}, r'\{\s*"color"\s*:\s*"(red|green)"\s*\}'),
    ],
)
async def test_a_constraint_holds_the_text_whichever_way(
    tiny_chat: dict[str, Any], constraint: dict[str, Any], pattern: str
) -> None:
    free = VLLM(**tiny_chat, temperature=0.0, max_tokens=24)
    held = free.model_copy(update={"structured_outputs": constraint})
    texts = {
        await held.ainvoke(PROMPT),
        "".join([text async for text in held.astream(PROMPT)]),
        *await held.abatch([PROMPT, PROMPT]),
        await free.ainvoke(PROMPT, structured_outputs=constraint),
        await free.bind(structured_outputs=constraint).ainvoke(PROMPT),
    }
    (text,) = texts
    assert re.fullmatch(pattern, text)


def test_a_constraint_that_vllm_can_not_read_is_refused(llm: VLLM) -> None:
    with pytest.raises(ModelInvalidRequestError, match=r"(?i)regex|grammar"):
        llm.invoke(PROMPT, structured_outputs={"regex": "("})


@pytest.mark.parametrize("bad", [5, None, [5]])
async def test_input_that_is_no_prompt_is_refused(llm: VLLM, bad: Any) -> None:
    for ask in (llm.invoke, lambda given: llm.batch([given]), lambda given: list(llm.stream(given))):
        with pytest.raises((ValueError, NotImplementedError), match=r"Invalid input type|Unsupported message type"):
            await asyncio.to_thread(ask, bad)
    with pytest.raises((ValueError, NotImplementedError), match=r"Invalid input type|Unsupported message type"):
        await llm.ainvoke(bad)


def test_a_prompt_with_no_tokens_is_refused(llm: VLLM) -> None:
    with pytest.raises(ModelInvalidRequestError):
        llm.invoke("")


def test_stop_ends_the_text(llm: VLLM) -> None:
    whole = llm.invoke(PROMPT)
    part = whole.strip()[-1]
    result = llm.generate([PROMPT], stop=[part])
    assert result.generations[0][0].text == whole[: whole.index(part)]
    assert "".join(llm.stream(PROMPT, stop=[part])) == whole[: whole.index(part)]
    assert llm.bind(stop=[part]).batch([PROMPT]) == [whole[: whole.index(part)]]
    assert llm.model_copy(update={"stop": part}).invoke(PROMPT, stop=[]) == whole
    assert info(result.generations[0][0])["stop_reason"] == part


def test_without_max_tokens_it_goes_on_to_the_models_limit(tiny_chat: dict[str, Any]) -> None:
    result = VLLM(**tiny_chat).generate(["word " * 1900], extra_body={"ignore_eos": True}, temperature=0.0)
    usage = info(result.generations[0][0])["usage_metadata"]
    assert usage["total_tokens"] == 2048
    assert usage["output_tokens"] > 100


def test_log_probabilities_of_the_whole_and_of_the_stream(llm: VLLM) -> None:
    whole = info(llm.generate([PROMPT], logprobs=2).generations[0][0])["logprobs"]
    assert len(whole["tokens"]) == 12
    seen = Ends()
    list(llm.stream(PROMPT, logprobs=2, config={"callbacks": [seen]}))
    assert info(seen.results[0].generations[0][0])["logprobs"]["tokens"] == whole["tokens"]


def test_a_prompt_over_the_limit_is_langchains_error_and_spoils_no_other(llm: VLLM) -> None:
    with pytest.raises(ContextOverflowError, match="limit is 2048"):
        llm.invoke("word " * 3000)
    first, second = llm.batch([PROMPT, "word " * 3000], return_exceptions=True)
    assert first == llm.invoke(PROMPT)
    assert isinstance(second, ContextOverflowError)


async def test_a_prompt_over_the_limit_spoils_no_other_asynchronously(llm: VLLM) -> None:
    first, second = await llm.abatch([PROMPT, "word " * 3000], return_exceptions=True)
    assert first == await llm.ainvoke(PROMPT)
    assert isinstance(second, ContextOverflowError)


def test_a_chain_of_prompt_and_model(llm: VLLM) -> None:
    chain = PromptTemplate.from_template("The capital of {country}") | llm
    assert chain.invoke({"country": "France"}) == llm.invoke(PROMPT)


def test_one_object_serves_one_event_loop_after_another(llm: VLLM) -> None:
    async def ask() -> str:
        return await llm.ainvoke(PROMPT)

    assert len({asyncio.run(ask()) for _ in range(3)}) == 1


async def test_many_at_once(llm: VLLM) -> None:
    texts = await asyncio.gather(*(llm.ainvoke(f"{PROMPT} {index}") for index in range(64)))
    assert all(texts)


def test_leaving_streams_aborts_their_requests(llm: VLLM) -> None:
    llm.warmup()
    before = llm.engine.metrics()["generation_tokens"]
    streams = [llm.stream(PROMPT, max_tokens=2000) for _ in range(8)]
    for stream in streams:
        next(stream)
    for stream in streams:
        stream.close()
    wait_until(lambda: llm.engine.metrics()["num_requests_running"] == 0, 60, "the requests to end")
    assert llm.engine.metrics()["generation_tokens"] - before < 8 * 2000


async def ask_and_cancel(llm: VLLM, ask: Callable[[VLLM], Any]) -> None:
    task = asyncio.ensure_future(ask(llm.model_copy(update={"max_tokens": 2000})))
    running = lambda: llm.engine.metrics()["num_requests_running"] > 0 or task.done()  # noqa: E731
    await asyncio.to_thread(wait_until, running, 60, "the requests to run")
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


@pytest.mark.parametrize(
    "ask",
    [
        lambda llm: llm.ainvoke(PROMPT, n=8, temperature=1.0),
        lambda llm: llm.abatch([PROMPT] * 8),
        lambda llm: llm.abatch([PROMPT] * 8, return_exceptions=True),
        lambda llm: llm.agenerate([PROMPT] * 8),
    ],
    ids=["ainvoke", "abatch", "abatch return_exceptions", "agenerate"],
)
async def test_cancelling_a_call_aborts_the_requests(llm: VLLM, ask: Callable[[VLLM], Any]) -> None:
    await llm.awarmup()
    for _ in range(4):  # vLLM may be done before it hears of it
        before = llm.engine.metrics()["generation_tokens"]
        await ask_and_cancel(llm, ask)
        idle = lambda: llm.engine.metrics()["num_requests_running"] == 0  # noqa: E731
        await asyncio.to_thread(wait_until, idle, 60, "the requests to end")
        if llm.engine.metrics()["generation_tokens"] - before < 8 * 2000:
            return
    pytest.fail("every request was generated to its end")


def test_tokens_are_counted_as_the_engine_counts_them(llm: VLLM) -> None:
    result = llm.generate([PROMPT])
    assert llm.get_num_tokens(PROMPT) == info(result.generations[0][0])["usage_metadata"]["input_tokens"]
