"""The ``vllm-local`` command: which commands there are, what they end with, and what becomes of their errors.

Imports nothing of a command but the one that is asked for.
"""

from __future__ import annotations

import argparse
import importlib
import io
import sys
import traceback
from collections.abc import Collection, Sequence
from types import ModuleType
from typing import Any, NamedTuple

from shared_engine.cli.exit_codes import BUSY, DONE, FAILED, INTERRUPTED, READER_LEFT, USAGE
from shared_engine.cli.interrupts import raise_again
from shared_engine.cli.terminal import complain, drop, tell
from shared_engine.errors import InvalidInputError, SettingsError, VLLMError


class Command(NamedTuple):
    """
    Attributes:
        text: what it does, in a line.
        module: in cli/commands/.
        aliases: other names.
    """

    text: str
    module: str
    aliases: tuple[str, ...] = ()


COMMANDS = {
    "run": Command("ask a model one thing; without a prompt: chat with it", "run", ("generate",)),
    "chat": Command("chat with a model at a terminal", "chat"),
    "pull": Command("fetch a model from the Hugging Face hub", "pull"),
    "list": Command("show the models on this disk", "list", ("ls",)),
    "rm": Command("delete models from this disk", "rm", ("remove",)),
    "show": Command("tell what a model is, what it can do, and whether it fits here", "show"),
    "load": Command("load a model, and return when it is ready", "load", ("warmup",)),
    "ps": Command("show the models that are loaded, what they do, and until when they stay", "ps"),
    "serve": Command("serve models to every program, at one address with OpenAI's protocol", "serve"),
    "batch": Command("answer a file of requests, and go on where that was interrupted", "batch"),
    "embed": Command("print the vectors of texts", "embed"),
    "rerank": Command("print how well documents fit a query, the best first", "rerank"),
    "tokens": Command("count or show the tokens of a text", "tokens"),
    "bench": Command("measure how fast a model answers here, alone and in parallel", "bench"),
    "config": Command("show every setting, its value, and where it came from", "config"),
    "install": Command("make the Python environment that runs vLLM, and remember it", "install"),
    "status": Command("show the engines that are alive, or failed a short time ago", "status"),
    "logs": Command("print an engine's log", "logs"),
    "stop": Command("shut engines down: no process of theirs is left", "stop"),
    "evict": Command("give the engines' memory back; vLLM stays imported for a fast return", "evict", ("unload",)),
    "doctor": Command("check what an engine needs, and start one", "doctor"),
    "completion": Command("have your shell complete commands, options, models and engines", "completion"),
}
_BY_ANY_NAME = {any_name: name for name, each in COMMANDS.items() for any_name in (name, *each.aliases)}
_EXIT_CODES = (
    f"exit codes: {DONE} done, {FAILED} failed, {USAGE} wrong usage, {BUSY} busy (requests in flight), "
    f"{INTERRUPTED} interrupted"
)
MANY_ARGUMENTS = 12
_EXAMPLES = (
    "vllm-local install",
    "vllm-local doctor",
    'vllm-local run Qwen/Qwen3-4B "Why is the sky blue?"',
    "vllm-local status --watch",
    "vllm-local COMMAND --help",
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return its exit code."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a log may hold what the terminal's encoding does not
    words = sys.argv[1:] if argv is None else list(argv)
    try:
        try:
            return _run(words)
        finally:
            tell("", end="")  # what argparse has written
            if sys.stdout is not None:  # it is, where the shell has closed it
                sys.stdout.flush()
    except BrokenPipeError:
        drop(sys.stdout)
        return READER_LEFT
    except OSError as exc:
        drop(sys.stdout)
        complain(_in_words(exc))
        return FAILED


def _run(words: Sequence[str]) -> int:
    arguments = argparse.Namespace(interrupted="")
    try:
        arguments = _parsed(words)
        raise_again()  # until here nothing but imports has happened
        return int(arguments.run(arguments))
    except KeyboardInterrupt:
        if arguments.interrupted:
            complain(f"interrupted; {arguments.interrupted}")
        return INTERRUPTED
    except BrokenPipeError:
        raise
    except Exception as exc:
        if "--debug" in words:
            traceback.print_exc()
        complain(_in_words(exc))
        return USAGE if isinstance(exc, SettingsError | InvalidInputError) else FAILED


def _in_words(exc: Exception) -> str:
    if isinstance(exc, VLLMError):
        return str(exc)
    if isinstance(exc, OSError) and exc.strerror:
        return f"{exc.filename or 'the output'}: {exc.strerror}"
    return f"a fault of its own: {type(exc).__name__}: {exc} (with --debug it shows where)"


# ---- what can be asked for


def _parsed(words: Sequence[str]) -> argparse.Namespace:
    """Ends the command where nothing can be done: with what there is, a version, or what is wrong."""
    asked = next((word for word in words if not word.startswith("-")), "")
    parser = parser_of([_BY_ANY_NAME[asked]] if asked in _BY_ANY_NAME else [])
    if not words:
        parser.print_help(sys.stderr)
        parser.exit(USAGE)
    if asked and asked not in _BY_ANY_NAME:
        from shared_engine.validation import say_unknown  # late: only where something is wrong

        parser.error(f"{say_unknown('command', asked, _BY_ANY_NAME)}; `vllm-local --help` tells what each does")
    return parser.parse_args(words)


def parser_of(names: Collection[str]) -> argparse.ArgumentParser:
    """The parser of all that is asked for; it knows the arguments of the commands of these names only."""
    parser = argparse.ArgumentParser(
        prog="vllm-local",
        description="One vLLM engine, shared by all your apps.",
        epilog=_epilog(_EXAMPLES),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version")
    _add_debug(parser)
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=_CommandParser)
    for name, command in COMMANDS.items():
        module = module_of(name) if name in names else None
        made = commands.add_parser(
            name,
            aliases=command.aliases,
            help=command.text,
            description=command.text[0].upper() + command.text[1:] + ".",
            epilog=_epilog(() if module is None else module.EXAMPLES),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        if module is not None:
            module.add_arguments(made)
            leaves = getattr(module, "INTERRUPTED", "")
            made.set_defaults(run=module.run, interrupted=leaves, usage_error=made.error)
            _require_only_what_must_be_there(made)
            _shorten_usage(made)
        _add_debug(made)
    return parser


def module_of(name: str) -> ModuleType:
    """The module of the command of this name."""
    return importlib.import_module(f"shared_engine.cli.commands.{COMMANDS[name].module}")


def _require_only_what_must_be_there(parser: argparse.ArgumentParser) -> None:
    """argparse names ``[PROMPT ...]`` too where MODEL is missing."""
    for each in parser._actions:
        if each.nargs == argparse.ZERO_OR_MORE:
            each.required = False


def _shorten_usage(parser: argparse.ArgumentParser) -> None:
    """Of many options the first line of a help only says that there are some."""
    if len(parser._actions) > MANY_ARGUMENTS:
        forms: dict[Any, str] = {None: "{0}", "?": "[{0}]", "*": "[{0} ...]", "+": "{0} [{0} ...]"}
        words = (
            forms[each.nargs].format(each.metavar or "|".join(map(str, each.choices or ())))
            for each in parser._actions
            if not each.option_strings
        )
        parser.usage = " ".join(["%(prog)s [OPTION ...]", *words])


def _epilog(examples: Sequence[str]) -> str:
    shown = "\n".join(["examples:", *(f"  {line}" for line in examples), "", ""]) if examples else ""
    return shown + _EXIT_CODES


def _add_debug(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--debug", action="store_true", help="show where an error came from")


class _CommandParser(argparse.ArgumentParser):
    """Takes words and options in any order: ``run MODEL --seed 1 PROMPT`` too."""

    _is_within = False

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        if self._is_within:
            return super().parse_known_args(args, namespace)
        self._is_within = True  # the other one calls this one, in Python 3.11
        try:
            parsed, unknown = self.parse_known_intermixed_args(args, namespace)
        finally:
            self._is_within = False
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}{self._near(unknown[0])}")
        return parsed, unknown

    def _near(self, word: str) -> str:
        import difflib  # late: only where something is wrong

        known = [option for action in self._actions for option in action.option_strings]
        near = difflib.get_close_matches(word.partition("=")[0], known, n=1)
        return f"; did you mean {near[0]}?" if near else ""


class _Version(argparse.Action):
    """Looks the version up only when it is asked for, which takes longer than to import the rest."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        import shared_engine

        print(f"vllm-local {shared_engine.__version__}")
        parser.exit()
