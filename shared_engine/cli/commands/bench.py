"""``vllm-local bench``."""

from __future__ import annotations

import argparse
import asyncio
import functools
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from shared_engine.cli.argument_types import count
from shared_engine.cli.bench import Level, measure
from shared_engine.cli.engine_arguments import add_engine_arguments, engine_of
from shared_engine.cli.exit_codes import DONE
from shared_engine.cli.table import as_json, table
from shared_engine.cli.terminal import tell

if TYPE_CHECKING:
    from shared_engine.engine import Engine

PARALLEL, ROUNDS, PROMPT_WORDS, MAX_TOKENS = (1, 8, 64), 2, 100, 64
HEAD = ("PARALLEL", "FIRST TOKEN", "TOKENS/S", "EACH")
EXAMPLES = (
    "vllm-local bench Qwen/Qwen3-4B",
    "vllm-local bench Qwen/Qwen3-4B --parallel 1,16 --max-tokens 256",
    "vllm-local bench - --base-url http://gpu:8000/v1 --json",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_engine_arguments(parser)
    default = ",".join(map(str, PARALLEL))
    text = f"so many requests at once, one line each (default {default})"
    parser.add_argument("--parallel", type=_levels, default=PARALLEL, metavar="N,N,...", help=text)
    number = functools.partial(count, least=1)
    text = f"so many times one after another (default {ROUNDS})"
    parser.add_argument("--rounds", type=number, default=ROUNDS, metavar="N", help=text)
    text = f"words of a prompt, which no other has (default {PROMPT_WORDS})"
    parser.add_argument("--prompt-words", type=number, default=PROMPT_WORDS, metavar="N", help=text)
    text = f"tokens of an answer, exactly (default {MAX_TOKENS})"
    parser.add_argument("--max-tokens", type=number, default=MAX_TOKENS, metavar="N", help=text)
    parser.add_argument("--json", action="store_true", help="an object with all numbers")


def _levels(text: str) -> tuple[int, ...]:
    return tuple(count(word.strip(), 1) for word in text.split(","))


def run(arguments: argparse.Namespace) -> int:
    levels, loaded_s = asyncio.run(_measured(engine_of(arguments), arguments))
    if arguments.json:
        told: dict[str, Any] = {"model": arguments.model, "ready_after_s": loaded_s}
        print(as_json({**told, "levels": [level.to_json() for level in levels]}))
    else:
        print("\n".join(bench_table(levels)))
        prompt_tokens = levels[0].prompt_tokens
        if prompt_tokens is None:
            print(f"answers of {arguments.max_tokens} tokens, which the server does not count")
        else:
            print(f"prompts of {prompt_tokens} tokens, answers of {arguments.max_tokens}")
    return DONE


async def _measured(engine: Engine, arguments: argparse.Namespace) -> tuple[list[Level], float]:
    shape = (arguments.prompt_words, arguments.max_tokens)
    async with engine:
        began = time.monotonic()
        await engine.awarmup()
        loaded_s = time.monotonic() - began
        await measure(engine, 1, 1, *shape)  # the first one of a server takes longer
        levels = []
        for parallel in arguments.parallel:
            if sys.stderr is not None and sys.stderr.isatty():
                tell(f"  ... {parallel} in parallel")
            levels.append(await measure(engine, parallel, arguments.rounds, *shape))
    return levels, loaded_s


def bench_table(levels: Sequence[Level]) -> list[str]:
    rows = [
        (
            str(level.parallel),
            f"{1000 * level.first_token_s:.0f} ms",
            _rate(level.tokens_per_s),
            _rate(level.tokens_per_s_each),
        )
        for level in levels
    ]
    return table([HEAD, *rows], numbers=range(len(HEAD)))


def _rate(tokens_per_s: float | None) -> str:
    return "-" if tokens_per_s is None else f"{tokens_per_s:.0f}"
