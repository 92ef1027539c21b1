"""Tool calling: LlamaIndex's calls with tools, as keywords of ``chat``, and what its agents read from an answer.

The forms of tools and calls are in _tools.py.
"""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from llama_index.core.base.llms.types import ChatMessage, ChatResponse, MessageRole
from llama_index.core.callbacks import CallbackManager, CBEventType, EventPayload
from llama_index.core.callbacks.base_handler import BaseCallbackHandler
from llama_index.core.llms.function_calling import FunctionCallingLLM
from llama_index.core.llms.llm import ToolSelection

from llama_index_vllm_local._tools import finish_reason, to_openai_tool_choice, to_openai_tools, to_tool_selections
from shared_engine.adapting.structured import CUT_OFF, cut_off_message
from shared_engine.adapting.tools import with_strict_arguments
from shared_engine.errors import LengthFinishReasonError, VLLMError

if TYPE_CHECKING:
    from llama_index.core.chat_engine.types import AgentChatResponse
    from llama_index.core.tools.types import BaseTool


class ToolCalling(FunctionCallingLLM):
    """Mixed into an LLM whose ``chat`` takes ``tools``, ``tool_choice`` and ``parallel_tool_calls``."""

    if TYPE_CHECKING:  # of the LLM, and of Capabilities
        strict: bool | None

        def _check_calls_are_read(self) -> None: ...

    def _take_tools(self, options: dict[str, Any]) -> tuple[list[dict[str, Any]], str | dict[str, Any]]:
        """Take the tools out of the keywords of a call; return them, and which of them the model is to use.

        Raises:
            InvalidInputError: vLLM would not recognise the model's calls; or ``tool_choice`` names none of the tools.
        """
        strict = options.pop("strict", None)
        tools = to_openai_tools(options.pop("tools", None) or (), self.strict if strict is None else strict)
        tool_choice = to_openai_tool_choice(options.pop("tool_choice", None), tools)
        in_parallel = options.pop("parallel_tool_calls", None)
        if not tools or tool_choice == "none":
            return tools, tool_choice
        self._check_calls_are_read()
        if in_parallel is not None:
            options["extra_body"] = {"parallel_tool_calls": in_parallel, **(options.get("extra_body") or {})}
        if tool_choice == "auto":
            return tools, tool_choice
        options.setdefault("structured_outputs", None)  # a forced call has the form of its arguments
        return with_strict_arguments(tools), tool_choice  # which vLLM would otherwise hold to any JSON

    def _prepare_chat_with_tools(
        self,
        tools: Sequence[BaseTool],
        user_msg: str | ChatMessage | None = None,
        chat_history: list[ChatMessage] | None = None,
        verbose: bool = False,  # noqa: ARG002
        allow_parallel_tool_calls: bool = False,
        tool_required: bool = False,
        tool_choice: str | dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """The keywords for ``chat``.

        Args:
            tools: LlamaIndex's tools, or dicts in OpenAI's form.
            allow_parallel_tool_calls: False: at most one call in an answer.
            tool_required: the model must call a tool.
            tool_choice: ``auto`` (the model decides), ``none``, ``required`` (also: ``any``), or the one tool to call,
                by its name or in OpenAI's form; wins over ``tool_required``.
            kwargs: as for ``chat``; and ``strict``, as for the constructor.

        Raises:
            InvalidInputError: a tool can't be sent, or ``tool_choice`` names none of them.
        """
        if isinstance(user_msg, str):
            user_msg = ChatMessage(role=MessageRole.USER, content=user_msg)
        sent = to_openai_tools(tools or ())
        return {
            "messages": [*(chat_history or ()), *([] if user_msg is None else [user_msg])],
            "tools": sent,
            "tool_choice": to_openai_tool_choice(tool_choice, sent, tool_required),
            "parallel_tool_calls": allow_parallel_tool_calls,
            **kwargs,
        }

    def predict_and_call(self, *args: Any, **kwargs: Any) -> AgentChatResponse:
        """As of every FunctionCallingLLM. Tools that can't be sent are described in the prompt, as for a ReActAgent."""
        if self.metadata.is_function_calling_model:
            return super().predict_and_call(*args, **kwargs)
        llm, failures = self._with_failures()
        response = super(ToolCalling, llm).predict_and_call(*args, **{**_react_parts(), **kwargs})
        failures.check()
        return response

    async def apredict_and_call(self, *args: Any, **kwargs: Any) -> AgentChatResponse:
        """See ``predict_and_call``."""
        metadata = await asyncio.to_thread(lambda: self.metadata)  # which may wait for a server
        if metadata.is_function_calling_model:
            return await super().apredict_and_call(*args, **kwargs)
        llm, failures = self._with_failures()
        response = await super(ToolCalling, llm).apredict_and_call(*args, **{**_react_parts(), **kwargs})
        failures.check()
        return response

    def _with_failures(self) -> tuple[ToolCalling, _Failures]:
        """This LLM, with a handler that keeps the errors of which core would make an answer."""
        failures, llm = _Failures(), copy.copy(self)
        llm.callback_manager = CallbackManager()
        llm.callback_manager.handlers = [failures, *self.callback_manager.handlers]  # the global one is among these
        return llm, failures

    def get_tool_calls_from_response(
        self,
        response: ChatResponse,
        error_on_no_tool_call: bool = True,
        **kwargs: Any,  # noqa: ARG002
    ) -> list[ToolSelection]:
        """The tools that the model wants called; of a streamed response, as far as they have arrived.

        An answer that has ended gives calls that can be made as they are, or an error.

        Args:
            error_on_no_tool_call: False, as agents ask: a call whose arguments are not a JSON object is given under a
                name that no tool has, ``<name>__malformed_arguments``. The agent then tells the model that there is
                no such tool, and the model tries again.

        Raises:
            LengthFinishReasonError: the answer was cut off, within a call or (``error_on_no_tool_call``) before any.
            ValueError: with ``error_on_no_tool_call``, the arguments of a call are not a JSON object, or the answer
                has no call.
        """
        selections = to_tool_selections(response, tell_model=not error_on_no_tool_call)
        if error_on_no_tool_call and not selections:
            answer = response.message.content or ""
            reason = finish_reason(response)
            if reason in CUT_OFF:
                raise LengthFinishReasonError(f"{cut_off_message(reason)}. It reads so far: {answer!r:.500}", answer)
            raise ValueError(f"the model called no tool; it answered: {answer!r:.500}")
        return selections


def _react_parts() -> dict[str, Any]:
    """What core needs to describe tools: it looks for them among the keywords, and fails without."""
    from llama_index.core.agent.react import ReActChatFormatter, ReActOutputParser

    return {"react_chat_formatter": ReActChatFormatter.from_defaults(), "output_parser": ReActOutputParser()}


class _Failures(BaseCallbackHandler):
    """Of calls of a model: what is wrong with the set-up, or a request, and not with an answer."""

    def __init__(self) -> None:
        super().__init__(event_starts_to_ignore=[], event_ends_to_ignore=[])
        self._errors: list[VLLMError] = []

    def check(self) -> None:
        if self._errors:
            raise self._errors[0]

    def on_event_end(
        self,
        event_type: CBEventType,  # noqa: ARG002
        payload: dict[str, Any] | None = None,
        event_id: str = "",  # noqa: ARG002
        **kwargs: Any,  # noqa: ARG002
    ) -> None:
        error = (payload or {}).get(EventPayload.EXCEPTION)
        if isinstance(error, VLLMError) and not isinstance(error, ValueError):
            self._errors.append(error)

    def on_event_start(self, event_type: CBEventType, *_: Any, event_id: str = "", **__: Any) -> str:  # noqa: ARG002
        return event_id

    def start_trace(self, trace_id: str | None = None) -> None:
        pass

    def end_trace(self, trace_id: str | None = None, trace_map: dict[str, list[str]] | None = None) -> None:
        pass
