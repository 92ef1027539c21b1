"""Whether vLLM's CPU build can compile models here: it takes a C++ compiler, and Python's header files."""

from __future__ import annotations

import os
import shutil
import sys
import sysconfig

EAGER = "--enforce-eager"


def compile_refusal() -> str | None:
    """Why torch can't compile for the CPU on this machine; None if it can."""
    compiler = os.environ.get("CXX") or "g++"
    if shutil.which(compiler) is None:
        return f"there is no C++ compiler here ({compiler}): install g++"
    if not os.path.exists(os.path.join(sysconfig.get_paths()["include"], "Python.h")):
        return "Python.h is missing here: install python3-dev"
    return None


def without_compiling(argv: list[str]) -> list[str]:
    """The server's arguments where nothing can be compiled."""
    return argv if EAGER in argv else [*argv, EAGER]


def switch_compiler_off() -> None:
    """Where nothing can be compiled: some requests would compile something even then."""
    torch = sys.modules.get("torch")
    if torch is not None:
        torch._dynamo.config.disable = True
