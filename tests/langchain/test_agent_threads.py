"""Agents that stop, go on, remember, run beside each other and are left, on real vLLM."""

from __future__ import annotations

import asyncio
import json
import pickle
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypedDict

import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import HumanInTheLoopMiddleware
from langchain_core.messages import BaseMessage, HumanMessage
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, StateGraph
from langgraph.types import Command

from langchain_vllm_local import ChatVLLM
from tests.langchain.agent_runs import ask, assert_two_steps, on_thread
from tests.support.agent_tools import SUM, SUM_ANSWER, WEATHER, add, get_weather, multiply
from tests.support.paths import REPOSITORY
from tests.support.waiting import wait_until


@pytest.fixture
def llm(tiny_chat: dict[str, Any]) -> ChatVLLM:
    return ChatVLLM(**tiny_chat, temperature=0.0, max_tokens=64)


# ---- memory, interrupts, other processes


def test_a_thread_remembers_and_another_does_not(llm: ChatVLLM) -> None:
    agent = create_agent(llm, [], checkpointer=InMemorySaver())
    told = agent.invoke(ask("My favorite color is green."), on_thread("one"))
    assert len(told["messages"]) == 2
    asked = agent.invoke(ask("What is my favorite color?"), on_thread("one"))
    assert (len(asked["messages"]), asked["messages"][-1].text) == (4, "Your favorite color is green.")
    other = agent.invoke(ask("What is my favorite color?"), on_thread("two"))
    assert "green" not in other["messages"][-1].text


@pytest.mark.parametrize("stream", [False, True])
def test_an_interrupted_agent_goes_on_where_it_was(llm: ChatVLLM, stream: bool) -> None:
    model = llm.model_copy(update={"streaming": stream})
    agent = create_agent(model, [add, multiply], checkpointer=InMemorySaver(), interrupt_before=["tools"])
    agent.invoke(ask(SUM), on_thread("one"))
    for step in ("add", "multiply"):
        state = agent.get_state(on_thread("one"))
        assert (state.next, state.values["messages"][-1].tool_calls[0]["name"]) == (("tools",), step)
        result = agent.invoke(None, on_thread("one"))
    assert_two_steps(result["messages"])


EDIT = {"type": "edit", "edited_action": {"name": "get_weather", "args": {"city": "Lima"}}}


@pytest.mark.parametrize(
    ("decision", "result"), [({"type": "approve"}, "It's sunny in Paris."), (EDIT, "It's sunny in Lima.")]
)
async def test_a_call_is_made_as_a_person_decides(llm: ChatVLLM, decision: dict[str, Any], result: str) -> None:
    person = HumanInTheLoopMiddleware(interrupt_on={"get_weather": True})
    agent = create_agent(llm, [get_weather], middleware=[person], checkpointer=InMemorySaver())
    asked = await agent.ainvoke(ask(WEATHER), on_thread("one"))
    assert asked["__interrupt__"]
    done = await agent.ainvoke(Command(resume={"decisions": [decision]}), on_thread("one"))
    assert done["messages"][2].content.endswith(result)
    assert len(done["messages"]) > 3  # the model has been told


RESUME = """
import json, pickle, sys
from langchain.agents import create_agent
from tests.langchain.agent_runs import on_thread
from tests.support.agent_tools import add, multiply
from tests.langchain.test_agent_threads import restored
with open(sys.argv[1], "rb") as file:
    llm, saved = pickle.load(file)
agent = create_agent(llm, [add, multiply], checkpointer=restored(saved))
messages = agent.invoke(None, on_thread("one"))["messages"]
print(json.dumps([messages[-1].text, llm.engine.status().server_pid]))
"""


def saved(saver: InMemorySaver) -> tuple[Any, ...]:
    """What ``saver`` holds, in a form that pickles: a saver that writes files is not among our dependencies."""
    storage = {thread: {ns: dict(points) for ns, points in spaces.items()} for thread, spaces in saver.storage.items()}
    return storage, dict(saver.writes), dict(saver.blobs)


def restored(held: tuple[Any, ...]) -> InMemorySaver:
    saver = InMemorySaver()
    for own, given in zip((saver.storage, saver.writes, saver.blobs), held, strict=True):
        own.update(given)
    return saver


def test_another_process_goes_on_with_the_same_engine(llm: ChatVLLM, tmp_path: Path) -> None:
    saver = InMemorySaver()
    agent = create_agent(llm, [add, multiply], checkpointer=saver, interrupt_before=["tools"])
    agent.invoke(ask(SUM), on_thread("one"))
    file = tmp_path / "checkpoint"
    file.write_bytes(pickle.dumps((llm, saved(saver))))
    done = subprocess.run(
        [sys.executable, "-c", RESUME, file], cwd=REPOSITORY, capture_output=True, text=True, timeout=120, check=True
    )
    assert json.loads(done.stdout.splitlines()[-1]) == [SUM_ANSWER, llm.engine.status().server_pid]


# ---- one engine, many callers


def test_agents_of_two_models_at_once_share_one_engine(llm: ChatVLLM, tiny_chat: dict[str, Any]) -> None:
    llm.warmup()
    before = llm.engine.status()
    agents = [create_agent(model, [add, multiply]) for model in (llm, ChatVLLM(**tiny_chat, temperature=0.0))]
    with ThreadPoolExecutor(8) as pool:
        for result in pool.map(lambda number: agents[number % 2].invoke(ask(SUM)), range(8)):
            assert_two_steps(result["messages"])
    after = llm.engine.status()
    assert (after.server_pid, after.starts) == (before.server_pid, before.starts)


class State(TypedDict):
    answers: list[BaseMessage]


@pytest.mark.parametrize("mode", ["values", "messages"])
async def test_several_answers_inside_a_graph_whether_it_is_streamed_or_not(llm: ChatVLLM, mode: str) -> None:
    """LangGraph's mode "messages" turns streaming on for the models inside; n answers are then asked for as a whole."""
    several = llm.model_copy(update={"n": 2, "temperature": 1.0})

    async def node(_: State, config: RunnableConfig) -> State:
        result = await several.agenerate([[HumanMessage("Hello")]], callbacks=config["callbacks"])
        return {"answers": [generation.message for generation in result.generations[0]]}

    graph = StateGraph(State).add_node("ask", node).add_edge(START, "ask").compile()
    parts = [part async for part in graph.astream({"answers": []}, stream_mode=["values", mode])]
    values = [value for kind, value in parts if kind == "values"]
    assert len([answer for answer in values[-1]["answers"] if answer.text]) == 2


# Several at once, so that they are still running when they are left, on however busy a machine; and again, because
# vLLM may hold back the first chunk until the last token is done (see test_chat.py).
CROWD, TOKENS, ATTEMPTS = 8, 1900, 8


def generated(llm: ChatVLLM) -> float:
    wait_until(lambda: llm.engine.metrics()["num_requests_running"] == 0, 60, "the requests to end")
    return llm.engine.metrics()["generation_tokens"]


async def left_at_the_first_chunk(agent: Any) -> None:
    stream = agent.astream(ask("Hello"), stream_mode="messages")
    await anext(stream)
    await stream.aclose()


async def cancelled_while_it_runs(agent: Any) -> None:
    first = asyncio.Event()

    async def consume() -> None:
        async for _ in agent.astream_events(ask("Hello"), version="v2"):
            first.set()

    task = asyncio.create_task(consume())
    await first.wait()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


@pytest.mark.parametrize("leave", [left_at_the_first_chunk, cancelled_while_it_runs])
async def test_leaving_an_agent_aborts_its_request_and_it_can_be_asked_again(
    llm: ChatVLLM, leave: Callable[[Any], Any]
) -> None:
    await llm.awarmup()
    endless = create_agent(llm.model_copy(update={"max_tokens": TOKENS, "extra_body": {"ignore_eos": True}}), [])
    for _ in range(ATTEMPTS):
        before = await asyncio.to_thread(generated, llm)
        await asyncio.gather(*(leave(endless) for _ in range(CROWD)))
        if await asyncio.to_thread(generated, llm) - before < CROWD * TOKENS:
            break
    else:
        pytest.fail(f"every request of {ATTEMPTS} attempts was generated to its end")
    assert_two_steps((await create_agent(llm, [add, multiply]).ainvoke(ask(SUM)))["messages"])
