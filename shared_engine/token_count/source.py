"""What decides the tokenizer of an engine: settings, vLLM, and the model's files as they are now."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import astuple, dataclass
from pathlib import Path

from shared_engine.errors import EngineNotInstalledError
from shared_engine.launch.interpreter import find_interpreter
from shared_engine.launch.spec import launch_environment, tokenizer_argv
from shared_engine.launcher import TOKENIZER_EXPORTER
from shared_engine.model_files.folder import model_folder
from shared_engine.settings import EngineSettings

# Variables that vLLM and its libraries read; but for HF_TOKEN, which is secret.
_VARIABLES = ("VLLM_", "HF_", "TRANSFORMERS_")
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".onnx")

Fingerprint = tuple[tuple[str, int, int], ...]


class ServerOnlyError(Exception):
    """Why only the server knows the tokens."""


@dataclass(frozen=True)
class TokenizerSource:
    """Equal sources have equal tokenizers.

    Attributes:
        python: the interpreter that has vLLM.
        argv: the server's flags, as far as they matter.
        environment: of the variables that it inherits, those that may matter.
        fingerprint: of the files.
    """

    python: str
    vllm_version: str
    argv: tuple[str, ...]
    environment: tuple[tuple[str, str], ...]
    fingerprint: Fingerprint

    @property
    def key(self) -> str:
        return hashlib.sha256(json.dumps(astuple(self)).encode()).hexdigest()


def source_of(settings: EngineSettings) -> TokenizerSource:
    """The source of a local engine's tokenizer.

    Raises:
        ServerOnlyError: vLLM, or the model, is not here yet.
    """
    assert settings.model is not None  # EngineSettings checked it
    try:
        interpreter = find_interpreter(settings.python)
    except EngineNotInstalledError as exc:
        raise ServerOnlyError(str(exc)) from None
    revision = settings.engine_args.get("tokenizer_revision") or settings.revision
    # Not in download_dir: vLLM stores only weights there.
    model = model_folder(settings.model, settings.revision)
    tokenizer = model_folder(settings.tokenizer or settings.model, revision)
    if model is None or tokenizer is None:
        raise ServerOnlyError("it was not downloaded yet")
    argv = tokenizer_argv(settings)
    packages = Path(interpreter.path).parent.parent.glob("lib*/python3*/*-packages")  # changed by each installation
    named = [Path(word) for word in argv if os.path.isabs(word)]
    return TokenizerSource(
        python=interpreter.path,
        vllm_version=interpreter.version,
        argv=tuple(argv),
        environment=tuple(sorted(_environment())),
        fingerprint=_fingerprint(
            [TOKENIZER_EXPORTER, *packages, *_files({model.resolve(), tokenizer.resolve(), *named})]
        ),
    )


def _environment() -> Iterable[tuple[str, str]]:
    inherited = launch_environment(os.environ)
    return (
        (name, inherited[name]) for name in inherited if name.startswith(_VARIABLES) and not name.endswith("_TOKEN")
    )


def _files(places: Iterable[Path]) -> Iterable[Path]:
    """The files in folders, but for weights; and what is no folder."""
    for place in places:
        if not place.is_dir():
            yield place
        else:
            with contextlib.suppress(OSError):  # vLLM will say so
                yield from (file for file in place.iterdir() if not file.name.endswith(_WEIGHTS))


def _fingerprint(files: Iterable[Path]) -> Fingerprint:
    found = set()
    for file in files:
        try:
            status = file.stat()
        except OSError:
            continue
        found.add((str(file), status.st_mtime_ns, status.st_size))
    return tuple(sorted(found))
