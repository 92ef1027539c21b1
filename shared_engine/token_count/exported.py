"""Tokenizers as vLLM exports them (launcher/export_tokenizer.py): once for each source, then kept on disk.

``<cache>/vllm-local/tokenizers/<key of the source>``: a checksum, then what the exporter printed. The folder is
private, since who can write there decides how texts are tokenized. Whatever is wrong with it costs only another export.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import logging
import os
import stat
import subprocess
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shared_engine.launch.spec import launch_environment
from shared_engine.launcher import TOKENIZER_EXPORTER
from shared_engine.machine.home import caches
from shared_engine.request.green_threads import held
from shared_engine.runtime.files import remove_files, write_atomically
from shared_engine.token_count.chat_template import ChatTemplate
from shared_engine.token_count.source import ServerOnlyError, TokenizerSource

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_log = logging.getLogger("shared_engine")

EXPORT_TIMEOUT_S = 180.0
MAX_KEPT = 16  # files of 1 to 30 MB
MAX_LOADED = 4  # a large vocabulary takes some 100 MB

_loaded: dict[TokenizerSource, ModelTokens] = {}
_refused: dict[TokenizerSource, str] = {}
_lock = threading.Lock()  # threads share one export
_begun: dict[TokenizerSource, threading.Thread] = {}


@dataclass(frozen=True)
class ModelTokens:
    """What is known here of a model's tokens.

    Attributes:
        tokenizer: the server's, without truncation and padding.
        chat: how it writes conversations; None where only the server can.
        chat_refusal: why it is None.
    """

    tokenizer: Tokenizer
    chat: ChatTemplate | None = None
    chat_refusal: str = ""


def _new_lock() -> None:
    global _lock
    _lock = threading.Lock()
    _begun.clear()  # a child has none of its parent's threads


os.register_at_fork(after_in_child=_new_lock)  # another thread may have held it


def exported_tokenizer(source: TokenizerSource) -> ModelTokens:
    """What vLLM exported.

    Raises:
        ServerOnlyError: there is none outside vLLM; in this process it stays so.
    """
    known = _known(source)
    if known is None:
        with held(_lock):
            known = _known(source) or _load_and_remember(source)
    return known


def tokenizer_if_exported(source: TokenizerSource) -> ModelTokens | None:
    """The same, but for the waiting: None where vLLM has yet to export it, or exports another one just now. A thread
    then sees to it.
    """
    known = _known(source)
    if known is not None or (not _lock.locked() and _kept(source.key) is not None):
        return known or exported_tokenizer(source)
    thread = threading.Thread(target=_export_aside, args=(source,), name="tokenizer export", daemon=True)
    if _begun.setdefault(source, thread) is thread:
        try:
            thread.start()
        except RuntimeError:  # no more threads, or the app is ending: the next one who asks may have better luck
            del _begun[source]
    return None


def _export_aside(source: TokenizerSource) -> None:
    try:
        with contextlib.suppress(ServerOnlyError):  # remembered: who asks next is told
            exported_tokenizer(source)
    finally:
        del _begun[source]


def _known(source: TokenizerSource) -> ModelTokens | None:
    if source in _refused:
        raise ServerOnlyError(_refused[source])
    return _loaded.get(source)


def _load_and_remember(source: TokenizerSource) -> ModelTokens:
    try:
        loaded = _load(source)
    except ServerOnlyError as exc:
        _refused[source] = str(exc)
        raise
    if len(_loaded) >= MAX_LOADED:
        del _loaded[next(iter(_loaded))]
    _loaded[source] = loaded
    return loaded


def _load(source: TokenizerSource) -> ModelTokens:
    if importlib.util.find_spec("tokenizers") is None:
        raise ServerOnlyError("tokenizers is not installed here: pip install tokenizers")
    exported = _kept(source.key)
    if exported is None:
        exported = _export(source)
        _keep(source.key, exported)
    tokenizer = tokenizer_of(exported)
    try:
        return ModelTokens(tokenizer, ChatTemplate(exported["chat"]))
    except ServerOnlyError as exc:
        return ModelTokens(tokenizer, chat_refusal=str(exc))


def tokenizer_of(exported: Mapping[str, Any]) -> Tokenizer:
    """The tokenizer in what the exporter printed, if the library here makes the same of it as vLLM's.

    Raises:
        ServerOnlyError: it does not, or vLLM exported none.
    """
    import tokenizers

    if "refusal" in exported:
        raise ServerOnlyError(exported["refusal"])
    here = f"tokenizers {tokenizers.__version__} here"
    try:
        tokenizer = tokenizers.Tokenizer.from_str(exported["tokenizer"])
    except Exception as exc:  # the Rust library raises bare Exceptions
        raise ServerOnlyError(f"{here} can't read its tokenizer ({exc})") from exc
    tokenizer.no_truncation()
    tokenizer.no_padding()
    for text, *expected in exported["probes"]:
        if [tokenizer.encode(text, add_special_tokens=special).ids for special in (True, False)] != expected:
            raise ServerOnlyError(f"{here} gives {text!r:.40} other tokens than vLLM does")
    return tokenizer


def _export(source: TokenizerSource) -> dict[str, Any]:
    """What vLLM's Python says.

    Raises:
        ServerOnlyError: it failed, or took too long.
    """
    _log.info("exporting the tokenizer of %s from %s, once", source.argv[1], source.python)
    try:
        done = subprocess.run(
            [source.python, str(TOKENIZER_EXPORTER), *source.argv],
            # Nothing is downloaded: what is not here, the server will get.
            env={**launch_environment(os.environ), "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"},
            cwd="/",  # as an engine, a relative path finds nothing
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=EXPORT_TIMEOUT_S,
            check=True,
        )
        exported = json.loads(done.stdout)
    except subprocess.CalledProcessError as exc:
        last = exc.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        raise ServerOnlyError(f"vLLM could not load its tokenizer alone: {last[:300]}") from exc
    except subprocess.TimeoutExpired:
        raise ServerOnlyError(f"vLLM took longer than {EXPORT_TIMEOUT_S:g} s to load its tokenizer alone") from None
    except (OSError, ValueError) as exc:
        raise ServerOnlyError(f"its tokenizer could not be exported: {exc}") from exc
    assert isinstance(exported, dict)
    return exported


# ---- on disk


def _kept(key: str) -> dict[str, Any] | None:
    try:
        file = _folder() / key
        checksum, _, text = file.read_text().partition("\n")
        os.utime(file)  # the oldest are removed
    except (OSError, UnicodeDecodeError):
        return None
    if _checksum(text) != checksum:
        return None
    exported: dict[str, Any] = json.loads(text)
    return exported


def _keep(key: str, exported: dict[str, Any]) -> None:
    text = json.dumps(exported)
    try:
        folder = _folder()
        write_atomically(folder / key, f"{_checksum(text)}\n{text}")
    except OSError as exc:
        _log.info("the tokenizer is not kept for other processes: %s", exc)
        return
    with contextlib.suppress(OSError):  # another process does the same
        files = sorted(folder.iterdir(), key=lambda file: file.stat().st_mtime)
        remove_files(map(str, files[:-MAX_KEPT]))


def _checksum(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _folder() -> Path:
    """The cache's folder, made if need be.

    Raises:
        OSError: it can't be made, or is not only this user's.
    """
    folder = caches() / "vllm-local" / "tokenizers"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o077:
        raise PermissionError(f"{folder} is a link, another user's, or open to others: `chmod 700` or remove it")
    return folder
