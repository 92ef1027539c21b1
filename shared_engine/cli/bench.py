"""How fast an engine answers: requests of one shape, alone and in parallel, each with a prompt of its own."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from shared_engine.engine import Engine

_WORDS = ("river", "stone", "light", "seven", "paper", "north", "green", "cloud", "table", "music", "glass", "early")


@dataclass(frozen=True)
class Answer:
    """One request: when it was sent, when its first and its last token came (monotonic), and its tokens.

    None: the server does not say how many.
    """

    sent_at: float
    first_at: float
    ended_at: float
    prompt_tokens: int | None
    tokens: int | None


@dataclass(frozen=True)
class Level:
    """What so many requests at once have come to. None where tokens are not counted, or came in one piece.

    Attributes:
        first_token_s: median of the time from a request to its first token.
        tokens_per_s: of all answers together.
        tokens_per_s_each: median of what one answer got, from its first token on.
        requests: how many were sent.
        prompt_tokens: median length of a prompt.
    """

    parallel: int
    first_token_s: float
    tokens_per_s: float | None
    tokens_per_s_each: float | None
    requests: int
    prompt_tokens: int | None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


async def measure(engine: Engine, parallel: int, rounds: int, prompt_words: int, max_tokens: int) -> Level:
    """Send ``parallel`` requests at once, ``rounds`` times one after another."""
    answers: list[Answer] = []
    took_s = 0.0
    for _ in range(rounds):
        began = time.monotonic()
        prompts = [prompt_of(prompt_words) for _ in range(parallel)]
        answers += await asyncio.gather(*(_ask(engine, prompt, max_tokens) for prompt in prompts))
        took_s += time.monotonic() - began
    return summed(parallel, answers, took_s)


def prompt_of(words: int) -> str:
    """Words in an order that no prompt had before: none is found in the prefix cache."""
    return " ".join(random.choices(_WORDS, k=words))


async def _ask(engine: Engine, prompt: str, max_tokens: int) -> Answer:
    sent_at = time.monotonic()
    first_at = 0.0
    prompt_tokens = tokens = None
    async for chunk in engine.astream_generate(prompt, max_tokens=max_tokens, ignore_eos=True, temperature=1.0):
        if not first_at and (chunk.text or chunk.finish_reason):
            first_at = time.monotonic()
        if chunk.usage is not None:
            prompt_tokens, tokens = chunk.usage.prompt_tokens, chunk.usage.completion_tokens
    ended_at = time.monotonic()
    return Answer(sent_at, first_at or ended_at, ended_at, prompt_tokens, tokens)


def summed(parallel: int, answers: Sequence[Answer], took_s: float) -> Level:
    """The numbers of one level."""
    counts = [each.tokens for each in answers if each.tokens is not None]
    rates = [
        (each.tokens - 1) / (each.ended_at - each.first_at)
        for each in answers
        if each.tokens and each.ended_at > each.first_at
    ]
    prompts = [each.prompt_tokens for each in answers if each.prompt_tokens is not None]
    return Level(
        parallel=parallel,
        first_token_s=median(each.first_at - each.sent_at for each in answers),
        tokens_per_s=sum(counts) / took_s if len(counts) == len(answers) else None,
        tokens_per_s_each=median(rates) if rates else None,
        requests=len(answers),
        prompt_tokens=int(median(prompts)) if prompts else None,
    )
