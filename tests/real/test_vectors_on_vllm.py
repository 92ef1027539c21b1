"""Vectors of tokens and of images, and sparse ones, on real vLLM: as transformers computes them."""

from __future__ import annotations

import asyncio
import io
import json
import math
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llama_index_vllm_local import VLLMEmbedding, VLLMSparseEmbedding
from shared_engine import Engine, SettingsError
from shared_engine.launch.interpreter import find_interpreter
from tests.support.engines import ended_engines
from tests.support.other_embedders import COLOURS, TEXTS
from tests.support.paths import REPOSITORY
from tests.support.vision_model import png

pytestmark = pytest.mark.apart
POOLING = {"runner": "pooling"}


@pytest.fixture
def made() -> Iterator[list[Engine]]:
    with ended_engines() as engines:
        yield engines


def model_of(kind: str, folder: Path, minilm: dict[str, Any]) -> tuple[dict[str, Any], Any]:
    """Settings of a model, and what transformers computes."""
    script = REPOSITORY / "tests" / "support" / "other_embedders.py"
    command = [find_interpreter(None).path, str(script), kind, str(folder)]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    return {**minilm, "model": str(folder)}, json.loads((folder / "expected.json").read_text())


def normalised(vector: list[float]) -> list[float]:
    length = math.hypot(*vector)
    return [number / length for number in vector]


@pytest.mark.long
def test_each_token_has_a_vector(minilm: dict[str, Any], made: list[Engine]) -> None:
    texts = ["The violin has four strings.", "A cat."]
    args = {**minilm["engine_args"], **POOLING}
    dense = Engine(**{**minilm, "engine_args": args})
    tokenwise = Engine(**{**minilm, "engine_args": {**args, "pooler_config": {"task": "token_embed"}}})
    made.append(tokenwise)
    result = tokenwise.embed_tokens([*texts, "many " * 600], on_error="skip", extra_body={"use_activation": False})
    assert [len(vectors) for vectors in result.embeddings] == [dense.count_tokens(text) for text in texts]
    assert [failure.index for failure in result.failures] == [2]
    for vectors, expected in zip(result.embeddings, dense.embed(texts).embeddings, strict=True):
        mean = [sum(column) / len(vectors) for column in zip(*vectors, strict=True)]  # as MiniLM pools
        assert normalised(mean) == pytest.approx(expected, abs=1e-4)
    ranked = tokenwise.rerank("Which instruments have strings?", texts)  # late interaction
    assert [each.index for each in ranked.results] == [0, 1]
    with pytest.raises(SettingsError, match="token_embed"):
        dense.embed_tokens(texts)
    with pytest.raises(SettingsError, match="vectors are dense"):
        dense.embed_sparse(texts)


@pytest.mark.long
@pytest.mark.parametrize("kind", ["splade", "bge_m3"])
def test_sparse_vectors_are_those_of_transformers(
    minilm: dict[str, Any], tmp_path: Path, made: list[Engine], kind: str
) -> None:
    settings, expected = model_of(kind, tmp_path, minilm)
    expected = [{int(token): weight for token, weight in each.items()} for each in expected]
    sparse = VLLMSparseEmbedding(**settings)
    made.append(sparse.engine)
    for vectors in (
        sparse.get_text_embedding_batch(TEXTS),
        asyncio.run(sparse.aget_text_embedding_batch(TEXTS)),
        [sparse.get_query_embedding(text) for text in TEXTS],
        sparse.engine.embed_sparse(TEXTS).embeddings,
    ):
        assert len(vectors) == len(expected)
        for vector, each in zip(vectors, expected, strict=True):
            assert vector == pytest.approx(each, abs=1e-4)


@pytest.mark.long
def test_images_have_the_vectors_that_transformers_computes(
    minilm: dict[str, Any], tmp_path: Path, made: list[Engine]
) -> None:
    settings, expected = model_of("clip", tmp_path / "clip", minilm)
    embed_model = VLLMEmbedding(**settings)
    made.append(embed_model.engine)
    files = [tmp_path / f"{number}.png" for number in range(len(COLOURS))]
    for file, colour in zip(files, COLOURS, strict=True):
        file.write_bytes(png(*colour))
    for vectors in (
        embed_model.get_image_embedding_batch([str(file) for file in files]),
        asyncio.run(embed_model.aget_image_embedding_batch([str(file) for file in files])),
        [embed_model.get_image_embedding(io.BytesIO(png(*colour))) for colour in COLOURS],
        [embed_model.get_image_embedding(file.as_uri()) for file in files],
    ):
        assert len(vectors) == len(expected)
        for vector, each in zip(vectors, expected, strict=True):
            assert vector == pytest.approx(each, abs=1e-3)
    assert len(embed_model.get_text_embedding("one two")) == len(expected[0])
