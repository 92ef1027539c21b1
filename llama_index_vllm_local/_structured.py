"""Structured output: LlamaIndex's calls for an instance of a class, answered by response_format.

What is asked and how answers are read is in _predictions.py; here are LlamaIndex's methods, their events and spans, and
the LLM that answers with nothing but such instances.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Generator, Sequence
from typing import Any

from llama_index.core.base.llms.generic_utils import (
    astream_chat_to_completion_decorator,
    stream_chat_to_completion_decorator,
)
from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    ChatResponseAsyncGen,
    ChatResponseGen,
    CompletionResponseAsyncGen,
    CompletionResponseGen,
    MessageRole,
)
from llama_index.core.instrumentation import get_dispatcher  # type: ignore[attr-defined]  # is no re-export
from llama_index.core.instrumentation.events.llm import LLMStructuredPredictEndEvent, LLMStructuredPredictStartEvent
from llama_index.core.llms.callbacks import llm_chat_callback, llm_completion_callback
from llama_index.core.llms.function_calling import FunctionCallingLLM
from llama_index.core.llms.structured_llm import StructuredLLM
from llama_index.core.prompts.base import ChatPromptTemplate, PromptTemplate
from llama_index.core.types import Model
from pydantic import BaseModel

from llama_index_vllm_local._predictions import LAST_RESPONSE, OWN_MODES, LastResponse, Prediction

dispatcher = get_dispatcher(__name__)


class StructuredPrediction(FunctionCallingLLM):
    """Mixed into an LLM: ``structured_predict`` and its twins, and ``as_structured_llm``.

    ``pydantic_program_mode`` says how an instance is asked for: ``default`` by response_format, to which vLLM holds the
    answer token by token; ``function`` by a tool that must be called; ``llm`` by words in the prompt alone. The other
    modes are up to LlamaIndex.
    """

    @dispatcher.span
    def structured_predict(
        self,
        output_cls: type[Model],
        prompt: PromptTemplate,
        llm_kwargs: dict[str, Any] | None = None,
        **prompt_args: Any,
    ) -> Model:
        """An instance of ``output_cls``, as the answer to a prompt.

        vLLM holds the answer to the class's JSON schema, but shows the model nothing of it: say in the prompt what is
        wanted. The usage is in the events of the chat inside (TokenCountingHandler), and in the responses of
        ``as_structured_llm``.

        Args:
            llm_kwargs: as for ``chat``; they win over the constructor's.
            prompt_args: what the prompt is formatted with.

        Raises:
            LengthFinishReasonError: the answer was cut off, by ``max_tokens`` or the model's limit.
            ValueError: it is no JSON, or the class refuses it (then pydantic's ValidationError).
        """
        if self.pydantic_program_mode not in OWN_MODES:
            theirs: Model = super().structured_predict(output_cls, prompt, llm_kwargs, **prompt_args)
            return theirs
        self._start(output_cls, prompt, prompt_args)
        output = Prediction(self, output_cls, prompt, llm_kwargs, prompt_args).whole()
        dispatcher.event(LLMStructuredPredictEndEvent(output=output))
        return output

    @dispatcher.span
    async def astructured_predict(
        self,
        output_cls: type[Model],
        prompt: PromptTemplate,
        llm_kwargs: dict[str, Any] | None = None,
        **prompt_args: Any,
    ) -> Model:
        """See ``structured_predict``."""
        if self.pydantic_program_mode not in OWN_MODES:
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
        if self.pydantic_program_mode not in OWN_MODES:
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
        if self.pydantic_program_mode not in OWN_MODES:
            return await super()._structured_astream_call(output_cls, prompt, llm_kwargs, **prompt_args)
        return Prediction(self, output_cls, prompt, llm_kwargs, prompt_args).astream()

    def as_structured_llm(self, output_cls: type[BaseModel], **kwargs: Any) -> StructuredLLM:
        """An LLM whose answers are instances of ``output_cls``: in ``raw``, and as JSON in the text.

        The usage is in ``additional_kwargs``; of a stream, in its last response.
        """
        return StructuredVLLM(llm=self, output_cls=output_cls, **kwargs)


class StructuredVLLM(StructuredLLM):
    """LlamaIndex's StructuredLLM with the usage in its responses, and with all eight endpoints.

    Of a stream, ``message`` and ``raw`` hold the object so far; the ``delta``s are the answer's own text.
    """

    @llm_chat_callback()
    def chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        last = LastResponse()
        output = self.llm.structured_predict(**self._asked(messages, kwargs, last))
        return _to_response(output, last)

    @llm_chat_callback()
    async def achat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        last = LastResponse()
        output = await self.llm.astructured_predict(**self._asked(messages, kwargs, last))
        return _to_response(output, last)

    @llm_chat_callback()
    def stream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseGen:
        last, text = LastResponse(), ""
        for output in self.llm.stream_structured_predict(**self._asked(messages, kwargs, last)):
            yield _to_response(output, last, text)
            text = last.json_text

    @llm_chat_callback()
    async def astream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseAsyncGen:
        last = LastResponse()
        outputs = await self.llm.astream_structured_predict(**self._asked(messages, kwargs, last))

        async def responses() -> ChatResponseAsyncGen:
            text = ""
            async with contextlib.aclosing(outputs):
                async for output in outputs:
                    yield _to_response(output, last, text)
                    text = last.json_text

        return responses()

    @llm_completion_callback()
    def stream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponseGen:  # noqa: ARG002
        return stream_chat_to_completion_decorator(self.stream_chat)(prompt, **kwargs)

    @llm_completion_callback()
    async def astream_complete(
        self,
        prompt: str,
        formatted: bool = False,  # noqa: ARG002
        **kwargs: Any,
    ) -> CompletionResponseAsyncGen:
        return await astream_chat_to_completion_decorator(self.astream_chat)(prompt, **kwargs)

    def _asked(self, messages: Sequence[ChatMessage], kwargs: dict[str, Any], last: LastResponse) -> dict[str, Any]:
        """The keywords for ``structured_predict``."""
        told = {LAST_RESPONSE: last} if self.llm.pydantic_program_mode in OWN_MODES else {}
        prompt = ChatPromptTemplate(message_templates=messages)
        return {"output_cls": self.output_cls, "prompt": prompt, "llm_kwargs": {**kwargs, **told}}


def _to_response(output: BaseModel, last: LastResponse, before: str | None = None) -> ChatResponse:
    """``before``: of a stream, the text that the responses before this one had."""
    return ChatResponse(
        message=ChatMessage(role=MessageRole.ASSISTANT, content=output.model_dump_json()),
        raw=output,
        delta=None if before is None else last.json_text[len(before) :],
        additional_kwargs=dict(last.response.additional_kwargs) if last.response else {},
    )
