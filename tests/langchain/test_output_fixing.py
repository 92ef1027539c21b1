"""LangChain's OutputFixingParser: a malformed answer is shown to the model again, which mends it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from langchain_core.exceptions import OutputParserException
from langchain_core.output_parsers import PydanticOutputParser
from pydantic import BaseModel

from langchain_vllm_local import VLLM, ChatVLLM
from langchain_vllm_local._parsers import output_parser
from shared_engine import RateLimitError
from tests.support.remote_server import RemoteServer
from tests.support.scripted import answers

# Of the development tools, not of the oldest frameworks' environment.
fix = pytest.importorskip("langchain_classic.output_parsers.fix")


class Person(BaseModel):
    name: str
    age: int


MALFORMED, MENDED = "{name: Anna, age: 31}", '{"name": "Anna", "age": 31}'
ANNA = Person(name="Anna", age=31)
PARSERS: dict[str, Any] = {
    "core's": PydanticOutputParser(pydantic_object=Person),
    "ours": output_parser(Person, "json_schema", ""),
}


def chain(server: RemoteServer, kind: Any, parser: str, **options: Any) -> Any:
    llm = kind(base_url=server.url, model="served", max_retries=0, max_tokens=50)
    return llm | fix.OutputFixingParser.from_llm(llm=llm, parser=PARSERS[parser], **options)


@pytest.mark.parametrize("kind", [ChatVLLM, VLLM])
@pytest.mark.parametrize("parser", PARSERS)
@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
def test_what_was_malformed_is_mended(server: RemoteServer, kind: Any, parser: str, is_async: bool) -> None:
    answers(server, MALFORMED, MENDED)
    fixing = chain(server, kind, parser)
    assert (asyncio.run(fixing.ainvoke("Who?")) if is_async else fixing.invoke("Who?")) == ANNA
    assert len(server.requests) == 2
    assert MALFORMED in str(server.requests[1][1]), "the model sees what it wrote"


def test_what_stays_malformed_is_the_parsers_error(server: RemoteServer) -> None:
    answers(server, MALFORMED, MALFORMED, MALFORMED)
    with pytest.raises(OutputParserException):
        chain(server, ChatVLLM, "ours", max_retries=2).invoke("Who?")
    assert len(server.requests) == 3


def test_a_request_that_fails_meanwhile_is_its_own_error(server: RemoteServer) -> None:
    server.fails(429)
    with pytest.raises(RateLimitError):
        fix.OutputFixingParser.from_llm(
            llm=ChatVLLM(base_url=server.url, model="served", max_retries=0), parser=PARSERS["ours"]
        ).parse(MALFORMED)
