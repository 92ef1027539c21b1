"""OpenAI's JSON <-> our values. Pure: no sockets, no clocks, no state.

Bodies are built from GenerationParams; responses are decoded once, straight into typed structs, which skip the
fields nobody reads. Errors of the server become our errors here.
"""

from __future__ import annotations

import binascii
import re
from array import array
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

from shared_engine.errors import (
    AuthenticationError,
    ContextLengthError,
    InvalidInputError,
    ModelNotFoundError,
    PermissionDeniedError,
    RateLimitError,
    RequestError,
    RequestRejectedError,
    ServerError,
)
from shared_engine.results import (
    Choice,
    EmbeddingResult,
    GenerationChunk,
    GenerationParams,
    GenerationResult,
    RankedDocument,
    RerankResult,
    TokenUsage,
    ToolCall,
    ToolCallDelta,
)

THINKING_SWITCHES = ("enable_thinking", "thinking")
"""Names of the chat template's variable that turns thinking on and off."""
ROLES = ("system", "developer", "user", "assistant", "tool")

Message = Mapping[str, Any]
"""A message in OpenAI's form: ``{"role": ..., "content": ...}``."""


# ---- requests


def chat_body(
    messages: Sequence[Message],
    params: GenerationParams,
    *,
    tools: Sequence[Mapping[str, Any]] | None = None,
    tool_choice: str | Mapping[str, Any] | None = None,
    stream: bool = False,
) -> dict[str, Any]:
    """The body of POST /v1/chat/completions, but for the model."""
    body: dict[str, Any] = {"messages": list(messages), **_sampling(params), **_thinking(params)}
    if params.logprobs is not None and params.logprobs is not False:
        body["logprobs"] = True
        if params.logprobs is not True:
            body["top_logprobs"] = params.logprobs
    if tools:
        body["tools"] = list(tools)
        if tool_choice is not None:
            body["tool_choice"] = tool_choice
    elif tool_choice not in (None, "none", "auto"):
        raise InvalidInputError(f"tool_choice = {tool_choice!r} needs tools, and none were given")
    return _finished(body, params, stream)


def completion_body(prompt: str, params: GenerationParams, *, stream: bool = False) -> dict[str, Any]:
    """The body of POST /v1/completions, but for the model.

    Without max_tokens that route stops after 16 tokens, where chat goes on to the model's limit: the caller must add
    max_tokens = max_model_len, which the server cuts to what the prompt leaves.
    """
    for name in _CHAT_ONLY:
        if getattr(params, name) is not None:
            raise InvalidInputError(f"{name} is a matter of the chat template, and a text prompt is sent without one")
    body: dict[str, Any] = {"prompt": prompt, **_sampling(params)}
    if params.logprobs is not None and params.logprobs is not False:
        body["logprobs"] = int(params.logprobs)
    return _finished(body, params, stream)


def embedding_body(texts: Sequence[str], encoding_format: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The body of POST /v1/embeddings, but for the model.

    Raises:
        InvalidInputError: the options ask for numbers in a form of their own, which could not be read.
    """
    taken = {"encoding_format", "embed_dtype", "endianness"} & set(options)
    if taken:
        raise InvalidInputError(f"{', '.join(sorted(taken))}: how numbers are sent is vllm-local's own choice")
    return {"input": list(texts), "encoding_format": encoding_format, **options}


def rerank_body(query: str, documents: Sequence[str], top_n: int | None, options: Mapping[str, Any]) -> dict[str, Any]:
    """The body of POST /v1/rerank, but for the model."""
    limit = {} if top_n is None else {"top_n": top_n}
    return {"query": query, "documents": list(documents), **limit, **options}


_SENT_AS_THEY_ARE = (
    "temperature", "top_p", "top_k", "min_p", "max_tokens", "repetition_penalty", "presence_penalty",
    "frequency_penalty", "seed", "n", "response_format", "structured_outputs",
)  # fmt: skip
_CHAT_ONLY = ("enable_thinking", "reasoning_effort", "chat_template_kwargs")


def _sampling(params: GenerationParams) -> dict[str, Any]:
    body = {name: value for name in _SENT_AS_THEY_ARE if (value := getattr(params, name)) is not None}
    if params.stop:
        body["stop"] = params.stop
    return body


def _thinking(params: GenerationParams) -> dict[str, Any]:
    variables = template_variables(params)
    effort = {} if params.reasoning_effort is None else {"reasoning_effort": variables.pop("reasoning_effort")}
    return effort | ({"chat_template_kwargs": variables} if variables else {})


def template_variables(params: GenerationParams) -> dict[str, Any]:
    """The variables that a request sets in the chat template."""
    effort, thinks = params.reasoning_effort, params.enable_thinking
    if thinks is None and effort is not None:
        thinks = effort != "none"  # as vLLM does, which says it under the first of the two names only
    # Templates have two names for it, and parsers heed both; vLLM leaves out what a template does not know.
    switch = {} if thinks is None else dict.fromkeys(THINKING_SWITCHES, thinks)
    own = {} if effort is None else {"reasoning_effort": effort}
    return {**own, **switch, **(params.chat_template_kwargs or {})}


def _finished(body: dict[str, Any], params: GenerationParams, stream: bool) -> dict[str, Any]:
    if stream:
        body["stream"] = True
        body["stream_options"] = {"include_usage": True}
    return {**body, **(params.extra_body or {})}


def check_prompt(prompt: object, position: str = "prompt") -> str:
    """The prompt, if it is one.

    Raises:
        InvalidInputError: naming ``position``.
    """
    if not isinstance(prompt, str):
        raise InvalidInputError(f"{position} must be a string, got {type(prompt).__name__}: {prompt!r:.80}")
    if not prompt:
        raise InvalidInputError(f"{position} is empty: a model needs at least one token to go on from")
    return prompt


def check_messages(messages: object, position: str = "messages") -> Sequence[Message]:
    """The conversation, if it is one.

    Raises:
        InvalidInputError: naming the position of what is wrong.
    """
    if isinstance(messages, (str, bytes, Mapping)) or not isinstance(messages, Sequence):
        raise InvalidInputError(
            f"{position} must be a list of messages such as {{'role': 'user', 'content': 'Hello'}}, "
            f"got {type(messages).__name__}: {messages!r:.80}"
        )
    if not messages:
        raise InvalidInputError(f"{position} is an empty conversation: it needs at least one message")
    for index, message in enumerate(messages):
        _check_message(message, f"{position}[{index}]")
    return messages


def _check_message(message: object, position: str) -> None:
    if not isinstance(message, Mapping):
        raise InvalidInputError(f"{position} must be a dict with role and content, got {type(message).__name__}")
    role = message.get("role")
    if role not in ROLES:
        raise InvalidInputError(f"{position} has the unknown role {role!r}; known: {', '.join(ROLES)}")
    content = message.get("content")
    if content is None and role == "assistant":
        return
    if not isinstance(content, (str, list)):
        raise InvalidInputError(f"{position}.content must be a string or a list of parts, got {type(content).__name__}")
    for part_index, part in enumerate(content if isinstance(content, list) else ()):
        if not isinstance(part, (str, Mapping)):
            raise InvalidInputError(
                f"{position}.content[{part_index}] must be a string or a dict, got {type(part).__name__}"
            )


def encode(body: Mapping[str, Any]) -> bytes:
    """JSON for the wire.

    Raises:
        InvalidInputError: something in it has no JSON form.
    """
    try:
        return msgspec.json.encode(body)
    except (TypeError, ValueError) as exc:
        raise InvalidInputError(f"the request can't be written as JSON: {exc}") from exc


# ---- what the server sends


class _PromptDetails(msgspec.Struct):
    cached_tokens: int | None = None


class _CompletionDetails(msgspec.Struct):
    reasoning_tokens: int | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int | None = 0
    prompt_tokens_details: _PromptDetails | None = None
    completion_tokens_details: _CompletionDetails | None = None


class _Function(msgspec.Struct):
    name: str | None = None
    arguments: str | None = None


class _ToolCall(msgspec.Struct):
    id: str | None = None
    index: int = 0
    function: _Function | None = None


class _Message(msgspec.Struct):
    content: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None  # the older name
    tool_calls: list[_ToolCall] | None = None


class _Choice(msgspec.Struct):
    """A choice of any of the four answers: chat has message or delta, text has text."""

    index: int = 0
    text: str | None = None
    message: _Message | None = None
    delta: _Message | None = None
    finish_reason: str | None = None
    stop_reason: str | int | None = None
    logprobs: dict[str, Any] | None = None


class _Error(msgspec.Struct):
    message: str = ""
    code: int | str | None = None


class _Answer(msgspec.Struct):
    """Any of the four answers, or an error in their place."""

    id: str = ""
    model: str = ""
    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: _Error | None = None


class _Embedding(msgspec.Struct):
    embedding: list[float] | str  # text: base64
    index: int = 0


class _Embeddings(msgspec.Struct):
    data: list[_Embedding]
    model: str = ""
    usage: _Usage | None = None


class _Reranked(msgspec.Struct):
    results: list[RankedDocument]
    model: str = ""
    usage: _Usage | None = None


class _Model(msgspec.Struct):
    id: str
    max_model_len: int | None = None


class _Models(msgspec.Struct):
    data: list[_Model]


_answer_decoder = msgspec.json.Decoder(_Answer)
_embeddings_decoder = msgspec.json.Decoder(_Embeddings)
_reranked_decoder = msgspec.json.Decoder(_Reranked)
_models_decoder = msgspec.json.Decoder(_Models)


def _decode(decoder: msgspec.json.Decoder[Any], data: bytes) -> Any:
    try:
        return decoder.decode(data)
    except msgspec.DecodeError as exc:
        raise ServerError(f"the server's answer is not what vLLM sends ({exc}): {data[:200]!r}") from exc


def parse_result(data: bytes) -> GenerationResult:
    """The body of a finished, unstreamed request."""
    answer = _decode(_answer_decoder, data)
    if answer.error is not None:
        raise server_error(answer.error)
    if not answer.choices:
        raise ServerError("the server's answer has no choices")
    choices = tuple(_choice(choice) for choice in answer.choices)
    usage = _usage(answer.usage) or TokenUsage()
    return GenerationResult(
        choices=choices,
        usage=without_false_zero(usage) if any(choice.reasoning for choice in choices) else usage,
        request_id=answer.id,
        model=answer.model,
    )


def _choice(choice: _Choice) -> Choice:
    message = choice.message or _Message(content=choice.text)
    return Choice(
        text=message.content or "",
        index=choice.index,
        finish_reason=choice.finish_reason,
        stop_reason=choice.stop_reason,
        tool_calls=tuple(
            ToolCall(id=call.id, name=call.function.name or "", arguments=call.function.arguments or "")
            for call in message.tool_calls or ()
            if call.function is not None
        ),
        reasoning=message.reasoning or message.reasoning_content,
        logprobs=choice.logprobs,
    )


def parse_event(data: bytes) -> list[GenerationChunk]:
    """The chunks of one ``data:`` line of a stream; none for a keep-alive or a chunk that says nothing."""
    answer = _decode(_answer_decoder, data)
    if answer.error is not None:
        raise server_error(answer.error)
    chunks = [_chunk(choice, answer) for choice in answer.choices]
    if answer.usage is not None and not answer.choices:
        chunks.append(GenerationChunk(usage=_usage(answer.usage), request_id=answer.id, model=answer.model))
    return chunks


def _chunk(choice: _Choice, answer: _Answer) -> GenerationChunk:
    delta = choice.delta or _Message(content=choice.text)
    return GenerationChunk(
        text=delta.content or "",
        index=choice.index,
        finish_reason=choice.finish_reason,
        stop_reason=choice.stop_reason,
        tool_calls=tuple(_tool_delta(call) for call in delta.tool_calls) if delta.tool_calls else (),
        reasoning=delta.reasoning or delta.reasoning_content,
        logprobs=choice.logprobs,
        request_id=answer.id,
        model=answer.model,
    )


def _tool_delta(call: _ToolCall) -> ToolCallDelta:
    function = call.function or _Function()
    return ToolCallDelta(index=call.index, id=call.id, name=function.name, arguments=function.arguments)


def _usage(usage: _Usage | None) -> TokenUsage | None:
    if usage is None:
        return None
    prompt, completion = usage.prompt_tokens_details, usage.completion_tokens_details
    return TokenUsage(
        prompt_tokens=usage.prompt_tokens,
        completion_tokens=usage.completion_tokens or 0,
        cached_tokens=None if prompt is None else prompt.cached_tokens,
        reasoning_tokens=None if completion is None else completion.reasoning_tokens,
    )


def without_false_zero(usage: TokenUsage) -> TokenUsage:
    """The usage of an answer with reasoning. vLLM counts none where the chat template opened the thought: its parsers
    look for the opening token in what was generated (vllm/reasoning/basic_parsers.py, count_reasoning_tokens).
    """
    return usage if usage.reasoning_tokens else msgspec.structs.replace(usage, reasoning_tokens=None)


def parse_embeddings(data: bytes) -> EmbeddingResult:
    answer = _decode(_embeddings_decoder, data)
    ordered = sorted(answer.data, key=lambda item: item.index)
    return EmbeddingResult(
        embeddings=[_vector(item.embedding) for item in ordered],
        usage=_usage(answer.usage) or TokenUsage(),
        model=answer.model,
    )


def _vector(sent: list[float] | str) -> list[float]:
    """Numbers, or the base64 of 32-bit floats in this machine's byte order, as OpenAI's own package reads them."""
    if not isinstance(sent, str):
        return sent
    vector = array("f")
    try:
        vector.frombytes(binascii.a2b_base64(sent))
    except ValueError as exc:
        raise ServerError(f"the server's embedding is no base64 of 32-bit floats ({exc}): {sent[:80]!r}") from exc
    return vector.tolist()


def parse_rerank(data: bytes) -> RerankResult:
    """POST /v1/rerank; best first, also where the server did not sort."""
    answer = _decode(_reranked_decoder, data)
    return RerankResult(
        results=tuple(sorted(answer.results, key=lambda ranked: -ranked.relevance_score)),
        usage=_usage(answer.usage) or TokenUsage(),
        model=answer.model,
    )


def parse_models(data: bytes) -> list[tuple[str, int | None]]:
    """GET /v1/models: (name, max_model_len) of each."""
    return [(model.id, model.max_model_len) for model in _decode(_models_decoder, data).data]


def parse_token_count(data: bytes) -> int:
    """POST /tokenize."""
    return int(_decode(msgspec.json.Decoder(dict[str, Any]), data)["count"])


def parse_tokens(data: bytes) -> list[int]:
    """POST /tokenize."""
    return list(_decode(msgspec.json.Decoder(dict[str, Any]), data)["tokens"])


def parse_metrics(text: str) -> dict[str, float]:
    """GET /metrics: each ``vllm:`` gauge and counter, summed over its labels; histograms are left out."""
    totals: dict[str, float] = {}
    for line in text.splitlines():
        name, _, value = line.partition(" ") if "{" not in line else _labelled(line)
        if name.startswith("vllm:") and not name.endswith(("_bucket", "_created", "_sum", "_count", "_info")):
            short = name.removeprefix("vllm:").removesuffix("_total")
            totals[short] = totals.get(short, 0.0) + float(value)
    return totals


def _labelled(line: str) -> tuple[str, str, str]:
    name, _, rest = line.partition("{")
    return name, "", rest.rpartition("} ")[2]


# ---- streams


def split_events(buffer: bytearray) -> Iterable[bytes]:
    """Take the complete ``data:`` lines out of ``buffer``, without their prefix; comments and blanks are dropped."""
    while (end := buffer.find(b"\n")) >= 0:
        line = bytes(buffer[:end]).strip()
        del buffer[: end + 1]
        if line.startswith(b"data:"):
            yield line[5:].lstrip()


# ---- errors

_BY_STATUS: dict[int, type[RequestError]] = {
    401: AuthenticationError,
    403: PermissionDeniedError,
    404: ModelNotFoundError,
    429: RateLimitError,
}
_CONTEXT_LIMIT = re.compile(r"maximum context length (?:is|\() ?(\d+)|max_model_len=(\d+)")
_PROMPT_LENGTH = re.compile(r"(?:at least |contains )(\d+) input tokens|Input length \((\d+)\)|(\d+) in the messages")
_ENGINE_DEAD = ("EngineCore encountered an issue", "EngineDeadError")
_ENGINE_BUSY = ("currently busy and cannot accept new requests", "prefill token backlog limit")  # vllm/exceptions.py


def error_from_response(status: int, body: bytes) -> RequestError:
    """What the server said, as one of our errors."""
    message = _message(body)
    if status in _BY_STATUS:
        return _BY_STATUS[status](message, status)
    if status >= 500:
        return ServerError(message, status)
    too_long = "maximum context length" in message or "exceeds model's maximum" in message
    if status in (400, 413, 422) and too_long:
        return ContextLengthError(message, status, _number(_CONTEXT_LIMIT, message), _number(_PROMPT_LENGTH, message))
    return RequestRejectedError(message, status)


def server_error(error: _Error) -> RequestError:
    """An error that came in place of an answer, with HTTP status 200."""
    said = str(error.code)
    code = int(said) if said.isdigit() else 500
    return error_from_response(code, msgspec.json.encode({"error": {"message": error.message}}))


def says_engine_died(error: RequestError) -> bool:
    """True when vLLM answered only to say that its engine process is gone."""
    return (error.status or 0) >= 500 and any(mark in error.message for mark in _ENGINE_DEAD)


def says_engine_busy(error: RequestError) -> bool:
    """True when vLLM refused to queue the request (``max_num_queued_reqs``, ``max_num_queued_tokens``)."""
    return error.status == 503 and any(mark in error.message for mark in _ENGINE_BUSY)


def says_no_base64(error: RequestRejectedError) -> bool:
    """True when a server, which then is not vLLM, sends embeddings as JSON's numbers only."""
    return any(mark in error.message for mark in ("encoding_format", "base64"))


def _message(body: bytes) -> str:
    """The server's words: OpenAI's error object, FastAPI's detail, or the plain text."""
    try:
        data = msgspec.json.decode(body)
    except msgspec.DecodeError:
        data = None
    if isinstance(data, dict):
        error = data.get("error", data)
        if isinstance(error, dict):
            said = error.get("message") or error.get("detail")
            if said:
                return str(said)
        elif error:
            return str(error)
    return body.decode(errors="replace").strip()[:2000] or "the server gave no reason"


def _number(pattern: re.Pattern[str], message: str) -> int | None:
    found = pattern.search(message)
    return int(next(group for group in found.groups() if group)) if found else None
