"""Counts tokens without an engine, from the model's own tokenizer.json and chat template. Exactly, or not at all.

It does what vLLM 0.32 does, with the packages ``tokenizers`` and ``jinja2``, which are imported on first use. Where it
is not certain that the result is the server's, the server is left to count.
"""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from shared_engine.errors import EngineNotInstalledError, InvalidInputError
from shared_engine.launch.interpreter import find_interpreter
from shared_engine.model_files.folder import model_folder
from shared_engine.request.bodies import Request, request_of, text_tokens_request
from shared_engine.request.checks import Message, check_messages
from shared_engine.request.routes import TOKENIZE
from shared_engine.settings import EngineSettings
from shared_engine.token_count.counter import DoubtError, TokenCounter
from shared_engine.token_count.tokenizer_files import FILES, TOKENIZER, TokenizerFiles

_log = logging.getLogger("shared_engine")

# Any of these makes vLLM take another tokenizer or template than the folder tells.
_DOUBTFUL_ARGS = (
    "tokenizer_revision", "skip_tokenizer_init", "hf_config_path", "hf_overrides", "config_format", "config",
    "code_revision", "enable_prompt_embeds", "model_impl",
)  # fmt: skip
_DOUBTFUL_VARIABLES = ("VLLM_USE_MODELSCOPE", "VLLM_USE_FASTOKENS", "VLLM_MODEL_REDIRECT_PATH")
# In chat_template_kwargs these would be arguments of transformers' apply_chat_template, or stand for its functions.
_RESERVED = {
    "self", "conversation", "messages", "tools", "documents", "chat_template", "add_generation_prompt",
    "continue_final_message", "tokenize", "padding", "truncation", "max_length", "return_tensors", "return_dict",
    "return_assistant_tokens_mask", "tokenizer_kwargs", "raise_exception", "strftime_now",
}  # fmt: skip
_MAX_LOADED = 4  # a large vocabulary takes some 100 MB


def tokenize_request(
    text: str | Sequence[Message],
    tools: Sequence[Mapping[str, Any]] | None,
    chat_template_kwargs: Mapping[str, Any] | None,
) -> Request:
    """The request that has the server count, which also says what is to be counted here.

    Raises:
        InvalidInputError: ``text`` is neither a prompt nor a conversation, or can't be written as JSON.
    """
    if isinstance(text, str):
        if tools or chat_template_kwargs:
            raise InvalidInputError("tools and chat_template_kwargs go with messages, not with a text")
        return text_tokens_request(text)
    part: dict[str, Any] = {"messages": [_renamed(message) for message in check_messages(text)]}
    if tools:
        part["tools"] = list(tools)
    if chat_template_kwargs:
        part["chat_template_kwargs"] = dict(chat_template_kwargs)
    return request_of(TOKENIZE, part)


def _renamed(message: Message) -> dict[str, Any]:
    """The older name of ``reasoning``, which chat requests may use, is unknown to /tokenize."""
    renamed = dict(message)
    reasoning = renamed.pop("reasoning_content", None)
    if reasoning is not None and renamed.get("reasoning") is None:
        renamed["reasoning"] = reasoning
    return renamed


def count_locally(settings: EngineSettings, request: Request) -> int | None:
    """Tokens of a ``tokenize_request``, as the server would count them; None where only the server can.

    Raises:
        InvalidInputError: the model's chat template refuses the conversation.
    """
    try:
        counter = _counter(settings)
        part = json.loads(request.body)  # as the server sees it
        if "prompt" in part:
            return counter.count_text(part["prompt"])
        return counter.count_conversation(
            part["messages"], part.get("tools"), _template_variables(settings, part.get("chat_template_kwargs") or {})
        )
    except DoubtError as doubt:
        _say_once(str(settings.model), str(doubt))
        return None


def local_tokenizer(settings: EngineSettings) -> Callable[[str], list[int]] | None:
    """A function from a text to its tokens, without special ones around them; None where only the server knows them."""
    try:
        return _counter(settings).tokens
    except DoubtError as doubt:
        _say_once(str(settings.model), str(doubt))
        return None


@cache
def _say_once(model: str, doubt: str) -> None:
    _log.info("tokens of %s are counted by the server: %s", model, doubt)


def _template_variables(settings: EngineSettings, given: Mapping[str, Any]) -> dict[str, Any]:
    """Of the server, and of this request, as vLLM merges them."""
    defaults = settings.engine_args.get("default_chat_template_kwargs") or {}
    if not isinstance(defaults, dict):
        raise DoubtError("default_chat_template_kwargs is no dict")
    if not _RESERVED.isdisjoint((*defaults, *given)):
        raise DoubtError(f"chat_template_kwargs has one of {', '.join(sorted(_RESERVED))}")
    cohere = {"cohere_format": settings.engine_args.get("cohere_format") or "cmd4"}  # given to every template
    return {**cohere, **defaults, **{name: value for name, value in given.items() if value not in (None, "auto")}}


# ---- which files


@dataclass(frozen=True)
class _Sources:
    """All that decides a counter.

    Attributes:
        fingerprint: of the files as they are now.
        template: given in place of the model's own.
    """

    folder: Path
    model_folder: Path
    is_from_hub: bool
    fingerprint: tuple[tuple[str, int, int], ...]
    python: str | None
    template: str | None
    content_format: str


def _counter(settings: EngineSettings) -> TokenCounter:
    sources = _sources(settings)
    with _lock:
        counter = _load(sources)
    if isinstance(counter, str):
        raise DoubtError(counter)
    return counter


def _sources(settings: EngineSettings) -> _Sources:
    if settings.is_remote or settings.model is None:
        raise DoubtError("it runs elsewhere")
    if settings.trust_remote_code:
        raise DoubtError("trust_remote_code may bring another tokenizer")
    _check_args(settings.engine_args)
    name = settings.tokenizer or settings.model
    # Not in download_dir: vLLM stores only weights there.
    folder, served = (model_folder(each, settings.revision) for each in (name, settings.model))
    if folder is None or served is None:
        raise DoubtError("it was not downloaded yet")
    is_folder = Path(name).expanduser().is_dir()
    if settings.tokenizer is not None and is_folder and not os.path.isabs(name):
        raise DoubtError(f"tokenizer = {name!r} is a relative path")
    return _Sources(
        folder=folder,
        model_folder=served,
        is_from_hub=not is_folder,
        fingerprint=_fingerprint([served / "config.json", *_files(folder)]),
        python=settings.python,
        template=_given_template(settings.engine_args.get("chat_template")),
        content_format=settings.engine_args.get("chat_template_content_format") or "auto",
    )


def _check_args(args: Mapping[str, Any]) -> None:
    doubtful = [name for name in _DOUBTFUL_ARGS if args.get(name)]
    if args.get("tokenizer_mode") not in (None, "auto", "hf"):
        doubtful.append("tokenizer_mode")
    if doubtful:
        raise DoubtError(f"engine_args has {', '.join(doubtful)}")
    variables = [name for name in _DOUBTFUL_VARIABLES if os.environ.get(name, "0") not in ("", "0")]
    if variables:
        raise DoubtError(f"{', '.join(variables)} is set")


def _given_template(given: str | None) -> str | None:
    """Of ``--chat-template``: a file, or the template itself."""
    if given is None:
        return None
    if os.path.isabs(given):
        try:
            return Path(given).read_text(encoding="utf-8")
        except OSError:
            raise DoubtError(f"chat_template = {given!r} can't be read") from None
    if not any(character in given for character in "{}\n"):
        raise DoubtError(f"chat_template = {given!r} is a relative path, or one of vLLM's own")
    return given


def _files(folder: Path) -> Iterable[Path]:
    for name in FILES:
        yield folder / name
        yield from sorted((folder / name).glob("*.jinja")) if "." not in name else ()


def _fingerprint(files: Iterable[Path]) -> tuple[tuple[str, int, int], ...]:
    found = []
    for file in files:
        try:
            status = os.stat(file)
        except OSError:
            continue
        found.append((str(file), status.st_mtime_ns, status.st_size))
    return tuple(found)


# ---- counting

_lock = threading.Lock()  # so that threads do not load the same tokenizer side by side


def _new_lock() -> None:
    global _lock
    _lock = threading.Lock()


os.register_at_fork(after_in_child=_new_lock)  # another thread may have held it


@lru_cache(maxsize=_MAX_LOADED)
def _load(sources: _Sources) -> TokenCounter | str:
    """A counter, or why there can be none."""
    try:
        version = find_interpreter(sources.python).version
    except EngineNotInstalledError:
        pass  # what will be installed is a known one
    else:
        if not version.startswith("0.32."):
            return f"vLLM is {version}, not 0.32.x"
    files = TokenizerFiles(sources.folder, sources.model_folder, is_from_hub=sources.is_from_hub)
    doubt = next(files.doubts(), None)
    if doubt is not None:
        return doubt
    try:
        return _load_counter(sources, files)
    except DoubtError as exc:
        return str(exc)
    except ImportError as exc:
        return f"{exc.name} is not installed here: pip install tokenizers jinja2"
    except Exception as exc:  # the Rust library raises bare Exceptions; and what does this to vLLM is for vLLM to say
        return f"its tokenizer can't be read here ({exc})"


def _load_counter(sources: _Sources, files: TokenizerFiles) -> TokenCounter:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(sources.folder / TOKENIZER))
    doubt = next(files.doubts_about(tokenizer), None)
    if doubt is not None:
        raise DoubtError(doubt)
    special_tokens = files.special_tokens(tokenizer)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    templates = {} if files.uses_harmony else files.chat_templates()
    if sources.template is not None and not files.uses_harmony:
        templates = {"default": sources.template}
    return TokenCounter(tokenizer, special_tokens, templates, sources.content_format)
