"""``vllm-local embed``."""

from __future__ import annotations

import argparse
import functools
import json
from collections.abc import Sequence

from shared_engine.cli.argument_types import count
from shared_engine.cli.commands.load import loading_engine
from shared_engine.cli.engine_arguments import add_engine_arguments
from shared_engine.cli.exit_codes import DONE, SOME_FAILED
from shared_engine.cli.input_texts import texts_of
from shared_engine.cli.table import as_json
from shared_engine.cli.terminal import tell
from shared_engine.request.checks import ON_ERROR
from shared_engine.results import ItemFailure

EXAMPLES = (
    'vllm-local embed BAAI/bge-m3 "a text" "another text"',
    "cat lines.txt | vllm-local embed BAAI/bge-m3 > vectors.jsonl",
    'vllm-local embed BAAI/bge-m3 --input-type query --json "what is it?"',
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_engine_arguments(parser)
    text = "a text; without any, each line of --file or of what is piped in that is not blank is one"
    parser.add_argument("texts", nargs="*", metavar="TEXT", help=text)
    parser.add_argument("--file", metavar="FILE", help="UTF-8, a text on each line")
    text = "put before each text what the model has for it"
    parser.add_argument("--input-type", choices=("query", "document"), help=text)
    parser.add_argument("--prefix", metavar="TEXT", help="put this before each text instead")
    parser.add_argument("--dimensions", type=functools.partial(count, least=1), metavar="N", help="shorten the vectors")
    add_truncation(parser)
    parser.add_argument("--json", action="store_true", help="one object with all vectors, the model and its usage")


def add_truncation(parser: argparse.ArgumentParser) -> None:
    text = "use only so many tokens of a text; -1: as many as the model takes (default: a longer one is an error)"
    parser.add_argument("--truncate", type=int, metavar="N", help=text)
    parser.add_argument("--lora", metavar="NAME", help="the LoRA adapter that answers")
    text = "what one that is too long, or is refused, does to the others: raise ends them (default), skip, none"
    parser.add_argument("--on-error", choices=ON_ERROR, default="raise", help=text)


def told(failures: Sequence[ItemFailure], what: str) -> int:
    """Say what failed; the exit code for that."""
    for failure in failures:
        tell(f"{what} {failure.index + 1}: {failure.error}")
    return SOME_FAILED if failures else DONE


def run(arguments: argparse.Namespace) -> int:
    texts = texts_of(arguments.texts, arguments.file, "TEXT")
    with loading_engine(arguments, is_pooling=True) as engine:
        result = engine.embed(
            texts,
            input_type=arguments.input_type,
            prefix=arguments.prefix,
            dimensions=arguments.dimensions,
            truncate_prompt_tokens=arguments.truncate,
            lora=arguments.lora,
            on_error=arguments.on_error,
        )
    if arguments.json:
        usage = {"prompt_tokens": result.usage.prompt_tokens}
        print(as_json({"model": result.model, "embeddings": result.embeddings, "usage": usage}))
    else:
        for vector in result.embeddings:
            print(json.dumps(vector))
    return told(result.failures, "text")
