"""What a server says when it refuses, as our errors."""

from __future__ import annotations

import json
from typing import Any

import pytest

from shared_engine import (
    AuthenticationError,
    ContextLengthError,
    ModelNotFoundError,
    PermissionDeniedError,
    RateLimitError,
    RequestRejectedError,
    ServerError,
)
from shared_engine.request.refusals import error_from_response, error_in_answer, explain_missing_route
from shared_engine.request.routes import CHAT, EMBEDDINGS, RERANK

TOO_LONG = (
    "This model's maximum context length is 2048 tokens. However, your prompt contains at least 2049 input tokens, "
    "which exceeds this limit even without any output tokens. Please reduce the length of the input prompt. "
    "(parameter=input_tokens, value=2049)"
)


@pytest.mark.parametrize(
    ("status", "body", "kind", "message"),
    [
        (400, {"error": {"message": "no", "code": 400}}, RequestRejectedError, "no"),
        (401, {"error": "Unauthorized"}, AuthenticationError, "Unauthorized"),
        (403, {"detail": "not you"}, PermissionDeniedError, "not you"),
        (404, {"error": {"message": "The model `x` does not exist."}}, ModelNotFoundError, "The model `x`"),
        (404, {"detail": "Not Found"}, ModelNotFoundError, "Not Found"),
        (429, {"error": {"message": "slow down"}}, RateLimitError, "slow down"),
        (500, {"error": {"message": "oops"}}, ServerError, "oops"),
        (503, "busy", ServerError, "busy"),
        (502, "", ServerError, "gave no reason"),
        (400, {"error": {"message": TOO_LONG}}, ContextLengthError, "maximum context length"),
    ],
)
def test_each_status_becomes_its_error_with_the_servers_words(
    status: int, body: Any, kind: type[Exception], message: str
) -> None:
    data = body if isinstance(body, str) else json.dumps(body)
    error = error_from_response(status, data.encode())
    assert type(error) is kind
    assert message in error.message
    assert error.status == status


@pytest.mark.parametrize(
    ("code", "kind"), [(400, RequestRejectedError), ("429", RateLimitError), (None, ServerError), ("odd", ServerError)]
)
def test_an_error_in_place_of_an_answer_has_its_own_code(code: Any, kind: type[Exception]) -> None:
    assert type(error_in_answer("no", code)) is kind


def test_a_missing_route_says_what_the_model_can_not_do() -> None:
    missing = ModelNotFoundError("Not Found", 404)
    assert "generates no text" in explain_missing_route(missing, CHAT).message
    assert "does not rerank" in explain_missing_route(missing, RERANK).message
    other = error_from_response(501, b'{"error": {"message": "The model does not support Embeddings API"}}')
    assert "was started for another task, so its model makes no" in explain_missing_route(other, EMBEDDINGS).message
    assert explain_missing_route(missing, "/tokenize") is missing
    no_model = ModelNotFoundError("The model `x` does not exist.", 404)
    assert explain_missing_route(no_model, CHAT) is no_model


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b'{"error": {"message": "no"}}', "no"),
        (b'{"error": "no"}', "no"),
        (b'{"message": "no"}', "no"),
        (b'{"detail": "no"}', "no"),
        (b'{"detail": [{"loc": ["body", "stop"], "msg": "not a list"}, {"msg": "no"}]}', "body.stop: not a list; no"),
        (b'{"errors": ["no", "never"]}', "no; never"),
        (b'{"error": {"message": "no", "metadata": {"raw": "why", "provider_name": "P"}}}', "no (P: why)"),
        (
            b"<html><head><title>502 Bad\n Gateway</title>",
            "502 Bad Gateway (a page, not an answer of the model's server)",
        ),
        (b"no", "no"),
        (b"", "the server gave no reason"),
        (b"{}", "{}"),
        (b"null", "null"),
        (b"\xff", "\ufffd"),
    ],
)
def test_what_a_server_says_is_found_in_any_form(body: bytes, said: str) -> None:
    assert error_from_response(500, body).message == said
