"""What a model can do, for LlamaIndex's ``metadata``: from the settings and the model's files here, else by asking.
Starts nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from llama_index.core.base.llms.generic_utils import messages_to_prompt as generic_messages_to_prompt
from llama_index.core.base.llms.types import LLMMetadata
from llama_index.core.constants import DEFAULT_CONTEXT_WINDOW, DEFAULT_NUM_OUTPUTS
from llama_index.core.llms.llm import (
    CompletionToPromptType,
    MessagesToPromptType,
    default_completion_to_prompt,
)
from pydantic import Field, PrivateAttr

from llama_index_vllm_local._engine_model import LlamaIndexModel
from shared_engine.adapting import model_facts
from shared_engine.adapting.framework_model import ChatModel
from shared_engine.errors import InvalidInputError
from shared_engine.settings import EngineSettings


class Capabilities(LlamaIndexModel, ChatModel):
    """Mixed into an LLM: its ``metadata``, and what requests have to know of it."""

    if TYPE_CHECKING:  # core's own

        @classmethod
        def class_name(cls) -> str: ...

        messages_to_prompt: MessagesToPromptType | None = None
        completion_to_prompt: CompletionToPromptType | None = None

    context_window: Annotated[int | None, Field(gt=0)] = None
    """Tokens of prompt and answer that LlamaIndex plans with. Default: max_model_len, else what the model's files on
    this machine say, or the server, or the hub for a model that was not downloaded yet; else LlamaIndex's default."""
    is_chat_model: bool | None = None
    """Whether the server applies a chat template. Default: yes, unless the model's folder shows that it has none, or
    ``messages_to_prompt`` or ``completion_to_prompt`` was given."""
    is_function_calling_model: bool | None = None
    """Whether LlamaIndex may send tools to this model; False makes it describe them in the prompt. Default: yes, unless
    vLLM has no tool-call parser for what this model writes."""

    _metadata: tuple[tuple[Any, ...], LLMMetadata] | None = PrivateAttr(default=None)

    @property
    def metadata(self) -> LLMMetadata:
        """For LlamaIndex's plans. A context window that is not known here is asked for (``Engine.about_model``), once;
        never starts the engine.
        """
        if self.context_window is None and self.engine.context_window is None:
            self.engine.about_model()
        return self._known_metadata()

    def to_payload(self) -> dict[str, Any]:
        # Of the events of every call, which are no reason to ask anybody.
        return {"class_name": self.class_name(), **self._known_metadata().model_dump()}

    def _known_metadata(self) -> LLMMetadata:
        window = self.engine.context_window  # the server's own may differ from that in the model's files
        own = (self.context_window, self.is_chat_model, self.is_function_calling_model)
        thinking = (self.enable_thinking, self.reasoning_effort, self.chat_template_kwargs)
        depends_on = (self._engine, window, *own, *thinking, self.messages_to_prompt, self.completion_to_prompt)
        known = self._metadata
        if known is not None and known[0] == depends_on:
            return known[1]
        settings = self.engine.settings
        planned = self.context_window or window
        metadata = LLMMetadata(
            context_window=planned or DEFAULT_CONTEXT_WINDOW,
            num_output=self._room_for_answer(planned),
            is_chat_model=self._uses_chat_template(),
            is_function_calling_model=self._uses_chat_template() and self._calls_functions(),
            model_name=settings.model or "unknown",
        )
        if model_facts.are_final(settings):
            self._metadata = (depends_on, metadata)
        return metadata

    def _room_for_answer(self, window: int | None) -> int:
        asked = self.engine.settings.max_tokens
        if window is None:
            return asked or DEFAULT_NUM_OUTPUTS
        if asked is not None:  # the server cuts it to what a prompt leaves, but LlamaIndex plans no prompt then
            return min(asked, max(1, window - window // 4))
        thinks = self._uses_chat_template() and model_facts.thinks(self.engine.settings, self._request_defaults())
        return model_facts.room_for_answer(window, is_thinking=thinks)

    def _use(self, settings: EngineSettings) -> None:
        super()._use(settings)
        self._metadata = None  # after unpickling there is none

    def _calls_functions(self) -> bool:
        if self.is_function_calling_model is not None:
            return self.is_function_calling_model
        parsed = model_facts.parsed(self.engine.settings)
        return parsed is None or parsed.tool_calls

    def _uses_chat_template(self) -> bool:
        if self.is_chat_model is not None:
            return self.is_chat_model
        if self.messages_to_prompt not in (None, generic_messages_to_prompt):
            return False
        if self.completion_to_prompt not in (None, default_completion_to_prompt):
            return False
        return model_facts.has_chat_template(self.engine.settings) is not False

    def _check_calls_are_read(self) -> None:
        """
        Raises:
            InvalidInputError: the model is sent no messages; or no tool-call parser is known for it, so vLLM would not
                recognise its calls.
        """
        known = self._known_metadata()
        if not known.is_chat_model:
            raise InvalidInputError("this model has no chat template: messages are sent to it as text, without tools")
        if self.is_function_calling_model is None and not known.is_function_calling_model:
            raise model_facts.no_tool_parser(known.model_name)
