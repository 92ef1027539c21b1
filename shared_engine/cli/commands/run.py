"""``vllm-local run``: one prompt, one answer, honest in pipes. Without a prompt on a terminal: a chat."""

from __future__ import annotations

import argparse
from typing import Any

from shared_engine.cli.asking.attachments import attachment
from shared_engine.cli.asking.forms import PLAIN_JSON
from shared_engine.cli.asking.once import Once, answer_once, is_at_a_terminal, read_stdin
from shared_engine.cli.engine_arguments import add_engine_arguments, settings_of
from shared_engine.cli.sampling_arguments import add_sampling_arguments, given_parameters
from shared_engine.errors import InvalidInputError
from shared_engine.model_files.adapter import read_adapter
from shared_engine.settings import EngineSettings

EXAMPLES = (
    'vllm-local run Qwen/Qwen3-4B "Why is the sky blue?"',
    'vllm-local run Qwen/Qwen3-4B "What does this do?" < main.py',
    'vllm-local run Qwen/Qwen3-VL-4B -a photo.png "What is in it?"',
    'git diff | vllm-local run Qwen/Qwen3-4B "Write a commit message" --no-think --stats',
    'vllm-local run Qwen/Qwen3-4B "Name a city" --json \'{"type": "object", "properties": {"city": {}}}\'',
    "vllm-local run Qwen/Qwen3-4B          # a chat",
)
INTERRUPTED = "the engine is asked for nothing more, and stays"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_engine_arguments(parser)
    text = "joined by blanks; what comes on stdin stands before it. Without either, on a terminal: a chat"
    parser.add_argument("prompt", nargs="*", metavar="PROMPT", help=text)
    add_prompt_arguments(parser)
    text = "an answer that is JSON: of this schema (a file, or the JSON itself), or any; put it last to give none"
    parser.add_argument("--json", nargs="?", const=PLAIN_JSON, metavar="SCHEMA", help=text)
    text = "an answer that is one of these: A,B,C, or the option repeated"
    parser.add_argument("--choice", action="append", metavar="A,B,...", help=text)
    parser.add_argument("--regex", metavar="REGEX", help="an answer that matches")
    parser.add_argument("--raw", action="store_true", help="continue the prompt as it is, without a chat template")
    parser.add_argument("--no-stream", dest="stream", action="store_false", help="print the answer when it is whole")
    text = "json: an object with all of the answer, its usage and timing"
    parser.add_argument("--output", choices=("text", "json"), default="text", help=text)
    add_sampling_arguments(parser)


def add_prompt_arguments(parser: argparse.ArgumentParser) -> None:
    """What ``run`` and ``chat`` have in common."""
    parser.add_argument("--system", metavar="TEXT", help="the system prompt")
    text = "an image, a sound, a video or a text, as a path or a URL (may be repeated)"
    parser.add_argument("-a", "--attach", action="append", default=[], metavar="FILE", help=text)
    parser.add_argument("--hide-thinking", action="store_true", help="do not show what the model thinks")
    parser.add_argument("--stats", action="store_true", help="tell times and tokens, on stderr")


def run(arguments: argparse.Namespace) -> int:
    piped = read_stdin()
    words = " ".join(arguments.prompt)
    prompt = "\n\n".join(part for part in (piped, words) if part)
    if not prompt and is_at_a_terminal():
        from shared_engine.cli.commands.chat import chat  # late: most runs are none

        return chat(arguments)
    if not prompt and not arguments.attach:
        arguments.usage_error("there is no prompt: give PROMPT, or something on stdin")
    parameters = given_parameters(arguments)
    once = Once(
        prompt=prompt,
        attached=tuple(attachment(place) for place in arguments.attach),
        system=arguments.system,
        form=(arguments.json, arguments.choice, arguments.regex),
        is_raw=arguments.raw,
        is_streamed=arguments.stream,
        is_json=arguments.output == "json",
        hides_thinking=arguments.hide_thinking,
        shows_stats=arguments.stats,
    )
    return answer_once(settings_with_adapter(arguments, parameters), parameters, once)


def settings_with_adapter(arguments: argparse.Namespace, parameters: dict[str, Any]) -> EngineSettings:
    """The settings; where ``--lora`` is a folder, or an id of the hub, with that adapter under its last name.

    Raises:
        InvalidInputError: it is none, and no adapters have names.
    """
    settings, named = settings_of(arguments), parameters.get("lora")
    if named is None or settings.is_remote or settings.lora_adapters is not None:
        return settings
    try:
        read_adapter(named)
    except ValueError as exc:
        raise InvalidInputError(f"--lora {named!r}: neither an adapter nor a name of --lora-adapters: {exc}") from None
    parameters["lora"] = named.rstrip("/").rpartition("/")[2]
    return settings_of(arguments, lora_adapters={parameters["lora"]: named})
