"""VLLMEmbeddings on real vLLM with the real weights of all-MiniLM-L6-v2."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from langchain_core import exceptions as core
from langchain_core.documents import Document
from langchain_core.runnables import RunnableLambda
from langchain_core.vectorstores import InMemoryVectorStore

from langchain_vllm_local import ChatVLLM, VLLMEmbeddings, VLLMRerank
from shared_engine import ContextLengthError, Engine, EngineState, ModelNotFoundError, RequestRejectedError
from tests.support.engines import ended_engines

WEATHER = ["The weather is lovely today.", "It's so sunny outside!", "He drove to the stadium."]
# From the model's page and sentence-transformers' own documentation, which compute them with PyTorch.
WEATHER_SIMILARITIES = [[1.0, 0.6660, 0.1046], [0.6660, 1.0, 0.1411], [0.1046, 0.1411, 1.0]]
FACTS = [
    "The Rhine flows through Basel and Cologne.",
    "A cat purrs when it is content.",
    "Shares fell sharply after the bank's announcement.",
    "Bread is baked from flour, water, salt and yeast.",
    "The violin has four strings.",
]


@pytest.fixture
def embeddings(minilm: dict[str, Any]) -> VLLMEmbeddings:
    return VLLMEmbeddings(**minilm)


def cosine(left: list[float], right: list[float]) -> float:
    """Of vectors of length one."""
    return sum(a * b for a, b in zip(left, right, strict=True))


def near(vector: list[float]) -> Any:
    """The same, but for the order of additions, which is another in another batch."""
    return pytest.approx(vector, abs=1e-5)


def test_similarities_are_those_that_sentence_transformers_computes(embeddings: VLLMEmbeddings) -> None:
    vectors = embeddings.embed_documents(WEATHER)
    assert [len(vector) for vector in vectors] == [384, 384, 384]
    found = [[cosine(left, right) for right in vectors] for left in vectors]
    assert found == [pytest.approx(row, abs=2e-4) for row in WEATHER_SIMILARITIES]


def test_vectors_are_plain_floats_of_length_one_unless_told_otherwise(minilm: dict[str, Any]) -> None:
    vector = VLLMEmbeddings(**minilm).embed_query(WEATHER[0])
    assert {type(value) for value in vector} == {float}
    assert math.hypot(*vector) == pytest.approx(1.0, abs=1e-5)
    raw = VLLMEmbeddings(**minilm, extra_body={"use_activation": False})
    assert math.hypot(*raw.embed_query(WEATHER[0])) > 1.1


async def test_many_requests_give_what_one_gives_in_order_sync_and_async(minilm: dict[str, Any]) -> None:
    texts = [f"{fact} {number}" for number in range(4) for fact in FACTS]
    whole = await VLLMEmbeddings(**minilm).aembed_documents(texts)
    in_pieces = VLLMEmbeddings(**minilm, chunk_size=3)
    assert await in_pieces.aembed_documents(texts) == [near(vector) for vector in whole]
    assert in_pieces.embed_documents(texts) == [near(vector) for vector in whole]
    for text, vector in list(zip(texts, whole, strict=True))[:3]:
        assert in_pieces.embed_query(text) == near(vector)
        assert await in_pieces.aembed_query(text) == near(vector)


def test_an_empty_text_has_a_vector_too(embeddings: VLLMEmbeddings) -> None:
    empty, other = embeddings.embed_documents(["", FACTS[0]])
    assert len(empty) == len(other) == 384


def test_a_text_that_is_too_long_is_named_or_cut(minilm: dict[str, Any]) -> None:
    long = "violin " * 300
    with pytest.raises(ContextLengthError, match=r"texts\[3\] has 302 tokens, and the model's limit is 256") as caught:
        VLLMEmbeddings(**minilm).embed_documents([*FACTS[:3], long])
    assert isinstance(caught.value, core.ContextOverflowError)
    cut = VLLMEmbeddings(**minilm, truncate_prompt_tokens=-1).embed_documents([long, "violin " * 400])
    assert cut[0] == near(cut[1])


def test_one_bad_text_costs_only_itself(minilm: dict[str, Any]) -> None:
    texts: list[Any] = [*FACTS[:70], "violin " * 300, 5, *FACTS[:2]]
    vectors = VLLMEmbeddings(**minilm, on_error="none").embed_documents(texts)
    bad = texts.index(5) - 1
    assert [position for position, vector in enumerate(vectors) if vector is None] == [bad, bad + 1]
    assert [failure.index for failure in vectors.failures] == [bad, bad + 1]
    assert isinstance(vectors.failures[0].error, core.ContextOverflowError)
    assert vectors[-1] == near(VLLMEmbeddings(**minilm).embed_documents(FACTS[1:2])[0])


def test_dimensions_are_refused_by_a_model_that_has_only_one(minilm: dict[str, Any]) -> None:
    with pytest.raises(RequestRejectedError, match=r"dimensions=64.*is_matryoshka") as caught:
        VLLMEmbeddings(**minilm, dimensions=64).embed_query("a")
    assert isinstance(caught.value, core.ModelInvalidRequestError)


def test_a_retriever_finds_and_a_reranker_sorts(minilm: dict[str, Any], embeddings: VLLMEmbeddings) -> None:
    store = InMemoryVectorStore(embeddings)
    store.add_documents([Document(fact, metadata={"number": number}) for number, fact in enumerate(FACTS)])
    fetch = store.as_retriever(search_kwargs={"k": 4})
    reranker = VLLMRerank(**minilm, top_n=2)
    chain = RunnableLambda(lambda query: reranker.compress_documents(fetch.invoke(query), query))
    for query, expected in (("Which instrument is played with a bow?", 4), ("Which animal likes to be stroked?", 1)):
        assert fetch.invoke(query)[0].metadata["number"] == expected
        best = chain.invoke(query)
        assert [best[0].metadata["number"], len(best)] == [expected, 2]


async def test_an_asynchronous_retriever_finds_too(embeddings: VLLMEmbeddings) -> None:
    store = await InMemoryVectorStore.afrom_texts(FACTS, embeddings)
    (found,) = await store.as_retriever(search_kwargs={"k": 1}).ainvoke("What do I need to make a loaf?")
    assert found.page_content == FACTS[3]


def test_equal_settings_share_one_engine_which_is_not_the_chat_models(
    minilm: dict[str, Any], tiny_chat: dict[str, Any], embeddings: VLLMEmbeddings
) -> None:
    embeddings.warmup()
    before = embeddings.engine.status()
    VLLMEmbeddings(**minilm, chunk_size=1).embed_query("a")
    VLLMRerank(**minilm).compress_documents([Document("a")], "b")
    explicit = Engine(**{**minilm, "engine_args": {**minilm["engine_args"], "runner": "pooling"}})
    for after in (explicit.status(), embeddings.engine.status()):
        assert (after.key, after.starts, after.server_pid) == (before.key, before.starts, before.server_pid)
    chat = ChatVLLM(**tiny_chat).engine
    chat.warmup()
    assert chat.status().server_pid != before.server_pid


def test_an_evicted_engine_comes_back_with_the_next_text(embeddings: VLLMEmbeddings) -> None:
    vector = embeddings.embed_query(FACTS[0])
    embeddings.engine.evict()
    assert embeddings.engine.status().state is EngineState.STANDBY
    assert embeddings.embed_query(FACTS[0]) == near(vector)


def test_a_model_that_generates_makes_no_embeddings(tiny_chat: dict[str, Any]) -> None:
    engine = Engine(**tiny_chat)
    with pytest.raises(ModelNotFoundError, match="makes no embeddings: that takes an embedding model"):
        engine.embed(["a"])
    with pytest.raises(ModelNotFoundError, match="does not rerank: that takes a cross-encoder"):
        engine.rerank("q", ["a"])


# ---- a model with prompts of its own, and shorter vectors


@pytest.fixture(scope="module")
def prompted(minilm: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[VLLMEmbeddings]:
    """The same weights, and files that name prompts; and taken for a Matryoshka model."""
    folder = tmp_path_factory.mktemp("prompted")
    config = "config_sentence_transformers.json"
    for file in Path(minilm["model"]).iterdir():
        if file.name != config:
            (folder / file.name).symlink_to(file)
    (folder / config).write_text(json.dumps({"prompts": {"query": "query: ", "passage": "passage: "}}))
    engine_args = {**minilm["engine_args"], "hf_overrides": {"is_matryoshka": True}}
    with ended_engines() as made:
        embeddings = VLLMEmbeddings(**{**minilm, "model": str(folder), "engine_args": engine_args})
        made.append(embeddings.engine)
        yield embeddings


@pytest.mark.long
def test_the_models_own_prompts_are_used_unless_others_are_given(
    prompted: VLLMEmbeddings, embeddings: VLLMEmbeddings
) -> None:
    as_query, as_passage, plain = embeddings.embed_documents(["query: violin", "passage: violin", "violin"])
    assert prompted.embed_query("violin") == near(as_query)
    assert prompted.embed_documents(["violin"]) == [near(as_passage)]
    bare = prompted.model_copy(update={"query_prefix": "", "document_prefix": "query: "})
    assert bare.embed_query("violin") == near(plain)
    assert bare.embed_documents(["violin"]) == [near(as_query)]


async def test_a_matryoshka_model_gives_shorter_vectors_of_length_one(prompted: VLLMEmbeddings) -> None:
    whole = prompted.embed_query("violin")
    short = prompted.model_copy(update={"dimensions": 64}).embed_query("violin")
    length = math.hypot(*whole[:64])
    assert short == near([value / length for value in whole[:64]])
