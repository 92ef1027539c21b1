"""Tools and tool calls: LlamaIndex's -> OpenAI's, and the calls of an answer as agents want them. Pure."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from llama_index.core.base.llms.types import ChatResponse, CompletionResponse, ToolCallBlock
from llama_index.core.llms.llm import ToolSelection
from llama_index.core.llms.utils import parse_partial_json
from pydantic import PydanticUserError

from shared_engine.adapting.structured import CUT_OFF
from shared_engine.adapting.tools import arguments_of, named_once, stand_in, to_tool_choice, with_parameters
from shared_engine.errors import InvalidInputError, LengthFinishReasonError

# ---- out


def to_openai_tools(tools: Iterable[Any], strict: bool | None = None) -> list[dict[str, Any]]:
    """Tools in OpenAI's form, from LlamaIndex's tools or from that form itself. One that comes twice is sent once.

    Args:
        strict: whether arguments always follow the tool's schema; None: as each tool has it.

    Raises:
        InvalidInputError: naming the position of what is not a tool, or shares its name with a different one.
    """
    given = (
        tool if isinstance(tool, Mapping) else _form_of_metadata(tool, f"tools[{index}]")
        for index, tool in enumerate(tools)
    )
    sent = with_parameters(named_once(given))
    if strict is None:
        return sent
    return [{**tool, "function": {**tool["function"], "strict": strict}} for tool in sent]


def _form_of_metadata(tool: Any, position: str) -> dict[str, Any]:
    metadata: Any = getattr(tool, "metadata", None)
    if not hasattr(metadata, "to_openai_tool"):
        hint = "; wrap it: FunctionTool.from_defaults(...)" if callable(tool) else ""
        raise InvalidInputError(f"{position} is a {type(tool).__name__}, not one of LlamaIndex's tools{hint}")
    try:
        form = metadata.to_openai_tool(skip_length_check=True)
    except PydanticUserError as exc:
        raise InvalidInputError(f"{position}, {metadata.name!r}, has parameters without a JSON schema: {exc}") from exc
    # Core writes names as OpenAI wants them; vLLM takes any, and agents look tools up by their real name.
    function = {**form["function"], "name": metadata.name}
    return {**form, "function": {key: value for key, value in function.items() if value is not None}}


def to_openai_tool_choice(
    choice: str | Mapping[str, Any] | None, tools: Sequence[Mapping[str, Any]], required: bool = False
) -> str | dict[str, Any]:
    """See shared_engine.adapting.tools.to_tool_choice; None: ``auto``, or ``required``."""
    if choice is None:
        return "required" if required else "auto"
    return to_tool_choice(choice, tools)


def openai_tool_call(call_id: str | None, name: str, arguments: str) -> dict[str, Any]:
    return {"id": call_id or "", "type": "function", "function": {"name": name, "arguments": arguments}}


def in_order_of_calls(messages: Sequence[Mapping[str, Any]]) -> list[int]:
    """The positions of the messages, the results of an answer's calls in the order of those calls.

    LlamaIndex's agents note results as their tools end, and most chat templates write them without ids: the model would
    take the one for the other.
    """
    order = list(range(len(messages)))
    for start, message in enumerate(messages, 1):
        calls = message.get("tool_calls") or ()
        ranks = {call["id"]: rank for rank, call in enumerate(calls) if call.get("id") is not None}
        end = start
        while end < len(messages) and messages[end]["role"] == "tool" and messages[end].get("tool_call_id") in ranks:
            end += 1
        order[start:end] = sorted(order[start:end], key=lambda index: ranks[messages[index]["tool_call_id"]])
    return order


# ---- in, for agents


def to_tool_selections(response: ChatResponse, *, tell_model: bool = False) -> list[ToolSelection]:
    """The tools that an answer calls. While it is under way, with arguments that are read as far as they go.

    Once it has ended, nothing is repaired or left out: a tool would run with a number that lacks its last digits, or
    with its defaults.

    Args:
        tell_model: for an agent: a call whose arguments are not a JSON object comes under a name that no tool has
            (``stand_in``), of which the agent tells the model.

    Raises:
        LengthFinishReasonError: the answer was cut off within a call.
        ValueError: the arguments of a call are not a JSON object, and not ``tell_model``.
    """
    calls = [block for block in response.message.blocks if isinstance(block, ToolCallBlock)]
    if _is_under_way(response):
        return [_selection(call, _read_as_far_as_it_goes(call.tool_kwargs)) for call in calls]
    is_cut_off = finish_reason(response) in CUT_OFF
    selections = []
    for call in calls:
        try:
            selections.append(_selection(call, _read(call, is_cut_off, is_last=call is calls[-1])))
        except _MalformedCallError:
            if not tell_model:
                raise
            selections.append(_selection(call, {}, stand_in(call.tool_name)))
    return selections


def _selection(call: ToolCallBlock, arguments: dict[str, Any], name: str | None = None) -> ToolSelection:
    return ToolSelection(tool_id=call.tool_call_id or "", tool_name=name or call.tool_name, tool_kwargs=arguments)


def finish_reason(response: ChatResponse | CompletionResponse) -> str | None:
    """Why the answer ended; None while it is under way, and where its server did not say."""
    choices = response.raw.get("choices") if isinstance(response.raw, Mapping) else None
    return choices[0].get("finish_reason") if choices else None


def _is_under_way(response: ChatResponse) -> bool:
    return response.delta is not None and finish_reason(response) is None  # a whole answer has no delta


class _MalformedCallError(ValueError):
    """The arguments of a call are not a JSON object."""


def _read(call: ToolCallBlock, is_cut_off: bool, is_last: bool) -> dict[str, Any]:
    """All arguments of a call."""
    text = call.tool_kwargs
    if not isinstance(text, str):
        return dict(text)
    problem = "missing"
    if text or not (is_cut_off and is_last):
        try:
            return arguments_of(text)
        except ValueError as exc:
            problem = str(exc)
    if is_cut_off:
        raise LengthFinishReasonError(
            f"the call of {call.tool_name!r} was cut off and is not made: raise max_tokens, "
            f"or where the model's limit is met, shorten the prompt. Its arguments so far: {text!r:.500}",
            text,
        )
    raise _MalformedCallError(
        f"the call of {call.tool_name!r} is not made: its arguments are {problem}: {text!r:.500}. vLLM holds them to "
        "the tool's schema for VLLM(strict=True), and where a call is forced (tool_required, tool_choice)"
    )


def _read_as_far_as_it_goes(arguments: Mapping[str, Any] | str) -> dict[str, Any]:
    if not isinstance(arguments, str):
        return dict(arguments)
    for read in (json.loads, parse_partial_json):
        with contextlib.suppress(ValueError):
            found = read(arguments)
            return found if isinstance(found, dict) else {}
    return {}
