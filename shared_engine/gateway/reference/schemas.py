"""The shapes of requests and answers, in JSON schema. What a model's server checks itself is told loosely."""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]

TEXT: Schema = {"type": "string"}
WHOLE: Schema = {"type": "integer"}
NUMBER: Schema = {"type": "number"}
TRUTH: Schema = {"type": "boolean"}
ANY: Schema = {}


def listed(each: Schema) -> Schema:
    return {"type": "array", "items": each}


def or_null(schema: Schema) -> Schema:
    return {"anyOf": [schema, {"type": "null"}]}


def fields(required: str = "", /, **properties: Schema) -> Schema:
    """An object that may have more fields.

    Args:
        required: names.
    """
    schema: Schema = {"type": "object", "properties": properties}
    return schema | ({"required": required.split()} if required else {})


def told(schema: Schema, description: str) -> Schema:
    return {**schema, "description": description}


MODEL = told(TEXT, "A name of a model or LoRA adapter. Without it: the only model there is.")
KEEP_ALIVE: Schema = {
    "description": 'How long the model stays after this: seconds, "5m", 0 (leave at once), -1 (never leave).',
    "anyOf": [NUMBER, TEXT, {"type": "null"}],
}
STREAM = told(or_null(TRUTH), "Answer in events, as it comes.")
CONTENT: Schema = {
    "anyOf": [TEXT, listed(told({"type": "object"}, "A part: text, image_url, input_audio, ...")), {"type": "null"}]
}
MESSAGES = listed(fields("role", role=TEXT, content=CONTENT))
_SAMPLING = {
    "temperature": NUMBER, "top_p": NUMBER, "top_k": WHOLE, "max_tokens": WHOLE, "seed": WHOLE,
    "stop": {"anyOf": [TEXT, listed(TEXT)]},
}  # fmt: skip
HELLO = [{"role": "user", "content": "Hello"}]


def asks(required: str, example: Schema, /, **properties: Schema) -> Schema:
    """The body of a request that is passed on; all else that vLLM takes may be in it."""
    body = fields(required, model=MODEL, **properties, keep_alive=KEEP_ALIVE)
    return {**body, "examples": [{"model": "qwen", **example}]}


CHAT = asks(
    "messages", {"messages": HELLO, "max_tokens": 32},
    messages=MESSAGES, stream=STREAM, **_SAMPLING, tools=listed({"type": "object"}), response_format=fields(type=TEXT),
)  # fmt: skip
COMPLETION = asks("prompt", {"prompt": "Hello", "max_tokens": 32}, prompt=ANY, stream=STREAM, **_SAMPLING)
RESPONSES = asks("input", {"input": "Hello"}, input=ANY, instructions=or_null(TEXT), stream=STREAM)
ANTHROPIC = asks(
    "messages max_tokens", {"messages": HELLO, "max_tokens": 32},
    messages=MESSAGES, max_tokens=WHOLE, system=ANY, stream=STREAM,
)  # fmt: skip
EMBEDDING = asks("input", {"input": ["Hello"]}, input=ANY, dimensions=WHOLE, encoding_format=TEXT)
RERANK = asks("query documents", {"query": "?", "documents": ["a", "b"]}, query=ANY, documents=ANY, top_n=WHOLE)
SCORE = asks("", {"text_1": "a", "text_2": ["b"]}, text_1=ANY, text_2=ANY)
TOKENIZE = asks("", {"prompt": "Hello"}, prompt=TEXT, messages=MESSAGES)
DETOKENIZE = asks("tokens", {"tokens": [1, 2]}, tokens=listed(WHOLE))
POOLING = asks("input", {"input": "Hello"}, input=ANY)
COHERE = asks("", {"texts": ["Hello"]}, texts=listed(TEXT), images=listed(TEXT), inputs=listed({"type": "object"}))
SOUND: Schema = {
    "type": "object",
    "required": ["file"],
    "properties": {"file": {"type": "string", "format": "binary"}, "model": MODEL, "language": TEXT},
}

_OLLAMA = {"options": or_null({"type": "object"}), "keep_alive": KEEP_ALIVE}
_OLLAMA_FORM = {
    "stream": told(or_null(TRUTH), "In lines, as it comes; the default."),
    "format": {"anyOf": [TEXT, {"type": "object"}, {"type": "null"}]},
    "think": {"anyOf": [TRUTH, TEXT, {"type": "null"}]},
    **_OLLAMA,
}


def _asks_ollama(example: Schema, /, **properties: Schema) -> Schema:
    return {**fields("model", model=TEXT, **properties), "examples": [{"model": "qwen", **example}]}


OLLAMA_CHAT = _asks_ollama(
    {"messages": HELLO, "stream": False}, messages=or_null(MESSAGES), tools=or_null(listed({"type": "object"})),
    **_OLLAMA_FORM,
)  # fmt: skip
OLLAMA_TEXT = _asks_ollama(
    {"prompt": "Hello", "stream": False}, prompt=or_null(TEXT), system=or_null(TEXT), raw=or_null(TRUTH),
    images=or_null(listed(TEXT)), **_OLLAMA_FORM,
)  # fmt: skip
OLLAMA_EMBED = _asks_ollama({"input": ["Hello"]}, input=ANY, dimensions=or_null(WHOLE), **_OLLAMA)
OLLAMA_EMBED_ONE = _asks_ollama({"prompt": "Hello"}, prompt=TEXT, **_OLLAMA)
OLLAMA_SHOW = _asks_ollama({})
OLLAMA_PIECE = fields("model done", model=TEXT, created_at=TEXT, message={"type": "object"}, response=TEXT, done=TRUTH)
OLLAMA_MODEL = fields("name model", name=TEXT, model=TEXT, size=ANY, details={"type": "object"})

_OURS = {
    "params": told({"type": "object"}, "Parameters of sampling, under the names of vLLM's SamplingParams."),
    "keep_alive": KEEP_ALIVE,
    "model": or_null(MODEL),
}
_TOOLS = {"tools": or_null(listed({"type": "object"})), "tool_choice": ANY}
GENERATE: Schema = {
    **fields("", prompt=or_null(TEXT), messages=or_null(MESSAGES), stream=TRUTH, **_TOOLS, **_OURS),
    "examples": [{"model": "qwen", "prompt": "Hello", "params": {"max_tokens": 32}}],
}
GENERATE_MANY: Schema = {
    **fields("prompts", prompts=listed(TEXT), **_OURS),
    "examples": [{"model": "qwen", "prompts": ["Hello", "Good"], "params": {"max_tokens": 32}}],
}
CHAT_MANY: Schema = {
    **fields("conversations", conversations=listed(MESSAGES), **_TOOLS, **_OURS),
    "examples": [{"model": "qwen", "conversations": [HELLO], "params": {"max_tokens": 32}}],
}
OUTPUT = fields(
    "index text",
    index=WHOLE, text=TEXT, finish_reason=or_null(TEXT), stop_reason=ANY, reasoning=or_null(TEXT),
    tool_calls=listed({"type": "object"}), logprobs=ANY,
)  # fmt: skip

STATE = told(
    or_null(TEXT), "starting, ready, asleep, stopping, standby, stopped or failed; null where it is not known."
)
REQUESTS = fields("running waiting", running=WHOLE, waiting=WHOLE)
LISTED_MODEL = fields(
    "id object created owned_by status",
    id=TEXT, object={"const": "model"}, created=WHOLE, owned_by=TEXT, parent=or_null(TEXT),
    max_model_len=or_null(WHOLE), status=fields("value", value=STATE), capabilities=or_null(listed(TEXT)), pinned=TRUTH,
    aliases=listed(TEXT), requests=REQUESTS, name=TEXT, description=TEXT, metadata={"type": "object"},
)  # fmt: skip
MODEL_ENTRY = fields(
    "id model state requests",
    id=TEXT, model=or_null(TEXT), name=or_null(TEXT), description=or_null(TEXT), aliases=listed(TEXT),
    adapters=listed(TEXT), unlisted=TRUTH, is_remote=TRUTH, state=STATE, progress=or_null({"type": "object"}),
    failure=or_null(fields("message", message=TEXT)), capabilities=or_null(listed(TEXT)), max_model_len=or_null(WHOLE),
    devices=listed(TEXT), memory_bytes=or_null(WHOLE), pinned=TRUTH, preload=TRUTH, start_s=or_null(NUMBER),
    leaves_at=or_null(NUMBER), leaves_in_s=or_null(NUMBER), requests=REQUESTS, tokens_per_s=ANY, tokens=ANY,
    members=listed({"type": "object"}),
)  # fmt: skip
DEVICE = fields("id", id=TEXT, memory_used_bytes=or_null(WHOLE), memory_total_bytes=or_null(WHOLE))
IN_FLIGHT = fields(
    "id model route state age_s",
    id=TEXT, model=TEXT, route=TEXT, key=or_null(TEXT), state={"enum": ["waiting", "running"]}, age_s=NUMBER,
    is_stream=TRUTH, events=WHOLE, request_id=or_null(TEXT),
)  # fmt: skip
EVENT = fields("data", event=TEXT, data=told(TEXT, "Mostly JSON."))
"""One of a stream's, as OpenAPI has Server-Sent Events."""
LOG_LINE = fields("message", time=ANY, level=ANY, source=ANY, process=ANY, message=TEXT)

ERROR = fields(
    "message type code",
    message=TEXT, type=TEXT, param=or_null(TEXT), code={"anyOf": [TEXT, told(WHOLE, "vLLM's own"), {"type": "null"}]},
)  # fmt: skip

COMPONENTS: dict[str, Schema] = {
    "Error": fields("error", error=ERROR),
    "AnthropicError": fields(
        "type error", type={"const": "error"}, error=fields("type message", type=TEXT, message=TEXT)
    ),
    "OllamaError": fields("error", error=TEXT),
    "ListedModel": LISTED_MODEL,
    "Model": MODEL_ENTRY,
}


def ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}
