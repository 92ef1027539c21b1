"""Retrieval-augmented generation: what is in flight, what fits, what stops; and on real vLLM, with real embeddings."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from llama_index.core import (
    Document,
    Settings,
    StorageContext,
    SummaryIndex,
    VectorStoreIndex,
    get_response_synthesizer,
    load_index_from_storage,
)
from llama_index.core.callbacks import TokenCountingHandler
from llama_index.core.chat_engine import SimpleChatEngine
from llama_index.core.memory import ChatMemoryBuffer
from llama_index.core.node_parser import SentenceSplitter
from llama_index.core.prompts import MessageRole
from llama_index.core.response_synthesizers import BaseSynthesizer
from llama_index.core.schema import NodeWithScore, TextNode

from llama_index_vllm_local import VLLM, VLLMEmbedding, VLLMRerank
from shared_engine import ContextLengthError, Engine
from tests.llama_index.conftest import plain_memory
from tests.support.interpreters import make_exporter
from tests.support.paths import TINY_CHAT
from tests.support.remote_server import RemoteServer, chat_answer
from tests.support.scripted import flights

ABORT_S = 10
FAN_OUT = 64
WINDOW, ROOM = 2048, 48


@pytest.fixture
def remote(server: RemoteServer) -> VLLM:
    return VLLM(base_url=server.url, max_retries=0, context_window=512, max_tokens=16)


def prompts(server: RemoteServer) -> list[list[dict[str, Any]]]:
    return [body["messages"] for _, body in server.requests]


# ---- what is in flight


def nodes(count: int) -> list[NodeWithScore]:
    return [NodeWithScore(node=TextNode(text=f"Fact {number}. " + "It is so. " * 60)) for number in range(count)]


def in_a_script(synthesizer: BaseSynthesizer, given: list[NodeWithScore]) -> Any:
    """Where LlamaIndex uses one loop for all calls, and closes it never."""
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    try:
        return synthesizer.synthesize("What is so?", given)
    finally:
        asyncio.set_event_loop(None)
        loop.close()


def in_a_notebook(synthesizer: BaseSynthesizer, given: list[NodeWithScore]) -> Any:
    async def cell() -> Any:
        return synthesizer.synthesize("What is so?", given)

    return asyncio.run(cell())


WAYS: dict[str, Callable[[BaseSynthesizer, list[NodeWithScore]], Any]] = {
    "in a thread": lambda synthesizer, given: synthesizer.synthesize("What is so?", given),
    "in a script": in_a_script,
    "in a notebook": in_a_notebook,
    "async": lambda synthesizer, given: asyncio.run(synthesizer.asynthesize("What is so?", given)),
}


@pytest.mark.parametrize(
    ("mode", "way"),
    [
        ("tree_summarize", "in a thread"),
        ("compact_accumulate", "async"),
        *(pytest.param("tree_summarize", way, marks=pytest.mark.slow) for way in WAYS if way != "in a thread"),
        pytest.param("accumulate", "in a thread", marks=pytest.mark.slow),
    ],
)
@pytest.mark.slow
def test_the_whole_fan_out_is_in_flight_at_once(remote: VLLM, server: RemoteServer, mode: str, way: str) -> None:
    synthesizer = get_response_synthesizer(remote, response_mode=mode, use_async=True)
    WAYS[way](synthesizer, nodes(FAN_OUT))
    at_once = len(server.requests) - (mode == "tree_summarize")  # which then sums up what they said
    assert at_once >= FAN_OUT / 2
    flights(server, at_once, 1)
    WAYS[way](synthesizer, nodes(FAN_OUT))


# ---- what fits


TEXTS = {
    "prose": "The archivist of the northern province catalogued extraordinary manuscripts, unhurriedly. ",
    "numbers": "17.25;98431;0x7f3a;2024-11-03T09:41:57Z ",
    "code": "def __setstate__(self, state: dict[Any, Any]) -> None:\n        super().__setstate__(state)\n",
    "accents": "Générosité, Übermut, žluťoučký kůň; ",
    "japanese": "日本語の文章を分割します。",
}


@pytest.fixture(scope="module")
def exporter(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_exporter(tmp_path_factory.mktemp("engine") / "environment")


@pytest.fixture
def counts_as_tiny_chat(exporter: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Engine:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    engine = Engine(model=str(TINY_CHAT), python=exporter)  # which could not start
    monkeypatch.setattr(Settings, "tokenizer", engine.tokenize)
    return engine


def as_tiny_chat_reads(messages: list[dict[str, Any]]) -> str:
    turns = [f"<|im_start|>{message['role']}\n{message['content']}<|im_end|>\n" for message in messages]
    return "".join(turns) + "<|im_start|>assistant\n<think></think>"


@pytest.mark.parametrize("mode", ["compact", "refine", "tree_summarize", "simple_summarize"])
@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.slow
def test_no_request_is_too_long_when_llama_index_counts_as_the_model_does(
    counts_as_tiny_chat: Engine, server: RemoteServer, text: str, mode: str
) -> None:
    llm = VLLM(base_url=server.url, context_window=WINDOW, max_tokens=ROOM)
    synthesizer = get_response_synthesizer(llm, response_mode=mode)
    length = counts_as_tiny_chat.count_tokens(TEXTS[text])
    synthesizer.synthesize("What is said?", [NodeWithScore(node=TextNode(text=TEXTS[text] * (5000 // length)))])
    lengths = [counts_as_tiny_chat.count_tokens(as_tiny_chat_reads(messages)) for messages in prompts(server)]
    assert max(lengths) <= WINDOW
    assert lengths[0] > WINDOW * 0.7  # LlamaIndex leaves room for the longest of its prompts
    assert (len(lengths) > 2) is (mode != "simple_summarize")


def test_a_memory_holds_what_the_model_can_read() -> None:
    llm = VLLM(model=str(TINY_CHAT), max_model_len=1000)
    assert ChatMemoryBuffer.from_defaults(llm=llm).token_limit == 750


def test_a_long_conversation_is_cut_at_its_beginning(remote: VLLM, server: RemoteServer) -> None:
    memory = ChatMemoryBuffer.from_defaults(llm=remote, tokenizer_fn=str.split)
    engine = SimpleChatEngine.from_defaults(llm=remote, memory=memory, system_prompt="Be brief.")
    for turn in range(8):
        engine.chat(f"{turn} " + "word " * 99)
    first, *_, last = prompts(server)
    assert [message["role"] for message in first] == ["system", "user"]
    assert [message["role"] for message in last] == ["system", *["user", "assistant"] * 2, "user"]
    assert last[-1]["content"].startswith("7 ")
    assert len(engine.chat_history) == 16


# ---- what stops


async def left(engine: Any, is_async: bool) -> None:
    if is_async:
        async for piece in (await engine.aquery("Who?")).async_response_gen():
            assert piece == "one"
            return
    for piece in engine.query("Who?").response_gen:
        assert piece == "one"
        return


@pytest.mark.parametrize("is_async", [False, True])
def test_leaving_a_streamed_answer_aborts_its_request(remote: VLLM, server: RemoteServer, is_async: bool) -> None:
    server.streams("one", "two", then="hang")
    llm = remote.model_copy(update={"context_window": WINDOW})
    engine = SummaryIndex.from_documents([Document(text="Ann.")]).as_query_engine(llm=llm, streaming=True)
    asyncio.run(left(engine, is_async))
    assert server.aborted.wait(ABORT_S)


async def test_an_error_ends_what_else_is_in_flight(remote: VLLM, server: RemoteServer) -> None:
    """asyncio.gather leaves the others running; they end with their loop, as in LlamaIndex's own sync calls."""
    ended: list[int] = []

    async def handler(request: web.Request) -> web.StreamResponse:
        if "Fact 3." in str(await request.json()):
            return web.json_response({"error": {"message": "refused", "code": 400}}, status=400)
        try:
            await asyncio.sleep(60)
        finally:
            ended.append(1)
        return web.json_response(chat_answer())

    server.handler = handler
    synthesizer = get_response_synthesizer(remote, response_mode="accumulate", use_async=True)
    with pytest.raises(Exception, match="refused"):
        await asyncio.to_thread(asyncio.run, synthesizer.asynthesize("What?", nodes(6)))
    for _ in range(100):
        if len(ended) == len(server.requests) - 1:
            return
        await asyncio.sleep(0.05)
    pytest.fail(f"{len(ended)} of {len(server.requests) - 1} ended")


# ---- both models of everything


@pytest.fixture
def both_models(server: RemoteServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """As an app sets them, once."""
    monkeypatch.setattr(Settings, "_llm", VLLM(base_url=server.url))
    monkeypatch.setattr(Settings, "_embed_model", VLLMEmbedding(base_url=server.url))
    monkeypatch.setattr(Settings, "_prompt_helper", None)


async def embeds_and_chats(request: web.Request) -> web.StreamResponse:
    if "messages" in await request.json():
        return web.json_response(chat_answer("Ann."))
    texts = (await request.json())["input"]
    vectors = [{"index": index, "embedding": [float("?" in text), 1.0]} for index, text in enumerate(texts)]
    return web.json_response({"data": vectors})


def test_an_app_that_sets_both_models_once_names_neither_again(both_models: None, server: RemoteServer) -> None:
    server.handler = embeds_and_chats
    index = VectorStoreIndex.from_documents([Document(text="Who? Ann."), Document(text="It rains.")])
    answer = index.as_query_engine(similarity_top_k=1).query("Who?")
    assert str(answer) == "Ann."
    assert [node.text for node in answer.source_nodes] == ["Who? Ann."]
    assert "Who? Ann." in prompts_with_messages(server)[-1][-1]["content"]
    assert Settings.prompt_helper.context_window == Settings.llm.metadata.context_window


def prompts_with_messages(server: RemoteServer) -> list[list[dict[str, Any]]]:
    return [body["messages"] for _, body in server.requests if "messages" in body]


def test_a_chat_engine_condenses_what_was_said(both_models: None, server: RemoteServer) -> None:
    server.handler = embeds_and_chats
    index = VectorStoreIndex.from_documents([Document(text="Who? Ann.")])
    engine = index.as_chat_engine(chat_mode="condense_question", memory=plain_memory())
    engine.chat("Who?")
    engine.chat("And who is that?")
    _, condense, answer = prompts_with_messages(server)
    assert "user: Who?\nassistant: Ann." in condense[-1]["content"]
    assert "And who is that?" in condense[-1]["content"]
    assert "Query: Ann." in answer[-1]["content"]  # what the model made of it


# ---- on real vLLM, with real embeddings

FACTS = {
    "Who is the director of the museum?": "The director of the museum is Mara Lindt.",
    "What is the password of the archive?": "The password of the archive is blue-heron-42.",
    "How many books has the library of Alder?": "The library of Alder has 4500 books.",
    "When was the Alder bridge opened?": "The Alder bridge was opened in 1932.",
}
DIRECTOR, PASSWORD, *_ = FACTS


@pytest.fixture(scope="module")
def index(minilm: dict[str, Any]) -> VectorStoreIndex:
    documents = [Document(text=text) for text in FACTS.values()]
    return VectorStoreIndex.from_documents(documents, embed_model=VLLMEmbedding(**minilm))


def test_texts_are_cut_by_the_tokens_of_the_model_that_embeds_them(minilm: dict[str, Any]) -> None:
    embed_model = VLLMEmbedding(**minilm)
    document = Document(text=" ".join(FACTS.values()) * 10)
    with pytest.raises(ContextLengthError, match="the model's limit is 256"):
        VectorStoreIndex.from_documents([document], embed_model=embed_model)
    splitter = SentenceSplitter(chunk_size=254, chunk_overlap=0, tokenizer=embed_model.engine.tokenize)
    index = VectorStoreIndex.from_documents([document], transformations=[splitter], embed_model=embed_model)
    lengths = [embed_model.engine.count_tokens(node.get_content()) for node in index.docstore.docs.values()]
    assert len(lengths) > 1
    assert 200 < max(lengths) <= 256


def asked(engine: Any, question: str) -> Any:
    return engine.query(question)


def asked_async(engine: Any, question: str) -> Any:
    return asyncio.run(engine.aquery(question))


@pytest.mark.parametrize("ask", [asked, asked_async])
def test_the_right_text_is_found_and_answers(
    llm: VLLM, index: VectorStoreIndex, ask: Callable[[Any, str], Any]
) -> None:
    engine = index.as_query_engine(llm=llm, similarity_top_k=1)
    for question in (DIRECTOR, PASSWORD):
        answer = ask(engine, question)
        assert [node.text for node in answer.source_nodes] == [FACTS[question]]
        assert str(answer) == FACTS[question]


def test_an_answer_streams(llm: VLLM, index: VectorStoreIndex) -> None:
    engine = index.as_query_engine(llm=llm, similarity_top_k=1, streaming=True)

    async def astreamed() -> list[str]:
        return [piece async for piece in (await engine.aquery(DIRECTOR)).async_response_gen()]

    for pieces in (list(engine.query(DIRECTOR).response_gen), asyncio.run(astreamed())):
        assert "".join(pieces) == FACTS[DIRECTOR]
        assert len(pieces) > 3


MODES = ["compact", "refine", "tree_summarize", "simple_summarize", "accumulate", "compact_accumulate"]


@pytest.mark.parametrize("mode", MODES)
def test_every_response_mode_answers_from_what_was_found(llm: VLLM, index: VectorStoreIndex, mode: str) -> None:
    engine = index.as_query_engine(llm=llm, similarity_top_k=2, response_mode=mode)
    answer = str(asked(engine, PASSWORD))
    assert FACTS[PASSWORD] in answer
    assert str(asked_async(engine, PASSWORD)) == answer


def test_the_reranked_text_is_what_answers(llm: VLLM, index: VectorStoreIndex, minilm: dict[str, Any]) -> None:
    reranker = VLLMRerank(**minilm, top_n=1)
    answer = index.as_query_engine(llm=llm, similarity_top_k=4, node_postprocessors=[reranker]).query(PASSWORD)
    assert ([node.text for node in answer.source_nodes], str(answer)) == ([FACTS[PASSWORD]], FACTS[PASSWORD])


def test_a_stored_index_is_asked_again(
    llm: VLLM, index: VectorStoreIndex, minilm: dict[str, Any], tmp_path: Path
) -> None:
    index.storage_context.persist(str(tmp_path))
    storage = StorageContext.from_defaults(persist_dir=str(tmp_path))
    loaded = load_index_from_storage(storage, embed_model=VLLMEmbedding(**minilm))
    assert str(loaded.as_query_engine(llm=llm, similarity_top_k=1).query(DIRECTOR)) == FACTS[DIRECTOR]


def said(engine: Any, way: str, message: str) -> str:
    async def achat() -> str:
        if way == "achat":
            return str(await engine.achat(message))
        return "".join([piece async for piece in (await engine.astream_chat(message)).async_response_gen()])

    if way.startswith("a"):
        return asyncio.run(achat())
    return str(engine.chat(message)) if way == "chat" else "".join(engine.stream_chat(message).response_gen)


CHATS = ["chat", "achat", "stream_chat", "astream_chat"]


@pytest.mark.parametrize("mode", ["best", "context", "condense_plus_context", "condense_question"])
def test_a_chat_engine_answers_from_its_documents(llm: VLLM, index: VectorStoreIndex, mode: str) -> None:
    engine = index.as_chat_engine(mode, llm=llm, similarity_top_k=1, memory=plain_memory())
    assert said(engine, "chat", DIRECTOR) == FACTS[DIRECTOR]
    assert said(engine, "astream_chat", PASSWORD) == FACTS[PASSWORD]
    roles = [message.role for message in engine.chat_history]
    assert roles == [MessageRole.USER, MessageRole.ASSISTANT] * 2


@pytest.mark.parametrize("way", CHATS)
def test_a_chat_engine_remembers_what_was_said(llm: VLLM, way: str) -> None:
    engine = SimpleChatEngine.from_defaults(llm=llm, memory=plain_memory())
    said(engine, way, "My name is Ann.")
    assert "Ann" in said(engine, way, "What is my name?")


def test_text_that_fits_by_llama_indexs_count_only_needs_the_models_own(
    llm: VLLM, counter: TokenCountingHandler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """LlamaIndex counts as OpenAI's models do, unless told otherwise; tiny_chat makes more tokens of most texts."""
    monkeypatch.setattr(Settings, "callback_manager", llm.callback_manager)  # which synthesizers give to the llm
    long = [NodeWithScore(node=TextNode(text=TEXTS["prose"] * 100))]
    with pytest.raises(ContextLengthError, match="the model's limit is 2048"):
        get_response_synthesizer(llm).synthesize("What?", long)
    counter.reset_counts()
    monkeypatch.setattr(Settings, "tokenizer", llm.engine.tokenize)
    get_response_synthesizer(llm.model_copy(update={"max_tokens": 4})).synthesize("What?", long)
    lengths = [event.prompt_token_count for event in counter.llm_token_counts]
    assert len(lengths) > 1
    assert max(lengths) <= WINDOW
