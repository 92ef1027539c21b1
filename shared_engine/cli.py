"""The ``vllm-local`` command. Thin: each subcommand's work is done elsewhere.

Exit codes: 0 done, 1 failed (with the reason on stderr), 2 wrong usage, 130 interrupted.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from shared_engine.errors import VLLMError
from shared_engine.install import detect_build, install


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand; return its exit code."""
    arguments = _parser().parse_args(argv)
    try:
        return int(arguments.run(arguments))
    except VLLMError as exc:
        print(f"vllm-local: {exc}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("vllm-local: interrupted; run the same command again to go on", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="vllm-local", description="One vLLM engine, shared by all your apps.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    command = commands.add_parser("install", help="make the Python environment that runs vLLM, and remember it")
    build = command.add_mutually_exclusive_group()
    build.add_argument("--cpu", dest="build", action="store_const", const="cpu", help="build for CPU")
    build.add_argument("--cuda", dest="build", action="store_const", const="cuda", help="build for NVIDIA GPUs")
    command.add_argument("--path", type=Path, metavar="DIR", help="where (default: the user's data directory)")
    command.set_defaults(run=_install, build=None)
    return parser


def _install(arguments: argparse.Namespace) -> int:
    build = arguments.build or detect_build()
    if arguments.build is None:
        print(f"{'an NVIDIA GPU was' if build == 'cuda' else 'no NVIDIA GPU was'} found: the {build} build it is")
    install(build, arguments.path, lambda line: print(line, flush=True))
    return 0


if __name__ == "__main__":
    sys.exit(main())
