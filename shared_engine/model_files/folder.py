"""What a model's files say about it before anything starts: its length, its inputs, its chat template.

The folder is the model's own, or the hub's snapshot of it on this machine. Nothing is downloaded.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from shared_engine.machine.home import expanded
from shared_engine.machine.hub_cache import cached_model, commit_of
from shared_engine.model_files.changes import while_unchanged

# One of these in config.json; the first that is there counts, as in vllm/config/model.py.
_LENGTH_KEYS = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "max_sequence_length")
# vLLM applies the conversation format of these by itself, without a template.
_OWN_FORMAT_FILES = ("chat_template.jinja", "chat_template.json", "additional_chat_templates", "tekken.json")
# vLLM takes these (entrypoints/openai/chat_completion/protocol.py); a template that only shows the word knows three.
_EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh", "max")
_ANY_EFFORT = ("low", "medium", "high")
_DEFAULT_EFFORT = re.compile(r"""reasoning_effort\s*(?:=|\|\s*default\()\s*['"](\w+)['"]""")
# What a config.json has, at any depth, if the model takes such input.
_INPUT_MARKS = {
    "image": ("vision_config", "vision_tower", "mm_vision_tower", "visual", "img_processor", "image_token_id"),
    "audio": ("audio_config", "audio_processor", "speech_config", "audio_token_id", "audio_token_index"),
    "video": ("video_token_id", "video_token_index"),
}


def model_folder(model: str, revision: str | None = None, download_dir: str | None = None) -> Path | None:
    """The folder with the model's files on this machine; None for a hub id that was never downloaded."""
    folder = expanded(model)
    if folder.is_dir():
        return folder
    cached = cached_model(model, os.environ, download_dir)
    commit = commit_of(cached, revision)
    snapshot = cached / "snapshots" / commit
    return snapshot if commit and snapshot.is_dir() else None


@while_unchanged
def context_window(folder: Path) -> int | None:
    """See ``window_in``."""
    return window_in(read_json(folder / "config.json"))


def window_in(config: Mapping[str, Any]) -> int | None:
    """The longest prompt and answer together that the model was made for; None where its config does not say."""
    text_config = config.get("text_config")  # of a model that also sees or hears
    for part in (config, text_config if isinstance(text_config, dict) else {}):
        for key in _LENGTH_KEYS:
            if isinstance(part.get(key), int):
                return int(part[key])
    return None


@while_unchanged
def inputs(folder: Path) -> frozenset[str]:
    """See ``inputs_in``."""
    return inputs_in(read_json(folder / "config.json"))


def inputs_in(config: Mapping[str, Any]) -> frozenset[str]:
    """What the model takes beside text: some of ``image``, ``audio``, ``video``."""
    names = set(_names(config))
    return frozenset(kind for kind, marks in _INPUT_MARKS.items() if not names.isdisjoint(marks))


def _names(config: Any) -> list[str]:
    if not isinstance(config, dict):
        return []
    return [name for key, value in config.items() if value is not None for name in (key, *_names(value))]


def chat_template(folder: Path) -> str | None:
    """The chat template in a model's folder; of several, the one for tools, else the default one. None without one."""
    file = folder / "chat_template.jinja"
    if file.is_file():
        return file.read_text(errors="replace")
    for name in ("chat_template.json", "tokenizer_config.json"):
        template = read_json(folder / name).get("chat_template")
        if isinstance(template, list):
            named = {each.get("name"): each.get("template") for each in template if isinstance(each, dict)}
            template = named.get("tool_use") or named.get("default")
        if isinstance(template, str):
            return template
    return None


class Efforts(NamedTuple):
    """What the variable ``reasoning_effort`` of a chat template may be, and what it is where it was not given."""

    levels: tuple[str, ...]
    default: str | None


@while_unchanged
def efforts(folder: Path) -> Efforts | None:
    """None where conversations have no place for it."""
    if read_json(folder / "config.json").get("model_type") == "gpt_oss":  # by vLLM's own format
        return Efforts(_ANY_EFFORT, "medium")
    template = chat_template(folder) or ""
    if "reasoning_effort" not in template:
        return None
    named = tuple(level for level in _EFFORTS if re.search(f"""['"]{level}['"]""", template))
    default = _DEFAULT_EFFORT.search(template)
    return Efforts(named if len(named) > 1 else _ANY_EFFORT, default[1] if default else None)


@while_unchanged
def lacks_chat_template(folder: Path) -> bool:
    """True when the folder shows that the model has no chat template; False when it has one, or that is not known."""
    tokenizer = read_json(folder / "tokenizer_config.json")
    if not tokenizer:
        return False
    return not tokenizer.get("chat_template") and not any((folder / name).exists() for name in _OWN_FORMAT_FILES)


def kind_of(folder: Path, config: Mapping[str, Any]) -> str:
    """What a model is for, in a word: ``rerank``, ``embed``, ``chat`` or ``text``.

    Args:
        config: its config.json.
    """
    architecture = str(next(iter(config.get("architectures") or ()), ""))
    if "SequenceClassification" in architecture:
        return "rerank"
    if (folder / "modules.json").is_file() or architecture.endswith("Model"):
        return "embed"
    return "chat" if chat_template(folder) is not None else "text"


@while_unchanged
def shows_answer_schemas(folder: Path) -> bool:
    """True when conversations have a place for the schema of the answer: the variable ``response_format`` in the chat
    template, or vLLM's own format for Kimi K3 (vllm/renderers/kimi_k3.py).
    """
    is_kimi = read_json(folder / "config.json").get("model_type") == "kimi_k3"
    return is_kimi or "response_format" in (chat_template(folder) or "")


def text_prefixes(folder: Path) -> dict[str, str]:
    """What a sentence-transformers model was trained to see before a ``query`` and before a ``document``.

    Chosen among the model's prompts as SentenceTransformer.encode_query and encode_document choose.
    """
    config = read_json(folder / "config_sentence_transformers.json")
    prompts = config.get("prompts")
    if not isinstance(prompts, dict):
        return {}
    default = prompts.get(config.get("default_prompt_name"))
    names = {"query": ("query",), "document": ("document", "passage", "corpus")}
    found = {kind: next((prompts[name] for name in names[kind] if name in prompts), default) for kind in names}
    return {kind: prompt for kind, prompt in found.items() if isinstance(prompt, str) and prompt}


def read_json(file: Path) -> dict[str, Any]:
    """The JSON object in a file; empty where there is none."""
    try:
        content = json.loads(file.read_bytes())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
