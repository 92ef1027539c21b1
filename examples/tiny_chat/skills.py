"""Every skill, its share of the training data, and seeded streams of examples."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator
from dataclasses import replace

import skills_chat
import skills_json
import skills_rag
import skills_tools
from dialog import Example
from words import Values

SKILLS: dict[Callable[[Values], Example], float] = {
    skills_chat.greeting: 2.0,
    skills_chat.fixed: 4.0,
    skills_chat.memory: 6.0,
    skills_chat.echo: 7.0,
    skills_chat.counting: 1.5,
    skills_chat.joke: 1.5,
    skills_chat.small_sum: 2.0,
    skills_chat.unknowable: 2.0,
    skills_chat.completion: 1.0,
    skills_rag.rag: 24.0,
    skills_rag.rag_unknown: 7.0,
    skills_rag.refine: 3.0,
    skills_rag.condense: 0.8,
    skills_tools.tool_call: 21.0,
    skills_tools.parallel_calls: 1.0,
    skills_tools.no_tool_needed: 4.0,
    skills_tools.from_tool_result: 10.0,
    skills_tools.two_steps: 2.0,
    skills_json.extract: 9.0,
}
# Copying comes first: it gives the model induction heads early, and everything else stands on them.
WARM_UP: dict[Callable[[Values], Example], float] = {
    skills_chat.echo: 6.0,
    skills_chat.memory: 2.0,
    skills_json.extract: 2.0,
    skills_tools.from_tool_result: 2.0,
    skills_rag.rag: 2.0,
}


# What the model says to itself, where thinking is on; a tool call's thought names the tool.
THOUGHTS = {
    "answer from context": "I look in the context.",
    "no answer in context": "The context does not say.",
    "answer from tool result": "I have the result.",
    "no tool needed": "I need no tool.",
    "small sums": "I add the numbers.",
    "memory": "I look back.",
    "json": "I write JSON.",
}
THINKING_SHARE = 0.12


def examples(seed: int, *, testing: bool = False, warm_up: int = 0) -> Iterator[Example]:
    """An endless stream; `warm_up` examples of the copying skills come first."""
    values = Values(random.Random(seed), testing=testing)
    for count in itertools.count():
        skills = WARM_UP if count < warm_up else SKILLS
        example = values.rng.choices(list(skills), list(skills.values()))[0](values)
        asked_to_think = values.chance(THINKING_SHARE) and not example.forced and not example.plain
        yield with_thought(example) if asked_to_think else example


def with_thought(example: Example) -> Example:
    """The same conversation with thinking on."""
    thought = THOUGHTS.get(example.skill, "I answer.")
    if '<tool_call>\n{"name": "' in example.answer:
        thought = "I call {}.".format(example.answer.split('"')[3])
    return replace(example, answer=f"{thought}</think>{example.answer}", thinking=True)
