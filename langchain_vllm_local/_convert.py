"""LangChain's values <-> the engine's: messages and tools out, answers and their pieces in. Pure (but see _blocks).

Shared by the sync, async, whole and streamed methods, so that an answer reads the same whichever way it came.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from functools import reduce
from typing import Any

from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    BaseMessage,
    ChatMessage,
    HumanMessage,
    InvalidToolCall,
    SystemMessage,
    ToolCallChunk,
    ToolMessage,
)
from langchain_core.messages import ToolCall as LangChainToolCall
from langchain_core.messages.ai import InputTokenDetails, OutputTokenDetails, UsageMetadata
from langchain_core.messages.tool import invalid_tool_call, tool_call, tool_call_chunk
from langchain_core.outputs import (
    ChatGeneration,
    ChatGenerationChunk,
    ChatResult,
    Generation,
    LLMResult,
)
from langchain_core.outputs import GenerationChunk as TextChunk
from langchain_core.utils.function_calling import convert_to_openai_tool

from langchain_vllm_local._blocks import to_openai_part
from shared_engine.adapting.tools import to_tool_choice
from shared_engine.errors import InvalidInputError
from shared_engine.results import Choice, GenerationChunk, GenerationResult, TokenUsage, ToolCall, ToolCallDelta

PROVIDER = "vllm"

# Blocks of an answer that the message carries a second time, as tool_calls.
_TOOL_CALL_BLOCKS = ("tool_call", "tool_call_chunk", "invalid_tool_call", "tool_use")
_REASONING_BLOCKS = ("reasoning", "thinking")


# ---- messages out


def to_openai_messages(messages: Sequence[BaseMessage]) -> list[dict[str, Any]]:
    """The conversation in OpenAI's form. The caller's messages stay as they are.

    Raises:
        InvalidInputError: naming the message, or the block in it, that can't be sent.
    """
    return [_to_openai_message(message, f"messages[{index}]") for index, message in enumerate(messages)]


def _to_openai_message(message: BaseMessage, position: str) -> dict[str, Any]:
    sent: dict[str, Any] = {"role": _role(message, position), "content": _content(message, position)}
    if message.name is not None:
        sent["name"] = message.name
    if isinstance(message, ToolMessage):
        sent["tool_call_id"] = message.tool_call_id
        if message.status == "error" and not sent["content"]:
            sent["content"] = "Error"  # chat templates know no status: without a word it would read as a success
    if isinstance(message, AIMessage):
        sent.update(_answer_fields(message))
        if "tool_calls" in sent and not sent["content"]:
            sent["content"] = None
    return sent


def _role(message: BaseMessage, position: str) -> str:
    if isinstance(message, HumanMessage):
        return "user"
    if isinstance(message, AIMessage):
        return "assistant"
    if isinstance(message, SystemMessage):
        return str(message.additional_kwargs.get("__openai_role__", "system"))  # "developer", as core marks it
    if isinstance(message, ToolMessage):
        return "tool"
    if isinstance(message, ChatMessage):
        return message.role
    raise InvalidInputError(f"{position} is a {type(message).__name__}, which has no counterpart in a chat template")


def _content(message: BaseMessage, position: str) -> str | list[dict[str, Any]]:
    if isinstance(message.content, str):
        return message.content
    elsewhere = _sent_elsewhere(message)
    return [
        to_openai_part(block, f"{position}.content[{index}]", reads_files=isinstance(message, HumanMessage))
        for index, block in enumerate(message.content)
        if not (isinstance(block, dict) and block.get("type") in elsewhere)
    ]


def _sent_elsewhere(message: BaseMessage) -> tuple[str, ...]:
    """Types of the blocks that other fields of the sent message stand for."""
    if not isinstance(message, AIMessage):
        return ()
    return _REASONING_BLOCKS + (_TOOL_CALL_BLOCKS if message.tool_calls or message.invalid_tool_calls else ())


def _answer_fields(message: AIMessage) -> dict[str, Any]:
    """What an answer of a model has beside its content."""
    fields: dict[str, Any] = {}
    reasoning = message.additional_kwargs.get("reasoning_content") or "".join(_thoughts(message.content))
    if reasoning:
        fields["reasoning"] = reasoning
    calls = [
        _to_openai_call(call["id"], call["name"], json.dumps(call["args"], ensure_ascii=False))
        for call in message.tool_calls
    ]
    # As the model wrote them: what to make of that is up to the server.
    calls += [_to_openai_call(call["id"], call["name"], call["args"] or "") for call in message.invalid_tool_calls]
    if calls:
        fields["tool_calls"] = calls
    return fields


def _thoughts(content: str | list[str | dict[Any, Any]]) -> Iterable[str]:
    for block in content if isinstance(content, list) else ():
        if isinstance(block, dict) and block.get("type") in _REASONING_BLOCKS:
            yield str(block.get(block["type"]) or "")


def _to_openai_call(call_id: str | None, name: str | None, arguments: str) -> dict[str, Any]:
    return {"id": call_id or "", "type": "function", "function": {"name": name or "", "arguments": arguments}}


# ---- tools out


def to_openai_tools(tools: Iterable[Any], strict: bool | None = None) -> list[dict[str, Any]]:
    """Tools in OpenAI's form, from all that LangChain calls a tool."""
    return [convert_to_openai_tool(tool, strict=strict) for tool in tools]


def to_openai_tool_choice(
    choice: str | Mapping[str, Any] | bool | None, tools: Sequence[Mapping[str, Any]]
) -> str | dict[str, Any] | None:
    """``auto``, ``none``, ``required`` (also: ``any``, True), or the one tool to call, by its name or in OpenAI's form.

    Raises:
        InvalidInputError: it names no tool of ``tools``; names the nearest.
    """
    if choice is None or choice is False:
        return None
    if choice is True:
        return "required"
    return to_tool_choice(choice, tools)


# ---- chat answers in


def to_chat_result(result: GenerationResult) -> ChatResult:
    """A whole answer. The usage, of all ``n`` choices together, is on the first one: so that it adds up."""
    generations = []
    for position, choice in enumerate(result.choices):
        calls, invalid_calls = _tool_calls(choice.tool_calls)
        message = AIMessage(
            content=choice.text,
            additional_kwargs=_additional_kwargs(choice.reasoning),
            response_metadata=_response_metadata(choice, result.model, result.request_id),
            tool_calls=calls,
            invalid_tool_calls=invalid_calls,
            usage_metadata=to_usage_metadata(result.usage) if position == 0 else None,
        )
        generations.append(ChatGeneration(message=message, generation_info=_generation_info(choice)))
    return ChatResult(generations=generations)


def to_chat_chunk(chunk: GenerationChunk) -> ChatGenerationChunk:
    """A piece of an answer. The usage comes with the last one."""
    message = AIMessageChunk(
        content=chunk.text,
        additional_kwargs=_additional_kwargs(chunk.reasoning),
        response_metadata=_chunk_metadata(chunk),
        tool_call_chunks=_tool_call_chunks(chunk.tool_calls),
        usage_metadata=None if chunk.usage is None else to_usage_metadata(chunk.usage),
        chunk_position=None if chunk.usage is None else "last",
    )
    return ChatGenerationChunk(message=message, generation_info=_generation_info(chunk))


def _tool_calls(calls: Iterable[ToolCall]) -> tuple[list[LangChainToolCall], list[InvalidToolCall]]:
    """The calls that can be made, and those whose arguments are no JSON object, with the reason."""
    valid: list[LangChainToolCall] = []
    invalid: list[InvalidToolCall] = []
    for call in calls:
        try:
            arguments = json.loads(call.arguments or "{}", strict=False)  # models write newlines into strings
            error = None if isinstance(arguments, dict) else "the arguments are not a JSON object"
        except json.JSONDecodeError as exc:
            error = f"the arguments are not valid JSON: {exc}"
        if error is None:
            valid.append(tool_call(name=call.name, args=arguments, id=call.id))
        else:
            invalid.append(invalid_tool_call(name=call.name, args=call.arguments, id=call.id, error=error))
    return valid, invalid


def _tool_call_chunks(deltas: Iterable[ToolCallDelta]) -> list[ToolCallChunk]:
    """One chunk for each call. vLLM sends two pieces of a call at once; LangChain would add up only the first."""
    chunks: dict[int, ToolCallChunk] = {}
    for delta in deltas:
        before = chunks.setdefault(delta.index, tool_call_chunk(index=delta.index))
        chunks[delta.index] = tool_call_chunk(
            name=before["name"] or delta.name,
            args=before["args"] if delta.arguments is None else (before["args"] or "") + delta.arguments,
            id=before["id"] or delta.id,
            index=delta.index,
        )
    return list(chunks.values())


def _additional_kwargs(reasoning: str | None) -> dict[str, Any]:
    return {} if reasoning is None else {"reasoning_content": reasoning}


def _response_metadata(choice: Choice | GenerationChunk, model: str, request_id: str) -> dict[str, Any]:
    return {"model_provider": PROVIDER, "model_name": model, "id": request_id, **(_generation_info(choice) or {})}


def _chunk_metadata(chunk: GenerationChunk) -> dict[str, Any]:
    # LangChain adds up the text of equal keys, so what is said once must be on one piece only: the finishing one.
    if chunk.finish_reason is None:
        return {"model_provider": PROVIDER}
    return _response_metadata(chunk, chunk.model, chunk.request_id)


def _generation_info(part: Choice | GenerationChunk) -> dict[str, Any] | None:
    values = {"finish_reason": part.finish_reason, "stop_reason": part.stop_reason, "logprobs": part.logprobs}
    return {name: value for name, value in values.items() if value is not None} or None


def to_usage_metadata(usage: TokenUsage) -> UsageMetadata:
    metadata = UsageMetadata(
        input_tokens=usage.prompt_tokens, output_tokens=usage.completion_tokens, total_tokens=usage.total_tokens
    )
    if usage.cached_tokens is not None:
        metadata["input_token_details"] = InputTokenDetails(cache_read=usage.cached_tokens)
    if usage.reasoning_tokens is not None:
        metadata["output_token_details"] = OutputTokenDetails(reasoning=usage.reasoning_tokens)
    return metadata


# ---- text answers in


def to_llm_result(results: Sequence[GenerationResult]) -> LLMResult:
    """Whole answers, in order of the prompts, with the usage of each and of all together."""
    generations = [_to_generations(result) for result in results]
    output: dict[str, Any] = {"token_usage": _token_usage([result.usage for result in results])}
    if results:
        output["model_name"] = results[0].model
    return LLMResult(generations=generations, llm_output=output)


def _to_generations(result: GenerationResult) -> list[Generation]:
    generations = [
        Generation(text=choice.text, generation_info=_response_metadata(choice, result.model, result.request_id))
        for choice in result.choices
    ]
    if generations:
        generations[0].generation_info = {
            **(generations[0].generation_info or {}),
            "usage_metadata": to_usage_metadata(result.usage),
        }
    return generations


def to_text_chunk(chunk: GenerationChunk) -> TextChunk:
    """A piece of an answer. The usage comes with the last one."""
    info: dict[str, Any] = {**_chunk_metadata(chunk), **(_generation_info(chunk) or {})}
    if chunk.usage is not None:
        info["usage_metadata"] = to_usage_metadata(chunk.usage)
    return TextChunk(text=chunk.text, generation_info=info)


def streamed_llm_result(chunks: Sequence[TextChunk]) -> LLMResult:
    """The result of one prompt whose answer was streamed."""
    whole = reduce(lambda left, right: left + right, chunks)
    info = whole.generation_info or {}
    usage = info.get("usage_metadata")
    output: dict[str, Any] = {"model_name": info.get("model_name")}
    if usage is not None:
        output["token_usage"] = {
            "prompt_tokens": usage["input_tokens"],
            "completion_tokens": usage["output_tokens"],
            "total_tokens": usage["total_tokens"],
        }
    return LLMResult(generations=[[whole]], llm_output=output)


def _token_usage(usages: Sequence[TokenUsage]) -> dict[str, int]:
    return {
        "prompt_tokens": sum(usage.prompt_tokens for usage in usages),
        "completion_tokens": sum(usage.completion_tokens for usage in usages),
        "total_tokens": sum(usage.total_tokens for usage in usages),
    }
