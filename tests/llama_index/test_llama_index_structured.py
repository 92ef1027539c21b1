"""Structured output in every path of LlamaIndex: what is asked, what comes back and when it does not, what it costs."""

from __future__ import annotations

import asyncio
import inspect
import itertools
import json
from collections.abc import Callable, Iterator
from enum import Enum
from typing import Any, Literal

import pytest
from aiohttp import web
from llama_index.core import ChatPromptTemplate, Document, PromptTemplate, Settings, SummaryIndex
from llama_index.core.agent.workflow import FunctionAgent
from llama_index.core.callbacks import CallbackManager, LlamaDebugHandler, TokenCountingHandler
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.instrumentation.events import BaseEvent
from llama_index.core.instrumentation.span import SimpleSpan
from llama_index.core.instrumentation.span_handlers import SimpleSpanHandler
from llama_index.core.llms import LLM, ChatMessage
from llama_index.core.llms.structured_llm import StructuredLLM
from llama_index.core.memory import ChatMemoryBuffer
from llama_index.core.output_parsers import PydanticOutputParser
from llama_index.core.program import FunctionCallingProgram, LLMTextCompletionProgram
from llama_index.core.program.utils import FlexibleModel
from llama_index.core.prompts import SelectorPromptTemplate
from llama_index.core.types import PydanticProgramMode
from pydantic import BaseModel, Field, SecretStr, ValidationError, field_validator

from llama_index_vllm_local import VLLM, _predictions
from shared_engine import InvalidInputError, LengthFinishReasonError, RequestRejectedError, VLLMError
from shared_engine.adapting.structured import JsonSchema
from tests.llama_index.ways import ENDPOINTS, alist, text_of
from tests.support.remote_server import RemoteServer, running_server

QUESTION = "Anna is 31 years old. Extract the person."
PROMPT = PromptTemplate("{fact} Extract the person.")
ABORT_S = 10
MODES = ["default", "function", "llm"]


class Person(BaseModel):
    """A person."""

    name: str
    age: int = Field(ge=0, le=150)


ANNA = Person(name="Anna", age=31)
JSON = '{"name": "Anna", "age": 31}'


def predict(method: str) -> Callable[..., list[Any]]:
    def call(llm: LLM, output_cls: Any = Person, prompt: Any = PROMPT, **llm_kwargs: Any) -> list[Any]:
        made = getattr(llm, method)(output_cls, prompt, llm_kwargs=llm_kwargs, fact="Anna is 31 years old.")
        if method == "astream_structured_predict":
            return asyncio.run(alist(made))
        if method == "stream_structured_predict":
            return list(made)
        return [asyncio.run(made) if asyncio.iscoroutine(made) else made]

    return call


# Each gives what it returns, or all that it yields.
WAYS = {
    name: predict(name)
    for name in (
        "structured_predict", "astructured_predict", "stream_structured_predict", "astream_structured_predict",
    )
}  # fmt: skip
STREAMS = [name for name in WAYS if "stream" in name]
every_way = pytest.mark.parametrize("way", WAYS)
every_stream = pytest.mark.parametrize("way", STREAMS)


@pytest.fixture
def server() -> Iterator[RemoteServer]:
    with running_server() as server:
        says(server, JSON)
        yield server


@pytest.fixture
def remote(server: RemoteServer, counter: TokenCountingHandler) -> VLLM:
    return VLLM(base_url=server.url, max_retries=0, callback_manager=CallbackManager([counter]))


def in_mode(llm: VLLM, mode: str) -> VLLM:
    return llm.model_copy(update={"pydantic_program_mode": PydanticProgramMode(mode)})


def says(server: RemoteServer, text: str, finish_reason: str = "stop") -> None:
    """Answer so: in the content, or as the call that a request wants; whole or in pieces; for 5 + 7 tokens."""

    def message(body: dict[str, Any], text: str) -> dict[str, Any]:
        if not isinstance(body.get("tool_choice"), dict):
            return {"content": text}
        name = body["tool_choice"]["function"]["name"]
        call = {"index": 0, "id": "1", "type": "function", "function": {"name": name, "arguments": text}}
        return {"content": None, "tool_calls": [call]}

    async def handler(request: web.Request) -> web.StreamResponse:
        body = await request.json()
        head: dict[str, Any] = {"id": "1", "model": "served"}
        usage = {"prompt_tokens": 5, "completion_tokens": 7, "total_tokens": 12}
        if not body.get("stream"):
            choice = {"index": 0, "message": message(body, text), "finish_reason": finish_reason}
            return web.json_response({**head, "choices": [choice], "usage": usage})
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        pieces = [text[start : start + 3] for start in range(0, len(text), 3)]
        deltas = [{"delta": message(body, piece), "finish_reason": None} for piece in pieces]
        choices = [[{"index": 0, **delta}] for delta in (*deltas, {"delta": {}, "finish_reason": finish_reason})]
        for event in [*({**head, "choices": each} for each in choices), {**head, "choices": [], "usage": usage}]:
            await response.write(b"data: " + json.dumps(event).encode() + b"\n\n")
        await response.write(b"data: [DONE]\n\n")
        return response

    server.handler = handler


def asked(server: RemoteServer) -> dict[str, Any]:
    """The body of the one request there was."""
    ((_, body),) = server.requests
    return body


# ---- what is asked


@every_way
def test_the_class_is_sent_as_response_format(remote: VLLM, server: RemoteServer, way: str) -> None:
    assert WAYS[way](remote)[-1] == ANNA
    body = asked(server)
    assert body["messages"] == [{"role": "user", "content": QUESTION}]
    assert body["response_format"] == {
        "type": "json_schema",
        "json_schema": {"name": "Person", "description": "A person.", "schema": Person.model_json_schema()},
    }
    assert not body.keys() & {"tools", "tool_choice", "structured_outputs"}


@every_way
def test_in_function_mode_the_class_is_a_tool_that_must_be_called(remote: VLLM, server: RemoteServer, way: str) -> None:
    assert WAYS[way](in_mode(remote, "function"), tool_required=False, tool_choice="none")[-1] == ANNA
    body = asked(server)
    assert body["tools"][0]["function"]["parameters"]["properties"] == Person.model_json_schema()["properties"]
    assert body["tool_choice"] == {"type": "function", "function": {"name": "Person"}}
    assert "response_format" not in body


@every_way
def test_in_llm_mode_the_prompt_says_it_all(remote: VLLM, server: RemoteServer, way: str) -> None:
    says(server, f"Sure, here you are:\n{JSON}\nAnything else?")
    assert WAYS[way](in_mode(remote, "llm"))[-1] == ANNA
    body = asked(server)
    assert json.dumps(Person.model_json_schema()) in body["messages"][0]["content"]
    assert not body.keys() & {"tools", "response_format"}
    assert PROMPT.output_parser is None


@every_way
def test_other_modes_are_llama_indexes_own(remote: VLLM, way: str) -> None:
    with pytest.raises(ValueError, match="Unsupported pydantic program mode"):
        WAYS[way](in_mode(remote, "guidance"))
    with pytest.raises(ValueError, match="Unsupported pydantic program mode"):
        in_mode(remote, "guidance").as_structured_llm(Person).complete(QUESTION)


@every_way
@pytest.mark.parametrize("mode", MODES)
def test_system_prompt_and_instructions_of_the_prompts_own_parser_are_sent(
    remote: VLLM, server: RemoteServer, way: str, mode: str
) -> None:
    remote.system_prompt = "Be exact."
    chat = ChatPromptTemplate.from_messages([("user", "{fact}"), ("assistant", "Go on."), ("user", "Extract {what}.")])
    text = PromptTemplate("not for models with a chat template")
    prompt = SelectorPromptTemplate(text, [(lambda llm: llm.metadata.is_chat_model, chat)])
    WAYS[way](in_mode(remote, mode), prompt=prompt.partial_format(what="her"))
    messages = asked(server)["messages"]
    assert [message["role"] for message in messages] == ["system", "user", "assistant", "user"]
    assert messages[0]["content"].startswith("Be exact.")
    assert messages[-1]["content"].startswith("Extract her.")

    class Shout(PydanticOutputParser[Person]):
        def format(self, query: str) -> str:
            return query.upper()

    server.requests.clear()
    WAYS[way](in_mode(remote, mode), prompt=PromptTemplate("{fact} Extract.", output_parser=Shout(Person)))
    own = asked(server)["messages"][-1]["content"]
    assert (
        own == "ANNA IS 31 YEARS OLD. EXTRACT." if mode != "llm" else own.startswith("Anna is 31 years old. Extract.")
    )


FORMS: list[dict[str, Any]] = [
    {"response_format": {"type": "json_object"}},
    {"structured_outputs": {"json": {"type": "object"}}},
    {"extra_body": {"response_format": {"type": "json_object"}}},
]


@every_way
@pytest.mark.parametrize("form", FORMS, ids=lambda form: next(iter(form)))
def test_a_calls_own_form_and_parameters_win(
    remote: VLLM, server: RemoteServer, way: str, form: dict[str, Any]
) -> None:
    llm = remote.model_copy(update={"max_tokens": 9, "temperature": 0.5, "structured_outputs": {"regex": ".*"}})
    assert WAYS[way](llm, **form, max_tokens=30)[-1] == ANNA
    body = asked(server)
    sent = {name: body[name] for name in ("response_format", "structured_outputs") if name in body}
    assert sent == form.get("extra_body", form)
    assert (body["max_tokens"], body["temperature"]) == (30, 0.5)
    server.requests.clear()
    WAYS[way](llm, max_tokens=None)
    body = asked(server)
    assert "json_schema" in body["response_format"]
    assert not body.keys() & {"structured_outputs", "max_tokens"}


@pytest.mark.parametrize("mode", MODES)
def test_keywords_of_the_caller_stay_as_they_are(remote: VLLM, mode: str) -> None:
    keywords = {"max_tokens": 30, "tool_choice": "auto", "extra_body": {"ignore_eos": False}}
    before = json.dumps(keywords)
    llm = in_mode(remote, mode)
    assert llm.structured_predict(Person, PROMPT, llm_kwargs=keywords, fact="") == ANNA
    assert list(llm.stream_structured_predict(Person, PROMPT, llm_kwargs=keywords, fact=""))[-1] == ANNA
    assert llm.as_structured_llm(Person).complete("", **keywords).raw == ANNA
    assert json.dumps(keywords) == before


class Tags(BaseModel):
    uniqueItems: set[str] = Field(default={"uniqueItems"}, max_length=2)
    by_name: dict[str, list[frozenset[int] | None]] = {}


@every_way
def test_sets_are_asked_for_as_lists_which_vllm_takes(remote: VLLM, server: RemoteServer, way: str) -> None:
    says(server, '{"uniqueItems": ["b", "a", "b"], "by_name": {"x": [[1, 1], null]}}')
    whole = Tags(uniqueItems={"a", "b"}, by_name={"x": [frozenset([1]), None]})
    assert WAYS[way](remote, Tags)[-1] == whole
    schema = Tags.model_json_schema()
    assert schema["properties"]["uniqueItems"].pop("uniqueItems") is True
    assert schema["properties"]["by_name"]["additionalProperties"]["items"]["anyOf"][0].pop("uniqueItems") is True
    assert asked(server)["response_format"]["json_schema"]["schema"] == schema


def test_only_the_keyword_unique_items_is_left_out_of_a_schema_and_of_a_copy() -> None:
    array = {"type": "array", "uniqueItems": True}
    named: dict[str, Any] = {
        "properties": {"uniqueItems": array, "properties": array},
        "$defs": {"uniqueItems": array},
        "default": {"uniqueItems": True},
        "enum": [{"uniqueItems": True}],
        "items": [array, False],
    }
    before = json.dumps(named)
    sent = JsonSchema("it", named).response_format()["json_schema"]["schema"]
    assert sent == {
        "properties": {"uniqueItems": {"type": "array"}, "properties": {"type": "array"}},
        "$defs": {"uniqueItems": {"type": "array"}},
        "default": {"uniqueItems": True},
        "enum": [{"uniqueItems": True}],
        "items": [{"type": "array"}, False],
    }
    assert json.dumps(named) == before


class Locked(BaseModel):
    call: Callable[[int], int]


@every_way
def test_what_cannot_be_asked_is_refused_before_anything_is_sent(remote: VLLM, server: RemoteServer, way: str) -> None:
    for output_cls in (dict, Person.model_json_schema(), ANNA):
        with pytest.raises(InvalidInputError, match="must be a pydantic class"):
            WAYS[way](remote, output_cls)
    with pytest.raises(InvalidInputError, match="Locked: no JSON schema can be made of it"):
        WAYS[way](remote, Locked)
    with pytest.raises(InvalidInputError, match="pass one of them"):
        WAYS[way](remote, response_format={"type": "json_object"}, structured_outputs={"regex": ".*"})
    without_tools = in_mode(remote.model_copy(update={"is_function_calling_model": False}), "function")
    with pytest.raises(InvalidInputError, match="'default' asks by response_format"):
        WAYS[way](without_tools)
    assert server.requests == []


# Older cores write the LLM into every event, and pydantic complains that the string is none of the enum.
@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")
@every_way
def test_the_mode_can_be_a_string(remote: VLLM, server: RemoteServer, way: str) -> None:
    remote.pydantic_program_mode = "function"  # type: ignore[assignment]
    assert WAYS[way](remote)[-1] == ANNA
    assert "tools" in asked(server)
    remote.is_function_calling_model = False
    with pytest.raises(InvalidInputError, match="pydantic_program_mode = 'function' asks by a tool"):
        WAYS[way](remote)

    def guess() -> None:
        remote.pydantic_program_mode = "guess"  # type: ignore[assignment]
        WAYS[way](remote)

    with pytest.raises(VLLMError, match=r"pydantic_program_mode = 'guess'.*'default', 'openai', 'llm', 'function'"):
        guess()


# ---- what comes back


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


class Node(BaseModel):
    """A tree."""

    label: str
    children: list[Node] = []


class Everything(BaseModel):
    person: Person
    people: list[Person]
    size: Literal["small", "big"]
    colour: Colour
    number_or_word: int | str
    nothing: Person | None = None
    tree: Node
    by_name: dict[str, float]
    aliased: int = Field(alias="other name")


EVERYTHING = {
    "person": {"name": 'Ann \\ "é" {x}', "age": 1},
    "people": [{"name": "A", "age": 1}, {"name": "B\n", "age": 2}],
    "size": "big",
    "colour": "blue",
    "number_or_word": "three",
    "tree": {"label": "a", "children": [{"label": "b", "children": []}]},
    "by_name": {"x": 0.5},
    "other name": 4,
}


@every_way
@pytest.mark.parametrize("mode", MODES)
def test_all_that_a_class_can_hold_comes_back(remote: VLLM, server: RemoteServer, way: str, mode: str) -> None:
    says(server, json.dumps(EVERYTHING))
    assert WAYS[way](in_mode(remote, mode), Everything)[-1] == Everything.model_validate(EVERYTHING)


@every_stream
@pytest.mark.parametrize("mode", MODES)
def test_a_stream_yields_what_there_is_and_last_the_whole(
    remote: VLLM, server: RemoteServer, way: str, mode: str
) -> None:
    class People(BaseModel):
        place: str
        people: list[Person]
        size: int

    whole = People(place="Paris", people=[ANNA, Person(name="Bob", age=5)], size=2)
    says(server, whole.model_dump_json())
    outputs = WAYS[way](in_mode(remote, mode), People)
    assert all(isinstance(output, FlexibleModel | People) for output in outputs)
    assert (outputs[-1], type(outputs[-1])) == (whole, People)
    assert outputs[0].people is None
    grown = [len(output.people) for output in outputs if output.people]
    assert grown == sorted(grown)
    assert set(grown) == {1, 2}
    assert "Pa" in [output.place for output in outputs]
    assert all(earlier != later for earlier, later in itertools.pairwise(outputs[:-1]))


@every_stream
def test_a_long_stream_is_not_read_again_for_each_of_its_pieces(
    remote: VLLM, server: RemoteServer, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    class Story(BaseModel):
        words: list[str]

    text = Story(words=["word"] * 2000).model_dump_json()
    says(server, text)
    characters = []
    real = _predictions.from_json

    def from_json(text: str, **how: Any) -> Any:
        characters.append(len(text))
        return real(text, **how)

    monkeypatch.setattr(_predictions, "from_json", from_json)
    *before, last = WAYS[way](remote, Story)
    assert len(last.words) == 2000
    assert sum(characters) < 150 * len(text)  # for each piece it would be len(text) / 6 times as many
    seen = [len(output.words) for output in before if output.words]
    assert set(range(1, 15)) <= set(seen)
    assert all(later - earlier <= 1 + later / 50 for earlier, later in itertools.pairwise(seen))


class Half(BaseModel):
    """Any piece of it is valid."""

    a: str = ""
    b: str = ""


class Picky(Half):
    @field_validator("b")
    @classmethod
    def third_letter(cls, value: str) -> str:
        return value if value[2] else ""


@every_stream
def test_a_class_that_cannot_judge_half_an_object_still_streams(remote: VLLM, server: RemoteServer, way: str) -> None:
    whole = Picky(a="xyz", b="xyz")
    says(server, whole.model_dump_json())
    *before, last = WAYS[way](remote, Picky)
    assert last == whole
    assert "xy" in [output.b for output in before]


@every_way
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("finish_reason", ["length", "repetition"])
@pytest.mark.parametrize("text", ['{"a": "Anna", "b": "An', '{"a": "Anna"}', ""])
def test_an_answer_that_was_cut_off_is_a_typed_error_with_its_text(
    remote: VLLM, server: RemoteServer, way: str, mode: str, finish_reason: str, text: str
) -> None:
    says(server, text, finish_reason)
    with pytest.raises(LengthFinishReasonError, match=f"'{finish_reason}'.*raise max_tokens") as caught:
        WAYS[way](in_mode(remote, mode), Half)
    assert caught.value.text == text


def test_a_stream_that_is_cut_off_gives_what_came_before(remote: VLLM, server: RemoteServer) -> None:
    says(server, '{"a": "Anna", "b": "An', "length")
    seen: list[Any] = []
    with pytest.raises(LengthFinishReasonError):
        seen.extend(remote.stream_structured_predict(Half, PROMPT, fact=""))
    assert seen[-1] == Half(a="Anna", b="An")


@every_way
@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"name": "Anna", "age": 200}', "less than or equal to 150"),
        ('{"name": "Anna"}', "age\n  Field required"),
        ('{"name": "Anna", "age": 3', "Invalid JSON"),
        ("Anna is 31.", "Invalid JSON.*input_value='Anna is 31.'"),
        ("", "Invalid JSON"),
    ],
)
def test_an_answer_that_the_class_refuses_is_pydantics_error(
    remote: VLLM, server: RemoteServer, way: str, text: str, words: str
) -> None:
    says(server, text)
    with pytest.raises(ValidationError, match=words):
        WAYS[way](remote)


@every_way
def test_in_other_modes_a_wrong_answer_is_an_error_too(remote: VLLM, server: RemoteServer, way: str) -> None:
    says(server, '{"name": "Anna", "age": 200}')
    for mode in MODES:
        with pytest.raises(ValidationError, match="less than or equal to 150"):
            WAYS[way](in_mode(remote, mode))
    says(server, "Anna is 31.")
    with pytest.raises(ValueError, match=r"Could not extract json string from output: Anna is 31\."):
        WAYS[way](in_mode(remote, "llm"))
    with pytest.raises(ValueError, match=r"'Person' is not made: its arguments are no valid JSON.*Anna is 31\."):
        WAYS[way](in_mode(remote, "function"))


@every_way
def test_json_in_a_fence_is_read(remote: VLLM, server: RemoteServer, way: str) -> None:
    says(server, f"```json\n{JSON}\n```\n")
    assert WAYS[way](remote)[-1] == ANNA


# ---- events, usage, and leaving


class RecordSpans(SimpleSpanHandler):
    arguments: list[dict[str, Any]] = Field(default_factory=list)

    def new_span(self, id_: str, bound_args: inspect.BoundArguments, *args: Any, **kwargs: Any) -> SimpleSpan | None:
        self.arguments.append(dict(bound_args.arguments))
        return super().new_span(id_, bound_args, *args, **kwargs)

    def names(self) -> list[str]:
        return sorted(span.id_.rpartition("-")[0].split("-")[0] for span in self.completed_spans)


@pytest.fixture
def spans() -> Iterator[SimpleSpanHandler]:
    root, recorder = get_dispatcher(), RecordSpans()
    root.add_span_handler(recorder)
    yield recorder
    root.span_handlers.remove(recorder)


@every_way
@pytest.mark.parametrize("mode", MODES)
def test_events_and_spans_are_told_once_and_tokens_counted_once(
    remote: VLLM,
    counter: TokenCountingHandler,
    events: list[BaseEvent],
    spans: RecordSpans,
    way: str,
    mode: str,
) -> None:
    outputs = WAYS[way](in_mode(remote, mode))
    told = [event.class_name() for event in events if event.class_name() != "LLMChatInProgressEvent"]
    progress = ["LLMStructuredPredictInProgressEvent"] * (len(outputs) if way in STREAMS else 0)
    inner = ["LLMChatStartEvent", "LLMChatEndEvent"]
    assert sorted(told) == sorted(["LLMStructuredPredictStartEvent", *inner, *progress, "LLMStructuredPredictEndEvent"])
    assert [told[0], told[-1]] == ["LLMStructuredPredictStartEvent", "LLMStructuredPredictEndEvent"]
    assert events[0].output_cls is Person  # type: ignore[attr-defined]
    assert events[-1].output == ANNA  # type: ignore[attr-defined]
    (end,) = [event for event in events if event.class_name() == "LLMChatEndEvent"]
    assert end.response.raw["usage"]["total_tokens"] == 12  # type: ignore[attr-defined]
    assert [(each.prompt_token_count, each.completion_token_count) for each in counter.llm_token_counts] == [(5, 7)]
    chat = "VLLM." + ("a" if way.startswith("a") else "") + ("stream_chat" if way in STREAMS else "chat")
    within = {"default": [], "function": ["VLLM._prepare_chat_with_tools"], "llm": ["SchemaOutputParser.parse"]}
    assert spans.names() == sorted([f"VLLM.{way}", chat, *within[mode]])


def test_tokens_of_an_answer_that_was_cut_off_are_counted(
    remote: VLLM, server: RemoteServer, counter: TokenCountingHandler
) -> None:
    says(server, "{", "length")
    with pytest.raises(LengthFinishReasonError):
        remote.structured_predict(Person, PROMPT, fact="")
    assert counter.total_llm_token_count == 12


def keeps_exceptions() -> CallbackManager:
    return CallbackManager([LlamaDebugHandler(print_trace_on_end=False)])


# Of an LLM: a stream of it, as a coroutine where it is async.
LEFT: dict[str, Callable[[Any, Any], Any]] = {
    "stream_structured_predict": lambda llm, _: llm.stream_structured_predict(Person, PROMPT),
    "stream_chat": lambda _, sllm: sllm.stream_chat([ChatMessage(QUESTION)]),
    "stream_complete": lambda _, sllm: sllm.stream_complete(QUESTION),
    "astream_structured_predict": lambda llm, _: llm.astream_structured_predict(Person, PROMPT),
    "astream_chat": lambda _, sllm: sllm.astream_chat([ChatMessage(QUESTION)]),
    "astream_complete": lambda _, sllm: sllm.astream_complete(QUESTION),
}


@pytest.mark.usefixtures("events")  # a handler that keeps exceptions as well
@pytest.mark.parametrize("told", ["nobody", "wrapper", "settings"])
@pytest.mark.parametrize("is_closed", [False, True])
@pytest.mark.parametrize("stream", LEFT)
async def test_leaving_a_stream_ends_its_request(
    server: RemoteServer, monkeypatch: pytest.MonkeyPatch, stream: str, is_closed: bool, told: str
) -> None:
    if told == "settings":
        monkeypatch.setattr(Settings, "callback_manager", keeps_exceptions())
    llm = VLLM(base_url=server.url, max_retries=0)
    how = {"callback_manager": keeps_exceptions()} if told == "wrapper" else {}
    left = LEFT[stream](llm, llm.as_structured_llm(Person, **how))
    server.streams('{"name": "An', then="hang")
    if inspect.isgenerator(left):
        await asyncio.to_thread(next, left)
        if is_closed:
            await asyncio.to_thread(left.close)
    else:
        left = await left
        await anext(left)
        if is_closed:
            await left.aclose()
    if not is_closed:
        del left  # as a loop does that is left by break
    assert await asyncio.to_thread(server.aborted.wait, ABORT_S)


# ---- as_structured_llm


@pytest.mark.parametrize("endpoint", ENDPOINTS)
@pytest.mark.parametrize("mode", MODES)
def test_a_structured_llm_has_all_endpoints_and_keeps_the_usage(
    remote: VLLM, counter: TokenCountingHandler, endpoint: str, mode: str
) -> None:
    llm = in_mode(remote, mode).as_structured_llm(Person)
    assert isinstance(llm, StructuredLLM)
    assert llm.class_name() == "structured_llm"
    *before, last = ENDPOINTS[endpoint](llm, max_tokens=30)
    assert (last.raw, text_of(last)) == (ANNA, JSON)
    usage = {"prompt_tokens": 5, "completion_tokens": 7, "total_tokens": 12}
    assert {name: last.additional_kwargs[name] for name in usage} == usage
    assert not any("total_tokens" in response.additional_kwargs for response in before)
    assert counter.total_llm_token_count == 12
    if "stream" in endpoint:
        assert "".join(response.delta or "" for response in [*before, last]) == JSON
        assert "Anna" in [response.raw.name for response in before]
    else:
        assert last.delta is None


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_a_structured_llm_says_that_an_answer_was_cut_off(remote: VLLM, server: RemoteServer, endpoint: str) -> None:
    says(server, '{"a": "An', "length")
    with pytest.raises(LengthFinishReasonError):
        ENDPOINTS[endpoint](remote.as_structured_llm(Half))


# Who knows the handler: LlamaIndex's settings, set before the LLM is made or after; the LLM; or what is made of it.
KNOWN = ["settings", "settings later", "llm", "structured llm", "both"]


@pytest.mark.parametrize("endpoint", ENDPOINTS)
@pytest.mark.parametrize("known", KNOWN)
def test_a_structured_llms_call_is_told_once_with_vllms_own_counts(
    server: RemoteServer,
    counter: TokenCountingHandler,
    events: list[BaseEvent],
    monkeypatch: pytest.MonkeyPatch,
    endpoint: str,
    known: str,
) -> None:
    manager = CallbackManager([counter])
    if known == "settings":
        monkeypatch.setattr(Settings, "callback_manager", manager)
    llm = VLLM(base_url=server.url, max_retries=0)
    if known in ("llm", "both"):
        llm.callback_manager = manager
    if known == "settings later":
        monkeypatch.setattr(Settings, "callback_manager", manager)
    structured = llm.as_structured_llm(Person)
    if known in ("structured llm", "both"):
        structured.callback_manager = CallbackManager([counter])
    before = list(llm.callback_manager.handlers)
    ENDPOINTS[endpoint](structured)
    assert [(each.prompt_token_count, each.completion_token_count) for each in counter.llm_token_counts] == [(5, 7)]
    ends = [event for event in events if event.class_name() in ("LLMChatEndEvent", "LLMCompletionEndEvent")]
    assert [end.response.raw["usage"]["total_tokens"] for end in ends] == [12]  # type: ignore[attr-defined]
    assert llm.callback_manager.handlers == before


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_handlers_of_the_llm_and_of_the_structured_llm_are_all_told(
    remote: VLLM, counter: TokenCountingHandler, endpoint: str
) -> None:
    own = TokenCountingHandler(tokenizer=str.split)
    ENDPOINTS[endpoint](remote.as_structured_llm(Person, callback_manager=CallbackManager([own])))
    for each in (own, counter):
        assert [count.total_token_count for count in each.llm_token_counts] == [12]


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_spans_of_a_structured_llm_show_the_callers_keywords_alone(
    remote: VLLM, spans: RecordSpans, endpoint: str
) -> None:
    ENDPOINTS[endpoint](remote.as_structured_llm(Person), max_tokens=30)
    assert any(name.startswith("StructuredVLLM.") for name in spans.names())
    asked = [each["llm_kwargs"] for each in spans.arguments if "llm_kwargs" in each]
    assert asked == [{"max_tokens": 30}]


class Veiled(BaseModel):
    """What it writes by itself it could not read."""

    size: int = Field(alias="the size")
    seed: int = Field(exclude=True)
    key: SecretStr


@pytest.mark.parametrize("endpoint", ENDPOINTS)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("fence", ["{}", "```json\n{}\n```"])
def test_a_structured_llms_text_can_be_read_again(
    remote: VLLM, server: RemoteServer, endpoint: str, mode: str, fence: str
) -> None:
    text = '{"the size": 3, "seed": 7, "key": "k"}'
    says(server, text if mode == "function" else fence.format(text))
    *_, last = ENDPOINTS[endpoint](in_mode(remote, mode).as_structured_llm(Veiled))
    assert last.raw == Veiled.model_validate_json(text) == Veiled.model_validate_json(text_of(last))


@every_way
def test_a_structured_llm_predicts_other_classes_as_its_llm_does(
    remote: VLLM, server: RemoteServer, counter: TokenCountingHandler, way: str
) -> None:
    structured = remote.as_structured_llm(Half)
    assert WAYS[way](structured)[-1] == ANNA
    assert asked(server)["response_format"]["json_schema"]["name"] == "Person"
    assert [count.total_token_count for count in counter.llm_token_counts] == [12]
    assert structured.as_structured_llm(Person).complete(QUESTION).raw == ANNA
    assert len(counter.llm_token_counts) == 2


# Workflows list the agent's members, and with them what pydantic deprecated.
deprecated = pytest.mark.filterwarnings("ignore::pydantic.warnings.PydanticDeprecationWarning:inspect")


@deprecated
async def test_a_structured_llm_is_none_for_agents_that_call_tools(remote: VLLM, server: RemoteServer) -> None:
    structured = remote.as_structured_llm(Person)
    tools = structured.metadata.is_function_calling_model
    assert (tools, structured.metadata.model_copy(update={"is_function_calling_model": True})) == (
        False,
        remote.metadata,
    )
    agent = FunctionAgent(llm=structured)
    with pytest.raises(ValueError, match="LLM must be a FunctionCallingLLM"):
        await agent.run(QUESTION, memory=ChatMemoryBuffer.from_defaults(llm=structured))
    assert server.requests == []


def test_braces_in_messages_are_no_variables(remote: VLLM, server: RemoteServer) -> None:
    remote.as_structured_llm(Person).complete('{fact} {{"a": 1}} {"b": {c}}')
    assert asked(server)["messages"][0]["content"] == '{fact} {{"a": 1}} {"b": {c}}'


# ---- what LlamaIndex builds on it


@deprecated
async def test_an_agents_last_word_is_an_instance(remote: VLLM, server: RemoteServer) -> None:
    agent = FunctionAgent(llm=remote, output_cls=Person)
    result = await agent.run(QUESTION, memory=ChatMemoryBuffer.from_defaults(llm=remote))
    assert result.get_pydantic_model(Person) == ANNA
    assert "response_format" in server.requests[-1][1]


class Aliased(BaseModel):
    size: int = Field(alias="the size")


@deprecated
async def test_an_agents_last_word_has_the_names_that_the_class_reads(remote: VLLM, server: RemoteServer) -> None:
    says(server, '{"the size": 3}')
    result = await FunctionAgent(llm=remote, output_cls=Aliased).run(QUESTION, memory=ChatMemoryBuffer.from_defaults())
    assert result.get_pydantic_model(Aliased) == Aliased.model_validate({"the size": 3})


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize("response_mode", ["compact", "refine", "tree_summarize"])
def test_a_query_engine_reads_a_structured_llms_text(
    remote: VLLM, server: RemoteServer, response_mode: str, is_async: bool
) -> None:
    says(server, '{"the size": 3}')
    index = SummaryIndex.from_documents([Document(text="It is 3 long.")])
    engine = index.as_query_engine(llm=remote.as_structured_llm(Aliased), response_mode=response_mode)
    answer = asyncio.run(engine.aquery("How long?")) if is_async else engine.query("How long?")
    assert answer.response == Aliased.model_validate({"the size": 3})  # type: ignore[union-attr]


def ask_by_structured_llm(llm: VLLM) -> None:
    engine = SummaryIndex.from_documents([Document(text=QUESTION)]).as_query_engine(llm=llm.as_structured_llm(Person))
    engine.query(QUESTION)


def ask_settings_llm(llm: VLLM) -> None:
    Settings.llm = llm.as_structured_llm(Person)
    SummaryIndex.from_documents([Document(text=QUESTION)]).as_query_engine().query(QUESTION)


def ask_by_class(llm: VLLM) -> None:
    SummaryIndex.from_documents([Document(text=QUESTION)]).as_query_engine(llm=llm, output_cls=Person).query(QUESTION)


def ask_agent(llm: VLLM) -> None:
    async def run() -> None:
        await FunctionAgent(llm=llm, output_cls=Person).run(QUESTION, memory=ChatMemoryBuffer.from_defaults())

    asyncio.run(run())


@deprecated
@pytest.mark.parametrize("ask", [ask_by_structured_llm, ask_settings_llm, ask_by_class, ask_agent])
def test_what_is_built_on_it_is_counted_as_it_is_asked(
    server: RemoteServer, counter: TokenCountingHandler, monkeypatch: pytest.MonkeyPatch, ask: Callable[[VLLM], None]
) -> None:
    monkeypatch.setattr(Settings, "_llm", None)
    monkeypatch.setattr(Settings, "callback_manager", CallbackManager([counter]))
    ask(VLLM(base_url=server.url, max_retries=0))
    told = [(each.prompt_token_count, each.completion_token_count) for each in counter.llm_token_counts]
    assert told == [(5, 7)] * len(server.requests)
    assert server.requests


def test_llama_indexes_own_programs_run(remote: VLLM, server: RemoteServer) -> None:
    text = LLMTextCompletionProgram.from_defaults(PydanticOutputParser(Person), prompt_template_str="{x}", llm=remote)
    assert text(x="Anna") == asyncio.run(text.acall(x="Anna")) == ANNA
    name = {"name": "Person"}
    call = {"id": "1", "type": "function", "function": {**name, "arguments": JSON}}

    async def calls(request: web.Request) -> web.StreamResponse:
        message = {"role": "assistant", "content": None, "tool_calls": [call]}
        return web.json_response(
            {"id": "1", "choices": [{"index": 0, "message": message, "finish_reason": "tool_calls"}]}
        )

    server.handler = calls
    function = FunctionCallingProgram.from_defaults(Person, prompt_template_str="{x}", llm=remote)
    assert function(x="Anna") == asyncio.run(function.acall(x="Anna")) == ANNA
    assert server.requests[-1][1]["tool_choice"] == "required"


# ---- on real vLLM


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
    ends = [event.response.raw["usage"] for event in events if event.class_name() == "LLMChatEndEvent"]  # type: ignore[attr-defined]
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
    assert [start.prompt for start in starts] == [f"Be exact.\n\n{QUESTION}"]  # type: ignore[attr-defined]


@every_way
@pytest.mark.parametrize("mode", ["default", "function"])
def test_max_tokens_cuts_vllms_answer_off(real: VLLM, way: str, mode: str) -> None:
    with pytest.raises(LengthFinishReasonError):
        WAYS[way](in_mode(real, mode), max_tokens=4)


def test_a_schema_that_vllm_cannot_hold_to_is_refused_with_its_words(real: VLLM) -> None:
    class Odd(BaseModel):
        number: str = Field(json_schema_extra={"pattern": "("})

    with pytest.raises(RequestRejectedError):
        real.structured_predict(Odd, PROMPT, fact="")


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
        assert isinstance(answer.response, Code)  # type: ignore[union-attr]


def test_a_streaming_query_engine_gives_the_attribute_that_llama_index_reads(real: VLLM, index: SummaryIndex) -> None:
    engine = index.as_query_engine(llm=real, output_cls=Code, streaming=True)
    assert str(engine.query("What is the access code of the archive?")) in ("4711", "unknown")


def test_a_query_engine_says_that_an_answer_was_cut_off(real: VLLM, index: SummaryIndex) -> None:
    real.max_tokens = 2
    with pytest.raises(LengthFinishReasonError):
        index.as_query_engine(llm=real, output_cls=Code).query("What is the access code of the archive?")
