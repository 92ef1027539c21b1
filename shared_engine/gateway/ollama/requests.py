"""What programs ask in Ollama's protocol, and what of it vLLM is asked. Pure.

Fields that are not named here are ignored, as Ollama does.
"""

from __future__ import annotations

from typing import Any

import msgspec

from shared_engine.gateway.ollama.conversations import Message, conversation, user_message
from shared_engine.gateway.ollama.options import parameters_of
from shared_engine.gateway.refusals import RefusedError
from shared_engine.params import GenerationParams
from shared_engine.request.bodies import chat_body, completion_body

MOST_LOGPROBS = 20
_EFFORTS = {"low": "low", "medium": "medium", "high": "high", "max": "high"}


class OfModel(msgspec.Struct, kw_only=True):
    """What every request to a model has.

    Attributes:
        is_stream: its client reads lines as they come.
    """

    model: str = ""
    keep_alive: Any = None
    options: dict[str, Any] | None = None

    @property
    def is_stream(self) -> bool:
        return False


class _Generating(OfModel, kw_only=True):
    stream: bool | None = None
    format: Any = None
    think: bool | str | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None

    @property
    def is_stream(self) -> bool:
        return self.stream is not False

    def _sampling(self) -> dict[str, Any]:
        given = parameters_of(self.options or {}) | _form(self.format)
        alternatives = self.top_logprobs or 0
        if not 0 <= alternatives <= MOST_LOGPROBS:
            raise _refused(f"top_logprobs must be between 0 and {MOST_LOGPROBS}")
        return given | ({"logprobs": alternatives or True} if self.logprobs else {})

    def _thinking(self) -> dict[str, Any]:
        if not isinstance(self.think, str):
            return {"enable_thinking": self.think}
        if self.think not in _EFFORTS:
            known = ", ".join(f'"{effort}"' for effort in _EFFORTS)
            raise _refused(f"invalid think value: {self.think!r:.80} (must be {known}, true, or false)")
        return {"reasoning_effort": _EFFORTS[self.think]}

    def _chat(self, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None) -> dict[str, Any]:
        params = GenerationParams(**self._sampling(), **self._thinking())
        return chat_body(messages, params, tools=tools, stream=self.is_stream)


class ChatRequest(_Generating, kw_only=True):
    """``POST /api/chat``; without messages it loads the model, or unloads it."""

    messages: list[Message] | None = None
    tools: list[dict[str, Any]] | None = None

    @property
    def asks_nothing(self) -> bool:
        return not self.messages

    def body(self) -> dict[str, Any]:
        """For ``/v1/chat/completions``.

        Raises:
            RefusedError: something is not as Ollama takes it.
            InvalidInputError: nor as vLLM does.
        """
        return self._chat(conversation(self.messages or []), self.tools or None)


class GenerateRequest(_Generating, kw_only=True):
    """``POST /api/generate``; without a prompt it loads the model, or unloads it.

    Attributes:
        raw: the prompt is sent as it is, without a chat template.
    """

    prompt: str | None = None
    suffix: str | None = None
    system: str | None = None
    template: str | None = None
    context: list[int] | None = None
    raw: bool | None = None
    images: list[str] | None = None

    @property
    def asks_nothing(self) -> bool:
        return not self.prompt

    def check(self, name: str) -> None:
        """
        Raises:
            RefusedError: it asks for what there is not.
        """
        if self.raw and (self.template or self.system or self.context):
            raise _refused("raw mode does not support template, system, or context")
        if self.suffix:
            raise _refused(f'"{name}" does not support insert')
        for field, instead in (
            ("template", "the model's own chat template is used; raw takes a prompt as it is"),
            ("context", "send the conversation to /api/chat"),
        ):
            if getattr(self, field):
                raise _refused(f"{field} is not supported: {instead}")

    def body(self) -> dict[str, Any]:
        """For ``/v1/chat/completions``; see ``ChatRequest.body``."""
        system = [{"role": "system", "content": self.system}] if self.system else []
        return self._chat([*system, user_message(self.prompt or "", self.images or [])], None)

    def text_body(self, context_window: int | None) -> dict[str, Any]:
        """For ``/v1/completions``, where no template is to be applied.

        Args:
            context_window: sent as the limit, as vLLM would stop after 16 tokens here. None where it is not known.

        Raises:
            RefusedError: see ``body``; or there is no limit to send.
        """
        if self.images:
            raise _refused("images need the model's chat template: they can't be sent with raw")
        prompt = f"{self.system}\n\n{self.prompt}" if self.system else self.prompt or ""
        params = GenerationParams(**{"max_tokens": context_window, **self._sampling()})
        if params.max_tokens is None:
            raise _refused("give options.num_predict: how much text the model takes is not known before it is loaded")
        return completion_body(prompt, params, stream=self.is_stream)


class EmbedRequest(OfModel, kw_only=True):
    """``POST /api/embed``; without input it loads the model."""

    input: Any = None
    truncate: bool | None = None
    dimensions: int | None = None

    def texts(self) -> list[str]:
        """
        Raises:
            RefusedError: the input is something else.
        """
        if self.input is None or self.input == "":
            return []
        texts = [self.input] if isinstance(self.input, str) else self.input
        if not isinstance(texts, list) or not all(isinstance(each, str) for each in texts):
            raise _refused("invalid input type")
        return texts

    def body(self) -> dict[str, Any]:
        """For ``/v1/embeddings``."""
        cut = {} if self.truncate is False else {"truncate_prompt_tokens": -1}
        return {"input": self.texts(), "encoding_format": "float", **cut}


class EmbeddingsRequest(OfModel, kw_only=True):
    """``POST /api/embeddings``, the older form for one text."""

    prompt: str | None = None

    def texts(self) -> list[str]:
        return [self.prompt] if self.prompt else []

    def body(self) -> dict[str, Any]:
        return {"input": self.texts(), "encoding_format": "float", "truncate_prompt_tokens": -1}


class ShowRequest(msgspec.Struct, kw_only=True):
    """``POST /api/show``; ``name`` is the older word for the model."""

    model: str = ""
    name: str = ""


def _form(form: Any) -> dict[str, Any]:
    if form is None or form == "":
        return {}
    if form == "json":
        return {"response_format": {"type": "json_object"}}
    if isinstance(form, dict):
        return {"response_format": {"type": "json_schema", "json_schema": {"name": "format", "schema": form}}}
    raise _refused(f'invalid format: {form!r:.80}; expected "json" or a valid JSON Schema object')


def _refused(message: str) -> RefusedError:
    return RefusedError(400, message, "invalid_request")
