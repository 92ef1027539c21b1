"""OpenTelemetry: a client span for each request, by the conventions for generative AI.

Only an app that traces has imported OpenTelemetry; others pay for one look into sys.modules. Prompts and answers are
recorded only where the variable says so that all instrumentations read.
"""

from __future__ import annotations

import contextlib
import functools
import os
import sys
from collections.abc import Mapping
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import msgspec

from shared_engine.request.tally import EngineName
from shared_engine.results import GenerationChunk, GenerationResult, TokenUsage

if TYPE_CHECKING:
    from shared_engine.request.endpoint import Connection

CAPTURE_VARIABLE = "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT"
CAPTURING = ("true", "1", "span_only", "span_and_event")
PROVIDER = "vllm"
# Of the request's own names; the value is as it is sent.
PARAMETERS = {
    "max_tokens": "max_tokens",
    "max_completion_tokens": "max_tokens",
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "seed": "seed",
    "stop": "stop_sequences",
    "n": "choice.count",
    "frequency_penalty": "frequency_penalty",
    "presence_penalty": "presence_penalty",
    "reasoning_effort": "reasoning.level",
    "encoding_format": "encoding_formats",
}
LISTS = ("stop", "encoding_format")


def begin(operation: str, name: EngineName, body: bytes, *, is_streamed: bool) -> TracedRequest | None:
    """A span of the current context; None where nobody traces."""
    trace = sys.modules.get("opentelemetry.trace")
    if trace is None:
        return None
    span = _tracer(trace).start_span(
        f"{operation} {name.model}" if name.model else operation,
        kind=trace.SpanKind.CLIENT,
        attributes={
            "gen_ai.operation.name": operation,
            "gen_ai.provider.name": PROVIDER,
            **({"gen_ai.request.model": name.model} if name.model else {}),
            **_address(name.engine),
        },
    )
    if not span.get_span_context().is_valid:
        return None  # no SDK, and no trace from outside to continue
    return TracedRequest(trace, span, operation, body, is_streamed=is_streamed)


class TracedRequest:
    """The span of one request."""

    def __init__(self, trace: Any, span: Any, operation: str, body: bytes, *, is_streamed: bool) -> None:
        from opentelemetry import propagate

        self._trace = trace
        self._span = span
        self._operation = operation
        self._is_recording = span.is_recording()
        self._captures = self._is_recording and os.environ.get(CAPTURE_VARIABLE, "").lower() in CAPTURING
        self._finish_reasons: list[str] = []
        self._pieces: dict[int, list[str]] = {}
        self._response: tuple[str, str] | None = None
        self._headers: dict[str, str] = {}  # ``traceparent`` and what else the app's propagators write
        propagate.inject(self._headers, trace.set_span_in_context(span))
        if self._is_recording:
            with contextlib.suppress(
                msgspec.DecodeError, UnicodeDecodeError, RecursionError
            ):  # the server will refuse it
                self._note_request(msgspec.json.decode(body, type=dict[str, Any]), is_streamed=is_streamed)

    def _note_request(self, body: Mapping[str, Any], *, is_streamed: bool) -> None:
        attributes: dict[str, Any] = {}
        for field, name in PARAMETERS.items():
            value = body.get(field)
            if value is not None:
                attributes[f"gen_ai.request.{name}"] = [value] if field in LISTS and isinstance(value, str) else value
        if is_streamed:
            attributes["gen_ai.request.stream"] = True
        if self._captures:
            attributes["gen_ai.input.messages"] = _json(_input_messages(body))
        self._span.set_attributes(attributes)

    def connected(self, connection: Connection, waited_s: float) -> Connection:
        """The connection, with the headers by which the server's own span becomes a child of this one."""
        client = connection.client
        if self._is_recording:
            here = {} if client.socket_path is None else {"server.address": client.socket_path}
            self._span.set_attributes(here or _address(client.url))
            self._span.set_attribute("vllm_local.engine.start_number", connection.incarnation)
            self._span.add_event("vllm_local.engine.ready", {"vllm_local.waited_s": round(waited_s, 6)})
        return replace(connection, client=client.with_headers(tuple(self._headers.items())))

    def tried_again(self, error: BaseException) -> None:
        if self._is_recording:
            self._span.add_event("vllm_local.retry", {"error.type": type(error).__name__})

    def saw(self, chunk: GenerationChunk) -> None:
        if not self._is_recording:
            return
        if chunk.finish_reason is not None:
            self._finish_reasons.append(chunk.finish_reason)
        if self._response is None and chunk.request_id:
            self._response = (chunk.request_id, chunk.model)
        if self._captures and chunk.text:
            self._pieces.setdefault(chunk.index, []).append(chunk.text)

    def answered(self, result: Any) -> None:
        if isinstance(result, GenerationResult):
            self._response = (result.request_id, result.model)
            self._finish_reasons = [choice.finish_reason or "" for choice in result.choices]
            self._pieces = {choice.index: [choice.text] for choice in result.choices}

    def end(
        self, ended: str | None, error: BaseException | None, usage: TokenUsage | None, first_s: float | None
    ) -> None:
        """
        Args:
            ended: the name of the error, or of another end that is no success; None for a success.
        """
        if self._is_recording:
            self._span.set_attributes(self._of_answer(usage, first_s))
            if ended is not None:
                self._span.set_attribute("error.type", ended)
                # What vLLM says may quote the prompt.
                words = str(error) if self._captures and error is not None else None
                self._span.set_status(self._trace.Status(self._trace.StatusCode.ERROR, words))
        self._span.end()

    def _of_answer(self, usage: TokenUsage | None, first_s: float | None) -> dict[str, Any]:
        attributes: dict[str, Any] = {}
        if self._response is not None:
            attributes["gen_ai.response.id"], attributes["gen_ai.response.model"] = self._response
        if self._finish_reasons:
            attributes["gen_ai.response.finish_reasons"] = self._finish_reasons
        if first_s is not None:
            attributes["gen_ai.response.time_to_first_chunk"] = first_s
        if usage is not None:
            attributes["gen_ai.usage.input_tokens"] = usage.prompt_tokens
            if self._operation in ("chat", "text_completion"):
                attributes["gen_ai.usage.output_tokens"] = usage.completion_tokens
            if usage.cached_tokens is not None:
                attributes["gen_ai.usage.cache_read.input_tokens"] = usage.cached_tokens
            if usage.reasoning_tokens is not None:
                attributes["gen_ai.usage.reasoning.output_tokens"] = usage.reasoning_tokens
        if self._captures and self._pieces:
            texts = ["".join(pieces) for _, pieces in sorted(self._pieces.items())]
            attributes["gen_ai.output.messages"] = _json([_message("assistant", text) for text in texts])
        return attributes


def _input_messages(body: Mapping[str, Any]) -> list[dict[str, Any]]:
    """In the form of the conventions; what is neither text nor a list of texts stays as it was sent."""
    messages = body.get("messages")
    if messages is None:
        given = body.get("prompt", body.get("input", body.get("query")))
        return [_message("user", text) for text in (given if isinstance(given, list) else [given])]
    if not isinstance(messages, list):  # the server will refuse it, and what is in it
        return [_message("", messages)]
    return [
        _message(message.get("role", ""), message.get("content"))
        if isinstance(message, dict)
        else _message("", message)
        for message in messages
    ]


def _message(role: object, content: object) -> dict[str, Any]:
    part = {"type": "text", "content": content}
    return {"role": role, "parts": content if isinstance(content, list) else [part]}


def _json(value: object) -> str:
    return msgspec.json.encode(value).decode()


def _address(engine: str) -> dict[str, Any]:
    """Of a remote server; nothing of several."""
    url = urlsplit(engine if "," not in engine else "")
    if url.hostname is None:
        return {}
    return {"server.address": url.hostname, "server.port": url.port or {"https": 443}.get(url.scheme, 80)}


@functools.cache
def _tracer(trace: Any) -> Any:
    """It may be had before the app names its provider."""
    try:
        own_version = version("vllm-local")
    except PackageNotFoundError:  # run from its sources
        own_version = ""
    return trace.get_tracer("vllm-local", own_version)
