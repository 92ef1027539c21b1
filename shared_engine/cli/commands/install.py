"""``vllm-local install``."""

from __future__ import annotations

import argparse
from pathlib import Path

from shared_engine.cli.exit_codes import DONE
from shared_engine.launch.install import fitting_build, install

NEXT = 'now ask a model: vllm-local run Qwen/Qwen3-0.6B "What is the capital of France?"'
EXAMPLES = ("vllm-local install", "vllm-local install --cuda --path /opt/vllm")
INTERRUPTED = "run the same command again to go on"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    build = parser.add_mutually_exclusive_group()
    build.add_argument("--cpu", dest="build", action="store_const", const="cpu", help="build for CPU")
    build.add_argument("--cuda", dest="build", action="store_const", const="cuda", help="build for NVIDIA GPUs")
    text = "where (default: the user's data directory); it becomes the default of all your apps all the same"
    parser.add_argument("--path", type=Path, metavar="DIR", help=text)
    parser.set_defaults(build=None)


def run(arguments: argparse.Namespace) -> int:
    fitting, why = fitting_build()
    build = arguments.build or fitting
    if arguments.build is None:
        print(f"the {build.upper()} build fits this machine ({why})", flush=True)
    elif (build, fitting) == ("cuda", "cpu"):
        print(f"the CUDA build will not run on this machine ({why}); going on, as it may be for another", flush=True)
    install(build, arguments.path, lambda line: print(line, flush=True))
    print(NEXT)
    return DONE
