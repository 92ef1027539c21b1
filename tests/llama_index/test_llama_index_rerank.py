"""VLLMRerank: what it sends and tells; and on real vLLM, with an embedding model for a judge."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
from llama_index.core import Document, MockEmbedding, VectorStoreIndex
from llama_index.core.callbacks import CallbackManager
from llama_index.core.callbacks.schema import EventPayload
from llama_index.core.instrumentation.events import BaseEvent
from llama_index.core.instrumentation.events.rerank import ReRankEndEvent, ReRankStartEvent
from llama_index.core.llms import MockLLM
from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode

from llama_index_vllm_local import VLLMEmbedding, VLLMRerank
from tests.llama_index.listeners import RecordCallbacks, closed, recorded_spans
from tests.support.pooling_server import bodies, embeds_and_reranks
from tests.support.remote_server import RemoteServer, running_server

SECRET = "sk-very-secret"
NODES = [
    NodeWithScore(
        node=TextNode(
            id_=text, text=text, metadata={"file": "x", "page": 3}, excluded_embed_metadata_keys=["file", "page"]
        ),
        score=score,
    )
    for text, score in (("one", 0.9), ("fifteen", 0.8), ("three", None))
]


@pytest.fixture
def server() -> Iterator[RemoteServer]:
    with running_server() as server:
        server.handler = embeds_and_reranks
        yield server


# ---- what the reranker sends and makes of the answer


async def test_the_best_nodes_come_with_their_new_scores_and_those_given_stay(server: RemoteServer) -> None:
    before = copy.deepcopy(NODES)
    reranker = VLLMRerank(base_url=server.url, truncate_prompt_tokens=-1, extra_body={"instruction": "i"})
    ranked = reranker.postprocess_nodes(NODES, query_str="q")
    assert [(node.node.node_id, node.score) for node in ranked] == [("fifteen", 0.07), ("three", 0.05)]
    assert [node.node for node in ranked] == [NODES[1].node, NODES[2].node]
    assert await reranker.apostprocess_nodes(NODES, query_bundle=QueryBundle("q")) == ranked
    sent = {"query": "q", "documents": ["one", "fifteen", "three"], "top_n": 2}
    assert bodies(server) == [{**sent, "truncate_prompt_tokens": -1, "instruction": "i"}] * 2
    assert before == NODES


def test_a_nodes_text_is_what_llama_index_embeds_of_it(server: RemoteServer) -> None:
    node = TextNode(text="one", metadata={"page": 3, "file": "x"}, excluded_embed_metadata_keys=["file"])
    VLLMRerank(base_url=server.url).postprocess_nodes([NodeWithScore(node=node)], query_str="q")
    assert bodies(server)[0]["documents"] == ["page: 3\n\none"]


@pytest.mark.parametrize(("top_n", "expected"), [(1, ["fifteen"]), (9, ["fifteen", "three", "one"]), (None, None)])
def test_top_n_nodes_are_kept(server: RemoteServer, top_n: int | None, expected: list[str] | None) -> None:
    ranked = VLLMRerank(base_url=server.url, top_n=top_n).postprocess_nodes(NODES, query_str="q")
    assert [node.text for node in ranked] == (expected or ["fifteen", "three", "one"])


async def test_the_score_of_the_retriever_is_kept_on_demand(server: RemoteServer) -> None:
    before = copy.deepcopy(NODES)
    reranker = VLLMRerank(base_url=server.url, top_n=None, keep_retrieval_score=True)
    for ranked in (
        reranker.postprocess_nodes(NODES, query_str="q"),
        await reranker.apostprocess_nodes(NODES, query_str="q"),
    ):
        assert [node.metadata["retrieval_score"] for node in ranked] == [0.8, None, 0.9]
        assert [node.node.node_id for node in ranked] == ["fifteen", "three", "one"]
    assert before == NODES


async def test_no_nodes_are_reranked_without_any_request(server: RemoteServer) -> None:
    reranker = VLLMRerank(base_url=server.url)
    assert reranker.postprocess_nodes([], query_str="q") == []
    assert await reranker.apostprocess_nodes([], query_str="q") == []
    assert bodies(server) == []


async def test_reranking_is_told_once_whichever_way_it_is_asked(server: RemoteServer, events: list[BaseEvent]) -> None:
    callbacks = RecordCallbacks()
    manager = CallbackManager([callbacks])
    reranker = VLLMRerank(base_url=server.url, model="served", api_key=SECRET, callback_manager=manager)

    def was_told_of(ranked: list[NodeWithScore]) -> None:
        start, end = (event for event in events if isinstance(event, ReRankStartEvent | ReRankEndEvent))
        assert (start.query.query_str, start.nodes, start.top_n, start.model_name) == ("q", NODES, 2, "served")
        assert end.nodes == ranked
        (_, _, started), (_, _, ended) = callbacks.told
        assert (started[EventPayload.QUERY_STR], started[EventPayload.TOP_K]) == ("q", 2)
        assert ended[EventPayload.NODES] == ranked
        assert SECRET not in f"{events}{callbacks.told}"
        events.clear()
        callbacks.told.clear()

    with recorded_spans() as spans:
        was_told_of(reranker.postprocess_nodes(NODES, query_str="q"))
        was_told_of(await reranker.apostprocess_nodes(NODES, query_str="q"))
    assert closed(spans, "_postprocess_nodes") == closed(spans, "_apostprocess_nodes") == 1


def test_a_query_engine_retrieves_much_and_keeps_the_best(server: RemoteServer) -> None:
    index = VectorStoreIndex(nodes=[node.node for node in NODES], embed_model=MockEmbedding(embed_dim=2))
    reranker = VLLMRerank(base_url=server.url, top_n=1)
    engine = index.as_query_engine(llm=MockLLM(), similarity_top_k=3, node_postprocessors=[reranker])
    (source,) = engine.query("q").source_nodes
    assert (source.text, source.score) == ("fifteen", 0.07)
    (body,) = bodies(server)
    assert len(body["documents"]) == 3


# ---- on real vLLM


async def test_an_embedding_models_score_is_the_cosine(minilm: dict[str, Any]) -> None:
    texts = ["Shares fell sharply.", "The violin has four strings.", "A cellist tunes the instrument."]
    nodes = [NodeWithScore(node=TextNode(id_=text, text=text), score=0.5) for text in texts]
    query = "Which instruments have strings?"
    reranker, embed_model = VLLMRerank(**minilm, top_n=None), VLLMEmbedding(**minilm)
    asked, vectors = embed_model.get_query_embedding(query), embed_model.get_text_embedding_batch(texts)
    cosines = {text: embed_model.similarity(asked, vector) for text, vector in zip(texts, vectors, strict=True)}
    for ranked in (
        reranker.postprocess_nodes(nodes, query_str=query),
        await reranker.apostprocess_nodes(nodes, query_str=query),
    ):
        assert [node.text for node in ranked] == [texts[1], texts[2], texts[0]]
        assert [node.score for node in ranked] == pytest.approx([cosines[node.text] for node in ranked], abs=1e-4)
    assert reranker.engine.status().server_pid == embed_model.engine.status().server_pid is not None


def test_a_query_engine_answers_from_the_reranked_nodes(minilm: dict[str, Any]) -> None:
    texts = ["The violin has four strings.", "Bread is baked from flour.", "A cellist tunes the instrument."]
    index = VectorStoreIndex.from_documents(
        [Document(text=text) for text in texts], embed_model=VLLMEmbedding(**minilm)
    )
    reranker = VLLMRerank(**minilm, top_n=1)
    engine = index.as_query_engine(llm=MockLLM(), similarity_top_k=3, node_postprocessors=[reranker])
    (source,) = engine.query("What do I need to make a loaf?").source_nodes
    assert source.text == texts[1]
