"""What Runnables promise of VLLM: batches, configs, caches, events, fallbacks, copies. On real vLLM."""

from __future__ import annotations

import pickle
from contextvars import ContextVar
from itertools import groupby
from typing import Any
from uuid import UUID, uuid4

import pytest
from langchain_core.caches import InMemoryCache
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.exceptions import ContextOverflowError
from langchain_core.load import dumpd, load
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import PromptTemplate
from langchain_core.runnables import ConfigurableField, RunnableConfig, RunnableLambda

from langchain_vllm_local import VLLM
from tests.langchain.ways import BATCHES, ONE_BY_ONE, Way, abatch, batch

PROMPT = "The capital of France"
PROMPTS = [f"{PROMPT} {number}" for number in range(3)]
TOO_LONG = "word " * 3000

batches = pytest.mark.parametrize("way", BATCHES)
all_ways = pytest.mark.parametrize("way", [*BATCHES, *ONE_BY_ONE])


@pytest.fixture
def llm(tiny_chat: dict[str, Any]) -> VLLM:
    return VLLM(**tiny_chat, temperature=0.0, max_tokens=12, extra_body={"ignore_eos": True})


@batches
async def test_a_batch_gives_each_prompt_its_own_text(llm: VLLM, way: Way) -> None:
    assert await way(llm, PROMPTS) == [await llm.ainvoke(prompt) for prompt in PROMPTS]
    assert await way(llm, []) == []


@batches
async def test_a_bad_prompt_leaves_its_error_in_its_place(llm: VLLM, way: Way) -> None:
    first, bad, last = await way(llm, [PROMPT, TOO_LONG, PROMPT], return_exceptions=True)
    assert first == last == await llm.ainvoke(PROMPT)
    assert isinstance(bad, ContextOverflowError)


@all_ways
async def test_a_bad_prompt_is_raised_where_errors_are_not_returned(llm: VLLM, way: Way) -> None:
    with pytest.raises(ContextOverflowError):
        await way(llm, [PROMPT, TOO_LONG, PROMPT])


WHO: ContextVar[str] = ContextVar("who", default="nobody")


class Starts(BaseCallbackHandler):
    """What each run was told when it began, by its prompt."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, Any]] = []
        self.ids: list[UUID] = []

    def on_llm_start(self, serialized: Any, prompts: list[str], *, run_id: UUID, **told: Any) -> None:
        (prompt,) = prompts
        self.seen.append((prompt, (told["tags"], told["metadata"].get("number"), told["name"], WHO.get())))
        self.ids.append(run_id)


@pytest.mark.parametrize("return_exceptions", [False, True])
@batches
async def test_each_prompt_of_a_batch_has_its_own_config(llm: VLLM, way: Way, return_exceptions: bool) -> None:
    starts, ids = Starts(), [uuid4() for _ in PROMPTS]
    configs = [
        RunnableConfig(
            tags=[f"tag {n}"], metadata={"number": n}, run_name=f"run {n}", run_id=ids[n], callbacks=[starts]
        )
        for n in range(len(PROMPTS))
    ]
    WHO.set("somebody")
    await way(llm, PROMPTS, configs, return_exceptions=return_exceptions)
    assert dict(starts.seen) == {prompt: ([f"tag {n}"], n, f"run {n}", "somebody") for n, prompt in enumerate(PROMPTS)}
    assert set(starts.ids) == set(ids)


@all_ways
async def test_the_cache_answers_a_second_time(tiny_chat: dict[str, Any], way: Way) -> None:
    llm = VLLM(**tiny_chat, temperature=0.0, max_tokens=12, extra_body={"ignore_eos": True}, cache=InMemoryCache())
    first = await way(llm, PROMPTS)
    before = llm.engine.metrics()["generation_tokens"]
    assert (await way(llm, [*PROMPTS, PROMPT]))[:-1] == first
    assert llm.engine.metrics()["generation_tokens"] == before + 12  # of the one that is new


async def test_events_of_a_chain_have_every_piece_and_the_usage_once(llm: VLLM) -> None:
    chain = PromptTemplate.from_template("The capital of {country}") | llm | StrOutputParser()
    events = [event async for event in chain.astream_events({"country": "France"}, version="v2")]
    model = [event for event in events if event["event"].startswith("on_llm")]
    steps = ["on_llm_start", "on_llm_stream", "on_llm_end"]
    assert [step for step, _ in groupby(event["event"] for event in model)] == steps
    chunks = [event["data"]["chunk"] for event in model[1:-1]]
    assert "".join(chunk.text for chunk in chunks) == events[-1]["data"]["output"] == await llm.ainvoke(PROMPT)
    ((end,),) = model[-1]["data"]["output"]["generations"]
    usage = end["generation_info"]["usage_metadata"]
    assert usage["output_tokens"] == 12
    assert [
        chunk.generation_info["usage_metadata"] for chunk in chunks if "usage_metadata" in chunk.generation_info
    ] == [usage]


@batches
async def test_configurable_fields_are_each_prompts_own(llm: VLLM, way: Way) -> None:
    runnable = llm.configurable_fields(stop=ConfigurableField(id="stop"))
    whole = await llm.ainvoke(PROMPT)
    ends = [whole.strip()[-1], whole.strip()[0]]
    texts = await way(runnable, [PROMPT] * 2, [RunnableConfig(configurable={"stop": [end]}) for end in ends])
    assert texts == [whole[: whole.index(end)] for end in ends]


@pytest.mark.parametrize("way", [batch, abatch, *ONE_BY_ONE])
async def test_a_fallback_answers_what_failed_and_nothing_else(llm: VLLM, way: Way) -> None:
    runnable = llm.with_fallbacks([RunnableLambda(lambda _: "too long")])
    assert await way(runnable, [PROMPT, TOO_LONG]) == [await llm.ainvoke(PROMPT), "too long"]


@pytest.mark.parametrize("way", [batch, abatch])
async def test_retries_ask_again_for_what_failed_only(llm: VLLM, way: Way) -> None:
    starts = Starts()
    runnable = llm.with_retry(
        retry_if_exception_type=(ContextOverflowError,), stop_after_attempt=3, wait_exponential_jitter=False
    )
    texts = await way(runnable, [PROMPT, TOO_LONG], RunnableConfig(callbacks=[starts]), return_exceptions=True)
    assert texts[0] == await llm.ainvoke(PROMPT) and isinstance(texts[1], ContextOverflowError)
    assert sorted(prompt for prompt, _ in starts.seen) == [PROMPT, *[TOO_LONG] * 3]


@pytest.mark.filterwarnings("ignore:The function `load` is in beta")
def test_a_pickle_and_a_serialised_form_ask_the_same_engine(llm: VLLM) -> None:
    text, before = llm.invoke(PROMPT), llm.engine.status()
    loaded = load(dumpd(llm), allowed_objects=[VLLM], valid_namespaces=["langchain_vllm_local"])
    for other in (pickle.loads(pickle.dumps(llm)), loaded):
        assert other.invoke(PROMPT) == text
        assert other.engine.status().server_pid == before.server_pid
