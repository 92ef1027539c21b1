"""What vLLM compiles for the CPU, kept on disk: loaded where it is sound, compiled again where it is not.

vLLM keeps it below VLLM_CACHE_ROOT, in a folder for each model and settings (vllm/compilation/decorators.py), in which
torch has the libraries that g++ made. Left alone, they compile again at each start, and a library that was cut off by
a kill or a full disk breaks every later start.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import logging
import os
import stat
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from shared_engine.launcher.log import say
from shared_engine.machine.home import caches, expanded

ROOT_VARIABLE, INDUCTOR_VARIABLE = "VLLM_CACHE_ROOT", "TORCHINDUCTOR_CACHE_DIR"
CHECKS = "checks.json"
MIN_FREE_BYTES = 64 << 20


def keep_compiled_models() -> None:
    """Replace the functions of torch that load, save and build; or say that this torch has others."""
    torch: Any = sys.modules.get("torch")
    if torch is None:
        return
    try:
        _replace_functions(torch)
    except (ImportError, AttributeError) as exc:
        say(f"models are compiled at each start: torch {torch.__version__} is unknown ({exc})", logging.WARNING)


def _replace_functions(torch: Any) -> None:
    import torch._inductor.config as inductor_config
    from torch._dynamo.aot_compile import AOTCompiledFunction
    from torch._inductor.cpp_builder import CppBuilder
    from torch._inductor.cpu_vec_isa import VecISA, _get_isa_dry_compile_fingerprint
    from torch._inductor.runtime.runtime_utils import cache_dir

    # torch would precompile a header at each start, for compiling faster: into the server's temporary files, so that it
    # takes longer than all else of a start that has nothing to compile. It is part of the libraries' names.
    inductor_config.cpp_cache_precompile_headers = False
    torch.compiler.load_compiled_function = _loading(torch.compiler.load_compiled_function)
    AOTCompiledFunction.save_compiled_function = _saving(AOTCompiledFunction.save_compiled_function)
    CppBuilder.build = _building(CppBuilder.build)
    VecISA.check_build = _checking(VecISA.check_build, _get_isa_dry_compile_fingerprint, cache_dir)


def _loading(load: Any) -> Any:
    @functools.wraps(load)
    def load_compiled_function(file: Any, **kwargs: Any) -> Any:
        check_files(Path(file.name).parent)
        loaded = load(file, **kwargs)
        compiled = loaded._artifacts.compiled_fn
        if not hasattr(compiled, "finalize_loading"):
            # On the CPU it is a plain function, and vLLM calls this all the same: it would compile again.
            compiled.finalize_loading = lambda _: None
        return loaded

    return load_compiled_function


def _saving(save: Any) -> Any:
    @functools.wraps(save)
    def save_compiled_function(self: Any, path: str, *args: Any, **kwargs: Any) -> Any:
        saved = save(self, path, *args, **kwargs)
        write_checks(Path(path))
        return saved

    return save_compiled_function


def _building(build: Any) -> Any:
    """A library appears whole or not at all: torch takes any file of that name for one that is finished."""

    @functools.wraps(build)
    def build_elsewhere(self: Any) -> None:
        target = self._target_file
        partial = f"{target}.{os.getpid()}"
        output = self._output
        self._target_file, self._output = partial, output.replace(target, partial)
        try:
            build(self)
            os.replace(partial, target)
        finally:
            self._target_file, self._output = target, output
            with contextlib.suppress(FileNotFoundError):
                os.unlink(partial)

    return build_elsewhere


def _checking(check: Any, fingerprint: Any, cache_dir: Any) -> Any:
    """Which vector instructions the compiler knows is found out by compiling and loading something, a second each.

    torch keeps what it compiled for that, and loads it again at each start, in a process for each.
    """

    @functools.wraps(check)
    def check_build(self: Any, code: str) -> bool:
        what = hashlib.sha256(f"{fingerprint(str(self))} {code}".encode()).hexdigest()
        passed = Path(cache_dir()) / "vector_instructions" / what
        if passed.exists():
            return True
        if not check(self, code):
            return False
        with contextlib.suppress(OSError):  # then it is tried again
            passed.parent.mkdir(exist_ok=True)
            passed.touch()
        return True

    return check_build


def write_checks(model: Path) -> None:
    """Note what belongs to a model that was just compiled.

    Args:
        model: the file that it was saved to, in its folder, before it gets its name.
    """
    folder = model.parent
    sums = {os.path.relpath(file, folder): _sum(file) for file in _files(folder)}
    sums["model"] = _sum(model)
    partial = folder / f"{CHECKS}.{os.getpid()}"
    partial.write_text(json.dumps(sums))
    os.replace(partial, folder / CHECKS)


def check_files(folder: Path) -> None:
    """Remove those files of the model in ``folder`` that are not as they were written.

    Raises:
        ValueError: there was one: the model must be compiled again.
    """
    try:
        sums = json.loads((folder / CHECKS).read_bytes())
        damaged = [folder / name for name, expected in sums.items() if _sum(folder / name) != expected]
    except FileNotFoundError:
        return  # `vllm serve` has compiled it
    except (ValueError, TypeError, AttributeError):
        damaged = [folder / CHECKS]
    for file in damaged:
        file.unlink(missing_ok=True)
    if damaged:
        raise ValueError(f"damaged files in the compile cache, removed: {', '.join(map(str, damaged))}")


def _files(folder: Path) -> Iterator[Path]:
    """What all ranks share."""
    for file in sorted((folder.parent / "inductor_cache").rglob("*")):
        if file.is_file() and file.parent.name != "locks":
            yield file


def _sum(file: Path) -> str:
    try:
        return hashlib.sha256(file.read_bytes()).hexdigest()
    except FileNotFoundError:
        return "missing"


def use_safe_cache() -> None:
    """Have the server that is about to start keep what it compiles where that is safe, and say where it is not kept."""
    for variable, default in ((ROOT_VARIABLE, caches() / "vllm"), (INDUCTOR_VARIABLE, None)):
        folder = os.environ.get(variable) or default
        refusal = folder and refusal_of(expanded(folder))
        if refusal:
            # In the server's own temporary folder: private, and gone with it.
            os.environ[variable] = tempfile.mkdtemp(prefix="compiled-")
            say(f"what is compiled is not kept for the next start: {refusal}", logging.WARNING)


def refusal_of(folder: Path) -> str | None:
    """Why a cache folder can't be used, which is made if need be; None if it can.

    Code is loaded from it: a folder that others can write to won't do.
    """
    if len(str(folder).split()) > 1:
        return f"torch can't compile in {folder}, which has a space in its name"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.stat()
        disk = os.statvfs(folder)
    except OSError as exc:
        return f"{exc.filename}: {exc.strerror}"
    of_others = stat.S_IWOTH if status.st_gid == os.getgid() else stat.S_IWOTH | stat.S_IWGRP
    if status.st_uid not in (os.getuid(), 0) or status.st_mode & of_others:
        return f"others can write to {folder}"
    if not os.access(folder, os.W_OK | os.X_OK):
        return f"{folder} can't be written"
    if disk.f_bavail * disk.f_frsize < MIN_FREE_BYTES:
        return f"less than {MIN_FREE_BYTES >> 20} MiB are free in {folder}"
    return None
