"""VLLMTextSplitter of LangChain: a real TextSplitter, whose sizes are tokens of the model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from langchain_core.documents import Document

from langchain_vllm_local import VLLM, ChatVLLM, VLLMEmbeddings, VLLMRerank
from shared_engine import Engine, InvalidInputError
from tests.support.interpreters import make_exporter
from tests.support.remote_server import running_server
from tests.support.small_tokenizers import make_folder

splitters = pytest.importorskip("langchain_text_splitters")
TEXT = "The engine's naïve 日本語 😀👍🏽 12345\n\n can't  stop. " * 20


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    folder = make_folder(tmp_path / "model", "gemma", "gemma2", "GemmaTokenizer")
    return {"model": str(folder), "python": make_exporter(tmp_path / "environment")}


def test_chunks_have_at_most_so_many_tokens_and_add_up(settings: dict[str, Any]) -> None:
    engine = Engine(**settings)
    splitter = ChatVLLM(**settings).text_splitter(chunk_size=50, chunk_overlap=0)
    assert isinstance(splitter, splitters.TextSplitter)
    chunks = splitter.split_text(TEXT)
    assert "".join(chunks) == TEXT
    assert len(chunks) > 5
    assert max(len(engine.tokenize(chunk)) for chunk in chunks) <= 50
    assert splitter.split_text("") == []


@pytest.mark.slow
def test_every_class_has_one_on_its_own_engine(settings: dict[str, Any]) -> None:
    for kind in (ChatVLLM, VLLM, VLLMEmbeddings, VLLMRerank):
        made = kind(**settings)
        assert made.text_splitter().engine is made.engine
        assert made.text_splitter(chunk_size=20, chunk_overlap=5).split_text(TEXT)


def test_documents_know_where_they_begin(settings: dict[str, Any]) -> None:
    from langchain_vllm_local import VLLMTextSplitter

    for strip in (False, True):
        splitter = VLLMTextSplitter(
            **settings, chunk_size=20, chunk_overlap=8, add_start_index=True, strip_whitespace=strip
        )
        source = Document(page_content=TEXT, metadata={"source": "a", "tags": ["x"]})
        made = splitter.split_documents([source, Document(page_content="Hello")])
        for document in made[:-1]:
            start = document.metadata["start_index"]
            assert TEXT[start:].startswith(document.page_content)
            assert document.metadata["source"] == "a"
        starts = [document.metadata["start_index"] for document in made[:-1]]
        assert starts == sorted(set(starts))
        assert (made[-1].page_content, made[-1].metadata) == ("Hello", {"start_index": 0})
        made[0].metadata["tags"].append("y")
        assert source.metadata["tags"] == ["x"]


@pytest.mark.parametrize(
    ("size", "overlap", "words"),
    [
        (10, 10, "overlap = 10: must be below size = 10"),
        (10, 11, "overlap = 11: must be below size = 10"),
        (0, 0, "size = 0: must be a whole number, 1 or more"),
        (10, -1, "overlap = -1: must be a share"),
    ],
)
def test_sizes_that_make_no_sense_are_refused(settings: dict[str, Any], size: int, overlap: int, words: str) -> None:
    with pytest.raises(InvalidInputError, match=words) as caught:
        ChatVLLM(**settings).text_splitter(chunk_size=size, chunk_overlap=overlap)
    assert isinstance(caught.value, ValueError), "as LangChain's own splitters raise"


def test_a_remote_server_counts() -> None:
    with running_server() as server:
        splitter = ChatVLLM(base_url=server.url).text_splitter(chunk_size=3, chunk_overlap=1)
        assert splitter.split_text("one two three four five") == ["one two three ", "three four five"]
