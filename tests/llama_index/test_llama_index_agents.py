"""LlamaIndex's agents around our class: on tiny_chat what it can do, and on a server that says the rest of it."""

# No annotations from __future__: LlamaIndex must see that a tool wants a Context, and not the name of that.

import asyncio
import copy
from typing import Any

import pytest
from llama_index.core.agent.workflow import AgentOutput, AgentWorkflow, CodeActAgent, FunctionAgent, ReActAgent
from llama_index.core.agent.workflow.workflow_events import AgentStreamStructuredOutput
from llama_index.core.llms import ChatMessage
from llama_index.core.memory import ChatMemoryBuffer
from llama_index.core.tools import FunctionTool
from llama_index.core.workflow import Context
from pydantic import BaseModel

from llama_index_vllm_local import VLLM
from shared_engine.errors import LengthFinishReasonError
from tests.llama_index.agent_runs import ADD, GET_WEATHER, MULTIPLY, Run, run
from tests.support.agent_tools import SUM, SUM_ANSWER, TWO_CITIES, WEATHER, add, get_weather
from tests.support.remote_server import RemoteServer
from tests.support.scripted import answers, call

# Workflows list the agent's members, and with them what pydantic deprecated.
pytestmark = [
    pytest.mark.filterwarnings("ignore::pydantic.warnings.PydanticDeprecationWarning:inspect"),
    pytest.mark.filterwarnings("ignore:is_running called from within a step:DeprecationWarning"),
]

whole_and_streamed = pytest.mark.parametrize("streaming", [False, True], ids=["whole", "streamed"])
SUNNY = ("get_weather", {"city": "Paris"}, "It's sunny in Paris.")


@pytest.fixture
def remote(server: RemoteServer) -> VLLM:
    return VLLM(base_url=f"{server.url}/v1", model="served")


def described(fn: Any) -> FunctionTool:
    """As tiny_chat knows it, see agent_tools."""
    return FunctionTool.from_defaults(fn=fn, description=fn.__doc__)


def sent_to(server: RemoteServer) -> list[list[dict[str, Any]]]:
    """The conversation of each request."""
    return [body["messages"] for _, body in server.requests]


# ---- FunctionAgent


def assert_two_steps(done: Run) -> None:
    assert done.results == [("add", {"a": 12, "b": 30}, "42"), ("multiply", {"a": 42, "b": 7}, "294")]
    assert done.text == SUM_ANSWER


@whole_and_streamed
async def test_an_agent_takes_two_steps(llm: VLLM, streaming: bool) -> None:
    done = await run(FunctionAgent(tools=[ADD, MULTIPLY], llm=llm, streaming=streaming), SUM)
    assert_two_steps(done)
    assert "".join(event.delta for event in done.streamed) == (SUM_ANSWER if streaming else "")
    assert [one.tool_name for one in done.output.tool_calls] == ["add", "multiply"]


async def test_events_of_a_streamed_agent_show_its_calls_as_they_grow(llm: VLLM) -> None:
    done = await run(FunctionAgent(tools=[ADD, MULTIPLY], llm=llm), SUM)
    shown = [event.tool_calls[0].tool_kwargs for event in done.streamed if event.tool_calls]
    assert shown[0] == {}
    assert {"a": 12, "b": 3} in shown  # which is not what add was called with
    assert {"a": 12, "b": 30} in shown
    assert done.streamed[-1].raw["usage"]["completion_tokens"] > 1
    assert_two_steps(done)


async def test_async_tools_are_awaited(llm: VLLM) -> None:
    async def aadd(a: int, b: int) -> int:
        """Add two integers."""
        await asyncio.sleep(0)
        return a + b

    tools = [FunctionTool.from_defaults(async_fn=aadd, name="add", description="Add two integers."), MULTIPLY]
    assert_two_steps(await run(FunctionAgent(tools=tools, llm=llm), SUM))


@whole_and_streamed
async def test_an_agent_that_thinks(llm: VLLM, streaming: bool) -> None:
    thinking = llm.model_copy(update={"enable_thinking": True, "max_tokens": 128})
    done = await run(FunctionAgent(tools=[ADD, MULTIPLY], llm=thinking, streaming=streaming), SUM)
    assert_two_steps(done)
    thoughts = "".join(event.thinking_delta or "" for event in done.streamed)
    assert bool(thoughts) is streaming


@whole_and_streamed
async def test_calls_of_one_answer_run_together(llm: VLLM, streaming: bool) -> None:
    """The first one waits for the second to end; the model is told of both as it called them."""
    ended = asyncio.Event()

    async def get_weather(city: str) -> str:
        """Get the weather for a city."""
        if city == "Oslo":
            await ended.wait()
        ended.set()
        return {"Oslo": "It's sunny.", "Madrid": "It's raining."}[city]

    done = await run(FunctionAgent(tools=[described(get_weather)], llm=llm, streaming=streaming), TWO_CITIES)
    assert [kwargs for _, kwargs, _ in done.results] == [{"city": "Madrid"}, {"city": "Oslo"}]
    assert done.text.startswith("It's sunny. It's raining.")


async def test_an_agent_can_be_kept_from_parallel_calls(llm: VLLM) -> None:
    agent = FunctionAgent(tools=[get_weather], llm=llm, allow_parallel_tool_calls=False)
    done = await run(agent, TWO_CITIES)
    assert done.results[0][1] == {"city": "Oslo"}
    assert len(done.streamed[-1].tool_calls) <= 1


@whole_and_streamed
async def test_the_first_answer_can_be_made_a_call(llm: VLLM, streaming: bool) -> None:
    agent = FunctionAgent(tools=[ADD, GET_WEATHER], llm=llm, streaming=streaming, initial_tool_choice="get_weather")
    done = await run(agent, "Hello")
    assert [name for name, _, _ in done.results] == ["get_weather"]
    assert done.text


@whole_and_streamed
async def test_what_a_tool_raises_goes_back_to_the_model(llm: VLLM, streaming: bool) -> None:
    def get_weather(city: str) -> str:
        """Get the weather for a city."""
        raise ValueError("Error: Invalid city.")

    done = await run(FunctionAgent(tools=[get_weather], llm=llm, streaming=streaming), WEATHER)
    assert done.output.tool_calls[0].tool_output.is_error
    assert done.text == "The tool failed: Invalid city."


@whole_and_streamed
async def test_a_tool_can_give_the_answer(llm: VLLM, streaming: bool) -> None:
    direct = FunctionTool.from_defaults(fn=get_weather, return_direct=True)
    memory = ChatMemoryBuffer.from_defaults()
    agent = FunctionAgent(tools=[direct], llm=llm, streaming=streaming)
    done = await run(agent, WEATHER, memory=memory)
    assert (done.text, done.results) == ("It's sunny in Paris.", [SUNNY])
    assert len([event for event in done.events if isinstance(event, AgentOutput)]) == 1
    again = await run(agent, "Hello", memory=memory)  # with that turn in its history
    assert again.text.startswith("Hello!")


@pytest.mark.filterwarnings("ignore:Skipping serialization of known unserializable key")  # the memory
async def test_tools_share_the_context_of_their_run(llm: VLLM) -> None:
    async def add(ctx: Context, a: int, b: int) -> int:
        """Add two integers."""
        await ctx.store.set("sums", [*await ctx.store.get("sums", default=[]), a + b])
        return a + b

    agent = FunctionAgent(tools=[described(add), MULTIPLY], llm=llm)
    ctx = Context(agent)
    assert_two_steps(await run(agent, SUM, ctx=ctx))
    await run(agent, "Add 2 and 3.", ctx=ctx)
    assert await ctx.store.get("sums") == [42, 5]


async def test_a_history_goes_in_and_stays_as_it_is(llm: VLLM) -> None:
    history = [ChatMessage(role="user", content="My name is Ann."), ChatMessage(role="assistant", content="Hi Ann!")]
    before = copy.deepcopy(history)
    done = await run(FunctionAgent(tools=[get_weather], llm=llm), "What is my name?", chat_history=history)
    assert "Ann" in done.text
    assert history == before


async def test_one_agent_answers_many_at_once(llm: VLLM) -> None:
    agent = FunctionAgent(tools=[ADD, MULTIPLY], llm=llm)
    for done in await asyncio.gather(*(run(agent, SUM) for _ in range(4))):
        assert_two_steps(done)


@pytest.mark.parametrize("max_tokens", [8, 14, 15])
@whole_and_streamed
async def test_a_call_that_was_cut_off_is_not_made(llm: VLLM, streaming: bool, max_tokens: int) -> None:
    """The arguments that have come may be valid JSON with a little help, and wrong: 3 where 30 was meant.

    A stream shows the call before it is cut off; of a whole answer vLLM then gives all as text.
    """
    made: list[tuple[int, int]] = []

    def add(a: int, b: int = 0) -> int:
        """Add two integers."""
        made.append((a, b))
        return a + b

    short = llm.model_copy(update={"max_tokens": max_tokens})
    agent = FunctionAgent(tools=[described(add), MULTIPLY], llm=short, streaming=streaming)
    if streaming:
        with pytest.raises(LengthFinishReasonError, match=r"the call of 'add' was cut off .* raise max_tokens"):
            await run(agent, SUM)
    else:
        done = await run(agent, SUM)
        assert done.output.raw["choices"][0]["finish_reason"] == "length"
    assert not made


@whole_and_streamed
async def test_a_tool_that_the_model_makes_up_is_told_to_be_missing(
    server: RemoteServer, remote: VLLM, streaming: bool
) -> None:
    """tiny_chat calls only what it is offered."""
    answers(server, call("subtract", a=3, b=2), "I can't.")
    done = await run(FunctionAgent(tools=[add], llm=remote, streaming=streaming), "3 - 2?")
    assert done.text == "I can't."
    (_, called, told) = sent_to(server)[-1]
    assert called["tool_calls"][0]["function"]["name"] == "subtract"
    assert (told["role"], told["tool_call_id"]) == ("tool", "call-subtract")
    assert "Tool subtract not found" in told["content"]


BROKEN = call("add", '{"a": 12, "b": oops}')
# What vLLM's parser for Hermes' format gives back, whole, when it can't read a call.
LEFT = 'I will add.\n<tool_call>\n{"name": "add", "arguments": {"a": 12, "b": oops}}\n</tool_call>'


@pytest.mark.parametrize(
    ("broken", "streaming"), [(BROKEN, False), (BROKEN, True), (LEFT, False)], ids=["whole", "streamed", "left as text"]
)
@pytest.mark.parametrize(
    "make", [lambda agent: agent, lambda agent: AgentWorkflow(agents=[agent])], ids=["alone", "workflow"]
)
async def test_a_call_with_broken_arguments_is_not_made_and_the_model_is_told(
    server: RemoteServer, remote: VLLM, broken: Any, streaming: bool, make: Any
) -> None:
    """tiny_chat writes no broken JSON."""
    made = []

    def add(a: int = 1, b: int = 1) -> int:
        """Add two integers."""
        made.append((a, b))
        return a + b

    answers(server, broken, call("add", a=12, b=30), "It is 42.")
    done = await run(make(FunctionAgent(tools=[add], llm=remote, streaming=streaming)), "12 + 30?")
    assert done.text == "It is 42."
    assert made == [(12, 30)]
    called, told = sent_to(server)[1][-2:]
    (sent,) = called["tool_calls"]
    assert sent["function"] == {"name": "add", "arguments": "{}"}  # all servers can read this turn again
    assert (told["role"], told["tool_call_id"]) == ("tool", sent["id"])
    assert "Tool add__malformed_arguments not found" in told["content"]


async def test_a_model_that_calls_no_functions_is_refused_by_an_agent_that_needs_them(remote: VLLM) -> None:
    deaf = remote.model_copy(update={"is_function_calling_model": False})
    with pytest.raises(ValueError, match="LLM must be a FunctionCallingLLM"):
        await run(FunctionAgent(tools=[add], llm=deaf), "1 + 2?")


async def test_an_agent_that_goes_in_circles_gives_an_answer_after_all(server: RemoteServer, remote: VLLM) -> None:
    """tiny_chat does not go in circles."""
    answers(server, call("add", a=1, b=1), call("add", a=1, b=1), "Enough: 2.")
    agent = FunctionAgent(tools=[add], llm=remote, early_stopping_method="generate")
    done = await run(agent, "1 + 1?", max_iterations=2)
    assert done.text == "Enough: 2."


# ---- AgentWorkflow


def two_agents(llm: VLLM, streaming: bool, **first: Any) -> AgentWorkflow:
    """A clerk who knows the way, and a mathematician who has the tools."""
    clerk = FunctionAgent(
        name="clerk", description="Knows who can help.", llm=llm, streaming=streaming,
        **{"tools": [get_weather], "can_handoff_to": ["mathematician"], **first},
    )  # fmt: skip
    mathematician = FunctionAgent(
        name="mathematician", description="Adds and multiplies.", system_prompt="You are a mathematician.",
        tools=[ADD, MULTIPLY], llm=llm, streaming=streaming, can_handoff_to=[],
    )  # fmt: skip
    return AgentWorkflow(agents=[clerk, mathematician], root_agent="clerk")


@pytest.mark.slow
@whole_and_streamed
async def test_one_agent_hands_over_to_another(server: RemoteServer, remote: VLLM, streaming: bool) -> None:
    """tiny_chat can call handoff, but not with the name of an agent."""
    handed_over = call("handoff", to_agent="mathematician", reason="it is a sum")
    answers(server, handed_over, call("add", a=12, b=30), "It is 42.")
    done = await run(two_agents(remote, streaming), "12 + 30?")
    assert (done.text, done.output.current_agent_name) == ("It is 42.", "mathematician")
    assert [name for name, _, _ in done.results] == ["handoff", "add"]
    offered = [[tool["function"]["name"] for tool in body["tools"]] for _, body in server.requests]
    assert offered == [["get_weather", "handoff"], ["add", "multiply"], ["add", "multiply"]]
    assert [message["role"] for message in sent_to(server)[-1]] == [
        "system", "user", "assistant", "tool", "assistant", "tool",
    ]  # fmt: skip


@whole_and_streamed
async def test_tiny_chat_hands_over_when_it_is_told_to_whom(llm: VLLM, streaming: bool) -> None:
    """It is made to call handoff, and finds the arguments in the question."""
    clerk = FunctionAgent(
        name="clerk", description="Knows who can help.", llm=llm, streaming=streaming, initial_tool_choice="handoff"
    )
    math = FunctionAgent(name="math", description="Adds.", llm=llm, streaming=streaming, tools=[ADD], can_handoff_to=[])
    workflow = AgentWorkflow(agents=[clerk, math], root_agent="clerk")
    done = await run(workflow, "Call handoff with to_agent math, reason sums.")
    (name, arguments, _), *_ = done.results
    assert (name, arguments) == ("handoff", {"to_agent": "math", "reason": "sums"})
    assert done.output.current_agent_name == "math"


# ---- agents that need no tool calls: ReAct writes them as text, CodeAct writes code


THOUGHT = 'Thought: I need a tool.\nAction: add\nAction Input: {"a": 12, "b": 30}'
CONCLUSION = "Thought: I can answer without using any more tools.\nAnswer: It is 42."


@whole_and_streamed
@pytest.mark.parametrize("calls_functions", [True, False])
async def test_a_react_agent_works_with_or_without_tool_support(
    server: RemoteServer, remote: VLLM, streaming: bool, calls_functions: bool
) -> None:
    """tiny_chat does not know ReAct's form."""
    answers(server, THOUGHT, CONCLUSION)
    model = remote.model_copy(update={"is_function_calling_model": calls_functions})
    done = await run(ReActAgent(tools=[add], llm=model, streaming=streaming), "12 + 30?")
    assert (done.text, done.results) == ("It is 42.", [("add", {"a": 12, "b": 30}, "42")])
    assert "".join(event.delta for event in done.streamed) == (THOUGHT + CONCLUSION if streaming else "")
    (_, body) = server.requests[-1]
    assert "tools" not in body
    assert "> Tool Name: add" in body["messages"][0]["content"]


@whole_and_streamed
async def test_a_react_agent_lets_the_model_mend_its_form(server: RemoteServer, remote: VLLM, streaming: bool) -> None:
    """A scripted model: tiny_chat can't be made to correct anything."""
    answers(server, "Thought: hm.\nAction: add", THOUGHT, CONCLUSION)
    done = await run(ReActAgent(tools=[add], llm=remote, streaming=streaming), "12 + 30?")
    assert (done.text, len(server.requests)) == ("It is 42.", 3)
    assert "Error while parsing the output" in sent_to(server)[1][-1]["content"]


@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
def test_predict_and_call_without_tool_support_describes_the_tools(
    server: RemoteServer, remote: VLLM, is_async: bool
) -> None:
    """LlamaIndex then takes a step of a ReAct agent, in a form that tiny_chat does not know."""
    answers(server, THOUGHT, CONCLUSION)
    model = remote.model_copy(update={"is_function_calling_model": False})
    if is_async:
        answer = asyncio.run(model.apredict_and_call([ADD], "12 + 30?"))
    else:
        answer = model.predict_and_call([ADD], "12 + 30?")
    assert answer.response == "42"
    assert "tools" not in server.requests[0][1]


async def execute(code: str) -> str:
    """Run Python."""
    scope: dict[str, Any] = {"add": add}
    exec(code, scope)
    return str(scope["total"])


CODE = "Let me see.\n<execute>\ntotal = add(12, 30)\n</execute>"


@whole_and_streamed
async def test_a_code_act_agent_runs_what_the_model_writes(server: RemoteServer, remote: VLLM, streaming: bool) -> None:
    """tiny_chat writes no code."""
    answers(server, CODE, "It is 42.")
    done = await run(CodeActAgent(execute, tools=[add], llm=remote, streaming=streaming), "12 + 30?")
    assert (done.text, done.results) == ("It is 42.", [("execute", {"code": "total = add(12, 30)"}, "42")])
    assert "def add(a: int, b: int) -> int" in sent_to(server)[0][0]["content"].replace("'", "")
    assert sent_to(server)[-1][-1]["content"] == "Result of executing the code given:\n\n42"


@whole_and_streamed
async def test_a_code_act_agent_hands_over(server: RemoteServer, remote: VLLM, streaming: bool) -> None:
    """A scripted model, as above. CodeAct keeps its call out of the history, and the result in it."""
    coder = CodeActAgent(
        execute, name="coder", description="Writes code.", llm=remote, streaming=streaming, can_handoff_to=["poet"]
    )
    poet = FunctionAgent(
        name="poet", description="Writes rhymes.", llm=remote, streaming=streaming, tools=[add], can_handoff_to=[]
    )
    answers(server, call("handoff", to_agent="poet", reason="it must rhyme"), "Two and two, a shoe.")
    done = await run(AgentWorkflow(agents=[coder, poet], root_agent="coder"), "Rhyme.")
    assert (done.text, done.output.current_agent_name) == ("Two and two, a shoe.", "poet")
    assert [tool["function"]["name"] for tool in server.requests[0][1]["tools"]] == ["handoff"]


# ---- structured output


class Person(BaseModel):
    name: str
    age: int


ALICE = {"name": "Alice Smith", "age": 34}


@whole_and_streamed
async def test_an_agents_last_word_can_be_an_object(llm: VLLM, streaming: bool) -> None:
    agent = FunctionAgent(tools=[get_weather], llm=llm, streaming=streaming, output_cls=Person)
    done = await run(agent, "Extract name and age: Bob Jones is 27 years old.")
    assert done.output.get_pydantic_model(Person) == Person(name="Bob Jones", age=27)
    (event,) = [event for event in done.events if isinstance(event, AgentStreamStructuredOutput)]
    assert event.output == done.output.structured_response


async def test_the_object_is_asked_for_by_its_schema(server: RemoteServer, remote: VLLM) -> None:
    """A scripted model, whose object is known."""
    answers(server, "Done.", '{"name": "Alice Smith", "age": 34}')
    workflow = AgentWorkflow(agents=[FunctionAgent(tools=[add], llm=remote)], output_cls=Person)
    done = await run(workflow, "Who?")
    assert done.output.structured_response == ALICE
    (_, body) = server.requests[-1]
    assert body["response_format"]["json_schema"]["schema"]["required"] == ["name", "age"]
    assert "tools" not in body


async def test_a_function_can_make_the_object(llm: VLLM) -> None:
    seen: list[ChatMessage] = []

    async def person(messages: list[ChatMessage]) -> dict[str, Any]:
        seen.extend(messages)
        return ALICE

    agent = FunctionAgent(tools=[get_weather], llm=llm, structured_output_fn=person)
    done = await run(agent, WEATHER)
    assert done.output.structured_response == ALICE
    assert [message.role.value for message in seen] == ["user", "assistant", "tool", "assistant"]
