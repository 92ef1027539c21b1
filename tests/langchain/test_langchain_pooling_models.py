"""VLLMEmbeddings and VLLMRerank as objects: construction, names, copies, pickles, what calls send. Nothing starts."""

from __future__ import annotations

import asyncio
import copy
import pickle
import subprocess
import sys
from typing import Any

import pytest
from langchain_core import exceptions as core
from langchain_core.documents import Document
from langchain_core.load import dumpd, dumps, load

from langchain_vllm_local import VLLMEmbeddings, VLLMRerank
from shared_engine import InvalidInputError, SettingsError
from shared_engine.settings import ENVIRONMENT
from tests.support.pooling_server import answers, bodies
from tests.support.remote_server import RemoteServer

Model = type[VLLMEmbeddings] | type[VLLMRerank]
both = pytest.mark.parametrize("model_class", [VLLMEmbeddings, VLLMRerank])

DOCUMENTS = [
    Document("first", id="1", metadata={"source": "a"}),
    Document("second", id="2", metadata={"source": "b"}),
]


# ---- construction


@pytest.mark.slow
def test_importing_and_constructing_stay_light() -> None:
    code = """
import sys
from langchain_vllm_local import VLLMEmbeddings, VLLMRerank
VLLMEmbeddings(model="org/name"); VLLMRerank(base_url="http://127.0.0.1:1")
print([name for name in ("torch", "vllm", "openai", "aiohttp", "transformers", "tqdm") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"


@both
def test_the_engine_is_a_pooling_one_unless_the_user_says_otherwise(model_class: Model) -> None:
    model = model_class(model="org/name", engine_args={"max-num-seqs": 8})
    assert model.engine.settings.engine_args == {"runner": "pooling", "max_num_seqs": 8}
    model = model_class(model="org/name", engine_args={"runner": "auto"})
    assert model.engine.settings.engine_args == {"runner": "auto"}
    model.engine_args = {"max_num_seqs": 4}
    assert model.engine.settings.engine_args == {"runner": "pooling", "max_num_seqs": 4}


def test_both_classes_name_the_same_engine() -> None:
    assert VLLMEmbeddings(model="org/name").engine.settings == VLLMRerank(model="org/name").engine.settings


@both
def test_defaults_for_models_that_generate_are_of_no_concern(
    model_class: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(ENVIRONMENT["temperature"], "0.25")
    model = model_class(model="org/name")
    assert (model.temperature, model.engine.settings.temperature) == (None, None)
    with pytest.raises(SettingsError, match=rf"temperature: {model_class.__name__} generates no text"):
        model_class(model="org/name", temperature=0.5)


@pytest.mark.parametrize(
    ("alias", "name", "value"),
    [
        ("model_name", "model", "org/name"),
        ("request_timeout", "timeout", 5.0),
        ("query_instruction", "query_prefix", "query: "),
        ("embed_instruction", "document_prefix", "passage: "),
        ("batch_size", "chunk_size", 8),
        ("openai_api_base", "base_url", "http://127.0.0.1:2"),
    ],
)
def test_langchains_names_stand_for_ours(alias: str, name: str, value: Any) -> None:
    server = {} if name == "base_url" else {"base_url": "http://127.0.0.1:1"}
    model = VLLMEmbeddings(**{"mode": "remote", **server, alias: value})
    assert getattr(model, name) == value


@pytest.mark.parametrize(
    ("model_class", "given", "message"),
    [
        (VLLMEmbeddings, {"dimension": 8}, "unknown setting 'dimension'; did you mean 'dimensions'"),
        (VLLMEmbeddings, {"dimensions": 0}, "dimensions = 0"),
        (VLLMEmbeddings, {"chunk_size": 0}, "chunk_size = 0"),
        (VLLMEmbeddings, {"chunk_size": 1, "batch_size": 1}, "two names of chunk_size"),
        (VLLMEmbeddings, {"truncate_prompt_tokens": -2}, "truncate_prompt_tokens = -2"),
        (VLLMEmbeddings, {"stop": ["x"]}, "unknown setting 'stop'"),
        (VLLMRerank, {"top_k": 3}, "top_k: VLLMRerank generates no text"),
        (VLLMRerank, {"top_n": 0}, "top_n = 0"),
        (VLLMRerank, {"dimensions": 3}, "unknown setting 'dimensions'"),
    ],
)
def test_what_is_wrong_is_said_on_construction(model_class: Model, given: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        model_class(model="org/name", **given)


# ---- copies, other processes, what others see


@both
def test_pickles_without_the_secret_and_finds_it_in_the_environment(
    model_class: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_class(model="org/name", api_key="s3cret", truncate_prompt_tokens=7)
    data = pickle.dumps(model)
    assert b"s3cret" not in data
    assert "s3cret" not in repr(model) + str(model)
    monkeypatch.setenv(ENVIRONMENT["api_key"], "theirs")
    copied = pickle.loads(data)
    assert copied.truncate_prompt_tokens == 7
    assert copied.engine.settings.engine_args == {"runner": "pooling"}
    assert copied.engine.settings.api_key.get_secret_value() == "theirs"


@both
@pytest.mark.parametrize("make", [copy.copy, copy.deepcopy, lambda model: model.model_copy()])
def test_copies_name_the_same_engine_and_keep_the_secret(model_class: Model, make: Any) -> None:
    model = model_class(model="org/name", api_key="s3cret", truncate_prompt_tokens=7)
    copied = make(model)
    assert copied.engine.settings == model.engine.settings
    assert copied.engine.settings.api_key.get_secret_value() == "s3cret"
    assert copied.truncate_prompt_tokens == 7


@both
@pytest.mark.filterwarnings("ignore:The function `load` is in beta")
def test_serialised_form_loads_again_without_the_secret(model_class: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENVIRONMENT["api_key"], "theirs")
    monkeypatch.setenv(ENVIRONMENT["temperature"], "0.25")
    model = model_class(model="org/name", api_key="s3cret", truncate_prompt_tokens=7)
    assert "s3cret" not in dumps(model)
    loaded = load(
        dumpd(model),
        allowed_objects=[model_class],
        valid_namespaces=["langchain_vllm_local"],
        secrets_from_env=True,
    )
    assert isinstance(loaded, model_class)
    assert loaded.truncate_prompt_tokens == 7
    assert loaded.api_key is not None
    assert loaded.api_key.get_secret_value() == "theirs"
    assert loaded.engine.settings.model_copy(update={"api_key": None}) == model.engine.settings.model_copy(
        update={"api_key": None}
    )


# ---- what embeddings send


def embeds(server: RemoteServer, count: int) -> None:
    answers(server, {"data": [{"index": index, "embedding": [float(index + 1)]} for index in range(count)]})


def test_queries_and_documents_have_their_own_prefixes(server: RemoteServer) -> None:
    embeds(server, 1)
    embeddings = VLLMEmbeddings(base_url=server.url, query_prefix="query: ", document_prefix="")
    assert embeddings.embed_query("a") == [1.0]
    assert embeddings.embed_documents(["a"]) == [[1.0]]
    VLLMEmbeddings(base_url=server.url).embed_query("a")
    assert bodies(server) == [{"input": ["query: a"]}, {"input": ["a"]}, {"input": ["a"]}]


async def test_all_options_are_sent_whichever_way_it_is_asked(server: RemoteServer) -> None:
    embeds(server, 1)
    options: dict[str, Any] = {"dimensions": 1, "truncate_prompt_tokens": -1}
    embeddings = VLLMEmbeddings(base_url=server.url, **options, extra_body={"use_activation": False})
    await embeddings.aembed_query("a")
    await embeddings.aembed_documents(["a"])
    await asyncio.to_thread(embeddings.embed_query, "a")
    await asyncio.to_thread(embeddings.embed_documents, ["a"])
    assert bodies(server) == [{"input": ["a"], **options, "use_activation": False}] * 4


async def test_no_texts_give_no_vectors_without_any_request(server: RemoteServer) -> None:
    embeddings = VLLMEmbeddings(base_url=server.url)
    assert await embeddings.aembed_documents([]) == []
    assert await asyncio.to_thread(embeddings.embed_documents, []) == []
    assert bodies(server) == []


def test_progress_is_shown_on_demand(server: RemoteServer, capfd: pytest.CaptureFixture[str]) -> None:
    embeds(server, 2)
    VLLMEmbeddings(base_url=server.url, chunk_size=2).embed_documents(["a"] * 4)
    assert capfd.readouterr().err == ""
    VLLMEmbeddings(base_url=server.url, chunk_size=2, show_progress_bar=True).embed_documents(["a"] * 4)
    shown = capfd.readouterr().err
    assert "0/4" in shown
    assert "4/4" in shown


@pytest.mark.parametrize(
    ("status", "said", "theirs"),
    [
        (400, "no", core.ModelInvalidRequestError),
        (400, "This model's maximum context length is 8 tokens", core.ContextOverflowError),
        (401, "no", core.ModelAuthenticationError),
        (404, "Not Found", core.ModelNotFoundError),
        (500, "no", core.ModelAPIError),
    ],
)
async def test_a_failure_is_langchains_too_whichever_way_it_was_asked(
    server: RemoteServer, status: int, said: str, theirs: type[Exception]
) -> None:
    answers(server, {"error": {"message": said, "code": status}}, status)
    embeddings = VLLMEmbeddings(base_url=server.url, max_retries=0)
    reranker = VLLMRerank(base_url=server.url, max_retries=0)
    with pytest.raises(theirs):
        await embeddings.aembed_query("a")
    with pytest.raises(theirs):
        await embeddings.aembed_documents(["a"])
    with pytest.raises(theirs):
        await asyncio.to_thread(embeddings.embed_query, "a")
    with pytest.raises(theirs):
        await asyncio.to_thread(embeddings.embed_documents, ["a"])
    with pytest.raises(theirs):
        await reranker.acompress_documents(DOCUMENTS, "q")
    with pytest.raises(theirs):
        await asyncio.to_thread(reranker.compress_documents, DOCUMENTS, "q")


def test_bad_input_is_langchains_error_too() -> None:
    with pytest.raises(InvalidInputError, match=r"texts\[1\] must be a string, got int") as caught:
        VLLMEmbeddings(model="org/name").embed_documents(["a", 5])
    assert isinstance(caught.value, core.ModelInvalidRequestError)


# ---- what the reranker sends and makes of the answer


def reranks(server: RemoteServer) -> None:
    results = [{"index": 0, "relevance_score": 0.25}, {"index": 1, "relevance_score": 0.75}]
    answers(server, {"results": results})


async def test_copies_of_the_best_documents_come_with_their_scores(server: RemoteServer) -> None:
    reranks(server)
    reranker = VLLMRerank(base_url=server.url)
    expected = [
        Document("second", id="2", metadata={"source": "b", "relevance_score": 0.75}),
        Document("first", id="1", metadata={"source": "a", "relevance_score": 0.25}),
    ]
    assert await reranker.acompress_documents(DOCUMENTS, "q") == expected
    assert await asyncio.to_thread(reranker.compress_documents, DOCUMENTS, "q") == expected
    assert bodies(server) == [{"query": "q", "documents": ["first", "second"], "top_n": 3}] * 2
    assert [document.metadata for document in DOCUMENTS] == [{"source": "a"}, {"source": "b"}]


@pytest.mark.parametrize(
    ("top_n", "expected"), [(1, ["second"]), (5, ["second", "first"]), (None, ["second", "first"])]
)
def test_top_n_documents_are_kept(server: RemoteServer, top_n: int | None, expected: list[str]) -> None:
    reranks(server)
    reranker = VLLMRerank(base_url=server.url, top_n=top_n)
    assert [document.page_content for document in reranker.compress_documents(DOCUMENTS, "q")] == expected


def test_three_documents_are_kept_by_default() -> None:
    assert VLLMRerank(model="org/name").top_n == 3


def test_the_rerankers_options_are_sent(server: RemoteServer) -> None:
    reranks(server)
    options: dict[str, Any] = {"truncate_prompt_tokens": -1, "extra_body": {"instruction": "i"}}
    VLLMRerank(base_url=server.url, **options).compress_documents(DOCUMENTS, "q")
    (body,) = bodies(server)
    assert (body["truncate_prompt_tokens"], body["instruction"]) == (-1, "i")


def test_no_documents_are_reranked_without_any_request(server: RemoteServer) -> None:
    assert VLLMRerank(base_url=server.url).compress_documents([], "q") == []
    assert bodies(server) == []
