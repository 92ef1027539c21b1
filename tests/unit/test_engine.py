"""Engine itself: what it does on the caller's event loop, and what it leaves to threads."""

from __future__ import annotations

import json
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest

from shared_engine import EmbeddingResult, Engine, TokenUsage
from shared_engine.model_files.folder import text_prefixes
from tests.support.paths import TINY_CHAT


class NotedPooling:
    """Stands for requests to a pooling engine; keeps the texts."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    async def embed(self, texts: list[str], *_: Any) -> EmbeddingResult:
        self.texts += texts
        return EmbeddingResult(embeddings=[[0.0]] * len(texts), usage=TokenUsage(), model="m")


async def test_the_files_of_prefixes_are_read_once_and_not_on_the_event_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(TINY_CHAT / "config.json", tmp_path)
    prompts = {"prompts": {"query": "query: ", "document": "passage: "}}
    (tmp_path / "config_sentence_transformers.json").write_text(json.dumps(prompts))
    readers = []

    def noted(folder: Path) -> dict[str, str]:
        readers.append(threading.current_thread())
        return text_prefixes(folder)

    monkeypatch.setattr("shared_engine.request.engine_pooling.text_prefixes", noted)
    engine = Engine(model=str(tmp_path))
    pooling: Any = NotedPooling()
    engine._made_pooling = pooling
    await engine.aembed(["a"], input_type="query")
    await engine.aembed(["b"], input_type="document")
    assert pooling.texts == ["query: a", "passage: b"]
    assert len(readers) == 1
    assert readers[0] is not threading.current_thread()


async def test_texts_are_tokenized_in_a_thread_or_in_that_of_the_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    threads = []

    def noted(*_: object, **__: object) -> list[int]:
        threads.append(threading.current_thread())
        return [1, 2]

    monkeypatch.setattr("shared_engine.engine.LocalTokenizer.tokens", noted)
    engine = Engine(model=str(TINY_CHAT))
    assert await engine.acount_tokens("Hello") == len(await engine.atokenize("Hello")) == 2
    assert threading.current_thread() not in threads
    assert engine.count_tokens("Hello") == len(engine.tokenize("Hello")) == 2
    assert threads[2:] == [threading.current_thread()] * 2, "without a round trip by the background loop"
