"""One app of the soak: threads and tasks that ask without a pause, in ways chosen at random, until stdin ends.

Prints one JSON line for each request: when it began and ended (time.monotonic()), its way, and what came of it. Answers
are compared with those that the engine gave at rest, which come as the second argument.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parent.parent)]

from langchain_vllm_local import ChatVLLM
from llama_index_vllm_local import VLLM
from shared_engine import Engine, VLLMError

THREADS, TASKS = 4, 4
PROMPTS = ["Hello", "What is 2 + 3?", "What is the weather in Paris?", "Add 12 and 30.", "Tell me about Berlin."]
LENGTHS = [int(each) for each in os.environ.get("LENGTHS", "4,16,64,200").split(",")]
"""Tokens of an answer. Short ones make more requests in a time."""
BATCH = 4
GREEDY: dict[str, Any] = {"temperature": 0.0, "extra_body": {"ignore_eos": True}}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "Get the weather for a city.",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
        },
    }
]
CALLING: dict[str, Any] = {"temperature": 0.0, "max_tokens": 64, "tools": TOOLS}

Answer = tuple[str, int | None]
"""Its text, and how many tokens it has; None where the way does not tell."""


Shown = list[Any]
"""The pieces of a stream that have reached its caller."""


def key(prompt: str, length: int) -> str:
    return f"{length} {prompt}"


def messages(prompt: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": prompt}]


def called(engine: Engine) -> str:
    (call,) = engine.chat(messages(PROMPTS[2]), **CALLING).tool_calls
    return f"{call.name} {call.arguments}"


def right_answers(engine: Engine) -> dict[str, str]:
    """What the engine says when nobody disturbs it."""
    right = {
        key(prompt, length): engine.chat(messages(prompt), max_tokens=length, **GREEDY).text
        for prompt in PROMPTS
        for length in LENGTHS
    }
    return {**right, "tools": called(engine)}


class App:
    """The ways to ask, and what they are held against."""

    def __init__(self, settings: dict[str, Any], right: dict[str, str], seed: int) -> None:
        self.engine = Engine(**settings)
        self.chat = ChatVLLM(**settings, **GREEDY)
        self.llm = VLLM(**settings, **GREEDY)
        self.right = right
        self.seed = seed
        self._guard = threading.Lock()

    # ---- the ways

    def sync_ways(self) -> dict[str, Callable[[str, int, Shown], list[Answer]]]:
        engine, chat, llm = self.engine, self.chat, self.llm

        def whole(prompt: str, length: int, _: Shown) -> list[Answer]:
            result = engine.chat(messages(prompt), max_tokens=length, **GREEDY)
            return [(result.text, result.usage.completion_tokens)]

        def stream(prompt: str, length: int, shown: Shown) -> list[Answer]:
            shown.extend(engine.stream_chat(messages(prompt), max_tokens=length, **GREEDY))
            return [_of_chunks(shown)]

        def batch(prompt: str, length: int, _: Shown) -> list[Answer]:
            results = engine.chat_batch([messages(prompt)] * BATCH, max_tokens=length, **GREEDY)
            return [(each.text, each.usage.completion_tokens) for each in results]

        def langchain_invoke(prompt: str, length: int, _: Shown) -> list[Answer]:
            return [_of_message(chat.invoke(prompt, max_tokens=length))]

        def langchain_stream(prompt: str, length: int, shown: Shown) -> list[Answer]:
            shown.extend(chat.stream(prompt, max_tokens=length))
            return [("".join(chunk.text for chunk in shown), None)]

        def langchain_batch(prompt: str, length: int, _: Shown) -> list[Answer]:
            return [_of_message(each) for each in chat.batch([prompt] * BATCH, max_tokens=length)]

        def llama_index_batch(prompt: str, length: int, _: Shown) -> list[Answer]:
            answers = llm.chat_batch([_llama_messages(prompt)] * BATCH, max_tokens=length)
            return [(each.message.content or "", None) for each in answers]

        def llama_index_stream(prompt: str, length: int, shown: Shown) -> list[Answer]:
            shown.extend(llm.stream_chat(_llama_messages(prompt), max_tokens=length))
            return [("".join(chunk.delta or "" for chunk in shown), None)]

        def tools(_: str, __: int, ___: Shown) -> list[Answer]:
            return [(called(engine), None)]

        return {
            "chat": whole,
            "stream": stream,
            "batch": batch,
            "langchain.invoke": langchain_invoke,
            "langchain.stream": langchain_stream,
            "langchain.batch": langchain_batch,
            "llama_index.chat_batch": llama_index_batch,
            "llama_index.stream_chat": llama_index_stream,
            "tools": tools,
        }

    def async_ways(self) -> dict[str, Callable[[str, int, Shown], Awaitable[list[Answer]]]]:
        engine, chat = self.engine, self.chat

        async def whole(prompt: str, length: int, _: Shown) -> list[Answer]:
            result = await engine.achat(messages(prompt), max_tokens=length, **GREEDY)
            return [(result.text, result.usage.completion_tokens)]

        async def stream(prompt: str, length: int, shown: Shown) -> list[Answer]:
            async for chunk in engine.astream_chat(messages(prompt), max_tokens=length, **GREEDY):
                shown.append(chunk)
            return [_of_chunks(shown)]

        async def batch(prompt: str, length: int, _: Shown) -> list[Answer]:
            return [_of_message(each) for each in await chat.abatch([prompt] * BATCH, max_tokens=length)]

        async def langchain_stream(prompt: str, length: int, shown: Shown) -> list[Answer]:
            async for chunk in chat.astream(prompt, max_tokens=length):
                shown.append(chunk)
            return [("".join(chunk.text for chunk in shown), None)]

        return {"achat": whole, "astream": stream, "langchain.abatch": batch, "langchain.astream": langchain_stream}

    # ---- one request

    def choose(self, chance: random.Random, ways: dict[str, Any]) -> tuple[str, str, int]:
        return chance.choice(list(ways)), chance.choice(PROMPTS), chance.choice(LENGTHS)

    def note(self, way: str, began: float, outcome: str, detail: str = "") -> None:
        line = json.dumps(
            {"way": way, "began": began, "ended": time.monotonic(), "outcome": outcome, "detail": detail[:300]}
        )
        with self._guard:
            print(line, flush=True)

    def judge(self, way: str, prompt: str, length: int, answers: list[Answer]) -> tuple[str, str]:
        right = self.right["tools"] if way == "tools" else self.right[key(prompt, length)]
        for text, tokens in answers:
            if text == right:
                continue
            if (tokens is not None and tokens < length) or right.startswith(text):
                return "cut short", f"{len(text)} of {len(right)} characters: {text!r}"
            return "another text", f"{text!r} in place of {right!r}"
        return "answered", ""

    def failed(self, way: str, began: float, error: BaseException, shown: Shown) -> None:
        first = (str(error).splitlines() or [""])[0]
        kind = "untyped" if not isinstance(error, VLLMError) else "typed, in mid-stream" if shown else "typed"
        self.note(way, began, kind, f"{type(error).__name__}: {first}")

    def run_thread(self, number: int, is_over: threading.Event) -> None:
        chance = random.Random(f"{self.seed} thread {number}")
        ways = self.sync_ways()
        while not is_over.is_set():
            way, prompt, length = self.choose(chance, ways)
            began, shown = time.monotonic(), Shown()
            try:
                answers = ways[way](prompt, length, shown)
            except BaseException as exc:
                self.failed(way, began, exc, shown)
            else:
                self.note(way, began, *self.judge(way, prompt, length, answers))

    async def run_task(self, number: int, is_over: threading.Event) -> None:
        chance = random.Random(f"{self.seed} task {number}")
        ways = self.async_ways()
        while not is_over.is_set():
            way, prompt, length = self.choose(chance, ways)
            began, shown = time.monotonic(), Shown()
            try:
                answers = await ways[way](prompt, length, shown)
            except Exception as exc:
                self.failed(way, began, exc, shown)
            else:
                self.note(way, began, *self.judge(way, prompt, length, answers))

    async def run_tasks(self, is_over: threading.Event) -> None:
        await asyncio.gather(*(self.run_task(number, is_over) for number in range(TASKS)))


def _of_chunks(chunks: Shown) -> Answer:
    usage = chunks[-1].usage
    return "".join(chunk.text for chunk in chunks), usage.completion_tokens if usage else 0


def _of_message(message: Any) -> Answer:
    return message.text, message.usage_metadata["output_tokens"]


def _llama_messages(prompt: str) -> list[Any]:
    from llama_index.core.llms import ChatMessage

    return [ChatMessage(prompt)]


def main() -> None:
    app = App(json.loads(sys.argv[1]), json.loads(sys.argv[2]), int(sys.argv[3]))
    is_over = threading.Event()
    threads = [threading.Thread(target=app.run_thread, args=(number, is_over)) for number in range(THREADS)]
    threads.append(threading.Thread(target=lambda: asyncio.run(app.run_tasks(is_over))))
    for thread in threads:
        thread.start()
    sys.stdin.read()
    is_over.set()
    for thread in threads:
        thread.join()
    print(json.dumps({"retried": app.engine.stats().requests.retries}), flush=True)


if __name__ == "__main__":
    main()
