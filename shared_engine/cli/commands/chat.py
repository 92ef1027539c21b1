"""``vllm-local chat``: a conversation at a terminal."""

from __future__ import annotations

import argparse
import importlib.util
import os

from shared_engine.adapting.model_facts import has_chat_template
from shared_engine.cli.asking.attachments import attachment
from shared_engine.cli.asking.once import is_at_a_terminal
from shared_engine.cli.commands.run import add_prompt_arguments, settings_with_adapter
from shared_engine.cli.engine_arguments import add_engine_arguments
from shared_engine.cli.exit_codes import DONE
from shared_engine.cli.sampling_arguments import add_sampling_arguments, given_parameters
from shared_engine.errors import InvalidInputError, VLLMError
from shared_engine.machine.home import expanded

EXAMPLES = (
    "vllm-local chat Qwen/Qwen3-4B",
    'vllm-local chat Qwen/Qwen3-4B --system "Answer in one sentence." --no-think',
    "vllm-local chat Qwen/Qwen3-4B --load talk.json",
    "vllm-local chat - --base-url http://gpu:8000",
)
_PACKAGES = ("prompt_toolkit", "rich")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_engine_arguments(parser)
    add_prompt_arguments(parser)
    parser.add_argument("--load", metavar="FILE", help="go on with a saved conversation")
    parser.add_argument("--no-history", dest="history", action="store_false", help="keep nothing of what is typed")
    parser.add_argument("--no-markdown", dest="markdown", action="store_false", help="show answers as they are written")
    add_sampling_arguments(parser, without=("n", "logprobs"))


def run(arguments: argparse.Namespace) -> int:
    if not is_at_a_terminal():
        arguments.usage_error("chat needs a terminal; `vllm-local run` takes prompts from pipes")
    return chat(arguments)


def chat(arguments: argparse.Namespace) -> int:
    """Chat until the user leaves. Also for ``run`` without a prompt, whose arguments are some more and some fewer.

    Raises:
        VLLMError: it can't begin.
    """
    missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise VLLMError(f"a chat needs {' and '.join(missing)}: pip install 'vllm-local[cli]'")
    _refuse_options_of_run(arguments)
    from shared_engine.cli.chat.commands import load_into, suggestions
    from shared_engine.cli.chat.history import PrivateHistory, history_file, open_history
    from shared_engine.cli.chat.line_editor import LineEditor
    from shared_engine.cli.chat.repl import Chat, Display
    from shared_engine.cli.chat.screen import Screen

    parameters = given_parameters(arguments)
    settings = settings_with_adapter(arguments, parameters)
    if has_chat_template(settings) is False:
        raise InvalidInputError(f"{settings.model} has no chat template: `vllm-local run --raw` continues texts")
    display = Display(
        is_markdown=getattr(arguments, "markdown", True),
        hides_thinking=arguments.hide_thinking,
        shows_stats=arguments.stats,
    )
    made = Chat(settings, parameters, Screen(), system=arguments.system, display=display)
    made.attached = [attachment(place) for place in arguments.attach]
    if getattr(arguments, "load", None) is not None:
        load_into(made, expanded(arguments.load))
    kept = history_file(os.environ) if getattr(arguments, "history", True) else None
    made.rescue_file = kept.with_name("interrupted_chat.json") if kept is not None else None
    history = open_history(kept)
    if isinstance(history, PrivateHistory):
        made.history_switch = history.switch
        if history.problem is not None:
            made.screen.warn(history.problem)
    made.run(LineEditor(history, suggestions, made.status_line).read)
    return DONE


def _refuse_options_of_run(arguments: argparse.Namespace) -> None:
    """Those that say how one answer is printed."""
    given = {
        "--json": getattr(arguments, "json", None) is not None,
        "--choice": getattr(arguments, "choice", None) is not None,
        "--regex": getattr(arguments, "regex", None) is not None,
        "--raw": getattr(arguments, "raw", False),
        "--output": getattr(arguments, "output", "text") != "text",
        "--n": getattr(arguments, "param_n", None) is not None,
        "--logprobs": getattr(arguments, "param_logprobs", None) is not None,
    }
    for option, is_given in given.items():
        if is_given:
            arguments.usage_error(f"{option} needs a prompt: give PROMPT, or something on stdin")
