"""Structured output: LlamaIndex's calls for an instance of a class, answered by response_format.

What is asked and how answers are read is in _predictions.py; here are LlamaIndex's methods, their events and spans, and
the LLM that answers with nothing but such instances.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import AsyncGenerator, Generator, Sequence
from typing import TYPE_CHECKING, Any

from llama_index.core.base.llms.generic_utils import (
    achat_to_completion_decorator,
    astream_chat_to_completion_decorator,
    chat_to_completion_decorator,
    stream_chat_to_completion_decorator,
)
from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    ChatResponseAsyncGen,
    ChatResponseGen,
    CompletionResponse,
    CompletionResponseAsyncGen,
    CompletionResponseGen,
    LLMMetadata,
    MessageRole,
)
from llama_index.core.callbacks import CallbackManager
from llama_index.core.instrumentation import get_dispatcher  # type: ignore[attr-defined]  # not re-exported
from llama_index.core.instrumentation.events.llm import LLMStructuredPredictEndEvent, LLMStructuredPredictStartEvent
from llama_index.core.llms.function_calling import FunctionCallingLLM
from llama_index.core.llms.llm import LLM
from llama_index.core.llms.structured_llm import StructuredLLM
from llama_index.core.prompts.base import ChatPromptTemplate, PromptTemplate
from llama_index.core.types import Model
from pydantic import BaseModel

from llama_index_vllm_local._decorators import typed
from llama_index_vllm_local._predictions import OWN_MODES, LastResponse, Prediction, RecordedKwargs, program_mode

dispatcher = get_dispatcher(__name__)


class StructuredPrediction(FunctionCallingLLM):
    """Mixed into an LLM: ``structured_predict`` and its twins, and ``as_structured_llm``.

    ``pydantic_program_mode`` decides how an instance is asked for: ``default`` by response_format, to which vLLM holds
    the answer token by token; ``function`` by a tool that must be called; ``llm`` by words in the prompt alone. The
    other modes are LlamaIndex's own.
    """

    if TYPE_CHECKING:  # of Capabilities

        def _known_metadata(self) -> LLMMetadata: ...

    @typed(dispatcher.span)
    def structured_predict(
        self,
        output_cls: type[Model],
        prompt: PromptTemplate,
        llm_kwargs: dict[str, Any] | None = None,
        **prompt_args: Any,
    ) -> Model:
        """An instance of ``output_cls``, as the answer to a prompt.

        vLLM holds the answer to the class's JSON schema, which the last message says (``show_schema``). The usage is in
        the events of the chat inside (TokenCountingHandler), and in the responses of ``as_structured_llm``.

        Args:
            llm_kwargs: as for ``chat``; they win over the constructor's.
            prompt_args: what the prompt is formatted with.

        Raises:
            LengthFinishReasonError: the answer was cut off, by ``max_tokens`` or the model's limit.
            ValueError: it is not JSON, or the class refuses it (then pydantic's ValidationError).
        """
        if program_mode(self) not in OWN_MODES:
            theirs: Model = super().structured_predict(output_cls, prompt, llm_kwargs, **prompt_args)
            return theirs
        self._start(output_cls, prompt, prompt_args)
        output = Prediction(self, output_cls, prompt, llm_kwargs, prompt_args).whole()
        dispatcher.event(LLMStructuredPredictEndEvent(output=output))
        return output

    @typed(dispatcher.span)
    async def astructured_predict(
        self,
        output_cls: type[Model],
        prompt: PromptTemplate,
        llm_kwargs: dict[str, Any] | None = None,
        **prompt_args: Any,
    ) -> Model:
        """See ``structured_predict``."""
        if program_mode(self) not in OWN_MODES:
            theirs: Model = await super().astructured_predict(output_cls, prompt, llm_kwargs, **prompt_args)
            return theirs
        self._start(output_cls, prompt, prompt_args)
        output = await Prediction(self, output_cls, prompt, llm_kwargs, prompt_args).awhole()
        dispatcher.event(LLMStructuredPredictEndEvent(output=output))
        return output

    def _start(self, output_cls: Any, prompt: PromptTemplate, prompt_args: dict[str, Any]) -> None:
        event = LLMStructuredPredictStartEvent(output_cls=output_cls, template=prompt, template_args=prompt_args)
        dispatcher.event(event)

    def _structured_stream_call(
        self,
        output_cls: type[Model],
        prompt: PromptTemplate,
        llm_kwargs: dict[str, Any] | None = None,
        **prompt_args: Any,
    ) -> Generator[Any, None, None]:
        """What ``stream_structured_predict`` of LlamaIndex yields, with its own events around it."""
        if program_mode(self) not in OWN_MODES:
            return super()._structured_stream_call(output_cls, prompt, llm_kwargs, **prompt_args)
        return Prediction(self, output_cls, prompt, llm_kwargs, prompt_args).stream()

    async def _structured_astream_call(
        self,
        output_cls: type[Model],
        prompt: PromptTemplate,
        llm_kwargs: dict[str, Any] | None = None,
        **prompt_args: Any,
    ) -> AsyncGenerator[Any, None]:
        """See ``_structured_stream_call``."""
        if program_mode(self) not in OWN_MODES:
            return await super()._structured_astream_call(output_cls, prompt, llm_kwargs, **prompt_args)
        return Prediction(self, output_cls, prompt, llm_kwargs, prompt_args).astream()

    def as_structured_llm(self, output_cls: type[BaseModel], **kwargs: Any) -> StructuredLLM:
        """An LLM whose answers are instances of ``output_cls``: in ``raw``, and as JSON in the text.

        For query engines and all else that asks for text; an agent calls tools, which it does not, and takes
        ``output_cls`` itself. The usage is in ``additional_kwargs``; of a stream, in its last response.
        """
        return StructuredVLLM(llm=self, output_cls=output_cls, **kwargs)


class StructuredVLLM(StructuredLLM):
    """LlamaIndex's StructuredLLM with the usage in its responses, and with all eight endpoints.

    Of a stream, ``message`` and ``raw`` hold the object so far; the ``delta``s are the answer's own text.

    Each call is reported once, by the LLM inside, whose responses have the usage: to its own callback handlers and to
    those of this object.
    """

    @property
    def metadata(self) -> LLMMetadata:
        """The model's; but answers of this form call no tools."""
        return self.llm.metadata.model_copy(update={"is_function_calling_model": False})

    def chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        last = LastResponse()
        output = self._llm_inside().structured_predict(**self._asked(messages, kwargs, last))
        return _to_response(output, last)

    async def achat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        last = LastResponse()
        output = await self._llm_inside().astructured_predict(**self._asked(messages, kwargs, last))
        return _to_response(output, last)

    def stream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseGen:
        last, text = LastResponse(), ""
        outputs = self._llm_inside().stream_structured_predict(**self._asked(messages, kwargs, last))
        with contextlib.closing(outputs):
            for output in outputs:
                yield _to_response(output, last, text)
                text = last.text

    async def astream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseAsyncGen:
        last = LastResponse()
        outputs = await self._llm_inside().astream_structured_predict(**self._asked(messages, kwargs, last))

        async def responses() -> ChatResponseAsyncGen:
            text = ""
            async with contextlib.aclosing(outputs):
                async for output in outputs:
                    yield _to_response(output, last, text)
                    text = last.text

        return responses()

    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:  # noqa: ARG002
        return chat_to_completion_decorator(self.chat)(prompt, **kwargs)

    async def acomplete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:  # noqa: ARG002
        return await achat_to_completion_decorator(self.achat)(prompt, **kwargs)

    def stream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponseGen:  # noqa: ARG002
        return stream_chat_to_completion_decorator(self.stream_chat)(prompt, **kwargs)

    async def astream_complete(
        self,
        prompt: str,
        formatted: bool = False,  # noqa: ARG002
        **kwargs: Any,
    ) -> CompletionResponseAsyncGen:
        return await astream_chat_to_completion_decorator(self.astream_chat)(prompt, **kwargs)

    # ---- for other classes: as of the LLM inside

    def structured_predict(self, *args: Any, **kwargs: Any) -> Any:
        return self._llm_inside().structured_predict(*args, **kwargs)

    async def astructured_predict(self, *args: Any, **kwargs: Any) -> Any:
        return await self._llm_inside().astructured_predict(*args, **kwargs)

    def stream_structured_predict(self, *args: Any, **kwargs: Any) -> Any:
        return self._llm_inside().stream_structured_predict(*args, **kwargs)

    async def astream_structured_predict(self, *args: Any, **kwargs: Any) -> Any:
        return await self._llm_inside().astream_structured_predict(*args, **kwargs)

    def as_structured_llm(self, *args: Any, **kwargs: Any) -> StructuredLLM:
        return self._llm_inside().as_structured_llm(*args, **kwargs)

    # ---- asking

    def _llm_inside(self) -> LLM:
        """The LLM that this object wraps, with the handlers of both, each once, and this object's rate limiter."""
        own, limiter = self.callback_manager, getattr(self, "rate_limiter", None)  # which older cores lack
        if not own.handlers and limiter is None:
            return self.llm
        llm = copy.copy(self.llm)
        llm.callback_manager = _joined(own, llm.callback_manager)
        if limiter is not None:
            llm.rate_limiter = limiter
        return llm

    def _asked(self, messages: Sequence[ChatMessage], kwargs: dict[str, Any], last: LastResponse) -> dict[str, Any]:
        """The keywords for ``structured_predict``."""
        prompt = ChatPromptTemplate(message_templates=messages)
        return {"output_cls": self.output_cls, "prompt": prompt, "llm_kwargs": RecordedKwargs(kwargs, last)}


def _joined(own: CallbackManager, other: CallbackManager) -> CallbackManager:
    """One with the handlers of both; ``own`` itself if it has all, since it knows the trace that a call is part of."""
    more = [handler for handler in other.handlers if all(handler is not each for each in own.handlers)]
    if not more:
        return own
    joined = CallbackManager()
    joined.handlers = [*own.handlers, *more]  # the constructor would add the global handler to them again
    return joined


def _to_response(output: BaseModel, last: LastResponse, before: str | None = None) -> ChatResponse:
    """``before``: of a stream, the text that the responses before this one had."""
    # LlamaIndex reads the text back: from the answer's own JSON it gets the same object. Written from the object it
    # would lack aliases, excluded fields, and secrets.
    content = last.json_text or output.model_dump_json(by_alias=True)
    return ChatResponse(
        message=ChatMessage(role=MessageRole.ASSISTANT, content=content),
        raw=output,
        delta=None if before is None else last.text[len(before) :],
        additional_kwargs=dict(last.response.additional_kwargs) if last.response else {},
    )
