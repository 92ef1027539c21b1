"""A server's refusal of an image, a sound or a video, as an error that names the block and what to do.

vLLM's own words name neither, and a URL it can't load it reports as a fault of its own (500), which callers would try
again. Works on messages in OpenAI's form; each adapter passes its own words for things.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from shared_engine.adapting.model_facts import media_inputs
from shared_engine.conversations.traits import first_of_turn
from shared_engine.errors import InvalidInputError, RequestError, ServerError, VLLMError
from shared_engine.machine.home import expanded
from shared_engine.request.refusals import NOT_LOADED
from shared_engine.settings import EngineSettings

_KINDS = {"image_url": "image", "audio_url": "audio", "input_audio": "audio", "video_url": "video"}
_NAMES = {"image": "an image", "audio": "audio", "video": "a video"}
_PLURALS = {"image": "images", "audio": "audio", "video": "videos"}

# vLLM's words, with the files they are in: vllm/multimodal/registry.py, multimodal/processing/context.py,
_TEXT_ONLY = "is not a multimodal model"
_TOO_MANY = re.compile(r"At most (\d+) (image|audio|video)\(s\) may be provided")
_RAISABLE = "--limit-mm-per-prompt"
# multimodal/media/{connector,image,audio,video}.py, multimodal/processing/processor.py
_NOT_UNDERSTOOD = re.compile(
    r"Failed to load (?:image|audio|video)|cannot identify image file|Only base64 data|"
    r"Non-base64 digit|[Ii]ncorrect padding|Invalid data URL|Invalid or unsupported audio|No audio (?:stream )?found"
)
_NOT_KNOWN = re.compile(r"Cache miss for (?:image|audio|video)")


@dataclass(frozen=True)
class Wording:
    """What the users of an adapter know things by."""

    position: Callable[[int, int], str]
    """Of a message and a part of its content -> the block that the part was made of."""
    local_file: Callable[[str], str]
    """``image``, ``audio`` or ``video`` -> how to send one that is a file of this machine."""


@contextmanager
def media_errors(messages: Sequence[Mapping[str, Any]], settings: EngineSettings, wording: Wording) -> Iterator[None]:
    """Errors of a request with these messages leave naming the block that they are about, where they are about one."""
    try:
        yield
    except RequestError as exc:
        named = explain(exc, messages, settings, wording)
        if named is exc:
            raise
        raise named from exc


def explain(
    error: RequestError, messages: Sequence[Mapping[str, Any]], settings: EngineSettings, wording: Wording
) -> VLLMError:
    """The error, or a better one that names the block it is about. Pure, but for a look at the model's config.json."""
    blocks = _media_blocks(messages, wording)
    if not blocks or error.status is None:
        return error
    words = error.message
    problem = (
        _unwanted(words, blocks, settings)
        or _not_loaded(words, blocks, wording)
        or _not_known(words, blocks)
        or (_NOT_UNDERSTOOD.search(words) and f"the server can't decode {_one_of(blocks)}")
    )
    if problem:
        return InvalidInputError(f"{problem} (HTTP {error.status}: {words})")
    fetched = [block.name for block in blocks if block.url.startswith("http")]
    if type(error) is ServerError and fetched:
        return ServerError(f"{words}; the server had to load {', '.join(fetched)}", error.status)
    return error


# ---- the blocks of a conversation


@dataclass(frozen=True)
class _Block:
    position: str
    kind: str
    url: str
    is_asked: bool
    """It is what the user sends in this turn: of others a note takes the place (conversations/traits.py)."""

    @property
    def name(self) -> str:
        """Its position, and its URL unless that is the data itself."""
        return self.position if self.url[:5].lower() in ("", "data:") else f"{self.position} ({self.url:.200})"


def _media_blocks(messages: Sequence[Mapping[str, Any]], wording: Wording) -> list[_Block]:
    turn = first_of_turn(messages)
    return [
        _Block(wording.position(i, j), _KINDS[part["type"]], _url_of(part), message.get("role") == "user" and i >= turn)
        for i, message in enumerate(messages)
        for j, part in enumerate(message["content"] if isinstance(message.get("content"), list) else ())
        if isinstance(part, Mapping) and part.get("type") in _KINDS
    ]


def _url_of(part: Mapping[str, Any]) -> str:
    value = part.get(part["type"])
    url = value.get("url") if isinstance(value, Mapping) else value
    return url if isinstance(url, str) else ""


def _one_of(blocks: Sequence[_Block]) -> str:
    names = ", ".join(block.name for block in blocks)
    return names if len(blocks) == 1 else f"one of {names}"


# ---- what is wrong with them


def _unwanted(words: str, blocks: Sequence[_Block], settings: EngineSettings) -> str | None:
    model = _model_name(settings)
    if _TEXT_ONLY in words:
        asked = next((block for block in blocks if block.is_asked), blocks[0])
        return f"{asked.position} is {_NAMES[asked.kind]}, and {model} takes text only"
    found = _TOO_MANY.search(words)
    if found is None:
        return None
    limit, kind = int(found[1]), found[2]
    alike = [block for block in blocks if block.kind == kind]
    if len(alike) <= limit:
        return None
    block, wanted = alike[limit], len(alike)
    if limit == 0:
        problem = f"{block.position} is {_NAMES[kind]}, and {model} takes {_taken(settings, kind)}"
        return f"{problem}; {_raise_limit(kind, wanted, settings)}" if _RAISABLE in words else problem
    problem = f"{block.position} is one of {wanted} {_PLURALS[kind]}, and {model} takes {limit} in one prompt"
    return f"{problem}; {_raise_limit(kind, wanted, settings)}"


def _taken(settings: EngineSettings, refused: str) -> str:
    """What the model takes instead, as far as its files say."""
    others = [_PLURALS[kind] for kind in sorted((media_inputs(settings) or frozenset()) - {refused})]
    return f"no {_PLURALS[refused]}" + (f", only text and {' and '.join(others)}" if others else "")


def _raise_limit(kind: str, wanted: int, settings: EngineSettings) -> str:
    if settings.is_remote:
        return "its server's --limit-mm-per-prompt decides"
    return f'engine_args={{"limit_mm_per_prompt": {{"{kind}": {wanted}}}}} allows more'


def _model_name(settings: EngineSettings) -> str:
    if settings.model is None:
        return "the model"
    folder = expanded(settings.model)
    return folder.name if folder.is_dir() else settings.model


def _not_loaded(words: str, blocks: Sequence[_Block], wording: Wording) -> str | None:
    if not NOT_LOADED.search(words):
        return None
    loaded = [block for block in blocks if block.url and block.url[:5].lower() != "data:"]
    named = [block for block in loaded if block.url in words] or [
        block for block in loaded if _host(block.url) in words
    ]
    problem = f"the server can't load {_one_of(named or loaded or blocks)}"
    if "local files" in words or "must be a subpath" in words:
        kind = (named or loaded or blocks)[0].kind
        return f"{problem}: to send a local file, write {wording.local_file(kind)}"
    return problem


def _not_known(words: str, blocks: Sequence[_Block]) -> str | None:
    named = [block for block in blocks if not block.url]
    if not named or not _NOT_KNOWN.search(words):
        return None
    return f"the server no longer has {_one_of(named)} under its uuid: send it again"


def _host(url: str) -> str:
    """As in aiohttp's message; for a URL without one, something that no message has."""
    try:
        return urlsplit(url).netloc or "\0"
    except ValueError:  # such as http://[::1
        return "\0"
