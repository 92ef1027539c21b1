"""VLLMEmbedding: what it sends and tells; and on real vLLM with the real weights of all-MiniLM-L6-v2."""

from __future__ import annotations

import asyncio
import json
import pickle
import re
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from aiohttp import web
from llama_index.core import Document, Settings, VectorStoreIndex
from llama_index.core.callbacks import CallbackManager, TokenCountingHandler
from llama_index.core.callbacks.schema import CBEventType, EventPayload
from llama_index.core.embeddings.utils import resolve_embed_model
from llama_index.core.instrumentation.events import BaseEvent
from llama_index.core.instrumentation.events.embedding import EmbeddingEndEvent, EmbeddingStartEvent
from llama_index.core.schema import TextNode
from llama_index.core.storage.kvstore import SimpleKVStore

from langchain_vllm_local import VLLMEmbeddings
from llama_index_vllm_local import VLLMEmbedding
from shared_engine import ContextLengthError, EngineState, InvalidInputError, RequestRejectedError
from tests.llama_index.listeners import RecordCallbacks, closed, recorded_spans
from tests.support.paths import REPOSITORY
from tests.support.pooling_server import bodies, embeds_and_reranks, vector_of
from tests.support.remote_server import RemoteServer, running_server

SECRET = "sk-very-secret"
TEXTS = ["one", "three", "a", "fifteen", "as"]


@pytest.fixture
def server() -> Iterator[RemoteServer]:
    with running_server() as server:
        server.handler = embeds_and_reranks
        yield server


# ---- in LlamaIndex's places


def test_it_can_be_the_embedding_model_of_everything(server: RemoteServer, monkeypatch: pytest.MonkeyPatch) -> None:
    callbacks = RecordCallbacks()
    monkeypatch.setattr(Settings, "_embed_model", None)
    monkeypatch.setattr(Settings, "_callback_manager", CallbackManager([callbacks]))
    Settings.embed_model = embed_model = VLLMEmbedding(
        base_url=server.url, query_instruction="q: ", text_instruction="t: "
    )
    assert Settings.embed_model is embed_model is resolve_embed_model(embed_model)
    index = VectorStoreIndex.from_documents([Document(text=text) for text in TEXTS])
    (found,) = index.as_retriever(similarity_top_k=1).retrieve("seven o")
    assert found.text == "fifteen"
    assert bodies(server) == [{"input": [f"t: {text}" for text in TEXTS]}, {"input": ["q: seven o"]}]
    assert len([kind for kind, event, _ in callbacks.told if event is CBEventType.EMBEDDING]) == 4


async def test_it_transforms_nodes_with_what_llama_index_embeds_of_them(server: RemoteServer) -> None:
    def nodes() -> list[TextNode]:
        return [TextNode(text=text, metadata={"page": 3, "file": "x"}, excluded_embed_metadata_keys=["file"])]

    text = "one"
    embed_model = VLLMEmbedding(base_url=server.url)
    for transformed in (embed_model(nodes()), await embed_model.acall(nodes())):
        assert [node.embedding for node in transformed] == [vector_of("page: 3\n\none")]
    assert bodies(server) == [{"input": ["page: 3\n\none"]}] * 2


# ---- what embeddings send


async def test_queries_and_texts_have_their_own_words_before_them(server: RemoteServer) -> None:
    embed_model = VLLMEmbedding(base_url=server.url, query_instruction="query: ", text_instruction="text: ")
    assert embed_model.get_query_embedding("a") == await embed_model.aget_query_embedding("a") == vector_of("query: a")
    assert embed_model.get_text_embedding("a") == await embed_model.aget_text_embedding("a") == vector_of("text: a")
    assert embed_model.get_text_embedding_batch(["a"]) == [vector_of("text: a")]
    assert await embed_model.aget_text_embedding_batch(["a"]) == [vector_of("text: a")]
    assert VLLMEmbedding(base_url=server.url).get_query_embedding("a") == vector_of("a")


def test_words_of_the_models_files_are_for_a_query_and_for_documents() -> None:
    embed_model = VLLMEmbedding(model="org/name")
    query, text = embed_model._request(["a"], "query"), embed_model._request(["a"], "document")
    assert (query["input_type"], query["prefix"]) == ("query", None)
    assert (text["input_type"], text["prefix"]) == ("document", None)


async def test_all_options_are_sent_whichever_way_it_is_asked(server: RemoteServer) -> None:
    options: dict[str, Any] = {"dimensions": 2, "truncate_prompt_tokens": -1}
    embed_model = VLLMEmbedding(base_url=server.url, **options, extra_body={"use_activation": False})
    embed_model.get_query_embedding("a")
    embed_model.get_text_embedding("a")
    embed_model.get_text_embedding_batch(["a"])
    await embed_model.aget_query_embedding("a")
    await embed_model.aget_text_embedding("a")
    await embed_model.aget_text_embedding_batch(["a"])
    assert bodies(server) == [{"input": ["a"], **options, "use_activation": False}] * 6


async def test_no_texts_give_no_vectors_without_any_request(server: RemoteServer) -> None:
    embed_model = VLLMEmbedding(base_url=server.url)
    assert embed_model.get_text_embedding_batch([], show_progress=True) == []
    assert await embed_model.aget_text_embedding_batch([]) == []
    assert bodies(server) == []


def test_one_string_is_no_list_of_texts(server: RemoteServer) -> None:
    embed_model = VLLMEmbedding(base_url=server.url)
    with pytest.raises(InvalidInputError, match="texts must be a list of strings, got one string: 'abc'"):
        embed_model.get_text_embedding_batch("abc")
    with pytest.raises(InvalidInputError, match="texts must be a list of strings"):
        asyncio.run(embed_model.aget_text_embedding_batch("abc"))
    assert server.requests == []


@pytest.mark.parametrize("options", [{}, {"embed_batch_size": 2}, {"embed_batch_size": 2, "num_workers": 2}])
async def test_vectors_come_in_order_however_the_texts_are_cut(server: RemoteServer, options: dict[str, Any]) -> None:
    embed_model = VLLMEmbedding(base_url=server.url, **options)
    expected = [vector_of(text) for text in TEXTS]
    assert embed_model.get_text_embedding_batch(TEXTS) == expected
    assert await embed_model.aget_text_embedding_batch(TEXTS) == expected


async def test_the_whole_list_is_in_flight_at_once(server: RemoteServer) -> None:
    arrived = []

    async def only_together(request: web.Request) -> web.StreamResponse:
        arrived.append(request)
        while len(arrived) % 4:
            await asyncio.sleep(0.01)
        return await embeds_and_reranks(request)

    server.handler = only_together
    texts = ["a" * length for length in range(1, 4 * 64 + 1)]
    embed_model = VLLMEmbedding(base_url=server.url, timeout=20, max_retries=0)
    expected = [vector_of(text) for text in texts]
    assert embed_model.get_text_embedding_batch(texts) == expected
    assert await embed_model.aget_text_embedding_batch(texts) == expected
    assert [len(body["input"]) for body in bodies(server)] == [64] * 8


async def test_a_stored_vector_is_not_asked_for_again(server: RemoteServer) -> None:
    embed_model = VLLMEmbedding(base_url=server.url, embeddings_cache=SimpleKVStore())
    expected = [vector_of(text) for text in TEXTS]
    embed_model.get_text_embedding_batch(TEXTS[:3])
    assert await embed_model.aget_text_embedding_batch(TEXTS) == expected
    assert embed_model.get_text_embedding_batch(TEXTS) == expected
    assert embed_model.get_text_embedding(TEXTS[0]) == expected[0]
    assert bodies(server) == [{"input": TEXTS[:3]}, {"input": TEXTS[3:]}]


def test_it_works_in_any_number_of_event_loops_one_after_another(server: RemoteServer) -> None:
    embed_model = VLLMEmbedding(base_url=server.url)
    for _ in range(3):
        assert asyncio.run(embed_model.aget_text_embedding_batch(TEXTS)) == [vector_of(text) for text in TEXTS]
        assert embed_model.get_query_embedding("a") == vector_of("a")


# ---- progress


async def test_progress_is_shown_in_texts_on_demand(server: RemoteServer, capfd: pytest.CaptureFixture[str]) -> None:
    embed_model = VLLMEmbedding(base_url=server.url, embed_batch_size=2, embeddings_cache=SimpleKVStore())
    embed_model.get_text_embedding_batch(TEXTS[:2])
    assert capfd.readouterr().err == ""
    embed_model.get_text_embedding_batch(TEXTS, show_progress=True)
    shown = capfd.readouterr().err
    assert len(re.findall(r"Generating embeddings.*?\b0/5", shown)) == 1  # LlamaIndex's own counts what it sends
    assert "5/5" in shown
    await embed_model.aget_text_embedding_batch(TEXTS, show_progress=True)
    shown = capfd.readouterr().err
    assert "5/5" in shown
    assert set(re.findall(r"\d/(\d)", shown)) == {"5"}  # LlamaIndex's own would be of 3 batches


@pytest.mark.slow
async def test_progress_never_runs_ahead_of_the_vectors(
    server: RemoteServer, capfd: pytest.CaptureFixture[str]
) -> None:
    async def takes_the_first_two(request: web.Request) -> web.StreamResponse:
        if (await request.json())["input"] == TEXTS[:2]:
            return await embeds_and_reranks(request)
        await asyncio.sleep(0.3)
        return web.json_response({"error": {"message": "no", "code": 400}}, status=400)

    server.handler = takes_the_first_two
    embed_model = VLLMEmbedding(base_url=server.url, embed_batch_size=2, max_retries=0)
    with pytest.raises(RequestRejectedError):
        embed_model.get_text_embedding_batch(TEXTS, show_progress=True)
    assert max(re.findall(r"\d/\d", capfd.readouterr().err)) == "2/5"
    with pytest.raises(RequestRejectedError):
        await embed_model.aget_text_embedding_batch(TEXTS, show_progress=True)
    assert max(re.findall(r"\d/\d", capfd.readouterr().err)) == "2/5"


# ---- what LlamaIndex's listeners are told


async def test_embedding_events_come_once_for_each_of_llama_indexs_batches(
    server: RemoteServer, events: list[BaseEvent]
) -> None:
    callbacks = RecordCallbacks()
    manager = CallbackManager([callbacks])
    embed_model = VLLMEmbedding(base_url=server.url, embed_batch_size=2, callback_manager=manager, api_key=SECRET)
    batches = [TEXTS[:2], TEXTS[2:4], TEXTS[4:]]
    with recorded_spans() as spans:
        embed_model.get_query_embedding("q")
        assert told_of(events, callbacks) == [["q"]]
        await embed_model.aget_text_embedding("t")
        assert told_of(events, callbacks) == [["t"]]
        embed_model.get_text_embedding_batch(TEXTS)
        assert told_of(events, callbacks) == batches
        await embed_model.aget_text_embedding_batch(TEXTS)
        assert told_of(events, callbacks) == batches
    assert closed(spans, "get_text_embedding_batch") == closed(spans, "aget_text_embedding_batch") == 1


def told_of(events: list[BaseEvent], callbacks: RecordCallbacks) -> list[list[str]]:
    """The chunks that both kinds of listeners were told of, each with its vectors, since the last look."""
    starts = [event for event in events if isinstance(event, EmbeddingStartEvent)]
    ends = [event for event in events if isinstance(event, EmbeddingEndEvent)]
    payloads = [payload for kind, _, payload in callbacks.told if kind == "end"]
    assert len(starts) == len(ends) == len(payloads) == len(callbacks.told) - len(payloads)
    assert not any(SECRET in str(event) for event in starts)
    assert SECRET not in str(callbacks.told)
    for start, end, payload in zip(starts, ends, payloads, strict=True):
        assert (start.model_dict["class_name"], start.model_dict["model_name"]) == ("VLLMEmbedding", "unknown")
        assert end.chunks == payload[EventPayload.CHUNKS]
        assert end.embeddings == payload[EventPayload.EMBEDDINGS] == [vector_of(text) for text in end.chunks]
    events.clear()
    callbacks.told.clear()
    return [end.chunks for end in ends]


async def test_token_counts_are_those_of_the_counters_own_tokenizer(
    server: RemoteServer, counter: TokenCountingHandler
) -> None:
    embed_model = VLLMEmbedding(base_url=server.url, callback_manager=CallbackManager([counter]))
    embed_model.get_text_embedding_batch(["one two", "three"])
    await embed_model.aget_query_embedding("four five six")
    assert [event.prompt_token_count for event in counter.embedding_token_counts] == [2, 1, 3]
    assert counter.total_llm_token_count == 0


# ---- on real vLLM

WEATHER = ["The weather is lovely today.", "It's so sunny outside!", "He drove to the stadium."]
FACTS = [
    "The Rhine flows through Basel and Cologne.",
    "A cat purrs when it is content.",
    "Shares fell sharply after the bank's announcement.",
    "Bread is baked from flour, water, salt and yeast.",
    "The violin has four strings.",
]


@pytest.fixture
def embed_model(minilm: dict[str, Any]) -> VLLMEmbedding:
    return VLLMEmbedding(**minilm)


def near(vector: list[float]) -> Any:
    """The same, but for the order of additions, which is another in another batch."""
    return pytest.approx(vector, abs=1e-5)


async def test_every_way_gives_the_vectors_that_langchains_class_has_of_the_same_engine(
    minilm: dict[str, Any], embed_model: VLLMEmbedding
) -> None:
    langchain = VLLMEmbeddings(**minilm)
    expected = [near(vector) for vector in langchain.embed_documents(FACTS)]
    server_pid = langchain.engine.status().server_pid
    assert embed_model.get_text_embedding_batch(FACTS) == expected
    assert await embed_model.aget_text_embedding_batch(FACTS) == expected
    assert VLLMEmbedding(**minilm, embed_batch_size=2).get_text_embedding_batch(FACTS) == expected
    assert embed_model.get_text_embedding(FACTS[0]) == await embed_model.aget_text_embedding(FACTS[0]) == expected[0]
    query = near(langchain.embed_query("What purrs?"))
    assert embed_model.get_query_embedding("What purrs?") == query
    assert await embed_model.aget_query_embedding("What purrs?") == query
    assert embed_model.engine.status().server_pid == server_pid is not None


def test_similarities_are_those_that_sentence_transformers_computes(embed_model: VLLMEmbedding) -> None:
    one, two, three = embed_model.get_text_embedding_batch(WEATHER)
    assert {type(value) for value in one} == {float}
    # From the model's page, which computes them with PyTorch.
    assert embed_model.similarity(one, two) == pytest.approx(0.6660, abs=2e-4)
    assert embed_model.similarity(one, three) == pytest.approx(0.1046, abs=2e-4)


def test_instructions_are_part_of_what_is_embedded(minilm: dict[str, Any], embed_model: VLLMEmbedding) -> None:
    instructed = VLLMEmbedding(**minilm, query_instruction="query: ", text_instruction="passage: ")
    as_query, as_text = embed_model.get_text_embedding_batch(["query: violin", "passage: violin"])
    assert instructed.get_query_embedding("violin") == near(as_query)
    assert instructed.get_text_embedding("violin") == near(as_text)


async def test_an_index_finds_what_is_asked_for(embed_model: VLLMEmbedding) -> None:
    documents = [Document(text=fact) for fact in FACTS]
    retriever = VectorStoreIndex.from_documents(documents, embed_model=embed_model).as_retriever(similarity_top_k=1)
    assert [node.text for node in retriever.retrieve("Which instrument is played with a bow?")] == [FACTS[4]]
    assert [node.text for node in await retriever.aretrieve("Which animal likes to be stroked?")] == [FACTS[1]]


def test_a_long_text_is_named_or_cut(minilm: dict[str, Any], embed_model: VLLMEmbedding) -> None:
    long = "violin " * 300
    with pytest.raises(ContextLengthError, match=r"texts\[3\] has 302 tokens, and the model's limit is 256"):
        embed_model.get_text_embedding_batch([*FACTS[:3], long])
    cutting = VLLMEmbedding(**minilm, truncate_prompt_tokens=-1)
    one, other = cutting.get_text_embedding_batch([long, "violin " * 400])
    assert one == near(other)


def test_dimensions_are_refused_by_a_model_that_has_only_one(minilm: dict[str, Any]) -> None:
    with pytest.raises(RequestRejectedError, match=r"dimensions=64.*is_matryoshka"):
        VLLMEmbedding(**minilm, dimensions=64).get_query_embedding("a")


def test_a_pickled_one_finds_the_same_engine_from_another_process(embed_model: VLLMEmbedding) -> None:
    vector = embed_model.get_query_embedding(FACTS[0])
    program = (
        "import json, pickle, sys; embed_model = pickle.load(sys.stdin.buffer); "
        f"vector = embed_model.get_query_embedding({FACTS[0]!r}); "
        "print(json.dumps([vector, embed_model.engine.status().server_pid]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        input=pickle.dumps(embed_model),
        cwd=REPOSITORY,
        capture_output=True,
        check=True,
    )
    theirs, server_pid = json.loads(done.stdout)
    assert theirs == near(vector)
    assert server_pid == embed_model.engine.status().server_pid


def test_an_evicted_engine_comes_back_with_the_next_text(embed_model: VLLMEmbedding) -> None:
    vector = embed_model.get_query_embedding(FACTS[0])
    embed_model.engine.evict()
    assert embed_model.engine.status().state is EngineState.STANDBY
    assert embed_model.get_query_embedding(FACTS[0]) == near(vector)
