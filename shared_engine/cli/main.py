"""The ``vllm-local`` command: arguments, words and exit codes. Each subcommand's work is done elsewhere."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import functools
import io
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from itertools import chain
from pathlib import Path

import shared_engine
from shared_engine.cli.ending import end_engines
from shared_engine.cli.exit_codes import BUSY, DONE, FAILED, INTERRUPTED, READER_LEFT
from shared_engine.cli.status_table import status_table
from shared_engine.errors import EngineNameError, VLLMError
from shared_engine.launch.install import fitting_build, install
from shared_engine.observe.engine_info import EngineInfo
from shared_engine.observe.engines import choose, find_engines, listing
from shared_engine.observe.log_lines import LineReader
from shared_engine.observe.log_reader import plain_text, read_log
from shared_engine.runtime.directory import runtime_root

WATCH_S, MIN_WATCH_S = 2.0, 0.1
LOG_LINES = 100
END_TIMEOUT_S = 30.0
_EPILOG = (
    f"exit codes: {DONE} done, {FAILED} failed, 2 wrong usage, {BUSY} busy (requests in flight), "
    f"{INTERRUPTED} interrupted"
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand; return its exit code."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a log may hold what the terminal's encoding does not
    try:
        try:
            arguments = _parser().parse_args(argv)
            return _run(arguments)
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        # What is still buffered must not fail a second time when Python ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return READER_LEFT


def _run(arguments: argparse.Namespace) -> int:
    try:
        return int(arguments.run(arguments))
    except VLLMError as exc:
        _complain(str(exc))
        return FAILED
    except KeyboardInterrupt:
        if arguments.interrupted:
            _complain(f"interrupted; {arguments.interrupted}")
        return INTERRUPTED


def _complain(text: str) -> None:
    print(f"vllm-local: {text}", file=sys.stderr)


class _Version(argparse.Action):
    """Looks the version up only when it is asked for, which takes longer than to import the rest."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        print(f"vllm-local {shared_engine.__version__}")
        parser.exit()


# ---- what can be asked for


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="vllm-local", description="One vLLM engine, shared by all your apps.", epilog=_EPILOG
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: Callable[[argparse.Namespace], int], text: str, interrupted: str = "") -> _Parser:
        made = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".", epilog=_EPILOG)
        made.set_defaults(run=run, interrupted=interrupted)
        return made

    text = "make the Python environment that runs vLLM, and remember it"
    _add_install(command("install", _install, text, "run the same command again to go on"))
    _add_status(command("status", _status, "show the engines that are alive, or failed a short time ago"))
    _add_logs(command("logs", _logs, "print an engine's log"))
    waits = "an engine that has begun to stop goes on stopping"
    _add_ending(command("stop", _end, "shut engines down: no process of theirs is left", waits), shuts_down=True)
    text = "give the engines' memory back; vLLM stays imported for a fast return"
    _add_ending(command("evict", _end, text, waits), shuts_down=False)
    text = "check what an engine needs, and start one"
    _add_doctor(command("doctor", _doctor, text, "nothing that it started is left running"))
    return parser


_Parser = argparse.ArgumentParser
_ENGINE = "an engine: the first 4 or more digits of its key, its model, or its model's last component"


def _add_install(parser: _Parser) -> None:
    build = parser.add_mutually_exclusive_group()
    build.add_argument("--cpu", dest="build", action="store_const", const="cpu", help="build for CPU")
    build.add_argument("--cuda", dest="build", action="store_const", const="cuda", help="build for NVIDIA GPUs")
    text = "where (default: the user's data directory); it becomes the default of all your apps all the same"
    parser.add_argument("--path", type=Path, metavar="DIR", help=text)
    parser.set_defaults(build=None)


def _add_status(parser: _Parser) -> None:
    parser.add_argument("engines", nargs="*", metavar="ENGINE", help=_ENGINE)
    parser.add_argument("--all", action="store_true", help="also engines that have ended")
    parser.add_argument("--tree", action="store_true", help="show the processes of each")
    parser.add_argument("--json", action="store_true", help="a list of objects; with --watch one line each time")
    period = functools.partial(_seconds, least=MIN_WATCH_S)
    text = f"again every SECONDS (default {WATCH_S:g}) until Ctrl-C"
    parser.add_argument("--watch", nargs="?", type=period, const=WATCH_S, metavar="SECONDS", help=text)


def _add_logs(parser: _Parser) -> None:
    parser.add_argument("engine", nargs="?", metavar="ENGINE", help=f"{_ENGINE} (default: the one alive, or last used)")
    parser.add_argument("-f", "--follow", action="store_true", help="go on until Ctrl-C")
    text = f"so many of the last lines (default {LOG_LINES})"
    parser.add_argument("--json", action="store_true", help="an object for each line")
    parser.add_argument("-n", dest="lines", type=_count, default=LOG_LINES, metavar="LINES", help=text)


def _add_ending(parser: _Parser, *, shuts_down: bool) -> None:
    parser.add_argument("engines", nargs="*", metavar="ENGINE", help=f"{_ENGINE} (default: the only one alive)")
    parser.add_argument("--all", action="store_true", help="all of them")
    text = f"wait so many seconds for requests in flight (default {END_TIMEOUT_S:g})"
    parser.add_argument("--timeout", type=_seconds, default=END_TIMEOUT_S, metavar="S", help=text)
    if shuts_down:
        parser.add_argument("--force", action="store_true", help="do not wait: requests in flight fail")
    parser.set_defaults(force=False, shuts_down=shuts_down, usage_error=parser.error)


def _add_doctor(parser: _Parser) -> None:
    parser.add_argument("--model", metavar="M", help="for the smoke test (default: VLLM_MODEL_PATH, or a tiny one)")
    parser.add_argument("--no-smoke", dest="smoke", action="store_false", help="start no engine")
    parser.add_argument("--json", action="store_true", help="a list of objects")


def _seconds(text: str, least: float = 0.0) -> float:
    with contextlib.suppress(ValueError):
        if least <= float(text) < float("inf"):
            return float(text)
    raise argparse.ArgumentTypeError(f"must be a number of seconds, {least:g} or more, got {text!r}")


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"must be a whole number, 0 or more, got {text!r}")
    return int(text)


# ---- install, doctor


def _install(arguments: argparse.Namespace) -> int:
    fitting, why = fitting_build()
    build = arguments.build or fitting
    if arguments.build is None:
        print(f"the {build.upper()} build fits this machine ({why})", flush=True)
    elif (build, fitting) == ("cuda", "cpu"):
        print(f"the CUDA build will not run on this machine ({why}); going on, as it may be for another", flush=True)
    install(build, arguments.path, lambda line: print(line, flush=True))
    return DONE


def _doctor(arguments: argparse.Namespace) -> int:
    from shared_engine.cli.doctor import diagnose  # late: it imports all there is
    from shared_engine.cli.finding import Finding, Outcome

    def say(text: str) -> None:
        if sys.stderr.isatty():
            print(f"  ... {text}", file=sys.stderr)

    findings: list[Finding] = []
    for finding in diagnose(arguments.model, smoke=arguments.smoke, say=say):
        findings.append(finding)
        if not arguments.json:
            print(f"{finding.outcome.value:<4}  {finding.check:<17}  {finding.detail}", flush=True)
            if finding.remedy:
                print(f"{'':<25}-> {finding.remedy}", flush=True)
    if arguments.json:
        print(json.dumps([finding.to_json() for finding in findings], indent=2))
    return FAILED if any(finding.outcome is Outcome.FAIL for finding in findings) else DONE


# ---- status


def _status(arguments: argparse.Namespace) -> int:
    if arguments.watch is None:
        print(_frame(arguments))
        return DONE
    try:
        while True:
            frame = _frame(arguments)
            is_drawing = sys.stdout.isatty() and not arguments.json
            print(f"\x1b[H\x1b[J{frame}" if is_drawing else frame, flush=True)
            if not is_drawing and not arguments.json:
                print(flush=True)
            time.sleep(arguments.watch)
    except KeyboardInterrupt:
        return DONE


def _named(engines: Sequence[EngineInfo], names: Sequence[str]) -> list[EngineInfo]:
    """The engines of these names, none of them twice."""
    return list({engine.key: engine for engine in (choose(engines, name) for name in names)}.values())


def _frame(arguments: argparse.Namespace) -> str:
    engines = find_engines()
    if arguments.engines:
        shown = _named(engines, arguments.engines)
    else:
        shown = [engine for engine in engines if arguments.all or engine.is_worth_a_line]
    if arguments.json:
        return json.dumps([each.to_json() for each in shown], indent=2 if arguments.watch is None else None)
    if shown:
        return "\n".join(status_table(shown, tree=arguments.tree))
    ended = f" ({len(engines)} ended: --all shows them)" if engines else ""
    return f"no engine is alive in {runtime_root()}{ended}"


# ---- logs


def _logs(arguments: argparse.Namespace) -> int:
    engines = find_engines()
    engine = choose(engines, arguments.engine) if arguments.engine else _last_used(engines)
    texts = read_log(Path(engine.log_file or ""), arguments.lines, follow=arguments.follow)
    if arguments.json:
        reader = LineReader()
        for line in (line for text in chain(texts, "\n") for line in reader.feed(text)):
            print(json.dumps(line.to_json()), flush=True)
        return DONE
    for text in texts if sys.stdout.isatty() else plain_text(texts):
        sys.stdout.write(text)
        sys.stdout.flush()
    return DONE


def _last_used(engines: Sequence[EngineInfo]) -> EngineInfo:
    if not engines:
        raise EngineNameError(f"no engines found in {runtime_root()}")
    if len(engines) > 1:
        print(f"==> {engines[0].name} ({engines[0].key})", file=sys.stderr)
    return engines[0]  # the living come first, then the most recently used


# ---- stop, evict


def _end(arguments: argparse.Namespace) -> int:
    if arguments.all and arguments.engines:
        arguments.usage_error("name engines, or use --all, not both")
    engines = find_engines()
    alive = [engine for engine in engines if engine.is_alive]
    if arguments.engines:
        chosen = _named(engines, arguments.engines)
    elif arguments.all or len(alive) < 2:
        chosen = alive
    else:
        raise EngineNameError(f"{len(alive)} engines are alive: name one, or use --all:\n{listing(alive)}")
    if not chosen:
        print("no engine is alive")
    timeout, force = arguments.timeout, arguments.force
    ended = asyncio.run(end_engines(chosen, timeout, shuts_down=arguments.shuts_down, force=force))
    for code, text in ended:
        print(text) if code == DONE else _complain(text)
    return max((code for code, _ in ended), default=DONE)


if __name__ == "__main__":
    sys.exit(main())
