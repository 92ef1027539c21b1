"""Servers that speak OpenAI's protocol each in its own way: vLLM old and new, SGLang, llama.cpp, LiteLLM, TGI, Ollama,
OpenRouter, and what stands before them.

All say the same, so that one test runs over all of them: to "say" the TEXT after the THOUGHT (where the server has
one), to "call" the CALLS; "long" is refused as too long, "fail" fails after some text, "busy" is refused for now.
Written after their sources and documentation, and what their users report; no code of theirs is here.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from aiohttp import web

TEXT = ("Hello", ", ", "world é\n", "{}")
THOUGHT = ("Let ", "me think")
CALLS = (("add", {"a": 1, "b": [2, "}"]}), ("find", {"text": "x"}))
PROMPT_TOKENS, COMPLETION_TOKENS, LIMIT = 11, 7, 4096
USAGE = {"prompt_tokens": PROMPT_TOKENS, "completion_tokens": COMPLETION_TOKENS, "total_tokens": 18}
MODEL = "org/model"
DONE = b"data: [DONE]\n\n"
Json = dict[str, Any]


@dataclass(frozen=True)
class Has:
    """What a server has that others lack."""

    thought: bool = True
    usage: bool = True
    parallel_calls: bool = True
    stream_error: bool = True
    limit_in_refusal: bool = True
    counts_tokens: bool = False
    lists_limit: bool = False


class Dialect:
    """vLLM of today. The others differ by what they override."""

    has = Has(counts_tokens=True, lists_limit=True)
    finish_of_calls: str | None = "tool_calls"
    thought_field = "reasoning"

    # ---- values

    def head(self) -> Json:
        return {"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": MODEL}

    def message(self, content: str | None, calls: bool) -> Json:
        message: Json = {"role": "assistant", "content": content, "refusal": None, "tool_calls": []}
        if self.has.thought:
            message[self.thought_field] = "".join(THOUGHT)
        if calls:
            message["tool_calls"] = [self.call(index, *each) for index, each in enumerate(self.calls())]
        return message

    def calls(self) -> tuple[tuple[str, Json], ...]:
        return CALLS if self.has.parallel_calls else CALLS[:1]

    def call(self, index: int, name: str, arguments: Json) -> Json:
        function = {"name": name, "arguments": json.dumps(arguments)}
        return {"id": f"chatcmpl-tool-{index}", "type": "function", "function": function}

    def whole(self, what: str) -> Json:
        calls = what == "call"
        message = self.message(None if calls else "".join(TEXT), calls)
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop", "stop_reason": None}
        choice["finish_reason"] = (self.finish_of_calls or "stop") if calls else "stop"
        return {**self.head(), "choices": [choice], **({"usage": self.usage()} if self.has.usage else {})}

    def usage(self) -> Json:
        return {**USAGE, "prompt_tokens_details": None}

    def text(self) -> Json:
        choice = {"index": 0, "text": "".join(TEXT), "logprobs": None, "finish_reason": "stop"}
        return {**self.head(), "choices": [choice], **({"usage": self.usage()} if self.has.usage else {})}

    # ---- streams

    def frame(self, event: Json) -> bytes:
        return b"data: " + json.dumps(event).encode() + b"\n\n"

    def chunk(self, delta: Json, finish_reason: str | None = None, **fields: Any) -> Json:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        return {**self.head(), "object": "chat.completion.chunk", "choices": [choice], **fields}

    def stream(self, what: str) -> Iterator[bytes]:
        yield self.frame(self.chunk({"role": "assistant", "content": ""}))
        yield from (self.frame(self.chunk({self.thought_field: piece})) for piece in THOUGHT * self.has.thought)
        if what == "call":
            yield from (self.frame(self.chunk({"tool_calls": [piece]})) for piece in self.call_pieces())
            yield from self.finish(self.finish_of_calls)
        else:
            yield from (self.frame(self.chunk({"content": piece})) for piece in TEXT)
            yield from self.finish("stop")

    def call_pieces(self) -> Iterator[Json]:
        for index, (name, arguments) in enumerate(self.calls()):
            whole = self.call(index, name, arguments)
            text = whole["function"]["arguments"]
            yield {**whole, "index": index, "function": {"name": name, "arguments": ""}}
            for part in (text[:4], text[4:]):
                yield {"index": index, "function": {"arguments": part}}

    def finish(self, reason: str | None) -> Iterator[bytes]:
        yield self.frame(self.chunk({"content": ""}, reason))
        if self.has.usage:
            yield self.frame({**self.chunk({}), "choices": [], "usage": self.usage()})
        yield DONE

    def failing_stream(self) -> Iterator[bytes]:
        yield self.frame(self.chunk({"role": "assistant", "content": TEXT[0]}))
        yield self.frame({"error": {"message": "it broke", "type": "InternalServerError", "param": None, "code": 500}})
        yield DONE

    # ---- refusals: status and body

    def too_long(self) -> tuple[int, bytes]:
        message = (
            f"This model's maximum context length is {LIMIT} tokens. However, you requested 100 output tokens and your "
            "prompt contains at least 5000 input tokens, for a total of at least 5100 tokens."
        )
        return 400, self.refusal(400, message, "BadRequestError")

    def busy(self) -> tuple[int, bytes]:
        return 503, self.refusal(503, "come back later", "ServiceUnavailable")

    def refusal(self, status: int, message: str, kind: str) -> bytes:
        return json.dumps({"error": {"message": message, "type": kind, "param": None, "code": status}}).encode()

    # ---- other routes: status and body

    def models(self) -> tuple[int, Any]:
        return 200, {"object": "list", "data": [{"id": MODEL, "object": "model", "max_model_len": LIMIT}]}

    def health(self) -> tuple[int, Any]:
        return 200, None

    def tokenize(self, body: Json) -> tuple[int, Any]:
        return 200, {"count": 3, "max_model_len": LIMIT, "tokens": [1, 2, 3]}


class OldVLLM(Dialect):
    """0.6: errors without an object around them; the older name of reasoning; a named call repeats its name and id."""

    has = Has(counts_tokens=True, lists_limit=True, parallel_calls=False)
    thought_field = "reasoning_content"

    def refusal(self, status: int, message: str, kind: str) -> bytes:
        return json.dumps({"object": "error", "message": message, "type": kind, "param": None, "code": status}).encode()

    def call_pieces(self) -> Iterator[Json]:
        (name, arguments) = self.calls()[0]
        text = json.dumps(arguments)
        for number, part in enumerate((text[:4], text[4:], "")):
            yield {
                "index": 0, "id": f"chatcmpl-tool-{number}", "type": "function",
                "function": {"name": name, "arguments": part},
            }  # fmt: skip

    def failing_stream(self) -> Iterator[bytes]:
        yield self.frame(self.chunk({"content": TEXT[0]}))
        yield b"data: " + self.refusal(500, "it broke", "InternalServerError") + b"\n\n"
        yield DONE


class UsageInEveryChunk(Dialect):
    """vLLM with continuous_usage_stats."""

    def chunk(self, delta: Json, finish_reason: str | None = None, **fields: Any) -> Json:
        counted = {**USAGE, "completion_tokens": 1}
        return super().chunk(delta, finish_reason, usage=self.usage() if finish_reason else counted, **fields)


class Behind(Dialect):
    """A router of vLLM's, or nginx, before it: a page instead of JSON when the server is gone."""

    has = Has(limit_in_refusal=False, stream_error=False, counts_tokens=True, lists_limit=True)

    def too_long(self) -> tuple[int, bytes]:
        return 413, page("413 Request Entity Too Large")

    def busy(self) -> tuple[int, bytes]:
        return 502, page("502 Bad Gateway")

    def failing_stream(self) -> Iterator[bytes]:
        """The router ends the message properly, and says nothing: only the finish reason is missing."""
        yield self.frame(self.chunk({"content": TEXT[0]}))


class SGLang(Dialect):
    has = Has(counts_tokens=True, lists_limit=True)
    thought_field = "reasoning_content"

    def usage(self) -> Json:
        return {**USAGE, "prompt_tokens_details": None, "reasoning_tokens": 2}

    def too_long(self) -> tuple[int, bytes]:
        message = f"The input (5000 tokens) is longer than the model's context length ({LIMIT} tokens)."
        return 400, json.dumps({"object": "error", "message": message, "type": "BadRequest", "code": 400}).encode()

    def call_pieces(self) -> Iterator[Json]:
        for index, (name, arguments) in enumerate(self.calls()):
            text = json.dumps(arguments)
            yield {
                "index": index, "id": f"call_{index}a", "type": "function", "function": {"name": name, "arguments": ""}
            }  # fmt: skip
            for part in (text[:4], text[4:]):
                function = {"name": None, "arguments": part}
                yield {"index": index, "id": None, "type": "function", "function": function}

    def finish(self, reason: str | None) -> Iterator[bytes]:
        yield self.frame(self.chunk({"content": None}, reason, usage=None))
        yield self.frame(self.chunk({"hidden_states": [0.5]}))  # with return_hidden_states
        yield self.frame({**self.chunk({}), "choices": [], "usage": self.usage()})
        yield DONE


class LmDeploy(Dialect):
    """All calls under index 0; an id only where one begins."""

    def call_pieces(self) -> Iterator[Json]:
        for index, (name, arguments) in enumerate(self.calls()):
            text = json.dumps(arguments)
            yield {"index": 0, "id": f"call-{index}", "function": {"name": name, "arguments": ""}}
            for part in (text[:4], text[4:]):
                yield {"index": 0, "id": "", "function": {"name": None, "arguments": part}}


class LlamaCpp(Dialect):
    """Errors in a field of their own (2025), null for what is not there, no newline after the last line."""

    has = Has(lists_limit=True)
    thought_field = "reasoning_content"

    def head(self) -> Json:
        return {"id": "chatcmpl-x", "object": "chat.completion", "created": 1, "model": MODEL, "timings": {"n": 1}}

    def stream(self, what: str) -> Iterator[bytes]:
        yield self.frame(self.chunk({"role": "assistant", "content": None}))
        *pieces, last = list(super().stream(what))[1:]
        yield from pieces
        yield last.rstrip()

    def failing_stream(self) -> Iterator[bytes]:
        yield self.frame(self.chunk({"content": TEXT[0]}))
        yield b'error: {"code":500,"message":"it broke","type":"server_error"}\n\n'
        yield DONE

    def too_long(self) -> tuple[int, bytes]:
        message = f"request (5000 tokens) exceeds the available context size ({LIMIT} tokens), try increasing it"
        error = {"code": 400, "message": message, "type": "exceed_context_size_error", "n_ctx": LIMIT}
        return 400, json.dumps({"error": error}).encode()

    def busy(self) -> tuple[int, bytes]:
        return 503, b'{"error":{"message":"Loading model","type":"unavailable_error","code":503}}'

    def models(self) -> tuple[int, Any]:
        entry = {"id": MODEL, "object": "model", "owned_by": "llamacpp", "meta": {"n_ctx": LIMIT, "n_params": 1}}
        return 200, {"models": [{"name": MODEL, "model": MODEL}], "object": "list", "data": [entry]}

    def tokenize(self, body: Json) -> tuple[int, Any]:
        return 200, {"tokens": [1, 2, 3] if body.get("content") else []}


class LiteLLM(Dialect):
    """Usage with a choice, ids and models as the provider behind it has them, codes as text, calls whole."""

    has = Has()
    thought_field = "reasoning_content"

    def call_pieces(self) -> Iterator[Json]:
        for index, (name, arguments) in enumerate(self.calls()):
            yield {**self.call(index, name, arguments), "index": index}

    def finish(self, reason: str | None) -> Iterator[bytes]:
        yield self.frame(self.chunk({}, reason))
        yield self.frame(self.chunk({}, usage={**USAGE, "completion_tokens_details": {"text_tokens": 7}}))
        yield DONE

    def refusal(self, status: int, message: str, kind: str) -> bytes:
        return json.dumps({"error": {"message": message, "type": None, "param": None, "code": str(status)}}).encode()

    def too_long(self) -> tuple[int, bytes]:
        words = (
            f"litellm.ContextWindowExceededError: AnthropicError - prompt is too long: 5000 tokens > {LIMIT} maximum"
        )
        return 400, self.refusal(400, words, "")

    def failing_stream(self) -> Iterator[bytes]:
        yield self.frame(self.chunk({"content": TEXT[0]}))
        yield b'data: {"error": {"message": "it broke", "type": "None", "param": "None", "code": "500"}}\n\n'

    def models(self) -> tuple[int, Any]:
        return 200, {"data": [{"id": MODEL, "object": "model", "created": 1, "owned_by": "openai"}], "object": "list"}

    def health(self) -> tuple[int, Any]:
        raise AssertionError("asks every model behind it for an answer, which may cost money")

    def tokenize(self, body: Json) -> tuple[int, Any]:
        return 404, {"detail": "Not Found"}


class TGI(Dialect):
    """No blank after the colon, no reasoning, one call, and no finish reason at the end of its stream."""

    has = Has(thought=False, parallel_calls=False)
    finish_of_calls: str | None = None

    def head(self) -> Json:
        return {"id": "", "created": 1, "model": MODEL, "system_fingerprint": "3.1.1-dev0-native"}

    def frame(self, event: Json) -> bytes:
        return b"data:" + json.dumps(event).encode() + b"\n\n"

    def call(self, index: int, name: str, arguments: Json) -> Json:
        function = {"description": None, "name": name, "arguments": arguments}  # an object, no text
        return {"id": "0", "type": "function", "function": function}

    def call_pieces(self) -> Iterator[Json]:
        (name, arguments) = self.calls()[0]
        text = json.dumps(arguments)
        for part in (text[:4], text[4:]):
            yield {"index": 0, "id": "", "type": "function", "function": {"name": name, "arguments": part}}

    def chunk(self, delta: Json, finish_reason: str | None = None, **fields: Any) -> Json:
        return super().chunk({"role": "assistant", **delta}, finish_reason, usage=None, **fields)

    def finish(self, reason: str | None) -> Iterator[bytes]:
        if reason is not None:
            yield self.frame(self.chunk({"content": ""}, reason))
        yield self.frame({**self.chunk({}), "choices": [], "usage": USAGE})
        yield DONE

    def too_long(self) -> tuple[int, bytes]:
        words = f"`inputs` tokens + `max_new_tokens` must be <= {LIMIT}. Given: 5000 `inputs` tokens"
        return 422, json.dumps({"error": words, "error_type": "validation"}).encode()

    def busy(self) -> tuple[int, bytes]:
        return 429, b'{"error":"Model is overloaded","error_type":"overloaded"}'

    def failing_stream(self) -> Iterator[bytes]:
        yield self.frame(self.chunk({"content": TEXT[0]}))
        yield b'data:{"error":"it broke","error_type":"generation"}\n\n'

    def models(self) -> tuple[int, Any]:
        return 200, {"object": "list", "data": [{"id": MODEL, "object": "model", "created": 0, "owned_by": MODEL}]}

    def tokenize(self, body: Json) -> tuple[int, Any]:
        return 422, "Failed to deserialize the JSON body into the target type: missing field `inputs`"


class OlderTGI(TGI):
    """1.x: one call, without a list around it, in pieces."""

    finish_of_calls = "eos_token"

    def chunk(self, delta: Json, finish_reason: str | None = None, **fields: Any) -> Json:
        if "tool_calls" in delta:
            delta = {**delta, "tool_calls": delta["tool_calls"][0]}
        return super().chunk(delta, finish_reason, **fields)


class Ollama(Dialect):
    """No /health, no /tokenize; calls whole in one chunk, without index (2024)."""

    has = Has(stream_error=False, limit_in_refusal=False)

    def head(self) -> Json:
        return {"id": "chatcmpl-1", "created": 1, "model": MODEL, "system_fingerprint": "fp_ollama"}

    def stream(self, what: str) -> Iterator[bytes]:
        yield from (self.frame(self.chunk({"role": "assistant", "content": "", "reasoning": each})) for each in THOUGHT)
        if what == "call":
            calls = [self.call(index, *each) for index, each in enumerate(self.calls())]
            yield self.frame(self.chunk({"role": "assistant", "content": "", "tool_calls": calls}))
            yield from self.finish("tool_calls")
        else:
            yield from (self.frame(self.chunk({"role": "assistant", "content": each})) for each in TEXT)
            yield from self.finish("stop")

    def failing_stream(self) -> Iterator[bytes]:
        """Its runner is gone: the last chunk has no reason."""
        yield self.frame(self.chunk({"content": TEXT[0]}))
        yield self.frame(self.chunk({"content": ""}))
        yield DONE

    def too_long(self) -> tuple[int, bytes]:
        return (
            400,
            b'{"error":{"message":"the input length exceeds the context length","type":"invalid_request_error"}}',
        )

    def models(self) -> tuple[int, Any]:
        return 200, {"object": "list", "data": [{"id": MODEL, "object": "model", "created": 1, "owned_by": "org"}]}

    def health(self) -> tuple[int, Any]:
        return 404, "404 page not found"

    def tokenize(self, body: Json) -> tuple[int, Any]:
        return 404, "404 page not found"


class OpenRouter(Dialect):
    """Comments while it waits, numbers as codes, the error beside a choice, usage with a choice, content null."""

    has = Has(lists_limit=True)

    def stream(self, what: str) -> Iterator[bytes]:
        yield b": OPENROUTER PROCESSING\n\n" * 3
        yield from super().stream(what)

    def chunk(self, delta: Json, finish_reason: str | None = None, **fields: Any) -> Json:
        made = super().chunk({"role": "assistant", **delta}, finish_reason, provider="P", **fields)
        made["choices"][0]["native_finish_reason"] = finish_reason
        return made

    def finish(self, reason: str | None) -> Iterator[bytes]:
        yield self.frame(self.chunk({"content": ""}, reason))
        yield self.frame(self.chunk({"content": ""}, usage={**USAGE, "cost": 0.1}))
        yield b": OPENROUTER PROCESSING\n\n" + DONE

    def failing_stream(self) -> Iterator[bytes]:
        yield self.frame(self.chunk({"content": TEXT[0]}))
        yield self.frame(self.chunk({"content": ""}, "error", error={"code": "server_error", "message": "it broke"}))

    def busy(self) -> tuple[int, bytes]:
        upstream = {"raw": "come back later", "provider_name": "P"}
        return 429, json.dumps(
            {"error": {"message": "Provider returned error", "code": 429, "metadata": upstream}, "user_id": "u"}
        ).encode()

    def models(self) -> tuple[int, Any]:
        return 200, {"data": [{"id": MODEL, "name": "Org: Model", "context_length": LIMIT, "created": 1}]}

    def health(self) -> tuple[int, Any]:
        return 404, "<!DOCTYPE html><html><title>OpenRouter</title></html>"

    def tokenize(self, body: Json) -> tuple[int, Any]:
        return 404, "<!DOCTYPE html><html><title>OpenRouter</title></html>"

    def too_long(self) -> tuple[int, bytes]:
        words = f"This endpoint's maximum context length is {LIMIT} tokens. However, you requested about 5000 tokens"
        return 400, json.dumps({"error": {"message": words, "code": 400}}).encode()


class Loose(Dialect):
    """No one server: everything that is read, as another type or in another place."""

    has = Has(lists_limit=True)

    def head(self) -> Json:
        return {"id": 17, "model": None, "created": "now"}

    def frame(self, event: Json) -> bytes:
        """Several ``data:`` lines, as text with line breaks is sent; CRLF; other fields."""
        lines = json.dumps(event, indent=1).splitlines()
        return b"id: 1\r\nevent: message\r\n" + b"".join(f"data: {line}\r\n".encode() for line in lines) + b"\r\n"

    def stream(self, what: str) -> Iterator[bytes]:
        yield b"\xef\xbb\xbf: a byte order mark\r\n\r\n"
        yield from super().stream(what)

    def whole(self, what: str) -> Json:
        answer = super().whole(what)
        answer["choices"][0]["index"] = None
        answer["choices"][0]["finish_reason"] = {"type": answer["choices"][0]["finish_reason"], "matched": 5}
        return answer

    def text(self) -> Json:
        answer = super().text()
        answer["choices"][0]["logprobs"] = []
        return answer

    def message(self, content: str | None, calls: bool) -> Json:
        message = super().message(content, calls)
        del message["reasoning"]
        thinking = {"type": "thinking", "thinking": [{"type": "text", "text": piece} for piece in THOUGHT]}
        message["content"] = [thinking, {"type": "text", "text": content or ""}]
        return message

    def chunk(self, delta: Json, finish_reason: str | None = None, **fields: Any) -> Json:
        made = super().chunk({"refusal": None, **delta}, finish_reason or "", **fields)
        made["choices"][0]["index"] = "0"
        return made

    def usage(self) -> Json:
        return {
            "prompt_tokens": str(PROMPT_TOKENS), "completion_tokens": float(COMPLETION_TOKENS), "total_tokens": None,
            "prompt_tokens_details": [], "completion_tokens_details": {"reasoning_tokens": "2"},
        }  # fmt: skip

    def call(self, index: int, name: str, arguments: Json) -> Json:
        return {"id": index + 5, "type": "function", "function": {"name": name, "arguments": arguments}}

    def call_pieces(self) -> Iterator[Json]:
        """Without id or index: whole, one after the other."""
        for name, arguments in self.calls():
            yield {"type": "function", "function": {"name": name, "arguments": arguments}}

    def failing_stream(self) -> Iterator[bytes]:
        yield self.frame(self.chunk({"content": TEXT[0]}))
        yield b'event: error\r\ndata: {"error": "it broke"}\r\n\r\n'

    def too_long(self) -> tuple[int, bytes]:
        said = {"type": "x", "loc": ["body", "messages"], "msg": f"maximum context length is {LIMIT} tokens"}
        return 422, json.dumps({"detail": [said]}).encode()

    def models(self) -> tuple[int, Any]:
        return 200, [{"name": MODEL, "max_model_len": str(LIMIT)}]

    def health(self) -> tuple[int, Any]:
        return 405, None

    def tokenize(self, body: Json) -> tuple[int, Any]:
        return 200, ["a", "b"]


class NotStreaming(Dialect):
    """A whole answer where a stream was asked for."""

    has = Has(counts_tokens=True, lists_limit=True)

    def stream(self, what: str) -> Iterator[bytes]:
        yield json.dumps(self.whole(what)).encode()

    def failing_stream(self) -> Iterator[bytes]:
        yield self.refusal(500, "it broke", "x")


DIALECTS: dict[str, Dialect] = {
    "vllm": Dialect(),
    "vllm-0.6": OldVLLM(),
    "vllm-continuous-usage": UsageInEveryChunk(),
    "router-or-nginx": Behind(),
    "sglang": SGLang(),
    "lmdeploy": LmDeploy(),
    "llama.cpp": LlamaCpp(),
    "litellm": LiteLLM(),
    "tgi-3": TGI(),
    "tgi-1": OlderTGI(),
    "ollama": Ollama(),
    "openrouter": OpenRouter(),
    "loose": Loose(),
    "not-streaming": NotStreaming(),
}


def page(title: str) -> bytes:
    return (
        f"<html>\r\n<head><title>{title}</title></head>\r\n<body>\r\n<center><h1>{title}</h1></center>\r\n"
        "<hr><center>nginx/1.25.3</center>\r\n</body>\r\n</html>\r\n"
    ).encode()


def app_of(dialect: Dialect, busy_times: int = 1) -> web.Application:
    """The server. ``busy`` is refused so many times, and then said."""
    left = [busy_times]

    async def chat(request: web.Request) -> web.StreamResponse:
        body = await request.json()
        what = body["messages"][-1]["content"] if "messages" in body else body["prompt"]
        what = what if isinstance(what, str) else what[0]["text"]
        if any(message["role"] == "tool" for message in body.get("messages", ())):
            what = "say"
        if what == "long":
            return answered(*dialect.too_long())
        if what == "busy" and left[0]:
            left[0] -= 1
            return answered(*dialect.busy())
        if not body.get("stream"):
            if what == "fail":
                return answered(200, dialect.refusal(500, "it broke", "InternalServerError"))
            return web.json_response(dialect.whole(what) if "messages" in body else dialect.text())
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for data in dialect.failing_stream() if what == "fail" else dialect.stream(what):
            await response.write(data)
        return response

    def route(answer: Any) -> Any:
        async def handler(request: web.Request) -> web.StreamResponse:
            status, body = answer(await request.json()) if request.method == "POST" else answer()
            if isinstance(body, str):
                return web.Response(text=body, status=status)
            return web.json_response(body, status=status) if body is not None else web.Response(status=status)

        return handler

    app = web.Application()
    app.router.add_post("/v1/chat/completions", chat)
    app.router.add_post("/v1/completions", chat)
    app.router.add_get("/v1/models", route(dialect.models))
    app.router.add_get("/health", route(dialect.health))
    app.router.add_post("/tokenize", route(dialect.tokenize))
    return app


def answered(status: int, body: bytes) -> web.Response:
    kind = "text/html" if body.startswith(b"<") else "application/json"
    return web.Response(body=body, status=status, content_type=kind)
