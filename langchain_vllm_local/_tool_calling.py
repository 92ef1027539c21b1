"""Tool calling: LangChain's ``bind_tools``, and what a request with tools is sent with.

The forms of tools and calls are in _tools.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from langchain_core.language_models.chat_models import BaseChatModel

from langchain_vllm_local._errors import langchain_errors
from langchain_vllm_local._tools import to_openai_tool_choice, to_openai_tools
from shared_engine.adapting.tools import named_once, with_strict_arguments

if TYPE_CHECKING:
    from langchain_core.language_models.base import LanguageModelInput
    from langchain_core.messages import AIMessage
    from langchain_core.runnables import Runnable
    from langchain_core.tools import BaseTool

    from shared_engine import Engine


class ToolCalling(BaseChatModel):
    """Mixed into a chat model whose requests take ``tools``, ``tool_choice`` and ``parallel_tool_calls``."""

    if TYPE_CHECKING:  # of the model, and of Capabilities

        @property
        def engine(self) -> Engine: ...

        def _check_calls_are_read(self) -> None: ...

    def _take_tools(self, call: dict[str, Any]) -> tuple[list[dict[str, Any]], str | dict[str, Any] | None]:
        """Take the tools out of the keywords of a call; return them, and which of them the model is to use.

        Raises:
            InvalidInputError: no tool-call parser is known for the model, so vLLM would not recognise its calls; a tool
                is not a function, or has the name of another; or ``tool_choice`` names none of the tools.
        """
        tools = to_openai_tools(call.pop("tools", None) or ())
        if not self.engine.settings.is_remote:  # other people's servers have tools of their own kinds
            tools = named_once(tools)
        if tools and call.get("tool_choice") != "none":
            self._check_calls_are_read()
        tool_choice = to_openai_tool_choice(call.pop("tool_choice", None), tools)
        if tool_choice not in (None, "auto", "none"):
            call.setdefault("structured_outputs", None)  # a forced call has the form of its arguments
            tools = with_strict_arguments(tools)  # which vLLM would otherwise hold to any JSON
        in_parallel = call.pop("parallel_tool_calls", None)
        if tools and in_parallel is not None:
            call["extra_body"] = {**(call.get("extra_body") or {}), "parallel_tool_calls": in_parallel}
        return tools, tool_choice

    def bind_tools(
        self,
        tools: Sequence[dict[str, Any] | type | Callable[..., Any] | BaseTool],
        *,
        tool_choice: str | dict[str, Any] | bool | None = None,
        strict: bool | None = None,
        parallel_tool_calls: bool | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, AIMessage]:
        """This model with tools that it may call.

        Args:
            tools: functions, pydantic classes, TypedDicts, LangChain tools, or dicts in OpenAI's form.
            tool_choice: ``auto`` (the model decides), ``none``, ``required`` (also: ``any``, True), or the one tool to
                call, by its name or in OpenAI's form.
            strict: True: arguments always follow the tool's schema. Default: where ``tool_choice``, here or of the
                call, forces one, which vLLM's structural tags would otherwise hold to any JSON.
            parallel_tool_calls: False: at most one call in an answer.
            kwargs: parameters of the requests, as for ``bind``.

        Raises:
            InvalidInputError: ``tool_choice`` names none of the tools.
        """
        with langchain_errors():
            sent = to_openai_tools(tools, strict)
            choice = to_openai_tool_choice(tool_choice, sent)
        chosen = {"tool_choice": choice, "parallel_tool_calls": parallel_tool_calls}
        given = {name: value for name, value in chosen.items() if value is not None}
        return self.bind(tools=sent, **given, **kwargs)
