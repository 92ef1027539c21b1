"""One row -> what is asked for; an answer, or an error -> one line of the output. Pure.

Two formats, and a file may mix them: OpenAI's batch format, answered in its output format as ``vllm run-batch`` writes
it (vllm/entrypoints/launchers/run_batch.py); and plain rows with a prompt or messages.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from shared_engine.errors import EngineError, RequestError, VLLMError
from shared_engine.params import AnswerFields, CallParams, ContextFields, GenerationParams
from shared_engine.request.routes import CHAT, COMPLETIONS, EMBEDDINGS, RERANK, RESPONSES
from shared_engine.request.usage import told_by
from shared_engine.results import GenerationResult, TokenUsage

URLS = (CHAT, COMPLETIONS, RESPONSES, EMBEDDINGS, RERANK, "/rerank", "/v2/rerank", "/v1/score", "/score")
"""Which a line in OpenAI's format may ask for."""
PARAMETERS = frozenset(GenerationParams.model_fields) - {
    *CallParams.model_fields,
    *ContextFields.model_fields,
    *AnswerFields.model_fields,
    "model",
}
"""Which a plain JSON line may have of its own."""
_OF_CHAT = ("tools", "tool_choice")
_OPENAI = ("custom_id", "url", "body")


@dataclass(frozen=True)
class OpenAILine:
    """A body that goes to a route as it is."""

    custom_id: str
    url: str
    body: bytes


@dataclass(frozen=True)
class PlainLine:
    """A prompt or messages, to be asked through the Engine.

    Attributes:
        prompt: where there are no messages.
        parameters: keywords of ``Engine.achat`` and ``agenerate``.
    """

    prompt: str | None = None
    messages: list[dict[str, Any]] | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)


Line = OpenAILine | PlainLine


class InvalidLineError(VLLMError):
    """A row that can't be asked. The message says what is wrong with it."""


def parse_line(text: bytes, prompt_column: str, *, is_table: bool) -> Line:
    """What a row asks for.

    Args:
        is_table: the row's other columns are never parameters.

    Raises:
        InvalidLineError: it can't be told.
    """
    try:
        text.decode()  # msgspec does not look into what it passes on
        fields = msgspec.json.decode(text, type=dict[str, msgspec.Raw])
    except msgspec.ValidationError:
        raise InvalidLineError(
            "has another number of cells than the header" if is_table else "is not a JSON object"
        ) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as exc:
        raise InvalidLineError(f"is not valid JSON in UTF-8: {exc}") from None
    except RecursionError:
        raise InvalidLineError("is nested too deeply") from None
    if not is_table and _is_openai(fields, prompt_column):
        return _openai_line(fields)
    return _plain_line(fields, prompt_column, is_table)


def _is_openai(fields: Mapping[str, Any], prompt_column: str) -> bool:
    if "body" in fields and "url" in fields:
        return True
    return any(name in fields for name in _OPENAI) and prompt_column not in fields and "messages" not in fields


def _openai_line(fields: Mapping[str, msgspec.Raw]) -> OpenAILine:
    missing = [name for name in _OPENAI if name not in fields]
    if missing:
        raise InvalidLineError(f"has no {missing[0]!r}")
    custom_id, url, method = (_value(fields, name) for name in ("custom_id", "url", "method"))
    if not isinstance(custom_id, str):
        raise InvalidLineError("'custom_id' must be a string")
    if method not in (None, "POST"):
        raise InvalidLineError(f"'method' must be 'POST', not {method!r}")
    if url not in URLS:
        raise InvalidLineError(f"'url' must be one of {', '.join(URLS)}, not {url!r}")
    try:
        body = msgspec.json.decode(fields["body"], type=dict[str, msgspec.Raw])
    except msgspec.ValidationError:
        raise InvalidLineError("'body' must be an object") from None
    if _value(body, "stream"):
        raise InvalidLineError("'stream' must not be set: an answer is written when it is whole")
    return OpenAILine(custom_id, url, bytes(fields["body"]))


def _plain_line(fields: Mapping[str, msgspec.Raw], prompt_column: str, is_table: bool) -> PlainLine:
    names = () if is_table else tuple(name for name in fields if name in PARAMETERS)
    if "messages" in fields and not is_table:
        if prompt_column in fields:
            raise InvalidLineError(f"has both {prompt_column!r} and 'messages'")
        messages = _value(fields, "messages")
        if not isinstance(messages, list):
            raise InvalidLineError("'messages' must be a list")
        names += tuple(name for name in _OF_CHAT if name in fields)
        return PlainLine(messages=messages, parameters={name: _value(fields, name) for name in names})
    prompt = _value(fields, prompt_column)
    if prompt is None and not is_table and prompt_column not in fields:
        raise InvalidLineError(f"has neither {prompt_column!r} nor 'messages', nor OpenAI's 'url' and 'body'")
    if not isinstance(prompt, str) or not prompt:
        raise InvalidLineError(f"{prompt_column!r} must be a text that is not empty")
    return PlainLine(prompt=prompt, parameters={name: _value(fields, name) for name in names})


def _value(fields: Mapping[str, msgspec.Raw], name: str) -> Any:
    try:
        return msgspec.json.decode(fields[name]) if name in fields else None
    except (msgspec.DecodeError, RecursionError) as exc:  # a number that is too large, mostly
        raise InvalidLineError(f"{name!r} can't be read: {exc}") from None


# ---- one line of the output


class Answer(msgspec.Struct):
    """One line of the output, and what is counted of it."""

    line: bytes
    is_error: bool = False
    prompt_tokens: int = 0
    completion_tokens: int = 0


class _Response(msgspec.Struct):
    status_code: int
    request_id: str
    body: msgspec.Raw | None


class _OpenAIOutput(msgspec.Struct):
    id: str
    custom_id: str | None
    response: _Response | None
    error: Any


class _PlainOutput(msgspec.Struct, kw_only=True):
    id: str
    line: int
    input: msgspec.Raw | None
    text: str | None = None
    reasoning: str | None = None
    tool_calls: Any = ()
    finish_reason: str | None = None
    choices: Any = msgspec.UNSET
    usage: Any = None
    error: Any = None


def openai_answer(answer_id: str, line: OpenAILine, status: int, body: bytes) -> Answer:
    """What the server answered, of any status; its body as it is."""
    read = told_by(body)
    if status >= 400:
        request_id = (read and read.id) or ""
        return openai_error(answer_id, line.custom_id, _error_of_server(status, body), status, request_id)
    if read is None:
        return openai_error(answer_id, line.custom_id, error_object("the answer is not JSON", "ServerError", 502), 502)
    response = _Response(status, read.id or answer_id, msgspec.Raw(_on_one_line(body)))
    usage = read.usage or TokenUsage()
    output = _OpenAIOutput(answer_id, line.custom_id, response, None)
    return Answer(_line(output), False, usage.prompt_tokens, usage.completion_tokens)


def _error_of_server(status: int, body: bytes) -> Any:
    try:
        said = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        said = None
    if isinstance(said, dict) and "error" in said:
        return said
    return {"error": error_object(body.decode(errors="replace") or f"HTTP {status}", "ServerError", status)}


def _on_one_line(body: bytes) -> bytes:
    return body.translate(None, b"\r\n")  # JSON has none in its strings


def error_object(message: str, kind: str, code: int | None) -> dict[str, Any]:
    """In the form of vLLM's ErrorInfo."""
    return {"message": message, "type": kind, "param": None, "code": code}


def openai_error(
    answer_id: str, custom_id: str | None, error: Any, status: int | None = None, request_id: str = ""
) -> Answer:
    """An error in OpenAI's format: as vLLM's ErrorResponse; ``response`` says the status, where there is one."""
    nested = error if "error" in error else {"error": error}
    response = None if status is None else _Response(status, request_id or answer_id, None)
    return Answer(_line(_OpenAIOutput(answer_id, custom_id, response, nested)), is_error=True)


def plain_answer(answer_id: str, number: int, text: bytes, result: GenerationResult) -> Answer:
    """What the model answered, beside the whole row."""
    usage = result.usage
    is_simple = len(result.choices) == 1 and result.logprobs is None
    output = _PlainOutput(
        id=answer_id,
        line=number,
        input=msgspec.Raw(_on_one_line(text)),
        text=result.text,
        reasoning=result.reasoning,
        tool_calls=result.tool_calls,
        finish_reason=result.finish_reason,
        choices=msgspec.UNSET if is_simple else result.choices,
        # Not cached_tokens: they depend on what was asked before.
        usage={"prompt_tokens": usage.prompt_tokens, "completion_tokens": usage.completion_tokens},
    )
    return Answer(_line(output), False, usage.prompt_tokens, usage.completion_tokens)


def plain_error(answer_id: str, number: int, text: bytes | None, error: Any) -> Answer:
    """An error beside the whole row; None where the row is not JSON."""
    row = None if text is None else msgspec.Raw(_on_one_line(text))
    return Answer(_line(_PlainOutput(id=answer_id, line=number, input=row, error=error)), is_error=True)


def invalid_answer(answer_id: str, number: int, text: bytes, unit: str, error: InvalidLineError) -> Answer:
    """For a row that can't be asked, in the format that it seems to be in."""
    said = error_object(f"{unit} {number} {error}", type(error).__name__, 400)
    try:
        text.decode()
        fields = msgspec.json.decode(text, type=dict[str, msgspec.Raw])
    except msgspec.ValidationError:
        return plain_error(answer_id, number, text, said)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        is_openai = any(f'"{name}"'.encode() in text for name in _OPENAI)
        return openai_error(answer_id, None, said, 400) if is_openai else plain_error(answer_id, number, None, said)
    if not any(name in fields for name in _OPENAI):
        return plain_error(answer_id, number, text, said)
    try:
        custom_id = _value(fields, "custom_id")
    except InvalidLineError:
        custom_id = None
    return openai_error(answer_id, custom_id if isinstance(custom_id, str) else None, said, 400)


def failed_answer(answer_id: str, number: int, text: bytes, line: Line, error: Exception) -> Answer:
    """For a row whose request failed."""
    status = error.status if isinstance(error, RequestError) else None
    message = error.message if isinstance(error, RequestError | EngineError) else str(error)
    said = error_object(message, type(error).__name__, status)
    if isinstance(line, OpenAILine):
        return openai_error(answer_id, line.custom_id, said, status)
    return plain_error(answer_id, number, text, said)


def _line(output: msgspec.Struct) -> bytes:
    return msgspec.json.encode(output) + b"\n"
