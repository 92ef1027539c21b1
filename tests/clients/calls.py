"""What openai's clients are asked for, in each language: which method, of which model, with what."""

from __future__ import annotations

import base64
from typing import Any

from tests.support.pictures import RED
from tests.support.questions import ADD

CAPITAL = [{"role": "user", "content": "What is the capital of France?"}]
SUM = [{"role": "user", "content": "Add 2 and 3."}]
PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
    "required": ["name", "age"],
}
SEEN = [
    {
        "role": "user",
        "content": [
            {"type": "text", "text": "What is it?"},
            {"type": "image_url", "image_url": {"url": "data:image/png;base64," + base64.b64encode(RED).decode()}},
        ],
    }
]
GREEDY = {"temperature": 0, "max_tokens": 24}
CHAT, TEXT, EMBED, RESPONSES = "chat.completions", "completions", "embeddings", "responses"

PICTURE = (CHAT, "vision", {"messages": SEEN, **GREEDY})
CALLS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "chat": (CHAT, "chat", {"messages": CAPITAL, **GREEDY}),
    "several": (CHAT, "chat", {"messages": CAPITAL, **GREEDY, "n": 2}),
    "seeded": (CHAT, "chat", {"messages": CAPITAL, "temperature": 1, "seed": 7, "max_tokens": 8}),
    "stopped": (CHAT, "chat", {"messages": CAPITAL, **GREEDY, "stop": ["France"]}),
    "likely": (CHAT, "chat", {"messages": CAPITAL, **GREEDY, "logprobs": True, "top_logprobs": 2}),
    "stream": (
        CHAT,
        "chat",
        {"messages": CAPITAL, **GREEDY, "stream": True, "stream_options": {"include_usage": True}},
    ),
    "tool": (CHAT, "chat", {"messages": SUM, **GREEDY, "tools": [ADD], "tool_choice": "required"}),
    "tool in a stream": (CHAT, "chat", {"messages": SUM, **GREEDY, "tools": [ADD], "stream": True}),
    "form": (
        CHAT,
        "chat",
        {
            "messages": [{"role": "user", "content": "Anna Smith is 31 years old."}],
            **GREEDY,
            "response_format": {"type": "json_schema", "json_schema": {"name": "person", "schema": PERSON}},
        },
    ),
    "text": (TEXT, "chat", {"prompt": "Hello", **GREEDY}),
    "text in a stream": (TEXT, "chat", {"prompt": "Hello", **GREEDY, "stream": True}),
    "vectors": (EMBED, "minilm", {"input": ["a", "b"], "encoding_format": "float"}),
    "packed vectors": (EMBED, "minilm", {"input": "a"}),
    "response": (RESPONSES, "chat", {"input": "Hello", "temperature": 0, "max_output_tokens": 8}),
    "response in a stream": (
        RESPONSES,
        "chat",
        {"input": "Hello", "temperature": 0, "max_output_tokens": 8, "stream": True},
    ),
    "too many": (CHAT, "chat", {"messages": CAPITAL, "max_tokens": -1}),
    "too long": (CHAT, "chat", {"messages": [{"role": "user", "content": "a b " * 2000}]}),
    "no such thing": (EMBED, "chat", {"input": "a"}),
}
