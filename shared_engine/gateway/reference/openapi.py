"""The OpenAPI document: what is declared in operations.py, in OpenAPI's words. Pure."""

from __future__ import annotations

import re
from typing import Any

import shared_engine
from shared_engine.gateway.reference.operations import EVENTS, JSON, Operation
from shared_engine.gateway.reference.schemas import COMPONENTS, EVENT, ref

_PARAMETER = re.compile(r"\{(\w+)\}")
_DESCRIPTION = (
    "Models of one machine, at one address: each is loaded by the first request that names it. What is passed on to a "
    "model takes all that vLLM takes, and is answered by vLLM itself."
)


def document(operations: tuple[Operation, ...], *, has_keys: bool) -> dict[str, Any]:
    """
    Args:
        has_keys: API keys are asked for.
    """
    paths: dict[str, dict[str, Any]] = {}
    for each in operations:
        paths.setdefault(each.path, {})[each.method.lower()] = _described(each, has_keys=has_keys)
    schemes = {
        "bearer": {"type": "http", "scheme": "bearer"},
        "x-api-key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
    }
    return {
        "openapi": "3.1.0",
        "info": {"title": "vllm-local", "version": shared_engine.__version__, "description": _DESCRIPTION},
        "servers": [{"url": "/"}],
        "tags": [{"name": name} for name in dict.fromkeys(each.group for each in operations)],
        "paths": paths,
        "components": {"schemas": COMPONENTS, **({"securitySchemes": schemes} if has_keys else {})},
    }


def _described(operation: Operation, *, has_keys: bool) -> dict[str, Any]:
    found: dict[str, Any] = {
        "tags": [operation.group],
        "summary": operation.summary,
        "operationId": " ".join((operation.method.lower(), *re.findall(r"\w+", operation.path))).replace(" ", "_"),
        "responses": _answers(operation),
    }
    parameters = [
        *({"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
          for name in _PARAMETER.findall(operation.path)),
        *({"name": name, "in": "query", "schema": schema} for name, schema in operation.query.items()),
    ]  # fmt: skip
    if parameters:
        found["parameters"] = parameters
    if operation.body is not None:
        content = {operation.body_type: {"schema": operation.body}}
        found["requestBody"] = {"required": operation.is_body_needed, "content": content}
    if has_keys:
        found["security"] = [{"bearer": []}, {"x-api-key": []}] if operation.needs_key else []
    return found


def _answers(operation: Operation) -> dict[str, Any]:
    answers = operation.answers or {JSON: {}, EVENTS: EVENT}
    error = {JSON: {"schema": ref(operation.error)}}
    well = {"description": "Done", "content": {kind: {"schema": schema} for kind, schema in answers.items()}}
    return {
        **{str(status): well for status in operation.statuses},
        "4XX": {"description": "What was asked, or who asked: error.code says which", "content": error},
        "5XX": {"description": "The model, its engine, or the gateway: error.code says which", "content": error},
    }
