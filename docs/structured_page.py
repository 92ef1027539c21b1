"""Writes docs/structured.md: what an answer is held to, for each type and method that the tests ask for.

python docs/structured_page.py > docs/structured.md
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

from tests.support.answer_types import ROOTS, TYPES

HEAD = """\
# Structured output, type by type

Written by `docs/structured_page.py`; do not edit. Each cell is run on vLLM by
[tests/langchain/test_langchain_answer_types.py](../tests/langchain/test_langchain_answer_types.py) and
[tests/llama_index/test_llama_index_answer_types.py](../tests/llama_index/test_llama_index_answer_types.py).

*held*: the grammar lets the model write nothing that the type refuses. *checked*: a part of it is not held, so an
answer may be refused when it is read; the model is told what is wanted. What can't be held of a dict schema, whose
answers nobody checks, is refused before a start, with its place.

## As a field of a class

| type | `ChatVLLM` `json_schema` | `ChatVLLM` `function_calling` | `VLLM` `default` | `VLLM` `function` | not held |
|---|---|---|---|---|---|
"""
ROOT_HEAD = """
## By itself

| `with_structured_output(...)` | `json_schema` | `function_calling` |
|---|---|---|
"""
TAIL = """
`VLLM` of LlamaIndex takes classes of pydantic only.

## What is said in another way

| what the schema says | why | what the server gets |
|---|---|---|
| `pattern: "@"` | by the standard a pattern is searched for; xgrammar would allow nothing but `@` | `^.*@.*$` |
| `(\\\\.\\\\d+)?` | of an optional group with a repetition xgrammar takes a part | `(\\\\.\\\\d+){0,1}` |
| `pattern` with a length | vLLM refuses both together | `^[A-Z]+$` with 2 to 4 characters: `^[A-Z]{2,4}$` |
| `format: date`, `time`, `date-time`, `ipv4` | xgrammar's allow the 31st of April, a second 60 | a pattern |
| `datetime`, `NaiveDatetime` | xgrammar's `date-time` has a zone always | a pattern |
| `Decimal` | pydantic says any text | a number, or a text of digits; as many as there may be |
| `dict[int, ...]`, `dict[Enum, ...]`, ... | pydantic says any name, or vLLM refuses it | a pattern, or the names |
| `multipleOf` with bounds | vLLM refuses it | the numbers |
| `allOf` of parts that do not contradict each other | xgrammar holds none of it | one schema |

A string that is held to a pattern has no quotes, backslashes or line ends: xgrammar writes none there. In JSON stands
one blank at most between two parts, in answers and in the arguments of tool calls: where any number was allowed, small
models wrote them up to `max_tokens`.
`engine_args={"structured_outputs_config": {"backend": "xgrammar", "disable_any_whitespace": True}}` allows none.
A remote vLLM that was started without vllm-local allows any number: with a small model give `max_tokens`, and expect a
`LengthFinishReasonError` now and then.
"""


def page() -> Iterator[str]:
    yield HEAD
    for each in TYPES:
        name, left = each.name.replace("|", "\\|"), each.left or each.left_in_calls
        answer, call = ("checked" if each.left else "held"), ("checked" if left else "held")
        yield f"| {name} | {answer} | {call} | {answer} | {call} | {left} |\n"
    yield ROOT_HEAD
    for each in ROOTS:
        yield f"| {each.name} | held | {'held' if each.is_object else 'refused: arguments are an object'} |\n"
    yield TAIL.replace("\\\\", "\\")


if __name__ == "__main__":
    sys.stdout.writelines(page())
