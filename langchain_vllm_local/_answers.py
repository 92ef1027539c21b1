"""The engine's answers -> LangChain's results, whole and streamed. Pure.

Shared by the sync, async, whole and streamed methods, so that all of them give the same answer.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from functools import reduce
from typing import Any

from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_core.messages.ai import InputTokenDetails, OutputTokenDetails, UsageMetadata
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult, Generation, LLMResult
from langchain_core.outputs import GenerationChunk as TextChunk

from langchain_vllm_local._engine_model import PROVIDER
from langchain_vllm_local._tools import to_tool_call_chunks, to_tool_calls
from shared_engine.results import Choice, GenerationChunk, GenerationResult, TokenUsage

# ---- of a chat


def to_chat_result(result: GenerationResult) -> ChatResult:
    """A whole answer. The usage, of all ``n`` choices together, is on the first one: so that it adds up.

    Core copies ``llm_output`` into the metadata of an answer with one choice.
    """
    generations = []
    for position, choice in enumerate(result.choices):
        calls, invalid_calls = to_tool_calls(choice.tool_calls, choice.finish_reason)
        message = AIMessage(
            content=choice.text,
            additional_kwargs=_additional_kwargs(choice.reasoning),
            response_metadata=_response_metadata(choice, result),
            tool_calls=calls,
            invalid_tool_calls=invalid_calls,
            usage_metadata=to_usage_metadata(result.usage) if position == 0 else None,
        )
        generations.append(ChatGeneration(message=message, generation_info=_generation_info(choice)))
    return ChatResult(generations=generations, llm_output=_llm_output([result]))


def combined_llm_output(outputs: Iterable[Mapping[str, Any] | None]) -> dict[str, Any]:
    """That of several answers; those that were streamed, or cached, have none."""
    known = [output for output in outputs if output]
    usages = [output["token_usage"] for output in known if output.get("token_usage")]
    names = [output["model_name"] for output in known if output.get("model_name")]
    return {
        "token_usage": {name: sum(usage[name] for usage in usages) for name in (usages[0] if usages else ())},
        **({"model_name": names[0]} if names else {}),
    }


def to_chat_chunk(chunk: GenerationChunk) -> ChatGenerationChunk:
    """A piece of an answer. The usage comes with the last one."""
    message = AIMessageChunk(
        content=chunk.text,
        additional_kwargs=_additional_kwargs(chunk.reasoning),
        response_metadata=chunk_metadata(chunk),
        tool_call_chunks=to_tool_call_chunks(chunk.tool_calls),
        usage_metadata=None if chunk.usage is None else to_usage_metadata(chunk.usage),
        chunk_position=None if chunk.usage is None else "last",
    )
    return ChatGenerationChunk(message=message, generation_info=_generation_info(chunk))


def with_standard_blocks(chunk: ChatGenerationChunk, made: Container[int]) -> ChatGenerationChunk:
    """With blocks for content, as ``output_version="v1"`` has it. Of core's own a call would be added up with the text
    or thought of the same index, and what stands for a malformed call would be there twice.

    Args:
        made: indexes of the calls that the model made.
    """
    message = chunk.message
    assert isinstance(message, AIMessageChunk)
    reasoning = message.additional_kwargs.get("reasoning_content")
    content: list[Any] = [
        *([{"type": "reasoning", "reasoning": reasoning}] if reasoning else ()),
        *([{"type": "text", "text": message.content}] if message.content else ()),
        *(
            {**call, "type": "tool_call_chunk", "index": f"lc_tc_{call['index']}"}  # core's merge knows "lc_"
            for call in message.tool_call_chunks
            if call["index"] in made
        ),
    ]
    metadata = {**message.response_metadata, "output_version": "v1"}
    message = message.model_copy(update={"content": content, "response_metadata": metadata})
    return ChatGenerationChunk(message=message, generation_info=chunk.generation_info)


# ---- of a text model


def to_llm_result(results: Sequence[GenerationResult]) -> LLMResult:
    """Whole answers, in order of the prompts, with the usage of each and of all together."""
    generations = [_to_generations(result) for result in results]
    return LLMResult(generations=generations, llm_output=_llm_output(results))


def _to_generations(result: GenerationResult) -> list[Generation]:
    generations = [
        Generation(text=choice.text, generation_info=_response_metadata(choice, result)) for choice in result.choices
    ]
    if generations:
        generations[0].generation_info = {
            **(generations[0].generation_info or {}),
            "usage_metadata": to_usage_metadata(result.usage),
        }
    return generations


def to_text_chunk(chunk: GenerationChunk) -> TextChunk:
    """A piece of an answer. The usage comes with the last one."""
    info: dict[str, Any] = {**chunk_metadata(chunk), **(_generation_info(chunk) or {})}
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


# ---- what both have


def _llm_output(results: Sequence[GenerationResult]) -> dict[str, Any]:
    output: dict[str, Any] = {"token_usage": _token_usage([result.usage for result in results])}
    if results:
        output["model_name"] = results[0].model
    return output


def _additional_kwargs(reasoning: str | None) -> dict[str, Any]:
    return {} if reasoning is None else {"reasoning_content": reasoning}


def _response_metadata(choice: Choice | GenerationChunk, answer: GenerationResult | GenerationChunk) -> dict[str, Any]:
    lowered = answer.max_tokens_lowered_to
    more = (answer.additional_fields or {}) | (choice.additional_fields or {})
    return {
        "model_provider": PROVIDER,
        "model_name": answer.model,
        "id": answer.request_id,
        **(_generation_info(choice) or {}),
        **({} if lowered is None else {"max_tokens_lowered_to": lowered}),
        **({"additional_fields": more} if more else {}),
        **({} if answer.raw is None else {"raw": answer.raw}),
    }


def chunk_metadata(chunk: GenerationChunk) -> dict[str, Any]:
    """What a piece adds to the answer's response_metadata, but for log probabilities; those are on each."""
    # LangChain concatenates the text of equal keys, so these must be on one chunk only: the last one.
    if chunk.finish_reason is None:
        more = {"additional_fields": chunk.additional_fields, "raw": chunk.raw}
        return {"model_provider": PROVIDER, **{name: value for name, value in more.items() if value}}
    return _response_metadata(chunk, chunk)


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
