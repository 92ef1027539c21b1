"""One API server, in the child that the launcher has forked for it."""

from __future__ import annotations

import contextlib
import importlib
import itertools
import logging
import os
import signal
import sys
import traceback
from collections.abc import Callable
from typing import Any, NoReturn

from shared_engine.launcher.compiler import compile_refusal, switch_compiler_off, without_compiling
from shared_engine.launcher.cores import bind_workers_apart
from shared_engine.launcher.log import say
from shared_engine.launcher.tcp import make_entrance
from shared_engine.launcher.vllm_build import is_cpu_build
from shared_engine.machine.processor import is_slow_in_bfloat16
from shared_engine.vllm_versions import Release, release_of

SEVERAL_SERVERS = "vllm.entrypoints.cli.serve"
SLOW_IN_BFLOAT16 = (
    "this processor has no AVX-512: several requests at once take several times as long in bfloat16 as in float32. "
    'Where there is memory for twice the weights, pass dtype="float32" (VLLM_DTYPE, --dtype)'
)


def is_left_slow(argv: list[str]) -> bool:
    """Whether vLLM is left to choose a type in which this processor is slow."""
    return ("--dtype", "auto") in itertools.pairwise(argv) and is_slow_in_bfloat16()


def serve(argv: list[str]) -> NoReturn:
    """Be the API server until it ends. Runs in the forked child."""
    code = 1
    try:
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        devnull = os.open(os.devnull, os.O_RDONLY)
        os.dup2(devnull, 0)
        if is_cpu_build() and is_left_slow(argv):
            say(SLOW_IN_BFLOAT16, logging.WARNING)
        if is_cpu_build() and (refusal := compile_refusal()) is not None:
            say(f"the model is not compiled, and answers slower: {refusal}", logging.WARNING)
            switch_compiler_off()
            argv = without_compiling(argv)
        sys.argv = ["vllm serve", *argv]
        _run(argv)
        code = 0
    except SystemExit as exc:
        code = exc.code if isinstance(exc.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _run(argv: list[str]) -> None:
    """What ``vllm serve`` does (vllm/entrypoints/cli/serve.py), but for one API server where nothing else is said: its
    own default for data parallelism is one for each copy, and several can't load adapters."""
    import uvloop

    release = installed_release()
    importlib.import_module(release.startup).cli_env_setup()
    args = parsed(argv, release)
    bind_workers_apart(args)
    make_entrance()
    if (args.api_server_count or 1) > 1:
        importlib.import_module(SEVERAL_SERVERS).run_multi_api_server(args)
    else:
        uvloop.run(importlib.import_module(release.api_server).run_server(args))


def installed_release() -> Release:
    """The one of the vLLM that is imported."""
    import vllm

    return release_of(str(vllm.__version__))


def parsed(argv: list[str], release: Release, *, on_error: Callable[[str], NoReturn] | None = None) -> Any:
    """vLLM's own arguments of an API server, and its logging by them.

    Args:
        on_error: gets the words for arguments that vLLM does not know; else they end the process.
    """
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    cli_args: Any = importlib.import_module(release.cli_args)
    parser = FlexibleArgumentParser(prog="vllm serve")
    if on_error is not None:
        parser.error = on_error
    args = cli_args.make_arg_parser(parser).parse_args(argv)
    logger: Any = importlib.import_module("vllm.logger")
    if hasattr(logger, "configure_logging_from_args"):  # from 0.32 on
        logger.configure_logging_from_args(args)
    cli_args.validate_parsed_serve_args(args)
    return args
