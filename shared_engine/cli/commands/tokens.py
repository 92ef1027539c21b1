"""``vllm-local tokens``."""

from __future__ import annotations

import argparse
import json
from typing import Any

from shared_engine.cli.engine_arguments import add_engine_arguments, engine_of
from shared_engine.cli.exit_codes import DONE
from shared_engine.cli.input_texts import whole_text
from shared_engine.cli.table import as_json, table
from shared_engine.errors import InvalidInputError

EXAMPLES = (
    'vllm-local tokens count Qwen/Qwen3-4B "How many are these?"',
    "vllm-local tokens count Qwen/Qwen3-4B < document.txt",
    "vllm-local tokens count Qwen/Qwen3-4B --messages --file conversation.json",
    'vllm-local tokens show Qwen/Qwen3-4B "Which are these?"',
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    text = "count: how many tokens a prompt has; show: which ones, without those that a model puts around a prompt"
    parser.add_argument("what", choices=("count", "show"), metavar="count|show", help=text)
    add_engine_arguments(parser)
    text = "the text; without any, all of --file or of what is piped in"
    parser.add_argument("words", nargs="*", metavar="TEXT", help=text)
    parser.add_argument("--file", metavar="FILE", help="UTF-8")
    text = 'it is a conversation, [{"role": "user", "content": "..."}], counted with the chat template around it'
    parser.add_argument("--messages", action="store_true", help=text)
    parser.add_argument("--json", action="store_true", help="an object")


def run(arguments: argparse.Namespace) -> int:
    text = whole_text(arguments.words, arguments.file, "TEXT")
    if arguments.messages and arguments.what == "show":
        arguments.usage_error("--messages goes with count")
    with engine_of(arguments) as engine:
        if arguments.what == "show":
            ids, texts = engine.tokenize(text), engine.token_strings(text)
            told: dict[str, Any] = {"tokens": [{"id": i, "text": t} for i, t in zip(ids, texts, strict=True)]}
            lines = table([("ID", "TOKEN"), *((str(i), t) for i, t in zip(ids, texts, strict=True))], numbers=(0,))
        else:
            count = engine.count_tokens(_conversation(text) if arguments.messages else text)
            told = {"count": count, "context_window": engine.context_window}
            lines = [str(count)]
    print(as_json({"model": engine.settings.model, **told}) if arguments.json else "\n".join(lines))
    return DONE


def _conversation(text: str) -> list[dict[str, Any]]:
    try:
        messages = json.loads(text)
    except ValueError as exc:
        raise InvalidInputError(f"the conversation is not JSON: {exc}") from None
    if not isinstance(messages, list):
        raise InvalidInputError("the conversation must be a list of messages")
    return messages
