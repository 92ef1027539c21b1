"""One bad text among many, or one bad document: what it does to the others, which it was, and why; and how many
requests that takes. Against a real HTTP server that refuses as vLLM and others do."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest

from langchain_vllm_local import VLLMEmbeddings
from langchain_vllm_local import VLLMRerank as LangChainRerank
from llama_index_vllm_local import VLLMEmbedding
from llama_index_vllm_local import VLLMRerank as LlamaIndexRerank
from shared_engine import (
    AuthenticationError,
    ContextLengthError,
    Engine,
    InvalidInputError,
    RequestRejectedError,
    ServerError,
    VLLMError,
)
from tests.support.choosy_server import LONG, NAN, REFUSED, TOO_LONG, ZERO, is_choosy, vector_of
from tests.support.remote_server import RemoteServer, running_server

BAD: dict[str, tuple[Any, type[VLLMError], str]] = {
    "too long": (LONG, ContextLengthError, "22 tokens, and the model's limit is 10"),
    "empty": ("", RequestRejectedError, "no token of its own"),
    "a number": (5, InvalidInputError, "must be a string, got int: 5"),
    "nothing": (None, InvalidInputError, "must be a string, got NoneType"),
    "NaN": (NAN, ServerError, "NaN or infinite numbers.*dtype"),
    "zeros": (ZERO, ServerError, "only zeros"),
    "refused": (REFUSED, RequestRejectedError, "this text is not taken"),
}
each_bad = pytest.mark.parametrize("kind", BAD)


@pytest.fixture
def server() -> Iterator[RemoteServer]:
    with running_server() as server:
        yield server


@pytest.fixture
def fleet(server: RemoteServer) -> Iterator[list[str]]:
    with running_server() as other:
        is_choosy(other)
        yield [server.url, other.url]


def texts_with(bad: dict[int, Any], count: int = 100) -> list[Any]:
    return [bad.get(position, "x" * (position % 7 + 1)) for position in range(count)]


# ---- all ways to ask for vectors: each gives a list that says what is missing in it


async def engine_sync(url: Any, texts: list[Any], on_error: Any) -> Any:
    return await asyncio.to_thread(Engine(base_url=url, model="served").embed, texts, on_error=on_error)


async def engine_async(url: Any, texts: list[Any], on_error: Any) -> Any:
    return await Engine(base_url=url, model="served").aembed(texts, on_error=on_error)


async def langchain_sync(url: Any, texts: list[Any], on_error: Any) -> Any:
    embeddings = VLLMEmbeddings(base_url=url, model="served")
    return await asyncio.to_thread(embeddings.embed_documents, texts, on_error=on_error)


async def langchain_async(url: Any, texts: list[Any], on_error: Any) -> Any:
    return await VLLMEmbeddings(base_url=url, model="served").aembed_documents(texts, on_error=on_error)


async def llama_index_sync(url: Any, texts: list[Any], on_error: Any) -> Any:
    embed_model = VLLMEmbedding(base_url=url, model="served")
    return await asyncio.to_thread(embed_model.get_text_embedding_batch, texts, on_error=on_error)


async def llama_index_async(url: Any, texts: list[Any], on_error: Any) -> Any:
    return await VLLMEmbedding(base_url=url, model="served").aget_text_embedding_batch(texts, on_error=on_error)


async def llama_index_in_batches(url: Any, texts: list[Any], on_error: Any) -> Any:
    embed_model = VLLMEmbedding(base_url=url, model="served", embed_batch_size=7)
    return await embed_model.aget_text_embedding_batch(texts, on_error=on_error)


Way = Callable[[Any, list[Any], Any], Awaitable[Any]]
WAYS: list[Way] = [
    engine_sync, engine_async, langchain_sync, langchain_async, llama_index_sync, llama_index_async,
    llama_index_in_batches,
]  # fmt: skip
IN_CHECK = (engine_async, langchain_sync, llama_index_async)  # the others are left to make test, as they are alike
each_way = pytest.mark.parametrize(
    "way", [way if way in IN_CHECK else pytest.param(way, marks=pytest.mark.slow) for way in WAYS]
)


def vectors_of(answer: Any) -> list[Any]:
    return answer if isinstance(answer, list) else list(answer.embeddings)


@each_way
@each_bad
async def test_a_bad_text_costs_only_itself(server: RemoteServer, way: Way, kind: str) -> None:
    is_choosy(server)
    bad, error, words = BAD[kind]
    texts = texts_with({0: bad, 41: bad, 99: bad})
    good = [position for position in range(100) if position not in (0, 41, 99)]
    skipped = await way(server.url, texts, "skip")
    assert vectors_of(skipped) == [vector_of(texts[position]) for position in good]
    whole = await way(server.url, texts, "none")
    assert [position for position, vector in enumerate(vectors_of(whole)) if vector is None] == [0, 41, 99]
    assert [vectors_of(whole)[position] for position in good] == vectors_of(skipped)
    for answer in (skipped, whole):
        assert answer.indices == good
        assert [failure.index for failure in answer.failures] == [0, 41, 99]
        for failure in answer.failures:
            assert isinstance(failure.error, error)
            with pytest.raises(type(failure.error), match=words):
                raise failure.error
        assert pickle.loads(pickle.dumps(answer)).failures[0].index == 0


@each_way
@each_bad
async def test_unless_it_is_to_end_the_others(server: RemoteServer, way: Way, kind: str) -> None:
    is_choosy(server)
    bad, error, _ = BAD[kind]
    with pytest.raises(error, match=r"^(HTTP 400: this text is not taken|(?!.*the text).*texts\[\d+\])"):
        await way(server.url, texts_with({5: bad}), "raise")


@each_way
async def test_without_a_bad_text_all_is_as_ever(server: RemoteServer, way: Way) -> None:
    is_choosy(server)
    texts = texts_with({})
    for on_error in ("skip", "none"):
        answer = await way(server.url, texts, on_error)
        assert vectors_of(answer) == [vector_of(text) for text in texts]
        assert (answer.failures, answer.indices) == ((), list(range(100)))
    assert vectors_of(await way(server.url, [], "none")) == []


async def test_all_texts_may_be_bad(server: RemoteServer) -> None:
    is_choosy(server)
    engine = Engine(base_url=server.url)
    bad: Any
    for bad in (LONG, "", NAN, 5):
        result = await engine.aembed([bad] * 3, on_error="none")
        assert (list[Any](result.embeddings), len(result.failures), result.indices) == ([None] * 3, 3, [])
        assert (await engine.aembed([bad] * 3, on_error="skip")).embeddings == []


async def test_a_fleet_divides_as_one_server_does(server: RemoteServer, fleet: list[str]) -> None:
    is_choosy(server)
    result = await Engine(base_url=fleet, model="served").aembed(texts_with({3: LONG, 70: REFUSED}), on_error="none")
    assert [failure.index for failure in result.failures] == [3, 70]


def test_a_proxy_that_takes_not_even_one_text_is_an_error(server: RemoteServer) -> None:
    is_choosy(server, lambda text: (413, "Request Entity Too Large") if text == LONG else None)
    with pytest.raises(RequestRejectedError, match="Too Large"):
        Engine(base_url=server.url).embed(texts_with({7: LONG}))
    result = Engine(base_url=server.url).embed(texts_with({7: LONG}), on_error="none")
    assert [failure.index for failure in result.failures] == [7]


def test_ollama_s_words_for_nan_are_understood(server: RemoteServer) -> None:
    said = "failed to encode response: json: unsupported value: NaN"
    is_choosy(server, lambda text: (500, said) if text == REFUSED else None)
    with pytest.raises(ServerError, match=r"NaN or infinite numbers for texts\[41\]"):
        Engine(base_url=server.url).embed(texts_with({41: REFUSED}))


@pytest.mark.parametrize("form", ["base64", "null", "NaN", "error"])
def test_nan_is_found_in_every_form_in_which_servers_write_it(server: RemoteServer, form: str) -> None:
    is_choosy(server, form=form)
    engine = Engine(base_url=server.url)
    texts = texts_with({17: NAN})
    with pytest.raises(ServerError, match=r"the model computes NaN or infinite numbers for texts\[17\]; .*dtype"):
        engine.embed(texts)
    result = engine.embed(texts, on_error="none")
    assert [failure.index for failure in result.failures] == [17]
    assert engine.stats().requests.retries == 0
    with pytest.raises(ServerError, match=r"NaN or infinite numbers for documents\[17\]"):
        engine.rerank("q", texts)
    assert len(engine.rerank("q", texts, on_error="skip").results) == 99


@pytest.mark.parametrize(
    "vector", [[], None, [None, None], [1.0, None], [float("inf"), float("-inf")], [float("inf")], [0, 0.0], [-0.0]]
)
def test_what_can_not_be_compared_is_found(server: RemoteServer, vector: Any) -> None:
    import json

    from aiohttp import web

    async def handler(request: web.Request) -> web.StreamResponse:
        data = [{"index": 0, "embedding": [1e308, 1e308]}, {"index": 1, "embedding": vector}]
        return web.Response(text=json.dumps({"data": data}), content_type="application/json")

    server.handler = handler
    with pytest.raises(ServerError, match=r"the model computes .* for texts\[1\]"):
        Engine(base_url=server.url).embed(["a", "b"])
    result = Engine(base_url=server.url).embed(["a", "b"], on_error="skip")
    assert result.embeddings == [[1e308, 1e308]]  # the sum is infinite, no number is


# ---- few requests


@pytest.mark.parametrize(
    ("bad", "most"),
    [
        ({}, 16),
        ({500: LONG}, 16 + 2),  # the longest alone, and the others
        ({500: LONG, 501: LONG}, 16 + 4),
        ({500: ""}, 16 + 1),
        (dict.fromkeys(range(500, 520), ""), 16 + 2),
        ({500: 5, 501: None}, 16),
        ({500: NAN}, 16),
        ({500: REFUSED}, 16 + 12),
        ({0: REFUSED, 999: REFUSED}, 16 + 24),
        (dict.fromkeys(range(5), REFUSED), 16 + 24),
    ],
)
def test_finding_it_takes_few_requests(server: RemoteServer, bad: dict[int, Any], most: int) -> None:
    asked = is_choosy(server)
    result = Engine(base_url=server.url).embed(texts_with(bad, 1000), on_error="none")
    assert [failure.index for failure in result.failures] == sorted(bad)
    assert len(asked) <= most
    sent = [text for texts in asked for text in texts]
    assert len(sent) < 1000 + 64 * 6 * max(1, len(bad))


def test_a_short_text_of_many_tokens_is_found_too(server: RemoteServer) -> None:
    asked = is_choosy(server, lambda text: (400, TOO_LONG) if text == "many" else None)
    server.counts_tokens = False
    texts = ["long enough " * 9] * 63 + ["many"]
    result = Engine(base_url=server.url).embed(texts, on_error="none")
    assert [failure.index for failure in result.failures] == [63]
    assert len(asked) <= 10


@pytest.mark.parametrize("on_error", ["raise", "skip", "none"])
@pytest.mark.parametrize(
    ("status", "message", "most"),
    [
        (413, "batch size 64 > maximum allowed batch size 32", 30),  # text-embeddings-inference
        (422, "input batch size 64 > maximum allowed batch size 32", 30),
        (400, "Value error, batch size is invalid, it should not be larger than 10.: input.contents", 90),  # DashScope
        (400, "Invalid 'input': array too long. Expected an array with maximum length 32, but got 64", 30),  # OpenAI
        (413, "Request Entity Too Large", 40),  # nginx
    ],
)
def test_a_server_that_takes_fewer_texts_at_once_gets_fewer(
    server: RemoteServer, status: int, message: str, most: int, on_error: Any
) -> None:
    from aiohttp import web

    from tests.support.choosy_server import refused

    async def handler(request: web.Request) -> web.StreamResponse:
        texts = (await request.json())["input"]
        if len(texts) > 32:
            return refused(status, message)
        return web.json_response({"data": [{"index": index, "embedding": [1.0]} for index in range(len(texts))]})

    server.handler = handler
    result = Engine(base_url=server.url).embed(["a"] * 640, on_error=on_error)
    assert (len(result.embeddings), result.failures) == (640, ())
    assert len(server.requests) <= most


@pytest.mark.slow
@pytest.mark.parametrize(
    ("status", "error"),
    [(400, RequestRejectedError), (401, AuthenticationError), (404, RequestRejectedError), (500, ServerError)],
)
async def test_what_every_text_meets_is_an_error_after_few_requests(
    server: RemoteServer, status: int, error: type[VLLMError]
) -> None:
    asked = is_choosy(server, lambda _: (status, "dimensions are not taken"))
    engine = Engine(base_url=server.url, max_retries=0)
    for on_error in ("skip", "none"):
        asked.clear()
        with pytest.raises(error, match="dimensions are not taken"):
            await engine.aembed(texts_with({}, 50_000), on_error=on_error)
        assert len(asked) <= 24
        asked.clear()
        with pytest.raises(error, match="dimensions are not taken"):
            await engine.arerank("q", texts_with({}, 1000), on_error=on_error)
        assert len(asked) <= 20


async def test_a_server_that_fails_is_no_text_s_fault(server: RemoteServer) -> None:
    is_choosy(server, lambda _: (500, "out of memory"))
    engine = Engine(base_url=server.url, max_retries=0)
    for count in (1, 2, 100):
        with pytest.raises(ServerError, match="out of memory"):
            await engine.aembed(["a"] * count, on_error="none")


async def test_a_text_at_which_the_server_fails_is(server: RemoteServer) -> None:
    is_choosy(server, lambda text: (500, "bad luck") if text == REFUSED else None)
    engine = Engine(base_url=server.url, max_retries=0)
    result = await engine.aembed(texts_with({0: REFUSED, 50: REFUSED}), on_error="none")
    assert [failure.index for failure in result.failures] == [0, 50]


# ---- documents


@each_bad
def test_a_bad_document_costs_only_itself(server: RemoteServer, kind: str) -> None:
    is_choosy(server)
    bad, error, _ = BAD[kind]
    documents = ["a", bad, "abc", "ab"]
    engine = Engine(base_url=server.url)
    if kind == "zeros":
        assert engine.rerank("q", documents).results[-1].index == 1  # a score may be 0
        return
    skipped, whole = (engine.rerank("q", documents, on_error=on_error) for on_error in ("skip", "none"))
    assert [each.index for each in skipped.results] == [2, 3, 0]
    assert [(each.index, each.relevance_score) for each in whole.results] == [(2, 3), (3, 2), (0, 1), (1, None)]
    assert [each.index for each in engine.rerank("q", documents, top_n=2, on_error="none").results] == [2, 3]
    for result in (skipped, whole):
        assert [failure.index for failure in result.failures] == [1]
        assert isinstance(result.failures[0].error, error)
    with pytest.raises(error):
        engine.rerank("q", documents)


def test_documents_are_scored_together_whatever_was_left_out(server: RemoteServer) -> None:
    asked = is_choosy(server)
    documents = ["abc", REFUSED, "ab", "a", LONG, NAN]
    result = Engine(base_url=server.url).rerank("q", documents, on_error="skip", top_n=2)
    assert [each.index for each in result.results] == [0, 2]
    assert [failure.index for failure in result.failures] in ([1, 4], [1, 4, 5])  # of NaN nothing shows below top_n
    assert set(asked[-1]) >= {"abc", "ab", "a"}
    assert len(asked) <= 10


def test_a_query_that_is_too_long_is_no_document_s_fault(server: RemoteServer) -> None:
    asked = is_choosy(server)
    with pytest.raises(ContextLengthError):
        Engine(base_url=server.url).rerank(LONG, ["a"] * 100, on_error="none")
    assert len(asked) <= 10


@pytest.mark.parametrize("on_error", ["skip", "none"])
async def test_both_frameworks_rerankers_leave_a_bad_document_out_or_last(server: RemoteServer, on_error: Any) -> None:
    from langchain_core.documents import Document
    from llama_index.core.schema import NodeWithScore, TextNode

    is_choosy(server)
    texts = ["a", LONG, "abc"]
    reranker = LangChainRerank(base_url=server.url, on_error=on_error)
    documents = [Document(text) for text in texts]
    node_reranker = LlamaIndexRerank(base_url=server.url, on_error=on_error, top_n=3)
    nodes = [NodeWithScore(node=TextNode(text=text)) for text in texts]
    expected = [(2, 3.0), (0, 1.0)] + ([(1, None)] if on_error == "none" else [])
    for ranked in (
        await asyncio.to_thread(reranker.compress_documents, documents, "q"),
        await reranker.acompress_documents(documents, "q"),
    ):
        found = [(texts.index(each.page_content), each.metadata["relevance_score"]) for each in ranked]
        assert found == expected
        assert (ranked.indices, [failure.index for failure in ranked.failures]) == ([2, 0], [1])
    for best in (
        await asyncio.to_thread(node_reranker.postprocess_nodes, nodes, query_str="q"),
        await node_reranker.apostprocess_nodes(nodes, query_str="q"),
    ):
        assert [(texts.index(each.node.get_content()), each.score) for each in best] == expected


# ---- the frameworks' own ways to the texts


@pytest.mark.parametrize("model_class", [VLLMEmbeddings, VLLMEmbedding])
def test_an_object_does_not_leave_texts_out_behind_a_store_s_back(model_class: Any) -> None:
    from shared_engine import SettingsError

    with pytest.raises(SettingsError, match=r"on_error = 'skip': .*by their places.*'none' keeps"):
        model_class(model="org/name", on_error="skip")
    model = model_class(model="org/name", on_error="none")
    with pytest.raises(SettingsError, match="on_error"):
        model.on_error = "skip"


def test_on_error_has_three_values(server: RemoteServer) -> None:
    for call in (lambda: Engine(base_url=server.url).embed(["a"], on_error="ignore"),  # type: ignore[arg-type]
                 lambda: Engine(base_url=server.url).rerank("q", ["a"], on_error="ignore")):  # type: ignore[arg-type]  # fmt: skip
        with pytest.raises(InvalidInputError, match="on_error = 'ignore': must be one of 'raise', 'skip', 'none'"):
            call()


async def test_an_ingestion_pipeline_stores_all_but_the_bad_node(server: RemoteServer) -> None:
    from llama_index.core.ingestion import IngestionPipeline
    from llama_index.core.schema import TextNode
    from llama_index.core.vector_stores import SimpleVectorStore

    is_choosy(server)
    embed_model = VLLMEmbedding(base_url=server.url, on_error="none")
    for run in (
        lambda pipeline, nodes: asyncio.to_thread(pipeline.run, nodes=nodes),
        lambda pipeline, nodes: pipeline.arun(nodes=nodes),
    ):
        store = SimpleVectorStore()
        nodes = [TextNode(text=text) for text in ("a", LONG, "abc")]
        made = await run(IngestionPipeline(transformations=[embed_model], vector_store=store), nodes)
        assert [node.embedding for node in made] == [[1.0, 0.5], None, [3.0, 0.5]]
        assert list(store.data.embedding_dict.values()) == [[1.0, 0.5], [3.0, 0.5]]
    left = await embed_model.acall([TextNode(text=text) for text in ("a", LONG, "abc")], on_error="skip")
    assert [node.get_content() for node in left] == ["a", "abc"]


async def test_a_cache_keeps_no_failure(server: RemoteServer) -> None:
    from llama_index.core.storage.kvstore import SimpleKVStore

    is_choosy(server)
    store = SimpleKVStore()
    embed_model = VLLMEmbedding(base_url=server.url, embeddings_cache=store, on_error="none")
    assert await embed_model.aget_text_embedding_batch(["a", LONG]) == [[1.0, 0.5], None]
    vectors = await asyncio.to_thread(embed_model.get_text_embedding_batch, ["a", LONG, "abc"])
    assert vectors == [[1.0, 0.5], None, [3.0, 0.5]]
    assert sorted(store.get_all(collection="embeddings")) == ["a", "abc"]


def test_progress_counts_what_failed(server: RemoteServer) -> None:
    is_choosy(server)
    done: list[int] = []
    Engine(base_url=server.url).embed(texts_with({0: 5, 50: LONG}), on_error="skip", on_progress=done.append)
    assert sum(done) == 100


def test_the_log_says_that_some_failed(server: RemoteServer, caplog: pytest.LogCaptureFixture) -> None:
    is_choosy(server)
    Engine(base_url=server.url).embed(texts_with({5: LONG, 50: LONG}), on_error="none")
    assert "2 of 100 texts failed: texts[5]: " in caplog.text
