"""What a request asks for: its body within limits, its model's name, and the bytes to pass on."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import msgspec
from starlette.requests import ClientDisconnect, Request

from shared_engine.gateway.config import Target
from shared_engine.gateway.forms import FORM, Form
from shared_engine.gateway.keep_alive import FIELD, HEADER, keep_alive_of
from shared_engine.gateway.refusals import RefusedError
from shared_engine.request.forwarding import ANY_MODEL, SESSION_HEADER, ForwardedRequest
from shared_engine.request.routes import RESPONSES

T = TypeVar("T")
# A path is passed on as it is read here: no escapes, no dots, nothing empty in which a server might see another one.
_PATH = re.compile(r"(/[A-Za-z0-9_-][A-Za-z0-9_.:-]*)+")
_QUERY = re.compile(rb"[!-~]*")
_HEADER = re.compile(r"[\t -~]*")
_CANCEL = re.compile(rf"{RESPONSES}/[^/]+/cancel")
_NOT_PASSED = ("/v1/load_lora_adapter", "/v1/unload_lora_adapter")
"""They would load any folder of the machine."""
_PASSED_HEADERS = (
    "accept", "content-type", "user-agent", "x-request-id", SESSION_HEADER, "traceparent", "tracestate",
    "anthropic-version", "anthropic-beta",
)  # fmt: skip
_TOLD_ONLY = "user-agent"
"""It changes no answer: one that can't be passed on is left out."""


@dataclass(frozen=True)
class Asked:
    """One request, before its model is known.

    Attributes:
        fields: of a body that is JSON, each as its own bytes.
        model: the name that it gives.
        keep_alive_s: how long the model is to stay after it; None where it does not say.
    """

    method: str
    path: str
    headers: tuple[tuple[str, str], ...] = field(repr=False)
    body: bytes = field(repr=False)
    fields: Mapping[str, msgspec.Raw] | None = field(repr=False)
    model: str | None
    keep_alive_s: float | None = None
    form: Form | None = field(default=None, repr=False)

    def forwarded(self, target: Target, own_name: str | None) -> tuple[ForwardedRequest, bool]:
        """What to pass on, and whether its answer is a stream of events.

        Args:
            own_name: what the model's server calls it, if it is not ours.
        """
        if self.fields is None:
            body = self.body if self.form is None else self.form.naming(target.adapter or own_name)
            return ForwardedRequest(self.method, self.path, self.headers, body), False
        changes: dict[str, Any] = {**target.set_params, "model": target.adapter or ANY_MODEL}
        fields = {**self.fields, **{name: msgspec.Raw(msgspec.json.encode(each)) for name, each in changes.items()}}
        is_stream = "stream" in fields and bytes(fields["stream"]).strip() == b"true"
        return ForwardedRequest(self.method, self.path, self.headers, msgspec.json.encode(fields)), is_stream


async def asked_of(request: Request, max_bytes: int) -> Asked:
    """
    Raises:
        RefusedError: it is too long, is not what it says it is, or asks for what is not passed on.
        ClientDisconnect: the client has left.
    """
    path = request.scope["path"]  # as it was sent; request.url is put together again
    if not _PATH.fullmatch(path) or path in _NOT_PASSED:
        raise RefusedError(404, f"there is no {path!r:.200}", "not_found")
    query: bytes = request.scope["query_string"]
    if not _QUERY.fullmatch(query):
        raise RefusedError(400, "the query has bytes in it that must be escaped", "invalid_query")
    headers, sent = passed_headers(request), sent_headers(request)
    body = await body_of(request, max_bytes)
    kind = sent.get("content-type", "").partition(";")[0].strip().lower()
    fields, form, named, kept = None, None, None, None
    if kind == FORM:
        form = Form.of(sent["content-type"], body)
        named = form.model
    elif body:
        if kind != "application/json":
            raise RefusedError(415, f"send application/json, or {FORM}", "unsupported_media_type")
        fields, named, kept = _json(body)
    model = request.query_params.get("model") if named is None and query else named
    keep_alive_s = keep_alive_of(sent.get(HEADER) if kept is None else kept)
    whole = path + (f"?{query.decode()}" if query else "")
    return Asked(request.method, whole, headers, body, fields, model, keep_alive_s, form)


def is_of_an_answer(method: str, path: str) -> bool:
    """Whether a request is about an answer that the model gave earlier.

    Such answers leave memory with their model, so no model is loaded to look for one.
    """
    return method != "POST" or _CANCEL.fullmatch(path) is not None


def sent_headers(request: Request) -> Mapping[str, str]:
    """By their names in small letters, as the guard has read them; Starlette searches through all for each."""
    headers: Mapping[str, str] = request.scope["state"]["headers"]
    return headers


def passed_headers(request: Request) -> tuple[tuple[str, str], ...]:
    """Those that a model's server gets too.

    Raises:
        RefusedError: one has characters in it that have no place in a header.
    """
    sent = sent_headers(request)
    headers: list[tuple[str, str]] = []
    for name in _PASSED_HEADERS:
        if name not in sent:
            continue
        if _HEADER.fullmatch(sent[name]):
            headers.append((name, sent[name]))
        elif name != _TOLD_ONLY:
            raise RefusedError(400, f"the header {name} has characters in it that are not passed on", "invalid_header")
    return tuple(headers)


async def decoded(request: Request, max_bytes: int, kind: type[T]) -> T:
    """The JSON of a body that is read here, whatever content type it is said to have; an empty one is an empty object.

    Raises:
        RefusedError: it is not of this kind, or see ``body_of``.
    """
    try:
        body = await body_of(request, max_bytes)
    except ClientDisconnect:
        raise RefusedError(400, "the client has left", "invalid_request") from None  # to nobody
    try:
        _check_text(body)
        return msgspec.json.decode(body.strip() or b"{}", type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as exc:
        raise RefusedError(400, f"the body is not as it should be: {exc}", "invalid_json") from None


async def body_of(request: Request, max_bytes: int) -> bytes:
    """
    Raises:
        RefusedError: it is too long, or packed.
        ClientDisconnect: the client has left.
    """
    sent = sent_headers(request)
    if sent.get("content-encoding", "identity").lower() != "identity":
        raise RefusedError(415, "send the body without a Content-Encoding", "unsupported_media_type")
    declared = sent.get("content-length", "")
    if declared.isdecimal() and int(declared[:20]) > max_bytes:
        raise _too_long(max_bytes)
    body = bytearray()
    while True:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        piece, is_last = message.get("body", b""), not message.get("more_body", False)
        if len(body) + len(piece) > max_bytes:
            raise _too_long(max_bytes)
        if is_last and not body:
            return bytes(piece)  # the same object: most come in one piece
        body += piece
        if is_last:
            return bytes(body)


def _too_long(max_bytes: int) -> RefusedError:
    return RefusedError(413, f"the body is longer than max_body_bytes = {max_bytes}", "body_too_long")


def _check_text(body: bytes) -> None:
    """Of fields that are not read here, msgspec reads no more than where they end.

    Raises:
        UnicodeDecodeError: it is not UTF-8.
    """
    if not body.isascii():
        body.decode()


def _json(body: bytes) -> tuple[dict[str, msgspec.Raw], str | None, Any]:
    """The fields to pass on, and what those of them say that are read here: the model's name, and ``keep_alive``."""
    try:
        _check_text(body)
        fields = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
        model = msgspec.json.decode(fields["model"]) if "model" in fields else None
        kept = msgspec.json.decode(fields.pop(FIELD)) if FIELD in fields else None
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as exc:
        raise RefusedError(400, f"the body is not a JSON object: {exc}", "invalid_json") from None
    if model is not None and not isinstance(model, str):
        raise RefusedError(400, "model must be a text", "invalid_model")
    return fields, model, kept
