"""VLLMRerank on real vLLM: a cross-encoder, whose scores transformers computes as well, and an embedding model."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest
from langchain_core import exceptions as core
from langchain_core.documents import Document

from langchain_vllm_local import VLLMEmbeddings, VLLMRerank
from shared_engine import ContextLengthError, ModelNotFoundError
from shared_engine.launch.interpreter import find_interpreter
from tests.support.cross_encoder import DOCUMENTS, QUERY
from tests.support.engines import ended_engines
from tests.support.paths import REPOSITORY

Scored = tuple[VLLMRerank, list[float]]


@pytest.fixture(scope="module")
def cross_encoder(minilm: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scored]:
    """A reranker of random weights, and what transformers says of DOCUMENTS."""
    folder = tmp_path_factory.mktemp("cross_encoder")
    command = [find_interpreter(None).path, str(REPOSITORY / "tests" / "support" / "cross_encoder.py"), str(folder)]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    with ended_engines() as made:
        reranker = VLLMRerank(**{**minilm, "model": str(folder)}, top_n=None)
        made.append(reranker.engine)
        yield reranker, json.loads((folder / "scores.json").read_text())


def documents(texts: list[str]) -> list[Document]:
    return [Document(text, metadata={"position": position}) for position, text in enumerate(texts)]


def scores(ranked: list[Document]) -> list[float]:
    return [document.metadata["relevance_score"] for document in ranked]


async def test_a_cross_encoders_scores_are_those_of_transformers(cross_encoder: Scored) -> None:
    reranker, expected = cross_encoder
    ranked = reranker.compress_documents(documents(DOCUMENTS), QUERY)
    best_first = sorted(range(len(DOCUMENTS)), key=expected.__getitem__, reverse=True)
    assert [document.metadata["position"] for document in ranked] == best_first
    assert scores(ranked) == pytest.approx([expected[position] for position in best_first], abs=1e-4)
    again = await reranker.model_copy(update={"top_n": 2}).acompress_documents(documents(DOCUMENTS), QUERY)
    assert [document.page_content for document in again] == [document.page_content for document in ranked[:2]]
    assert scores(again) == pytest.approx(scores(ranked[:2]), abs=1e-5)


def test_a_document_that_does_not_fit_with_the_query_is_named_or_cut(cross_encoder: Scored) -> None:
    reranker, _ = cross_encoder
    texts = ["one", "two " * 62, "three"]  # 64 tokens by itself: only with the query it is too long for the 64
    with pytest.raises(ContextLengthError, match=r"documents\[1\] \(64 tokens\) with the query \(4 tokens\)") as caught:
        reranker.compress_documents(documents(texts), QUERY)
    assert isinstance(caught.value, core.ContextOverflowError)
    skipping = reranker.model_copy(update={"on_error": "skip"})
    kept = skipping.compress_documents(documents(texts), QUERY)
    assert sorted(document.page_content for document in kept) == ["one", "three"]
    cutting = reranker.model_copy(update={"truncate_prompt_tokens": -1})
    assert len(cutting.compress_documents(documents(texts), QUERY)) == 3


def test_a_cross_encoder_makes_no_embeddings(cross_encoder: Scored) -> None:
    reranker, _ = cross_encoder
    with pytest.raises(ModelNotFoundError, match="makes no embeddings"):
        reranker.engine.embed(["one"])


def test_an_embedding_models_score_is_the_cosine(minilm: dict[str, Any]) -> None:
    texts = ["Shares fell sharply.", "The violin has four strings.", "A cellist tunes the instrument."]
    query = "Which instruments have strings?"
    ranked = VLLMRerank(**minilm).compress_documents(documents(texts), query)
    assert [document.metadata["position"] for document in ranked] == [1, 2, 0]
    embeddings = VLLMEmbeddings(**minilm)
    asked = embeddings.embed_query(query)
    vectors = embeddings.embed_documents([document.page_content for document in ranked])
    for document, vector in zip(ranked, vectors, strict=True):
        cosine = sum(a * b for a, b in zip(asked, vector, strict=True))
        assert document.metadata["relevance_score"] == pytest.approx(cosine, abs=1e-4)
