"""Pipelines around the models: ingestion with caches and processes, extractors, selectors, sub-questions, judges."""

from __future__ import annotations

import asyncio
import json
import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from llama_index.core import Document, Settings, SummaryIndex
from llama_index.core.callbacks import CallbackManager, TokenCountingHandler
from llama_index.core.evaluation import BatchEvalRunner, FaithfulnessEvaluator, RelevancyEvaluator
from llama_index.core.extractors import DocumentContextExtractor, KeywordExtractor, SummaryExtractor, TitleExtractor
from llama_index.core.ingestion import DocstoreStrategy, IngestionPipeline
from llama_index.core.ingestion.pipeline import get_transformation_hash
from llama_index.core.llms.utils import resolve_llm
from llama_index.core.query_engine import RouterQueryEngine, SubQuestionQueryEngine
from llama_index.core.question_gen import LLMQuestionGenerator
from llama_index.core.schema import BaseNode, MetadataMode, NodeRelationship, TextNode
from llama_index.core.selectors import LLMSingleSelector, PydanticMultiSelector, PydanticSingleSelector
from llama_index.core.storage.docstore import SimpleDocumentStore
from llama_index.core.tools import QueryEngineTool

from llama_index_vllm_local import VLLM, VLLMEmbedding
from tests.support.framework_sources import keywords_of
from tests.support.remote_server import RemoteServer, chat_answer
from tests.support.scripted import answers, call, flights

SECRET = "sk-very-secret"


@pytest.fixture
def remote(server: RemoteServer) -> VLLM:
    return VLLM(base_url=server.url, api_key=SECRET, max_retries=0)


def asked(server: RemoteServer) -> list[str]:
    return [body["messages"][-1]["content"] for _, body in server.requests]


# ---- ingestion: caches


def pipeline(server: RemoteServer, **options: Any) -> IngestionPipeline:
    """Made again each time, as each run of an app makes it."""
    llm = VLLM(base_url=server.url, **{"api_key": SECRET, "temperature": 0.5, **options})
    embed_model = VLLMEmbedding(base_url=server.url, api_key=SECRET, model="served")
    extractor = KeywordExtractor(llm=llm, show_progress=False)
    return IngestionPipeline(
        transformations=[extractor, embed_model],
        docstore=SimpleDocumentStore(),
        docstore_strategy=DocstoreStrategy.DUPLICATES_ONLY,
    )


async def extracts_and_embeds(request: web.Request) -> web.StreamResponse:
    body = await request.json()
    if "messages" in body:
        return web.json_response(chat_answer("bridge, river"))
    vectors = [{"index": index, "embedding": [1.0, 2.0]} for index in range(len(body["input"]))]
    return web.json_response({"data": vectors})


def texts(*said: str) -> list[TextNode]:
    return [TextNode(id_=str(number), text=text) for number, text in enumerate(said)]


@pytest.mark.parametrize("is_async", [False, True])
def test_a_stored_cache_spares_the_next_run_all_requests_and_holds_no_secret(
    server: RemoteServer, tmp_path: Path, is_async: bool
) -> None:
    def run(made: IngestionPipeline) -> Sequence[BaseNode]:
        made.docstore = SimpleDocumentStore()  # else it would leave out what it has seen
        if is_async:
            return asyncio.run(made.arun(nodes=texts("one", "two", "three")))
        return made.run(nodes=texts("one", "two", "three"))

    server.handler = extracts_and_embeds
    first = pipeline(server)
    made = run(first)
    assert len(server.requests) == 4
    assert [(node.metadata["excerpt_keywords"], node.embedding) for node in made] == [("bridge, river", [1.0, 2.0])] * 3
    first.persist(str(tmp_path))
    assert not any(SECRET in file.read_text() for file in tmp_path.iterdir())
    again = pipeline(server)
    again.load(str(tmp_path))
    assert [node.embedding for node in run(again)] == [node.embedding for node in made]
    assert len(server.requests) == 4


HASHED: dict[str, tuple[dict[str, Any], bool]] = {
    "the same": ({}, True),
    "another key": ({"api_key": "sk-other"}, True),
    "another temperature": ({"temperature": 0.6}, False),
    "another seed": ({"seed": 3}, False),
    "another system prompt": ({"system_prompt": "Be brief."}, False),
    "another model": ({"model": "other"}, False),
    "listeners": ({"callback_manager": CallbackManager([TokenCountingHandler(tokenizer=str.split)])}, True),
}


@pytest.mark.parametrize("difference", HASHED)
def test_a_cache_tells_models_apart_by_what_decides_their_answers(server: RemoteServer, difference: str) -> None:
    options, is_same = HASHED[difference]
    nodes = [TextNode(text="one")]

    def hashed(made: IngestionPipeline) -> str:
        return get_transformation_hash(nodes, made.transformations[0])

    assert (hashed(pipeline(server)) == hashed(pipeline(server, **options))) is is_same


def test_another_process_finds_the_same_entries_in_a_cache(server: RemoteServer) -> None:
    for transformation in pipeline(server).transformations:
        nodes = [TextNode(text="one")]
        back = pickle.loads(pickle.dumps(transformation))
        assert get_transformation_hash(nodes, back) == get_transformation_hash(nodes, transformation)


def test_no_form_of_what_holds_a_model_shows_the_key(remote: VLLM) -> None:
    for extractor in (TitleExtractor(llm=remote), SummaryExtractor(llm=remote), KeywordExtractor(llm=remote)):
        forms = (repr(extractor), str(extractor.to_dict()), extractor.to_json(), str(extractor.model_dump()))
        assert not any(SECRET in form for form in forms)
        assert SECRET.encode() not in pickle.dumps(extractor)


def test_a_model_comes_back_from_the_dict_of_what_holds_it(remote: VLLM) -> None:
    remote.temperature, remote.seed = 0.3, 7
    back = VLLM.from_dict(KeywordExtractor(llm=remote).to_dict()["llm"])
    assert (back.base_url, back.temperature, back.seed) == (remote.base_url, 0.3, 7)


# ---- ingestion: many nodes at once


@pytest.mark.slow
@pytest.mark.parametrize("kind", [SummaryExtractor, KeywordExtractor])
@pytest.mark.parametrize("is_async", [False, True])
def test_extractors_keep_as_many_in_flight_as_they_are_told(
    remote: VLLM, server: RemoteServer, kind: Any, is_async: bool
) -> None:
    flights(server, 16)
    extractor = kind(llm=remote, num_workers=16, show_progress=False)
    nodes = [TextNode(text=f"Fact {number}.") for number in range(32)]
    made = asyncio.run(extractor.aextract(nodes)) if is_async else extractor.extract(nodes)
    assert len(made) == len(server.requests) == 32


# ---- which of several


def tools(llm: VLLM) -> list[QueryEngineTool]:
    known = {"bridges": "The Alder bridge was opened in 1932.", "libraries": "The library has 4500 books."}
    return [
        QueryEngineTool.from_defaults(
            SummaryIndex.from_documents([Document(text=text)]).as_query_engine(llm=llm),
            name=name,
            description=f"Facts about {name}",
        )
        for name, text in known.items()
    ]


CHOSEN = json.dumps([{"choice": 2, "reason": "It is about books."}])
SELECTORS: dict[str, tuple[Any, str | dict[str, Any]]] = {
    "text": (LLMSingleSelector, CHOSEN),
    "call": (PydanticSingleSelector, call("SingleSelection", index=2, reason="books")),
    "calls": (PydanticMultiSelector, call("MultiSelection", selections=[{"index": 2, "reason": "books"}])),
    "default": (None, call("SingleSelection", index=2, reason="books")),
}


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize("selector", SELECTORS)
def test_a_router_asks_the_engine_that_the_model_chose(
    remote: VLLM, server: RemoteServer, selector: str, is_async: bool
) -> None:
    kind, answer = SELECTORS[selector]
    answers(server, answer, "4500.")
    chosen = None if kind is None else kind.from_defaults(llm=remote)
    router = RouterQueryEngine.from_defaults(tools(remote), llm=remote, selector=chosen)
    question = "How many books has the library?"
    response = asyncio.run(router.aquery(question)) if is_async else router.query(question)
    assert str(response) == "4500."
    assert "4500 books" in asked(server)[-1]
    assert len(server.requests) == 2


SUB_QUESTIONS = {
    "items": [
        {"sub_question": "When was the bridge opened?", "tool_name": "bridges"},
        {"sub_question": "How many books are there?", "tool_name": "libraries"},
    ]
}


@pytest.mark.parametrize("is_async", [False, True])
def test_sub_questions_are_all_in_flight_and_their_answers_make_the_answer(
    remote: VLLM, server: RemoteServer, is_async: bool
) -> None:
    replies = {
        "<Tools>": f"```json\n{json.dumps(SUB_QUESTIONS)}\n```",
        "Query: When": "In 1932.",
        "Query: How": "4500.",
        "Query: What": "In 1932; 4500 books.",
    }
    both = asyncio.Barrier(2)

    async def handler(request: web.Request) -> web.StreamResponse:
        prompt = (await request.json())["messages"][-1]["content"]
        reply = next(text for mark, text in replies.items() if mark in prompt)
        if reply in ("In 1932.", "4500."):
            await asyncio.wait_for(both.wait(), 20)
        return web.json_response(chat_answer(reply))

    server.handler = handler
    engine = SubQuestionQueryEngine.from_defaults(
        tools(remote), llm=remote, question_gen=LLMQuestionGenerator.from_defaults(llm=remote), verbose=False
    )
    question = "What is known of the bridge and of the library?"
    response = asyncio.run(engine.aquery(question)) if is_async else engine.query(question)
    assert str(response) == "In 1932; 4500 books."
    assert len(server.requests) == 4
    assert all(part in asked(server)[-1] for part in ("Response: In 1932.", "Response: 4500."))


# ---- evaluation


# LlamaIndex's own runner calls what LlamaIndex deprecated.
@pytest.mark.filterwarnings("ignore:asyncio_module:DeprecationWarning")
async def test_an_evaluation_keeps_its_workers_busy_and_reads_the_verdicts(remote: VLLM, server: RemoteServer) -> None:
    async def judge(request: web.Request) -> web.StreamResponse:
        prompt = str((await request.json())["messages"])
        return web.json_response(chat_answer("YES" if "It rains." in prompt.rpartition("Context")[2] else "NO"))

    server.answer = judge  # type: ignore[method-assign]
    flights(server, 8)
    evaluators = {"faithfulness": FaithfulnessEvaluator(llm=remote), "relevancy": RelevancyEvaluator(llm=remote)}
    runner = BatchEvalRunner(evaluators, workers=8)
    results = await runner.aevaluate_response_strs(
        queries=["How is the weather?"] * 4,
        response_strs=["It rains."] * 4,
        contexts_list=[["It rains."], ["The sun shines."]] * 2,
    )
    for name in evaluators:
        assert [result.feedback for result in results[name]] == ["YES", "NO"] * 2, name
    assert len(server.requests) == 8


# ---- as LlamaIndex's parts take a model


def test_a_model_is_taken_as_it_is_with_the_listeners_of_who_takes_it(remote: VLLM) -> None:
    listeners = CallbackManager([])
    assert resolve_llm(remote, callback_manager=listeners) is remote
    assert remote.callback_manager is listeners


def test_what_is_set_for_all_is_used_by_extractors(remote: VLLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Settings, "_llm", None)
    Settings.llm = remote
    assert Settings.llm is remote
    assert TitleExtractor().llm is remote


# ---- on real vLLM: processes share the engine

Run = Callable[[IngestionPipeline, list[TextNode]], Sequence[BaseNode]]
PROCESSES: dict[str, Run] = {
    "spawned": lambda made, given: made.run(nodes=given, num_workers=2),
    "forked": lambda made, given: asyncio.run(made.arun(nodes=given, num_workers=2)),
    "own": lambda made, given: asyncio.run(made.arun(nodes=given)),
}
CAPITALS = {"France": "Paris", "Italy": "Rome", "Spain": "Madrid", "Japan": "Tokyo"}


@pytest.mark.parametrize("processes", PROCESSES)
def test_a_pipelines_processes_share_the_engines(llm: VLLM, minilm: dict[str, Any], processes: str) -> None:
    embed_model = VLLMEmbedding(**minilm)
    engines = (llm.engine, embed_model.engine)
    for engine in engines:
        engine.warmup()
    before = [(engine.status().starts, engine.status().server_pid) for engine in engines]
    asks = KeywordExtractor(llm=llm, prompt_template="What is the capital of {context_str}?", show_progress=False)
    made = IngestionPipeline(transformations=[asks, embed_model], disable_cache=True)
    nodes = PROCESSES[processes](made, texts(*CAPITALS))
    assert [node.get_content() for node in nodes] == list(CAPITALS)
    for node, capital in zip(nodes, CAPITALS.values(), strict=True):
        assert capital in node.metadata["excerpt_keywords"]
    vectors = embed_model.get_text_embedding_batch([node.get_content(MetadataMode.EMBED) for node in nodes])
    for node, vector in zip(nodes, vectors, strict=True):
        assert node.embedding == pytest.approx(vector, abs=1e-4)
    assert [(engine.status().starts, engine.status().server_pid) for engine in engines] == before


# ---- parameters that core passes to any LLM

_ENDPOINTS = [f"{a}{stream}{name}" for a in ("", "a") for stream in ("", "stream_") for name in ("chat", "complete")]
_WITH_TOOLS = ["chat_with_tools", "achat_with_tools", "stream_chat_with_tools", "astream_chat_with_tools"]


@pytest.mark.slow
def test_what_core_passes_to_any_llm_is_taken() -> None:
    of_tools = {"tools", "chat_history", "verbose", "allow_parallel_tool_calls", "tool_choice", "tool_required"}
    known = {"messages", "max_tokens", "extra_headers", *of_tools}
    methods = [*_ENDPOINTS, *_WITH_TOOLS, "predict_and_call", "apredict_and_call"]
    assert keywords_of("llama_index.core", methods) <= known, "take or drop it"


async def test_each_node_gets_its_context(server: RemoteServer, remote: VLLM) -> None:
    """Core passes a header for Anthropic's cache of prompts, which a server may have too."""
    answers(server, "About bridges.")
    document = Document(text="The Norling bridge was opened in 1936.", id_="bridges")
    store = SimpleDocumentStore()
    store.add_documents([document])
    node = TextNode(text="opened in 1936", relationships={NodeRelationship.SOURCE: document.as_related_node_info()})
    extractor = DocumentContextExtractor(docstore=store, llm=remote, max_output_tokens=9)
    assert await extractor.aextract([node]) == [{"context": "About bridges."}]
    ((headers, body),) = server.requests
    assert body["max_tokens"] == 9 and "extra_headers" not in body

    assert "anthropic-beta" in headers
