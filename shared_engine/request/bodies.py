"""Our values -> requests: what is sent, as JSON, encoded once. Pure.

A ``Request`` is made at the call, before it is known which server answers it. What only that server can say, its name
for the model and its limit, is put in front of the encoded rest when the request goes out. Retries send
the same bytes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import msgspec

from shared_engine.conversations.reshaping import reshaped
from shared_engine.conversations.surrogates import without_surrogates
from shared_engine.conversations.traits import NONE, Trait, text_of, traits_of
from shared_engine.errors import InvalidInputError
from shared_engine.params import (
    AnswerFields,
    CallParams,
    ChatFields,
    ContextFields,
    GenerationParams,
    SchemaFields,
    template_variables,
)
from shared_engine.request.checks import Message, check_messages
from shared_engine.request.routes import CHAT, COMPLETIONS, EMBEDDINGS, POOLING, TOKENIZE

Tools = Sequence[Mapping[str, Any]]
ToolChoice = str | Mapping[str, Any]

CHAT_ONLY = (*ChatFields.model_fields, "continue_final_message")
# Not under its own name, not always, or not at all: see below. All other parameters are sent as they are.
_SENT_OTHERWISE = frozenset((
    *CHAT_ONLY, *CallParams.model_fields, *ContextFields.model_fields, *SchemaFields.model_fields,
    *AnswerFields.model_fields,
    "stop", "logprobs", "lora", "model", "extra_body",
))  # fmt: skip
_AS_SET = CallParams()
PROMPT_SWITCHES = (
    "add_generation_prompt", "continue_final_message", "add_special_tokens", "chat_template", "media_io_kwargs",
    "mm_processor_kwargs",
)  # fmt: skip
"""Fields beside the text, messages and tools that decide a prompt's tokens."""
_OF_THE_PROMPT = ("model", "prompt", "tools", *PROMPT_SWITCHES)


@dataclass(frozen=True)
class Request:
    """One POST, but for what only the server it goes to can say.

    Attributes:
        path: the route.
        body: a JSON object with at least one field.
        names_model: ``body`` has the model's name already.
        model: the adapter, or of a remote server the model, that is to answer; None for the server's first.
        params: how the call is made.
        needs_max_tokens: the route would stop after 16 tokens where chat goes on to the model's limit. The server's
            limit is to be sent, which it cuts to what the prompt leaves.
        lowered_to: what max_tokens was lowered to (``truncate_completion``).
        traits: what its conversation has, which the server's chat template may not take.
    """

    path: str
    body: bytes
    names_model: bool = False
    needs_max_tokens: bool = False
    params: CallParams = _AS_SET
    lowered_to: int | None = None
    model: str | None = None
    traits: Trait = NONE

    def for_server(self, model: str, max_tokens: int | None = None) -> bytes:
        """The bytes to send to the server that calls its model ``model``.

        Args:
            max_tokens: the server's limit; read only where the request ``needs_max_tokens``.
        """
        known: dict[str, Any] = {} if self.names_model else {"model": model}
        if self.needs_max_tokens:
            known["max_tokens"] = max_tokens
        if not known:
            return self.body
        return b"".join((encode(known)[:-1], b",", memoryview(self.body)[1:]))


def encode(body: Mapping[str, Any]) -> bytes:
    """JSON for the wire.

    Raises:
        InvalidInputError: something in it has no JSON form.
    """
    try:
        return _encoder.encode(body)
    except (TypeError, ValueError, RecursionError) as exc:
        raise InvalidInputError(f"the request can't be written as JSON: {exc}") from exc


def _plain(value: Any) -> Any:
    """What openai's client takes too: a string, number or mapping of a class of its own, as LangChain's
    ``message.text`` is; and numbers and arrays of numpy and torch.
    """
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, (int, float)):
        return int(value) if isinstance(value, int) else float(value)
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, Sequence):
        return list(value)
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"Encoding objects of type {type(value).__name__} is unsupported")


_encoder = msgspec.json.Encoder(enc_hook=_plain)


def without_traits(request: Request, refused: Trait) -> Request:
    """The request, its conversation in a form without what is ``refused``; itself, where it has nothing of that."""
    if not request.traits & refused:
        return request
    body = msgspec.json.decode(request.body)
    body["messages"] = reshaped(body["messages"], refused)
    return replace(request, body=encode(body), traits=_traits(body))


def _traits(body: Mapping[str, Any]) -> Trait:
    return traits_of(body["messages"], is_continued=bool(body.get("continue_final_message")))


def request_of(path: str, body: Mapping[str, Any], params: CallParams = _AS_SET, model: str | None = None) -> Request:
    """A request with ``body``, a field of which may be the model's name.

    Raises:
        InvalidInputError: something in the body has no JSON form; names the field, and of messages and tools which.
    """
    try:
        try:
            encoded = encode(body)
        except InvalidInputError as exc:
            if not isinstance(exc.__cause__, UnicodeEncodeError) or "messages" not in body:
                raise
            body = {**body, "messages": without_surrogates(body["messages"])}
            encoded = encode(body)
    except InvalidInputError as exc:
        raise InvalidInputError(f"{_unwritable(body)}: {exc}") from exc
    if b"null" in encoded and (position := _not_finite(body)) is not None:  # as which infinity is written
        raise InvalidInputError(f"{position} is not a finite number: JSON has no word for it")
    return Request(
        path,
        encoded,
        names_model="model" in body,
        needs_max_tokens=path == COMPLETIONS and "max_tokens" not in body,
        params=params,
        model=model,
        traits=_traits(body) if "messages" in body else NONE,
    )


def _unwritable(body: Mapping[str, Any]) -> str:
    """The first part of the body that has no JSON form."""
    for name, value in body.items():
        parts = {f"{name}[{at}]": part for at, part in enumerate(value)} if isinstance(value, list) else {name: value}
        for position, part in parts.items():
            try:
                encode({name: part})
            except InvalidInputError:
                return position
    return "the body"  # a key


def _not_finite(value: Any, position: str = "") -> str | None:
    """Where in the body an infinite number, or a NaN, stands."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, float):
        return None if math.isfinite(value) else position
    if isinstance(value, Mapping):
        parts = ((f"{position}.{name}" if position else str(name), part) for name, part in value.items())
    elif isinstance(value, (list, tuple)):
        parts = ((f"{position}[{at}]", part) for at, part in enumerate(value))
    else:
        return None
    return next((found for name, part in parts if (found := _not_finite(part, name)) is not None), None)


# ---- generation


def offered(
    tools: Tools | None, tool_choice: ToolChoice | None, *, is_remote: bool
) -> tuple[Tools | None, ToolChoice | None]:
    """What is sent of them. With ``none``, a local engine is not shown the tools: a model that sees them may write a
    call all the same, whose marks vLLM gives back as text. Other people's servers decide that themselves; some want
    the tools as soon as the history has calls.
    """
    return (None, None) if tool_choice == "none" and not is_remote else (tools, tool_choice)


def chat_request(
    messages: Sequence[Message],
    params: GenerationParams,
    *,
    tools: Tools | None = None,
    tool_choice: ToolChoice | None = None,
    stream: bool = False,
) -> Request:
    """The answer to a conversation.

    Raises:
        InvalidInputError: a tool_choice without tools; or something has no JSON form.
    """
    body = chat_body(messages, params, tools=tools, tool_choice=tool_choice, stream=stream)
    return request_of(CHAT, body, params, params.lora or params.model)


def completion_request(prompt: str, params: GenerationParams, *, stream: bool = False) -> Request:
    """The continuation of a text.

    Raises:
        InvalidInputError: a parameter is one of the chat template; or something has no JSON form.
    """
    body = completion_body(prompt, params, stream=stream)
    return request_of(COMPLETIONS, body, params, params.lora or params.model)


def chat_body(
    messages: Sequence[Message],
    params: GenerationParams,
    *,
    tools: Tools | None = None,
    tool_choice: ToolChoice | None = None,
    stream: bool = False,
) -> dict[str, Any]:
    """See ``chat_request``."""
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
    return _finished(body | _continued(messages, params.continue_final_message), params, stream)


def completion_body(prompt: str, params: GenerationParams, *, stream: bool = False) -> dict[str, Any]:
    """See ``completion_request``."""
    for name in CHAT_ONLY:
        if getattr(params, name) is not None:
            raise InvalidInputError(f"{name} is for the chat template, and a text prompt is sent without one")
    body: dict[str, Any] = {"prompt": prompt, **_sampling(params)}
    if params.logprobs is not None and params.logprobs is not False:
        body["logprobs"] = int(params.logprobs)
    return _finished(body, params, stream)


def _sampling(params: GenerationParams) -> dict[str, Any]:
    body = {name: value for name, value in vars(params).items() if value is not None and name not in _SENT_OTHERWISE}
    if params.stop:
        body["stop"] = params.stop
    return body


def _continued(messages: Sequence[Message], is_continued: bool | None) -> dict[str, Any]:
    """vLLM takes both switches together only."""
    if not is_continued:
        return {}
    last = messages[-1]
    if last["role"] != "assistant" or last.get("tool_calls") or not text_of(last.get("content")):
        raise InvalidInputError(
            f"continue_final_message: messages[{len(messages) - 1}], the last one, must be the assistant's, with text "
            "to go on from"
        )
    return {"continue_final_message": True, "add_generation_prompt": False}


def _thinking(params: GenerationParams) -> dict[str, Any]:
    variables = template_variables(params)
    effort = {} if params.reasoning_effort is None else {"reasoning_effort": variables.pop("reasoning_effort")}
    return effort | ({"chat_template_kwargs": variables} if variables else {})


def _finished(body: dict[str, Any], params: GenerationParams, stream: bool) -> dict[str, Any]:
    if stream:
        body["stream"] = True
        body["stream_options"] = {"include_usage": True}
    return {**body, **(params.extra_body or {})}


# ---- vectors, scores, counts


def embedding_request(texts: Sequence[str], encoding_format: str, options: Mapping[str, Any]) -> Request:
    """A vector for each text.

    Raises:
        InvalidInputError: the options ask for numbers in a form of their own, which could not be read.
    """
    taken = {"encoding_format", "embed_dtype", "endianness"} & set(options)
    if taken:
        raise InvalidInputError(f"{', '.join(sorted(taken))}: can't be set: vllm-local chooses how numbers are sent")
    return _pooling_request(EMBEDDINGS, {"input": list(texts), "encoding_format": encoding_format, **options})


def message_embedding_request(messages: Sequence[Message], options: Mapping[str, Any]) -> Request:
    """One vector for a conversation, which may have images."""
    return _pooling_request(EMBEDDINGS, {"messages": list(messages), "encoding_format": "float", **options})


def token_request(texts: Sequence[str], task: str, options: Mapping[str, Any]) -> Request:
    """Something for each token of each text.

    Args:
        task: ``token_embed`` or ``token_classify``.
    """
    return _pooling_request(POOLING, {"input": list(texts), "task": task, "encoding_format": "float", **options})


def rerank_request(
    path: str, query: str, documents: Sequence[str], top_n: int | None, options: Mapping[str, Any]
) -> Request:
    """A score for each document."""
    limit = {} if top_n is None else {"top_n": top_n}
    return _pooling_request(path, {"query": query, "documents": list(documents), **limit, **options})


def _pooling_request(path: str, body: Mapping[str, Any]) -> Request:
    rest = {name: value for name, value in body.items() if name != "model"}
    return request_of(path, rest, model=body.get("model"))


def tokenize_request(
    text: str | Sequence[Message],
    tools: Tools | None,
    chat_template_kwargs: Mapping[str, Any] | None,
    *,
    continue_final_message: bool = False,
) -> Request:
    """The tokens of a prompt, or of a conversation with the chat template around it.

    Raises:
        InvalidInputError: ``text`` is neither, or can't be written as JSON.
    """
    if isinstance(text, str):
        if tools or chat_template_kwargs or continue_final_message:
            raise InvalidInputError(
                "tools, chat_template_kwargs and continue_final_message go with messages, not with a text"
            )
        return text_tokens_request(text)
    part: dict[str, Any] = {"messages": [_renamed(message) for message in check_messages(text)]}
    part |= _continued(text, continue_final_message)
    if tools:
        part["tools"] = list(tools)
    if chat_template_kwargs:
        part["chat_template_kwargs"] = dict(chat_template_kwargs)
    return request_of(TOKENIZE, part)


def _renamed(message: Message) -> dict[str, Any]:
    """The older name of ``reasoning``, which chat requests may use, is unknown to /tokenize."""
    renamed = dict(message)
    reasoning = renamed.pop("reasoning_content", None)
    if reasoning is not None and renamed.get("reasoning") is None:
        renamed["reasoning"] = reasoning
    return renamed


def text_tokens_request(text: str, *, add_special_tokens: bool = True, strings: bool = False) -> Request:
    """The tokens of a text; with the special ones that the model puts around a prompt, or without.

    Args:
        strings: each as the vocabulary spells it, too.
    """
    plain = {} if add_special_tokens else {"add_special_tokens": False}
    spelled = {"return_token_strs": True} if strings else {}
    return request_of(TOKENIZE, {"prompt": text, **plain, **spelled})


def prompt_tokens_request(request: Request) -> Request | None:
    """The tokens of another request's prompt; None for one that generates nothing."""
    if request.path not in (CHAT, COMPLETIONS):
        return None
    body = msgspec.json.decode(request.body)
    part = {name: body[name] for name in _OF_THE_PROMPT if name in body}
    if request.path == CHAT:
        part["messages"] = [_renamed(message) for message in body["messages"]]
        variables = prompt_variables(body)
        part |= {"chat_template_kwargs": variables} if variables else {}
    return request_of(TOKENIZE, part, request.params, request.model)


def asked_tokens(request: Request) -> int | None:
    """How many tokens of an answer a request asks for, at least; None for one that generates nothing."""
    if request.path not in (CHAT, COMPLETIONS):
        return None
    own = own_max_tokens(request)
    return 1 if own is None else own


def with_max_tokens(request: Request, tokens: int) -> Request:
    """The request, with a limit for its answer where it had none."""
    body = msgspec.json.decode(request.body)
    return replace(request, body=encode({**body, "max_tokens": tokens}), needs_max_tokens=False)


def own_max_tokens(request: Request) -> int | None:
    """The limit of the answer that a request for text names; None without."""
    body = msgspec.json.decode(request.body)
    name = max_tokens_field(body)
    return None if name is None else body[name]


def max_tokens_field(body: Mapping[str, Any]) -> str | None:
    """Under which name a body limits its answer; None where it does not."""
    return next((name for name in ("max_completion_tokens", "max_tokens") if body.get(name) is not None), None)


def prompt_variables(body: Mapping[str, Any]) -> dict[str, Any]:
    """The variables of the chat template in the body of a chat request."""
    effort = {} if body.get("reasoning_effort") is None else {"reasoning_effort": body["reasoning_effort"]}
    return {**effort, **(body.get("chat_template_kwargs") or {})}
