"""What Runnables promise beyond an answer: events, callbacks, configs, caches, limits, fallbacks. On real vLLM."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import closing
from contextvars import ContextVar
from itertools import groupby
from typing import Any
from uuid import UUID, uuid4

import pytest
from langchain_core.caches import InMemoryCache
from langchain_core.callbacks import BaseCallbackHandler, get_usage_metadata_callback
from langchain_core.exceptions import ContextOverflowError
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.outputs import ChatGenerationChunk
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.rate_limiters import BaseRateLimiter
from langchain_core.runnables import ConfigurableField, RunnableConfig, RunnableLambda

from langchain_vllm_local import VLLM, ChatVLLM
from tests.langchain.token_callbacks import AsyncTokens, Tokens
from tests.langchain.ways import BATCHES, ONE_BY_ONE, Way, abatch, batch
from tests.support.waiting import wait_until

QUESTIONS = [f"What is the capital of {country}?" for country in ("France", "Japan", "Norway")]
TOO_LONG = "word " * 3000


@pytest.fixture
def llm(tiny_chat: dict[str, Any]) -> ChatVLLM:
    return ChatVLLM(**tiny_chat, temperature=0.0, max_tokens=24)


async def generate(llm: Any, inputs: list[Any], config: Any = None) -> list[Any]:
    callbacks = (config or {}).get("callbacks")
    result = await asyncio.to_thread(llm.generate, [[HumanMessage(text)] for text in inputs], callbacks=callbacks)
    return [generations[0].message for generations in result.generations]


async def agenerate(llm: Any, inputs: list[Any], config: Any = None) -> list[Any]:
    callbacks = (config or {}).get("callbacks")
    result = await llm.agenerate([[HumanMessage(text)] for text in inputs], callbacks=callbacks)
    return [generations[0].message for generations in result.generations]


batches = pytest.mark.parametrize("way", BATCHES)
all_ways = pytest.mark.parametrize("way", [*BATCHES, generate, agenerate, *ONE_BY_ONE])


# ---- events


async def test_events_of_a_chain_come_in_order_with_every_chunk_and_the_usage_at_the_end(llm: ChatVLLM) -> None:
    prompt = ChatPromptTemplate.from_messages([("system", "You are a helpful assistant."), ("human", "{text}")])
    chain = (prompt | llm | StrOutputParser()).with_config(run_name="chain", tags=["all"])
    events = [event async for event in chain.astream_events({"text": QUESTIONS[0]}, version="v2")]
    assert all("all" in event["tags"] for event in events)
    assert (events[0]["event"], events[-1]["event"]) == ("on_chain_start", "on_chain_end")

    model = [event for event in events if event["event"].startswith("on_chat_model")]
    steps = ["on_chat_model_start", "on_chat_model_stream", "on_chat_model_end"]
    assert [step for step, _ in groupby(event["event"] for event in model)] == steps
    assert {event["metadata"]["ls_provider"] for event in model} == {"vllm"}
    chunks = [event["data"]["chunk"] for event in model[1:-1]]
    answer = model[-1]["data"]["output"]
    assert "".join(chunk.text for chunk in chunks) == answer.text == events[-1]["data"]["output"]
    assert [chunk.usage_metadata for chunk in chunks if chunk.usage_metadata] == [answer.usage_metadata]
    assert answer.usage_metadata["output_tokens"] > 1

    # The parser passes each piece on before the model has said the next.
    streamed = [event for event in events if event["event"].endswith("_stream") and event["name"] != "chain"]
    assert [event["name"] for event in streamed[:4]] == ["ChatVLLM", "StrOutputParser"] * 2


async def test_typed_events_of_a_bound_model(llm: ChatVLLM) -> None:
    bound = llm.bind(max_tokens=6, extra_body={"ignore_eos": True})
    stream = await asyncio.to_thread(bound.stream_events, "Hello", version="v3")
    texts = await asyncio.to_thread(lambda: list(stream.text))
    assert len(texts) > 1
    assert "".join(texts) == stream.output.text == (await bound.ainvoke("Hello")).text
    assert stream.output.usage_metadata["output_tokens"] == 6


async def test_callbacks_see_every_chunk_that_is_streamed(llm: ChatVLLM) -> None:
    whole, seen = await llm.ainvoke(QUESTIONS[0]), [Tokens(), Tokens(), AsyncTokens()]
    configs = [RunnableConfig(callbacks=[handler]) for handler in seen]
    await asyncio.to_thread(lambda: list(llm.stream(QUESTIONS[0], configs[0])))
    for config in configs[1:]:
        async for _ in llm.astream(QUESTIONS[0], config):
            pass
    for handler in seen:
        assert all(isinstance(chunk, ChatGenerationChunk) for chunk in handler.chunks)
        assert "".join(chunk.text for chunk in handler.chunks) == whole.text
        assert [chunk.message.usage_metadata is not None for chunk in handler.chunks].count(True) == 1


@all_ways
async def test_usage_is_added_up_over_all_ways(llm: ChatVLLM, way: Way) -> None:
    with get_usage_metadata_callback() as callback:
        answers = await way(llm, QUESTIONS)
    (usage,) = callback.usage_metadata.values()
    assert usage["total_tokens"] == sum(answer.usage_metadata["total_tokens"] for answer in answers)


@pytest.mark.parametrize("model_class", [ChatVLLM, VLLM])
async def test_several_answers_are_given_whole_where_streaming_was_asked_for(
    tiny_chat: dict[str, Any], model_class: Any
) -> None:
    llm = model_class(**tiny_chat, n=2, temperature=1.0, max_tokens=8, streaming=True, extra_body={"ignore_eos": True})
    prompt = llm._convert_input("Hello")
    result = await asyncio.to_thread(llm.generate_prompt, [prompt])
    aresult = await llm.agenerate_prompt([prompt])
    assert [len(each.generations[0]) for each in (result, aresult)] == [2, 2]


# ---- configs


class Starts(BaseCallbackHandler):
    """What each run was told when it began, by its input."""

    def __init__(self) -> None:
        self.seen: dict[str, Any] = {}
        self._guard = threading.Lock()

    def on_chat_model_start(self, serialized: Any, messages: Any, *, run_id: UUID, **told: Any) -> None:
        with self._guard:
            self.seen[messages[0][0].content] = (told["tags"], told["metadata"]["number"], told["name"], run_id)


@batches
async def test_each_input_of_a_batch_has_its_own_config(llm: ChatVLLM, way: Way) -> None:
    starts, ids = Starts(), [uuid4() for _ in QUESTIONS]
    configs = [
        RunnableConfig(
            tags=[f"tag {index}"],
            metadata={"number": index},
            run_name=f"run {index}",
            run_id=run_id,
            callbacks=[starts],
        )
        for index, run_id in enumerate(ids)
    ]
    await way(llm, QUESTIONS, configs)
    assert starts.seen == {
        question: ([f"tag {index}"], index, f"run {index}", ids[index]) for index, question in enumerate(QUESTIONS)
    }


def test_with_config_reaches_the_call(llm: ChatVLLM) -> None:
    starts = Starts()
    configured = llm.with_config(tags=["a"], metadata={"number": 1}, run_name="named", callbacks=[starts])
    configured.invoke("Hello")
    (told,) = starts.seen.values()
    assert told[:3] == (["a"], 1, "named")


WHO: ContextVar[str] = ContextVar("who", default="nobody")


class Asker(BaseCallbackHandler):
    def __init__(self) -> None:
        self.seen: list[str] = []

    def on_chat_model_start(self, *args: Any, **kwargs: Any) -> None:
        self.seen.append(WHO.get())

    def on_llm_end(self, *args: Any, **kwargs: Any) -> None:
        self.seen.append(WHO.get())


@all_ways
async def test_context_variables_reach_callbacks(llm: ChatVLLM, way: Way) -> None:
    asker = Asker()
    WHO.set("somebody")
    await way(llm, QUESTIONS, RunnableConfig(callbacks=[asker]))
    assert asker.seen == ["somebody"] * 2 * len(QUESTIONS)


@batches
async def test_configurable_fields_are_each_inputs_own(llm: ChatVLLM, way: Way) -> None:
    runnable = llm.configurable_fields(max_tokens=ConfigurableField(id="max_tokens"))
    configs = [RunnableConfig(configurable={"max_tokens": count}) for count in (2, 3, 4)]
    answers = await way(runnable, QUESTIONS, configs)
    assert [answer.usage_metadata["output_tokens"] for answer in answers] == [2, 3, 4]


async def test_configurable_alternatives_share_the_engine(llm: ChatVLLM, tiny_chat: dict[str, Any]) -> None:
    llm.warmup()
    before = llm.engine.status()
    runnable = llm.configurable_alternatives(
        ConfigurableField(id="kind"), default_key="chat", text=VLLM(**tiny_chat, temperature=0.0, max_tokens=4)
    )
    chat, text = await runnable.abatch(["Hello"] * 2, [{}, {"configurable": {"kind": "text"}}])
    assert (type(chat), type(text)) == (AIMessage, str)
    assert llm.engine.status().starts == before.starts


# ---- errors


@batches
async def test_a_bad_input_leaves_its_error_in_its_place(llm: ChatVLLM, way: Way) -> None:
    good = await llm.ainvoke(QUESTIONS[0])
    first, bad, last = await way(llm, [QUESTIONS[0], TOO_LONG, QUESTIONS[0]], return_exceptions=True)
    assert (first.text, last.text) == (good.text, good.text)
    assert isinstance(bad, ContextOverflowError)


@all_ways
async def test_a_bad_input_is_raised_where_errors_are_not_returned(llm: ChatVLLM, way: Way) -> None:
    with pytest.raises(ContextOverflowError):
        await way(llm, [QUESTIONS[0], TOO_LONG, QUESTIONS[1]])


@pytest.mark.parametrize("way", [batch, abatch, *ONE_BY_ONE])
async def test_a_fallback_answers_what_failed_and_nothing_else(llm: ChatVLLM, way: Way) -> None:
    other = RunnableLambda(lambda _: AIMessage("too long"))
    runnable = llm.with_fallbacks([other], exceptions_to_handle=(ContextOverflowError,))
    answers = await way(runnable, [QUESTIONS[0], TOO_LONG])
    assert [answer.text for answer in answers] == [(await llm.ainvoke(QUESTIONS[0])).text, "too long"]


async def test_a_fallback_answers_for_a_stream_that_could_not_begin(llm: ChatVLLM) -> None:
    runnable = llm.with_fallbacks([RunnableLambda(lambda _: AIMessage("too long"))])
    streamed = await asyncio.to_thread(lambda: list(runnable.stream(TOO_LONG)))
    astreamed = [chunk async for chunk in runnable.astream(TOO_LONG)]
    assert [chunk.text for chunk in (*streamed, *astreamed)] == ["too long"] * 2


@pytest.mark.parametrize("way", [batch, abatch])
async def test_retries_ask_again_for_what_failed_only(llm: ChatVLLM, way: Way) -> None:
    asker = Asker()
    runnable = llm.with_retry(
        retry_if_exception_type=(ContextOverflowError,), stop_after_attempt=3, wait_exponential_jitter=False
    )
    answers = await way(runnable, [QUESTIONS[0], TOO_LONG], RunnableConfig(callbacks=[asker]), return_exceptions=True)
    assert isinstance(answers[0], AIMessage) and isinstance(answers[1], ContextOverflowError)
    assert len(asker.seen) == 1 + 1 + 3  # start and end of the good one, three starts of the bad one


# ---- caches and limits


class CountingLimiter(BaseRateLimiter):
    def __init__(self) -> None:
        self.acquired = 0
        self._guard = threading.Lock()

    def acquire(self, *, blocking: bool = True) -> bool:
        with self._guard:
            self.acquired += 1
        return True

    async def aacquire(self, *, blocking: bool = True) -> bool:
        return self.acquire(blocking=blocking)


@all_ways
async def test_the_cache_answers_a_second_time_and_the_rate_limiter_is_asked_once(
    tiny_chat: dict[str, Any], way: Way
) -> None:
    limiter = CountingLimiter()
    llm = ChatVLLM(**tiny_chat, temperature=0.0, max_tokens=24, cache=InMemoryCache(), rate_limiter=limiter)
    first = await way(llm, QUESTIONS)
    before = llm.engine.metrics()["generation_tokens"]
    second = await way(llm, QUESTIONS)
    assert [answer.text for answer in second] == [answer.text for answer in first]
    assert llm.engine.metrics()["generation_tokens"] == before
    assert limiter.acquired == len(QUESTIONS)


# ---- leaving early

# As in test_chat.py: several, and again, because vLLM may hold back its first word until the last token is done.
CROWD, TOKENS, ATTEMPTS = 8, 1900, 4


def generated(llm: ChatVLLM) -> float:
    wait_until(lambda: llm.engine.metrics()["num_requests_running"] == 0, 60, "the requests to end")
    return llm.engine.metrics()["generation_tokens"]


def endless(llm: ChatVLLM) -> ChatVLLM:
    return llm.model_copy(update={"max_tokens": TOKENS, "extra_body": {"ignore_eos": True}})


async def until_running(llm: ChatVLLM) -> None:
    await asyncio.to_thread(wait_until, lambda: llm.engine.metrics()["num_requests_running"] > 0, 5, "requests to run")


async def cancel_abatch(llm: ChatVLLM) -> None:
    task = asyncio.create_task(endless(llm).abatch(["Hello"] * CROWD))
    await until_running(llm)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def leave_abatch_as_completed(llm: ChatVLLM) -> None:
    stream = endless(llm).abatch_as_completed([TOO_LONG, *["Hello"] * CROWD], return_exceptions=True)
    await anext(stream)
    await stream.aclose()


async def leave_batch_as_completed(llm: ChatVLLM) -> None:
    def leave() -> None:
        with closing(endless(llm).batch_as_completed([TOO_LONG, *["Hello"] * CROWD], return_exceptions=True)) as stream:
            next(stream)

    await asyncio.to_thread(leave)


async def fail_in_abatch(llm: ChatVLLM) -> None:
    with pytest.raises(ContextOverflowError):
        await endless(llm).abatch([*["Hello"] * CROWD, TOO_LONG])


async def fail_in_batch(llm: ChatVLLM) -> None:
    with pytest.raises(ContextOverflowError):
        await asyncio.to_thread(endless(llm).batch, [*["Hello"] * CROWD, TOO_LONG])


@pytest.mark.parametrize(
    "leave", [cancel_abatch, leave_abatch_as_completed, leave_batch_as_completed, fail_in_abatch, fail_in_batch]
)
async def test_leaving_a_batch_aborts_its_requests(llm: ChatVLLM, leave: Callable[[Any], Any]) -> None:
    await llm.ainvoke("Hello")
    tasks = asyncio.all_tasks()
    for _ in range(ATTEMPTS):
        before = await asyncio.to_thread(generated, llm)
        await leave(llm)
        assert not asyncio.all_tasks() - tasks
        if await asyncio.to_thread(generated, llm) - before < CROWD * TOKENS:
            return
    pytest.fail(f"every request of {ATTEMPTS} attempts was generated to its end")
