"""VLLMTextSplitter of LlamaIndex: a real node parser, whose sizes are tokens of the model."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
from llama_index.core import Document
from llama_index.core.ingestion import IngestionPipeline
from llama_index.core.node_parser import NodeParser
from llama_index.core.schema import MetadataMode

from llama_index_vllm_local import VLLM, VLLMEmbedding, VLLMRerank, VLLMTextSplitter
from shared_engine import Engine, InvalidInputError, SettingsError
from tests.support.interpreters import make_exporter
from tests.support.remote_server import running_server
from tests.support.small_tokenizers import make_folder

TEXT = "The engine's naïve 日本語 😀👍🏽 12345\n\n can't  stop. " * 20


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    folder = make_folder(tmp_path / "model", "gemma", "gemma2", "GemmaTokenizer")
    return {"model": str(folder), "python": make_exporter(tmp_path / "environment")}


def test_chunks_have_at_most_so_many_tokens_and_add_up(settings: dict[str, Any]) -> None:
    engine = Engine(**settings)
    splitter = VLLM(**settings).text_splitter(chunk_size=50, chunk_overlap=0)
    assert isinstance(splitter, NodeParser)
    chunks = splitter.split_text(TEXT)
    assert "".join(chunks) == TEXT
    assert len(chunks) > 5
    assert max(len(engine.tokenize(chunk)) for chunk in chunks) <= 50
    assert splitter.split_text("") == [""], "as LlamaIndex's own: an empty document stays a node"


def test_every_class_has_one_on_its_own_engine(settings: dict[str, Any]) -> None:
    for kind in (VLLM, VLLMEmbedding, VLLMRerank):
        made = kind(**settings)
        assert made.text_splitter().engine.settings == made.engine.settings


def test_nodes_fit_with_their_metadata(settings: dict[str, Any]) -> None:
    engine = Engine(**settings)
    splitter = VLLMTextSplitter(**settings, chunk_size=80, chunk_overlap=10)
    document = Document(text=TEXT, metadata={"source": "a file with a rather long name"})
    nodes = splitter.get_nodes_from_documents([document])
    assert len(nodes) > 3
    for node in nodes:
        assert len(engine.tokenize(node.get_content(MetadataMode.EMBED))) <= 80
        assert node.metadata == document.metadata
        assert TEXT[node.start_char_idx : node.end_char_idx] == node.get_content(MetadataMode.NONE)


def test_metadata_that_leave_no_room_are_refused(settings: dict[str, Any]) -> None:
    splitter = VLLMTextSplitter(**settings, chunk_size=10, chunk_overlap=0)
    document = Document(text=TEXT, metadata={"source": "a file with a rather long name"})
    with pytest.raises(InvalidInputError, match="no room is left for its text; raise chunk_size"):
        splitter.get_nodes_from_documents([document])


@pytest.mark.parametrize(
    ("size", "overlap", "words"),
    [
        (10, 10, "overlap = 10: must be below size = 10"),
        (10, 11, "overlap = 11: must be below size = 10"),
        (0, 0, "chunk_size"),
        (10, -1, "chunk_overlap"),
    ],
)
def test_sizes_that_make_no_sense_are_refused(settings: dict[str, Any], size: int, overlap: int, words: str) -> None:
    with pytest.raises((InvalidInputError, SettingsError), match=words):
        VLLM(**settings).text_splitter(chunk_size=size, chunk_overlap=overlap)


def test_it_goes_through_pickles_dicts_and_pipelines(settings: dict[str, Any]) -> None:
    splitter = VLLMTextSplitter(**settings, chunk_size=20, chunk_overlap=5)
    chunks = splitter.split_text(TEXT)
    assert pickle.loads(pickle.dumps(splitter)).split_text(TEXT) == chunks
    assert VLLMTextSplitter.from_dict(splitter.to_dict()).split_text(TEXT) == chunks
    nodes = IngestionPipeline(transformations=[splitter]).run(documents=[Document(text=TEXT)])
    assert len(nodes) == len(chunks)


def test_a_remote_server_counts() -> None:
    with running_server() as server:
        splitter = VLLM(base_url=server.url).text_splitter(chunk_size=3, chunk_overlap=1)
        assert splitter.split_text("one two three four five") == ["one two three ", "three four five"]
