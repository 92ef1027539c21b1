"""What calls send and how they end, against a real HTTP server that answers as told."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from aiohttp import web
from langchain_core import exceptions as core
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.messages import AIMessage, HumanMessage, trim_messages
from langchain_core.runnables import RunnableConfig

from langchain_vllm_local import VLLM, ChatVLLM
from shared_engine import InvalidInputError, RequestRejectedError
from tests.support.parameters import SENT
from tests.support.remote_server import RemoteServer, chat_answer


def chat(server: RemoteServer, **fields: Any) -> ChatVLLM:
    return ChatVLLM(base_url=server.url + "/v1", **fields)


def sent(server: RemoteServer) -> dict[str, Any]:
    """The one request's body, without what is always in it."""
    ((_, body),) = server.requests
    server.requests.clear()
    return {name: value for name, value in body.items() if name not in ("messages", "model", "stream_options")}


def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


# ---- parameters


def test_a_call_wins_over_the_constructor(server: RemoteServer) -> None:
    llm = chat(server, temperature=0.5, max_tokens=9, stop=["x"], seed=1, extra_body={"a": 1, "b": 1})
    llm.invoke("Hi")
    assert sent(server) == {"temperature": 0.5, "max_tokens": 9, "stop": ["x"], "seed": 1, "a": 1, "b": 1}
    llm.invoke("Hi", temperature=0.0, max_completion_tokens=2, stop=["y"], min_p=0.1, extra_body={"b": 2})
    assert sent(server) == {
        "temperature": 0.0,
        "max_tokens": 2,
        "stop": ["y"],
        "seed": 1,
        "min_p": 0.1,
        "a": 1,
        "b": 2,
    }


@pytest.mark.parametrize("name", SENT)
def test_each_parameter_is_a_field_and_a_keyword(server: RemoteServer, name: str) -> None:
    default, value = SENT[name]
    llm = chat(server, **{name: default})
    llm.invoke("Hi")
    assert sent(server) == {name: default}
    llm.invoke("Hi", **{name: value})
    assert sent(server) == {name: value}


def test_an_empty_stop_and_none_take_a_default_away(server: RemoteServer) -> None:
    chat(server, stop=["x"], temperature=0.5).invoke("Hi", stop=[], temperature=None)
    assert sent(server) == {}


def test_bound_parameters_are_sent(server: RemoteServer) -> None:
    chat(server).bind(temperature=0.25, stop=["x"], top_logprobs=2).invoke("Hi")
    assert sent(server) == {"temperature": 0.25, "stop": ["x"], "logprobs": True, "top_logprobs": 2}


@pytest.mark.parametrize("kind", [ChatVLLM, VLLM])
def test_numpys_numbers_are_numbers(server: RemoteServer, kind: Any) -> None:
    numpy = pytest.importorskip("numpy")
    llm = kind(base_url=server.url)
    given = {"temperature": numpy.float64(0.5), "max_tokens": numpy.int64(3)}
    llm.bind(**given).invoke("Hi")
    llm.batch(["Hi"], **given)
    assert [(body["temperature"], body["max_tokens"]) for _, body in server.requests] == [(0.5, 3)] * 2


@pytest.mark.parametrize("options", [{"stream_usage": True}, {"stream_options": {"include_usage": True}}])
def test_the_usage_may_be_asked_for_though_it_always_comes(server: RemoteServer, options: dict[str, Any]) -> None:
    server.streams("Hi")
    assert chat(server).bind(**options).invoke("Hi", stream=True).text == "Hi"
    assert "".join(chunk.text for chunk in chat(server).stream("Hi", **options)) == "Hi"
    assert [body["stream_options"] for _, body in server.requests] == [{"include_usage": True}] * 2
    with pytest.raises(InvalidInputError, match="unknown parameter 'stream_options'"):
        chat(server).invoke("Hi", stream_options={"continuous_usage_stats": True})


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"temprature": 1}, "unknown parameter 'temprature'; did you mean 'temperature'"),
        ({"temperature": -1}, "temperature = -1"),
        ({"max_tokens": 1, "max_completion_tokens": 1}, "two names of max_tokens"),
        ({"tool_choice": "any"}, "needs tools"),
        ({"tools": [add], "tool_choice": "ad"}, "did you mean 'add'"),
    ],
)
def test_a_wrong_parameter_of_a_call_is_refused_before_anything_is_sent(
    server: RemoteServer, call: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidInputError, match=message) as caught:
        chat(server).invoke("Hi", **call)
    assert isinstance(caught.value, core.ModelInvalidRequestError)
    assert server.requests == []


def test_a_remote_server_may_be_asked_for_another_model(server: RemoteServer) -> None:
    llm = chat(server, model="served")
    llm.invoke("Hi", model="other")
    assert server.requests[0][1]["model"] == "other"


@pytest.mark.parametrize("llm", [ChatVLLM(model="org/name"), VLLM(model="org/name")])
def test_a_local_engine_serves_no_other_model(llm: Any) -> None:
    with pytest.raises(InvalidInputError, match=r"'org/other'.*serves one model, here 'org/name'"):
        llm.invoke("Hi", model="org/other")


@pytest.mark.parametrize("llm", [ChatVLLM(model="org/name"), VLLM(model="org/name")])
def test_several_answers_can_not_be_streamed(llm: Any) -> None:
    with pytest.raises(InvalidInputError, match="one answer can be streamed"):
        list(llm.stream("Hi", n=2))


# ---- tools


def test_bound_tools_are_sent(server: RemoteServer) -> None:
    chat(server).bind_tools([add], tool_choice="any", parallel_tool_calls=False, temperature=0.0).invoke("2 + 3?")
    body = sent(server)
    (tool,) = body.pop("tools")
    assert tool["function"]["name"] == "add"
    assert body == {"tool_choice": "required", "parallel_tool_calls": False, "temperature": 0.0}


@pytest.mark.parametrize(
    ("tool_choice", "strict", "said"),
    [("any", None, True), ("add", None, True), ("any", False, False), ("auto", None, None), (None, True, True)],
)
def test_a_forced_call_follows_the_schema_unless_told_otherwise(
    server: RemoteServer, tool_choice: str | None, strict: bool | None, said: bool | None
) -> None:
    chat(server).bind_tools([add], tool_choice=tool_choice, strict=strict).invoke("2 + 3?")
    (tool,) = sent(server)["tools"]
    assert tool["function"].get("strict") is said


FORCED: dict[str, Callable[[ChatVLLM, list[Any]], object]] = {
    "bound": lambda llm, tools: llm.bind_tools(tools, tool_choice="any").invoke("2 + 3?"),
    "of the call": lambda llm, tools: llm.bind_tools(tools).invoke("2 + 3?", tool_choice="any"),
    "bound later": lambda llm, tools: llm.bind_tools(tools).bind(tool_choice="add").invoke("2 + 3?"),
    "all of the call": lambda llm, tools: llm.invoke("2 + 3?", tools=tools, tool_choice=True),
    "stream": lambda llm, tools: list(llm.stream("2 + 3?", tools=tools, tool_choice="add")),
    "batch": lambda llm, tools: llm.bind_tools(tools).batch(["2 + 3?"], tool_choice="any"),
    "async": lambda llm, tools: asyncio.run(llm.bind_tools(tools).ainvoke("2 + 3?", tool_choice="any")),
}


@pytest.mark.parametrize("way", FORCED)
def test_a_forced_call_follows_the_schema_wherever_it_is_forced(server: RemoteServer, way: str) -> None:
    own = {"type": "function", "function": {"name": "own", "parameters": {"type": "object"}, "strict": False}}
    FORCED[way](chat(server), [add, own])
    assert [tool["function"]["strict"] for tool in sent(server)["tools"]] == [True, False]


def test_bind_tools_refuses_a_choice_that_names_none_at_once() -> None:
    with pytest.raises(InvalidInputError, match="did you mean 'add'"):
        ChatVLLM(model="org/name").bind_tools([add], tool_choice="ad")


# ---- answers and errors


def test_an_answer_comes_whole_and_with_usage(server: RemoteServer) -> None:
    message = chat(server).invoke("Hi")
    assert message.content == "Hi"
    assert message.usage_metadata == {"input_tokens": 3, "output_tokens": 1, "total_tokens": 4}
    assert message.response_metadata["model_name"] == "served"


@pytest.mark.parametrize(
    ("status", "said", "theirs"),
    [
        (400, "no", core.ModelInvalidRequestError),
        (400, "This model's maximum context length is 8 tokens", core.ContextOverflowError),
        (401, "no", core.ModelAuthenticationError),
        (403, "no", core.ModelPermissionDeniedError),
        (404, "no", core.ModelNotFoundError),
        (429, "no", core.ModelRateLimitError),
        (500, "no", core.ModelAPIError),
    ],
)
async def test_a_failure_is_langchains_too_whichever_way_it_was_asked(
    server: RemoteServer, status: int, said: str, theirs: type[Exception]
) -> None:
    server.fails(status, message=said)
    llm = chat(server, max_retries=0)
    with pytest.raises(theirs):
        await llm.ainvoke("Hi")
    with pytest.raises(theirs):
        await anext(llm.astream("Hi"))
    with pytest.raises(theirs):
        await asyncio.to_thread(llm.invoke, "Hi")
    with pytest.raises(theirs):
        await asyncio.to_thread(lambda: list(llm.stream("Hi")))


@pytest.mark.slow
def test_with_retry_tries_again_what_may_pass(server: RemoteServer) -> None:
    server.fails(500, times=1)
    llm = chat(server).with_retry(
        retry_if_exception_type=(core.ModelAPIError,), wait_exponential_jitter=False, stop_after_attempt=2
    )
    assert llm.invoke("Hi").content == "Hi"


# ---- streams


def test_a_stream_that_is_left_is_aborted(server: RemoteServer) -> None:
    server.streams("a", "b", then="hang")
    for chunk in chat(server).stream("Hi"):
        assert chunk.text == "a"
        break
    assert server.aborted.wait(10)


async def test_an_asynchronous_stream_that_is_left_is_aborted(server: RemoteServer) -> None:
    server.streams("a", "b", then="hang")
    async for chunk in chat(server).astream("Hi"):
        assert chunk.text == "a"
        break
    assert await asyncio.to_thread(server.aborted.wait, 10)


class Tokens(BaseCallbackHandler):
    def __init__(self) -> None:
        self.seen: list[str] = []

    def on_llm_new_token(self, token: Any, **kwargs: Any) -> None:
        self.seen.append(token)


def test_streaming_true_shows_tokens_of_invoke_to_callbacks(server: RemoteServer) -> None:
    server.streams("a", "b")
    tokens = Tokens()
    message = chat(server, streaming=True).invoke("Hi", config={"callbacks": [tokens]})
    assert (message.content, [token for token in tokens.seen if token]) == ("ab", ["a", "b"])


# ---- batches


class Crowd:
    """A handler that lets requests through once ``expected`` of them are there; counts how many there are at most."""

    def __init__(self, expected: int) -> None:
        self.expected, self.now, self.most = expected, 0, 0
        self.complete = asyncio.Event()

    async def __call__(self, request: web.Request) -> web.StreamResponse:
        self.now += 1
        self.most = max(self.most, self.now)
        if self.now >= self.expected:
            self.complete.set()
        await asyncio.wait_for(self.complete.wait(), 10)
        self.now -= 1
        text = (await request.json())["messages"][0]["content"]
        if text == "bad":
            return web.json_response({"error": {"message": "bad input", "code": 400}}, status=400)
        return web.json_response(chat_answer(text))


@pytest.mark.slow
def test_batch_has_all_inputs_in_flight_and_keeps_their_order(server: RemoteServer) -> None:
    server.handler = crowd = Crowd(expected=40)
    questions = [str(index) for index in range(40)]
    assert [message.content for message in chat(server).batch(questions)] == questions
    assert crowd.most == 40


async def test_abatch_has_all_inputs_in_flight_and_keeps_their_order(server: RemoteServer) -> None:
    server.handler = crowd = Crowd(expected=40)
    questions = [str(index) for index in range(40)]
    assert [message.content for message in await chat(server).abatch(questions)] == questions
    assert crowd.most == 40


@pytest.mark.slow
def test_batch_keeps_to_the_callers_limit_and_the_engines(server: RemoteServer) -> None:
    server.handler = crowd = Crowd(expected=3)
    chat(server).batch(["a"] * 12, config={"max_concurrency": 3})
    assert crowd.most == 3
    server.handler = crowd = Crowd(expected=5)
    chat(server, engine_args={"max_num_seqs": 4}).batch(["a"] * 12)
    assert crowd.most == 5  # a quarter more than the engine takes at once
    server.handler = crowd = Crowd(expected=4)
    chat(server, engine_args={"max_num_seqs": 4, "max_num_queued_reqs": 9}).batch(["a"] * 12)
    assert crowd.most == 4  # a limited queue would refuse what is too much
    server.handler = crowd = Crowd(expected=1)
    answers = chat(server, engine_args={"max_num_seqs": -4}).batch(["a", "b"])  # a remote server never sees it
    assert [answer.content for answer in answers] == ["a", "b"]


def test_a_bad_input_of_a_batch_leaves_the_others_alone(server: RemoteServer) -> None:
    server.handler = Crowd(expected=3)
    answers: list[Any] = chat(server).batch(["a", "bad", "c"], return_exceptions=True)
    assert isinstance(answers[1], RequestRejectedError)
    assert [answers[0].content, answers[2].content] == ["a", "c"]
    with pytest.raises(core.ModelInvalidRequestError, match="bad input"):
        chat(server).batch(["bad", "bad", "bad"])


class Starts(BaseCallbackHandler):
    def __init__(self) -> None:
        self.seen: list[tuple[list[str] | None, Any]] = []
        self.lock = threading.Lock()

    def on_chat_model_start(self, serialized: Any, messages: Any, *, tags: list[str] | None = None, **kw: Any) -> None:
        with self.lock:
            self.seen.append((tags, messages[0][0].content))


@pytest.mark.slow
def test_each_input_of_a_batch_has_its_own_config(server: RemoteServer) -> None:
    starts = Starts()
    configs = [RunnableConfig(tags=[f"tag {index}"], callbacks=[starts]) for index in range(3)]
    chat(server).batch(["0", "1", "2"], configs)
    assert sorted(starts.seen) == [([f"tag {index}"], str(index)) for index in range(3)]


def test_no_inputs_give_no_answers() -> None:
    assert ChatVLLM(model="org/name").batch([]) == []
    assert VLLM(model="org/name").batch([], return_exceptions=True) == []


def test_one_object_serves_one_event_loop_after_another(server: RemoteServer) -> None:
    llm = chat(server)

    async def ask() -> AIMessage:
        return await llm.ainvoke("Hi")

    assert [asyncio.run(ask()).content for _ in range(3)] == ["Hi"] * 3


# ---- tools


SEARCH = {"type": "web_search"}


@pytest.mark.parametrize(
    ("tools", "problem"),
    [
        ([add, {"type": "function", "function": {"name": "add"}}], r"tools\[1\] has the name of another tool, 'add'"),
        ([add, SEARCH], r"tools\[1\] is not a tool in OpenAI's form"),
    ],
)
def test_a_local_engine_takes_functions_whose_names_differ(tools: list[Any], problem: str) -> None:
    llm = ChatVLLM(model="Qwen/Qwen3-4B")
    with pytest.raises(InvalidInputError, match=problem):
        llm.bind_tools(tools).invoke("Hi")


def test_another_server_may_have_tools_of_its_own(server: RemoteServer) -> None:
    chat(server).bind_tools([add, SEARCH]).invoke("Hi")
    assert sent(server)["tools"][1] == SEARCH


def test_a_tool_without_parameters_goes_out_with_an_empty_schema(server: RemoteServer) -> None:
    """vLLM takes it as it is, vllm-router does not."""
    chat(server).bind_tools([{"type": "function", "function": {"name": "get_time"}}]).invoke("What time is it?")
    assert sent(server)["tools"][0]["function"]["parameters"] == {"type": "object", "properties": {}}


# ---- usage, as ChatOpenAI has it beside usage_metadata


class Ends(BaseCallbackHandler):
    """The llm_output that older callbacks read."""

    def __init__(self) -> None:
        self.outputs: list[dict[str, Any] | None] = []

    def on_llm_end(self, response: Any, **_: Any) -> None:
        self.outputs.append(response.llm_output)


def usage(answers: int) -> dict[str, int]:
    return {"prompt_tokens": 3 * answers, "completion_tokens": answers, "total_tokens": 4 * answers}


async def test_a_whole_answers_usage_is_in_its_metadata_and_in_llm_output(server: RemoteServer) -> None:
    ends = Ends()
    llm = chat(server, callbacks=[ends])
    for answer in (llm.invoke("Hi"), await llm.ainvoke("Hi")):
        assert (answer.response_metadata["token_usage"], answer.response_metadata["model_name"]) == (usage(1), "served")
    assert ends.outputs == [{"token_usage": usage(1), "model_name": "served"}] * 2


@pytest.mark.parametrize("answers", [1, 3])
async def test_llm_output_of_several_conversations_adds_up(server: RemoteServer, answers: int) -> None:
    ends = Ends()
    llm = chat(server, callbacks=[ends])
    conversations: list[Any] = [[HumanMessage("Hi")]] * answers
    for result in (llm.generate(conversations), await llm.agenerate(conversations)):
        assert result.llm_output == {"token_usage": usage(answers), "model_name": "served"}
    assert ends.outputs == [{"token_usage": usage(1), "model_name": "served"}] * 2 * answers


def test_streamed_answers_have_no_llm_output(server: RemoteServer) -> None:
    server.streams("Hi")
    llm = chat(server, streaming=True)
    assert llm.generate([[HumanMessage("Hi")]]).llm_output == {"token_usage": {}}
    assert "token_usage" not in llm.invoke("Hi").response_metadata


# ---- tokens


@pytest.mark.parametrize("kind", [ChatVLLM, VLLM])
def test_token_ids_are_the_models(server: RemoteServer, kind: Any) -> None:
    assert kind(base_url=server.url).get_token_ids("one two three") == [0, 1, 2]
    own = kind(base_url=server.url, custom_get_token_ids=lambda text: [len(text)])
    assert (own.get_token_ids("one"), own.get_num_tokens("one")) == ([3], 1)


def test_no_messages_have_no_tokens_and_no_server_is_asked(server: RemoteServer) -> None:
    assert chat(server).get_num_tokens_from_messages([]) == 0
    assert server.looks == []


def test_tools_without_messages_are_what_they_add(server: RemoteServer) -> None:
    assert chat(server).get_num_tokens_from_messages([], tools=[add]) == 0  # this server shows tools to nobody
    assert [path for path, _ in server.looks if "tokenize" in path] == ["/tokenize"] * 2


@pytest.mark.parametrize("strategy", ["last", "first"])
def test_a_message_too_long_by_itself_is_trimmed(server: RemoteServer, strategy: Any) -> None:
    long = HumanMessage("one two three four five")
    trim = partial(trim_messages, [long], strategy=strategy, allow_partial=True, token_counter=chat(server))
    assert trim(max_tokens=3) == []
    assert trim(max_tokens=7) == [long]
