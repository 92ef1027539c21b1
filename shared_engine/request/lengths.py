"""What servers say of prompts, and of prompts and answers together, that do not fit the model: the table of their
words, and the numbers in them. Pure.
"""

from __future__ import annotations

import re

from shared_engine.errors import ContextLengthError, RequestRejectedError

# vLLM's own, 0.26 to 0.33 (renderers/params.py, v1/engine/input_processor.py, entrypoints/serve/utils/api_utils.py),
# and older ones of a vLLM at a base_url. A text is refused by its characters before it is tokenized.
VLLMS = (
    r"maximum context length is (?P<limit>\d+) tokens.*contains (?P<characters>\d+) characters \(more than "
    r"(?P<bound>\d+) characters, which is the upper bound for (?P<room>\d+) input tokens",
    r"maximum context length is (?P<limit>\d+) tokens.*contains \D*(?P<prompt>\d+) input tokens",
    r"Input length \((?P<prompt>\d+)\) exceeds model's maximum context length \((?P<limit>\d+)\)",
    # An encoder's limit is not the context's.
    r"(?<!encoder) prompt \(length (?P<prompt>\d+)\) .*longer than the maximum model length of (?P<limit>\d+)",
)
_OLDER_VLLMS = (
    r"is too large: (?P<completion>\d+).* maximum context length is (?P<limit>\d+) .* has (?P<prompt>\d+) input tokens",
    r"maximum context length is (?P<limit>\d+) .*?(?P<prompt>\d+) (?:in|of) (?:the messages|your prompt|text input)",
    r"maximum context length is (?P<limit>\d+) .*(?:requested|resulted in) (?P<prompt>\d+) tokens(?: in the input|\.)",
    r"maximum context length is (?P<limit>\d+) .*request has (?P<prompt>\d+) input tokens",
    r"[Pp]rompt length of (?P<prompt>\d+) is longer than the maximum model length of (?P<limit>\d+)",
)
# Of SGLang, llama.cpp, TGI, LiteLLM, Ollama, LM Studio, and of providers behind gateways. The last ones name no number.
_OTHERS = (
    r"(?P<prompt>\d+) tokens\) is longer than the model's context length \((?P<limit>\d+)",
    r"Input length \((?P<prompt>\d+) tokens\) exceeds the maximum allowed length \((?P<limit>\d+)",
    r"maximum context length of (?P<limit>\d+) .* (?P<prompt>\d+) tokens from the input",
    r"contains (?P<prompt>\d+) tokens.*too large for model with (?P<limit>\d+) maximum context length",
    r"request \((?P<prompt>\d+) tokens\) exceeds the available context size \((?P<limit>\d+)",
    r"`inputs` (?:tokens \+ `max_new_tokens` must be <=|must have less than) (?P<limit>\d+).*Given: (?P<prompt>\d+)",
    r"prompt is too long: (?P<prompt>\d+) tokens > (?P<limit>\d+)",
    r"keep the first (?P<prompt>\d+) tokens .*context length of only (?P<limit>\d+)",
    r"exceed context limit: (?P<prompt>\d+) \+ (?P<completion>\d+) > (?P<limit>\d+)",
    r"input token count \((?P<prompt>\d+)\) exceeds the maximum number of tokens allowed \((?P<limit>\d+)",
    r"exceed the configured limit of (?P<limit>\d+) tokens.*resulted in (?P<prompt>\d+) tokens",
    r"maximum context length (?:is|of|\() ?(?P<limit>\d+)",
    "maximum context length",
    "longer than the model's context length",
    "exceeds the available context size",
    "`inputs` tokens \\+ `max_new_tokens` must be",
    "`inputs` must have less than",
    "ContextWindowExceededError",
    "context_length_exceeded",
    "prompt is too long",
    "exceeds the context (?:length|window)",
)
_FORMS = [re.compile(form, re.DOTALL) for form in (*VLLMS, *_OLDER_VLLMS, *_OTHERS)]
# Of the answer alone, whatever the prompt (renderers/params.py). 0.26 to 0.31 write "max_model_len=max_total_tokens=".
ANSWER = re.compile(
    r"(?P<field>\w+)=(?P<asked>\d+) cannot be greater than \w+=\D*(?P<limit>\d+)\. Please request fewer output tokens"
)
# What is left of the limit for the answer, where that is less than one, or than min_tokens (sampling_params.py).
NO_ROOM = re.compile(r"max_tokens must be at least 1, got (?P<room>-?\d+)")
LITTLE_ROOM = re.compile(r"min_tokens must be less than or equal to max_tokens=(?P<room>\d+), got (?P<asked>\d+)")

# Before 0.32, of a request that has all of the limit for its answer.
NO_INPUT = re.compile(r" prompt cannot be empty| cannot be greater than \w+ - \w+ = \d+\. Please request a smaller")


def length_error(status: int, message: str) -> RequestRejectedError | None:
    """The refusal of what is too long; None where the words are about something else.

    A server's own failure (5xx) is one only where it says both numbers: gateways pass a refusal on as theirs.
    """
    if status not in (400, 413, 422) and status < 500:
        return None
    answer = ANSWER.search(message)
    if answer:
        field, asked, limit = answer["field"], answer["asked"], answer["limit"]
        words = (
            f"{field} = {asked} is more than the model's limit of {limit} tokens for prompt and answer together: ask "
            f"for fewer, or pass truncate_completion=True ({message})"
        )
        return RequestRejectedError(words, status)
    found = next(filter(None, (form.search(message) for form in _FORMS)), None)
    if found is None:
        return None
    numbers = {name: int(value) for name, value in found.groupdict().items() if value}
    limit, prompt, completion = (numbers.get(name) for name in ("limit", "prompt", "completion"))
    if "characters" in numbers:  # so many at least, as a token has no more than so many of them
        prompt = -(-numbers["characters"] * numbers["room"] // max(1, numbers["bound"])) or 1
    if completion is not None and limit is not None and completion > limit:
        return RequestRejectedError(message, status)
    if status >= 500 and (limit is None or prompt is None):
        return None
    return ContextLengthError(message, status, limit, prompt, completion)


def leaves_no_input(error: RequestRejectedError) -> bool:
    """True where less ``max_tokens`` may be all that it takes."""
    return isinstance(error, ContextLengthError) or NO_INPUT.search(error.message) is not None


def room_left(message: str) -> tuple[int, int] | None:
    """How many tokens of an answer the prompt leaves, and how many it was to have at least; None where the words are
    about something else.
    """
    none, little = NO_ROOM.search(message), LITTLE_ROOM.search(message)
    if none is not None:
        return int(none["room"]), 1
    return (int(little["room"]), int(little["asked"])) if little else None


def in_words(limit: int, prompt: int, completion: int | None, *, is_exact: bool) -> str:
    """What is too long.

    Args:
        completion: tokens of an answer that were asked for; 1 where there was no wish, None where there is no answer.
        is_exact: ``prompt`` was counted, else it is so many at least.
    """
    least = "" if is_exact else "at least "
    wish = ""
    if prompt <= limit and completion is not None:
        wish = " there is no room for an answer," if completion == 1 else f" {completion} more were asked for,"
    return f"the prompt has {least}{prompt} tokens,{wish} and the model's limit is {limit}"
