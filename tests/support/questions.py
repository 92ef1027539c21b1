"""The same questions to any engine on tiny_chat, and all of what they gave, as JSON: for who compares two."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from shared_engine import Engine, VLLMError

HELLO = [{"role": "user", "content": "Hello"}]
COUNT = [{"role": "user", "content": "Count from 1 to 10."}]
CAPITAL = [{"role": "user", "content": "What is the capital of France?"}]
LONG = [{"role": "user", "content": "word " * 3000}]
ADD: Any = {
    "type": "function",
    "function": {
        "name": "add",
        "parameters": {
            "type": "object",
            "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
            "required": ["a", "b"],
        },
    },
}
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
PERSON = {
    "type": "json_schema",
    "json_schema": {
        "name": "person",
        "schema": {"type": "object", "properties": {"name": {"type": "string", "maxLength": 8}}, "required": ["name"]},
    },
}
GREEDY: dict[str, Any] = {"temperature": 0, "max_tokens": 24}


def answers_of(engine: Engine) -> dict[str, Any]:
    """By the name of the question."""
    weather = [{"role": "user", "content": "What is the weather in Paris?"}]
    named = {"type": "function", "function": {"name": "get_weather"}}
    return without_history(
        {
            "chat": _told(lambda: engine.chat(CAPITAL, **GREEDY)),
            "async chat": _told(lambda: asyncio.run(engine.achat(CAPITAL, **GREEDY))),
            "text": _told(lambda: engine.generate("Hello", **GREEDY)),
            "text to the limit": _told(lambda: engine.generate("word " * 1900, extra_body={"ignore_eos": True})),
            "stream": _told(lambda: _pieces(engine)),
            "batch": _told(lambda: engine.chat_batch([HELLO, LONG, COUNT], return_exceptions=True, **GREEDY)),
            "two choices": _told(lambda: engine.chat(HELLO, n=2, **GREEDY)),
            "log probabilities": _told(lambda: engine.chat(HELLO, logprobs=2, temperature=0, max_tokens=2)),
            "called by name": _told(lambda: engine.chat(weather, tools=[WEATHER], tool_choice=named, **GREEDY)),
            "called of itself": _told(lambda: engine.chat(weather, tools=[WEATHER], **GREEDY)),
            "held to a schema": _told(lambda: engine.chat(HELLO, response_format=PERSON, **GREEDY)),
            "tokens of messages": _told(lambda: engine.count_tokens(COUNT)),
            "too long": _told(lambda: engine.chat(LONG)),
            "too long, streamed": _told(lambda: list(engine.stream_chat(LONG))),
            "refused": _told(lambda: engine.chat(HELLO, extra_body={"logprobs": True, "top_logprobs": 5000})),
            "no such route": _told(lambda: engine.embed(["a"])),
            "well": _told(engine.warmup),
        }
    )


def answers_of_adapters(settings: dict[str, Any]) -> dict[str, Any]:
    """Of both adapters with these settings."""
    from langchain_vllm_local import ChatVLLM
    from llama_index_vllm_local import VLLM

    chat, llm = ChatVLLM(**settings, **GREEDY), VLLM(**settings, **GREEDY)
    message = chat.invoke("Hello")
    called = chat.bind_tools([WEATHER], tool_choice="get_weather").invoke("What is the weather in Paris?")
    return without_history(
        {
            "langchain": [message.content, message.usage_metadata, message.response_metadata["finish_reason"]],
            "langchain, streamed": "".join(str(chunk.content) for chunk in chat.stream("Hello")),
            "langchain, a batch": [str(answer.content) for answer in chat.batch(["Hello", "Count from 1 to 10."])],
            "langchain, called": [[call["name"], call["args"]] for call in called.tool_calls],
            "llama_index": str(llm.complete("Hello")),
            "llama_index, streamed": [str(part) for part in llm.stream_complete("Hello")][-1],
        }
    )


def without_history(answers: dict[str, Any]) -> dict[str, Any]:
    """Without what depends on what the engine was asked before: how much of a prompt it has in its cache."""
    return {name: _without_history(answer) for name, answer in answers.items()}


def _without_history(value: Any) -> Any:
    if isinstance(value, dict):
        names = value.keys() - {"cached_tokens", "cache_read"}
        return {name: _without_history(each) for name, each in value.items() if name in names}
    if isinstance(value, list | tuple):
        return [_without_history(each) for each in value]
    return value


def _pieces(engine: Engine) -> list[Any]:
    chunks = list(engine.stream_chat(COUNT, **GREEDY))
    return ["".join(chunk.text for chunk in chunks), len(chunks) > 5, chunks[-1].usage, chunks[-2].finish_reason]


def _told(ask: Callable[[], Any]) -> Any:
    try:
        return plain(ask())
    except VLLMError as exc:
        return plain(exc)


def plain(value: Any) -> Any:
    """Without what differs each time: ids of requests and calls."""
    if isinstance(value, VLLMError):
        return [type(value).__name__, str(value)]
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    if isinstance(value, float):
        return round(value, 2)
    if isinstance(value, dict):
        return {name: plain(each) for name, each in value.items()}
    fields = getattr(value, "__dataclass_fields__", None) or getattr(type(value), "__struct_fields__", None)
    if fields:
        return {name: plain(getattr(value, name)) for name in fields if name not in ("id", "request_id")}
    return value
