"""What the tests of structured output share: a person to predict, four ways to do so, and a server that answers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from enum import Enum
from typing import Any

import pytest
from aiohttp import web
from llama_index.core import PromptTemplate
from llama_index.core.callbacks import CallbackManager, LlamaDebugHandler
from llama_index.core.llms import LLM
from llama_index.core.types import PydanticProgramMode
from pydantic import BaseModel, Field

from llama_index_vllm_local import VLLM
from tests.llama_index.ways import alist
from tests.support.remote_server import RemoteServer

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


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


class Half(BaseModel):
    """Any piece of it is valid."""

    a: str = ""
    b: str = ""


def keeps_exceptions() -> CallbackManager:
    return CallbackManager([LlamaDebugHandler(print_trace_on_end=False)])


# Of an LLM: a stream of it, as a coroutine where it is async.
