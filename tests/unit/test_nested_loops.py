"""Apps whose loops are not asyncio's own: nest_asyncio, as notebooks have it, and uvloop."""

from __future__ import annotations

import json

import pytest

from tests.support.processes import end_of, run_code
from tests.support.remote_server import running_server

APP = """
import asyncio, json, sys
from langchain_vllm_local import ChatVLLM
from llama_index_vllm_local import VLLM

kind, url = sys.argv[1:]
if kind == "nest_asyncio":
    import nest_asyncio
    nest_asyncio.apply()
else:
    import uvloop
    asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
chat = ChatVLLM(base_url=url, model="served")
llama = VLLM(base_url=url, model="served")

async def streamed():
    return "".join([chunk.text async for chunk in chat.astream("Hello")])

async def several():
    told = [chat.invoke("Hello").text, (await chat.ainvoke("Hello")).text, await streamed()]
    told.append(llama.complete("Hello").text)
    told += [(await llama.acomplete("Hello")).text, *(each.text for each in await chat.abatch(["Hello"] * 3))]
    if kind == "nest_asyncio":
        told.append(asyncio.run(chat.ainvoke("Hello")).text)
        told.append(asyncio.get_running_loop().run_until_complete(streamed()))
    return told

told = [chat.invoke("Hello").text]
for _ in range(2):
    told += asyncio.run(several())
print(json.dumps(sorted(set(told))), len(told))
"""


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "count"), [("nest_asyncio", 21), ("uvloop", 17)])
def test_both_adapters_answer_in_every_way(kind: str, count: int) -> None:
    with running_server() as server:
        status, out, err = end_of(run_code(APP, kind, server.url))
    assert status == 0, err
    answers, number = out.rsplit(" ", 1)
    assert (json.loads(answers), int(number)) == (["Hi"], count)
