"""Everything that the gateway can be asked, declared: a route and what it takes and answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from shared_engine.gateway.forms import FORM
from shared_engine.gateway.life.routes import OfModel, Shutdown
from shared_engine.gateway.reference import schemas as s
from shared_engine.gateway.reference.schemas import Schema

JSON = "application/json"
EVENTS = "text/event-stream"
LINES = "application/x-ndjson"
OPENAI, ANTHROPIC, OLLAMA = "OpenAI's protocol", "Anthropic's protocol", "Ollama's protocol"
VLLM, LIFE, ITSELF = "vLLM's own", "Models", "The gateway"


@dataclass(frozen=True)
class Operation:
    """One of them.

    Attributes:
        path: as the route has it.
        body: what is sent, as ``body_type``; None for nothing.
        answers: what comes back by its type; empty: whatever the model's server sends.
        statuses: with which that comes.
        error: the name of its form.
    """

    method: str
    path: str
    group: str
    summary: str
    body: Schema | None = None
    answers: Mapping[str, Schema] = field(default_factory=dict)
    query: Mapping[str, Schema] = field(default_factory=dict)
    body_type: str = JSON
    statuses: tuple[int, ...] = (200,)
    error: str = "Error"
    is_body_needed: bool = True
    needs_key: bool = True


def _body(kind: type[Any]) -> Schema:
    """Of what is decoded as this."""
    _, found = msgspec.json.schema_components((kind,))
    schema: Schema = found[kind.__name__]
    return {name: each for name, each in schema.items() if name not in ("title", "description")}


def _of_model(*names: str) -> Schema:
    """Of what is done to a model, with those of its fields that count there."""
    known = {**_body(OfModel)["properties"], "model": s.or_null(s.MODEL), "keep_alive": s.KEEP_ALIVE}
    properties = {name: known[name] for name in ("model", *names)}
    return {"type": "object", "properties": properties, "examples": [{"model": "qwen"}]}


def _passed(path: str, summary: str, body: Schema, group: str = OPENAI, **more: Any) -> Operation:
    return Operation("POST", path, group, summary, body, **more)


def _life(method: str, name: str, summary: str, answer: Schema, body: Schema | None = None, **more: Any) -> Operation:
    path = name if name.startswith("/") else f"/api/v1/inference/{name}"
    return Operation(method, path, LIFE, summary, body, {JSON: answer}, is_body_needed=False, **more)


def _ollama(name: str, summary: str, answer: Schema, body: Schema | None = None, **more: Any) -> Operation:
    answers = {JSON: answer, **({LINES: answer} if "stream" in (body or {}).get("properties", {}) else {})}
    method = "GET" if body is None else "POST"
    return Operation(method, f"/api/{name}", OLLAMA, summary, body, answers, error="OllamaError", **more)


_ANTHROPICS: dict[str, Any] = {"group": ANTHROPIC, "error": "AnthropicError"}
_ENTRY = s.ref("Model")

OPERATIONS = (
    _passed("/v1/chat/completions", "Chat", s.CHAT),
    _passed("/v1/completions", "Complete a text", s.COMPLETION),
    _passed("/v1/responses", "Chat, in the form of responses", s.RESPONSES),
    _passed("/v1/embeddings", "Embed texts", s.EMBEDDING),
    _passed("/v1/rerank", "Rank documents for a query", s.RERANK),
    _passed("/v1/score", "Score pairs of texts", s.SCORE),
    _passed("/v1/audio/transcriptions", "Write down speech", s.SOUND, body_type=FORM),
    _passed("/v1/audio/translations", "Write down speech in English", s.SOUND, body_type=FORM),
    _passed("/v1/messages", "Chat", s.ANTHROPIC, **_ANTHROPICS),
    _passed("/v1/messages/count_tokens", "Count the tokens of a chat", s.ANTHROPIC, **_ANTHROPICS),
    _passed("/tokenize", "Tokens of a text, or of a chat", s.TOKENIZE, VLLM),
    _passed("/detokenize", "The text of tokens", s.DETOKENIZE, VLLM),
    _passed("/pooling", "Whatever the model makes of a text", s.POOLING, VLLM),
    _passed("/classify", "Classify texts", s.POOLING, VLLM),
    _passed("/score", "Score pairs of texts", s.SCORE, VLLM),
    _passed("/rerank", "Rank documents for a query", s.RERANK, VLLM),
    _passed("/v2/rerank", "Rank documents for a query", s.RERANK, VLLM),
    _passed("/v2/embed", "Embed texts and images, in Cohere's form", s.COHERE, VLLM),
    *(
        Operation(method, f"/{version}/{{rest}}", VLLM, f"Whatever else vLLM has under /{version}",
                  s.asks("", {}) if method == "POST" else None, query={"model": s.MODEL}, is_body_needed=False)
        for version in ("v1", "v2")
        for method in ("GET", "POST", "DELETE")
    ),
    Operation("GET", "/v1/models", OPENAI, "All models and LoRA adapters", answers={
        JSON: s.fields("object data", object={"const": "list"}, data=s.listed(s.ref("ListedModel"))),
    }),
    Operation("GET", "/v1/models/{name}", OPENAI, "One of them, by any of its names", answers={
        JSON: s.ref("ListedModel"),
    }),
    _life("GET", "status", "Models and devices, as they are now", s.fields(
        "models devices version", models=s.listed(_ENTRY), devices=s.listed(s.DEVICE), version=s.TEXT, started=s.NUMBER,
        is_admin=s.TRUTH,
    )),
    _life("POST", "load", "Load a model; 202 where that is not waited for", _ENTRY, _of_model("keep_alive", "wait"),
          statuses=(200, 202)),
    _life("POST", "unload", "Have a model leave memory", _ENTRY, _of_model("timeout")),
    _life("POST", "pin", "Keep a model from making room for others", _ENTRY, _of_model()),
    _life("POST", "unpin", "Let it make room again", _ENTRY, _of_model()),
    _life("GET", "requests", "Requests in flight", s.fields(
        "requests total", requests=s.listed(s.IN_FLIGHT), total=s.WHOLE
    )),
    _life("POST", "requests/{id}/cancel", "End one of them", s.fields("id cancelled", id=s.TEXT, cancelled=s.TRUTH)),
    Operation("GET", "/api/v1/inference/logs", LIFE, "Lines of a model's log, or the gateway's own", answers={
        JSON: s.fields("lines", lines=s.listed(s.LOG_LINE)), EVENTS: s.EVENT,
    }, query={
        "model": s.told(s.TEXT, "Without it: the gateway's own."),
        "lines": s.told({"type": "integer", "minimum": 0}, "Default 200."),
        "follow": s.told(s.TRUTH, "An event for each line, and for each that comes."),
        "member": s.told(s.TEXT, "One of several replicas."),
    }),
    Operation("GET", "/events", LIFE, "States and requests, as they change", answers={
        EVENTS: s.told(s.EVENT, "Events status and requests, with what /status and /requests have."),
    }),
    _life("POST", "/shutdown", "Have the gateway leave", s.fields("status", status=s.TEXT), _body(Shutdown),
          statuses=(202,)),
    Operation("POST", "/api/v1/inference/generate", LIFE, "Continue a text, or answer a chat", s.GENERATE, {
        JSON: s.fields("outputs model", outputs=s.listed(s.OUTPUT), model=s.TEXT), EVENTS: s.EVENT,
    }),
    Operation("POST", "/generate", LIFE, "Continue many texts", s.GENERATE_MANY, {JSON: s.listed(s.listed(s.OUTPUT))}),
    Operation("POST", "/chat", LIFE, "Answer many chats", s.CHAT_MANY, {JSON: s.listed(s.listed(s.OUTPUT))}),
    _ollama("chat", "Chat; without messages: load the model, or unload it", s.OLLAMA_PIECE, s.OLLAMA_CHAT),
    _ollama("generate", "Continue a text; without a prompt: load the model, or unload it", s.OLLAMA_PIECE,
            s.OLLAMA_TEXT),
    _ollama("embed", "Embed texts", s.fields("embeddings", embeddings=s.listed(s.listed(s.NUMBER))), s.OLLAMA_EMBED),
    _ollama("embeddings", "Embed a text", s.fields("embedding", embedding=s.listed(s.NUMBER)), s.OLLAMA_EMBED_ONE),
    _ollama("show", "What a model is", s.fields("details", details={"type": "object"}), s.OLLAMA_SHOW),
    _ollama("tags", "All models", s.fields("models", models=s.listed(s.OLLAMA_MODEL))),
    _ollama("ps", "Those that are loaded", s.fields("models", models=s.listed(s.OLLAMA_MODEL))),
    _ollama("version", "The release of Ollama whose protocol this is", s.fields("version", version=s.TEXT)),
    Operation("GET", "/health", ITSELF, "Whether it runs", answers={
        JSON: s.fields("status", status={"const": "ok"}),
    }, needs_key=False),
    Operation("GET", "/ready", ITSELF, "Whether all models with preload were loaded", answers={
        JSON: s.fields("status", status={"const": "ready"}),
    }, needs_key=False),
    Operation("GET", "/metrics", ITSELF, "Numbers for Prometheus", answers={"text/plain": s.TEXT}),
    Operation("GET", "/openapi.json", ITSELF, "This description", answers={JSON: {"type": "object"}}),
)  # fmt: skip
