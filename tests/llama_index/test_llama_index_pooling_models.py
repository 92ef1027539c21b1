"""VLLMEmbedding and VLLMRerank as objects: construction, names, copies, dicts, pickles, errors. Nothing starts."""

from __future__ import annotations

import copy
import inspect
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.callbacks import CallbackManager, TokenCountingHandler
from llama_index.core.ingestion.pipeline import get_transformation_hash
from llama_index.core.node_parser import SemanticSplitterNodeParser
from llama_index.core.schema import NodeWithScore, TextNode
from llama_index.core.storage.kvstore import SimpleKVStore

from langchain_vllm_local import VLLMEmbeddings
from langchain_vllm_local import VLLMRerank as LangChainRerank
from llama_index_vllm_local import VLLMEmbedding, VLLMRerank
from shared_engine import (
    AuthenticationError,
    ContextLengthError,
    InvalidInputError,
    ModelNotFoundError,
    RequestRejectedError,
    ServerError,
    SettingsError,
    VLLMError,
)
from shared_engine.settings import ENVIRONMENT, EngineFields
from tests.support.pooling_server import answers, embeds_and_reranks
from tests.support.remote_server import RemoteServer, running_server

Model = type[VLLMEmbedding] | type[VLLMRerank]
both = pytest.mark.parametrize("model_class", [VLLMEmbedding, VLLMRerank])

HUB_ID = "org/name"
SECRET = "sk-very-secret"
TEXTS = ["one", "three", "a", "fifteen", "as"]
NODES = [NodeWithScore(node=TextNode(text=text)) for text in TEXTS]


@pytest.fixture
def server() -> Iterator[RemoteServer]:
    with running_server() as server:
        server.handler = embeds_and_reranks
        yield server


# ---- construction


def test_they_are_what_llama_index_asks_for() -> None:
    assert issubclass(VLLMEmbedding, BaseEmbedding)
    assert not inspect.isabstract(VLLMEmbedding)
    assert not inspect.isabstract(VLLMRerank)


@both
def test_every_setting_of_the_engine_is_an_argument(model_class: Model) -> None:
    assert set(EngineFields.model_fields) <= set(model_class.model_fields)


@both
def test_constructing_starts_nothing(model_class: Model, runtime_root: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    before = sorted(runtime_root.iterdir())
    model_class(model=str(tmp_path)).to_dict()
    assert sorted(runtime_root.iterdir()) == before


@both
def test_the_engine_is_a_pooling_one_unless_the_user_says_otherwise(model_class: Model) -> None:
    model = model_class(model=HUB_ID, engine_args={"max-num-seqs": 8})
    assert model.engine.settings.engine_args == {"runner": "pooling", "max_num_seqs": 8}
    model = model_class(model=HUB_ID, engine_args={"runner": "auto"})
    assert model.engine.settings.engine_args == {"runner": "auto"}


@pytest.mark.parametrize(
    "given",
    [
        {"model": HUB_ID},
        {"model": HUB_ID, "dtype": "float32", "engine_args": {"max_num_seqs": 8}},
        {"model": HUB_ID, "truncate_prompt_tokens": -1, "extra_body": {"a": 1}},
        {"base_url": "http://gpu:8000/v1", "api_key": SECRET},
    ],
)
def test_equal_settings_name_one_engine_whatever_the_framework(given: dict[str, Any]) -> None:
    settings = VLLMEmbedding(**given).engine.settings
    for other in (VLLMRerank, VLLMEmbeddings, LangChainRerank):
        assert other(**given).engine.settings == settings


@both
def test_defaults_for_models_that_generate_are_of_no_concern(
    model_class: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(ENVIRONMENT["temperature"], "0.25")
    model = model_class(model=HUB_ID)
    assert (model.temperature, model.engine.settings.temperature) == (None, None)
    with pytest.raises(SettingsError, match=rf"temperature: {model_class.__name__} generates no text"):
        model_class(model=HUB_ID, temperature=0.5)


@pytest.mark.parametrize(
    ("model_class", "given", "message"),
    [
        (VLLMEmbedding, {"dimension": 8}, "unknown setting 'dimension'; did you mean 'dimensions'"),
        (VLLMEmbedding, {"dimensions": 0}, "dimensions = 0"),
        (VLLMEmbedding, {"embed_batch_size": 0}, "embed_batch_size = 0"),
        (VLLMEmbedding, {"embed_batch_size": 2049}, "embed_batch_size = 2049: .*less than or equal to 2048"),
        (VLLMEmbedding, {"truncate_prompt_tokens": -2}, "truncate_prompt_tokens = -2"),
        (
            VLLMEmbedding,
            {"model_name": "org/other"},
            "model_name = 'org/other' are the same setting",
        ),
        (VLLMEmbedding, {"stop": ["x"]}, "unknown setting 'stop'"),
        (VLLMRerank, {"top_k": 3}, "top_k: VLLMRerank generates no text"),
        (VLLMRerank, {"top_n": 0}, "top_n = 0"),
        (VLLMRerank, {"dimensions": 3}, "unknown setting 'dimensions'"),
    ],
)
def test_what_is_wrong_is_said_on_construction(model_class: Model, given: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        model_class(model=HUB_ID, **given)


@both
def test_what_is_missing_is_said_on_construction(model_class: Model) -> None:
    with pytest.raises(SettingsError, match="no model: pass model="):
        model_class()


def test_no_callback_manager_is_one_without_handlers() -> None:
    manager = VLLMEmbedding(model=HUB_ID, callback_manager=None).callback_manager
    assert manager.handlers == []


# ---- one model under two names


def test_model_and_model_name_are_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for given in ({"model": "a/b"}, {"model_name": "a/b"}, {"model": "a/b", "model_name": "a/b"}):
        embed_model = VLLMEmbedding(**given)
        assert (embed_model.model, embed_model.model_name, embed_model.engine.settings.model) == ("a/b",) * 3
    embed_model.model = "c/d"
    assert embed_model.model_name == "c/d"
    embed_model.model_name = "e/f"
    assert (embed_model.model, embed_model.engine.settings.model) == ("e/f", "e/f")
    copied = embed_model.model_copy(update={"model_name": "g/h"})
    assert (copied.engine.settings.model, embed_model.engine.settings.model) == ("g/h", "e/f")
    monkeypatch.setenv(ENVIRONMENT["model"], "i/j")
    assert VLLMEmbedding().model_name == "i/j"
    assert VLLMEmbedding(model_name="a/b").engine.settings.model == "a/b"


def test_the_model_of_a_server_is_unknown_unless_named() -> None:
    embed_model = VLLMEmbedding(base_url="http://gpu:8000")
    assert (embed_model.model, embed_model.model_name) == (None, "unknown")
    assert VLLMEmbedding.from_dict(embed_model.to_dict()).engine.settings == embed_model.engine.settings


# ---- copies, dicts, other processes, what others see


@both
def test_no_form_of_it_shows_the_key(model_class: Model) -> None:
    model = model_class(base_url="http://gpu:8000", api_key=SECRET)
    shown = [repr(model), str(model.to_dict()), model.to_json(), str(model.model_dump()), model.model_dump_json()]
    assert not any(SECRET in text for text in shown)
    assert SECRET.encode() not in pickle.dumps(model)


def test_what_holds_an_embedding_model_shows_no_key_either() -> None:
    splitter = SemanticSplitterNodeParser.from_defaults(VLLMEmbedding(base_url="http://gpu:8000", api_key=SECRET))
    assert HUB_ID not in str(splitter.to_dict())
    assert SECRET not in str(splitter.to_dict()) + splitter.to_json()


@pytest.mark.parametrize(
    ("model_class", "options"),
    [
        (VLLMEmbedding, {"dimensions": 3, "query_instruction": "q: ", "text_instruction": "", "embed_batch_size": 7}),
        (VLLMRerank, {"top_n": 5, "keep_retrieval_score": True}),
    ],
)
def test_a_dict_brings_back_an_equal_one(model_class: Model, options: dict[str, Any]) -> None:
    options = {**options, "truncate_prompt_tokens": 7, "extra_body": {"a": 1}}
    model = model_class(model=HUB_ID, dtype="float32", **options)
    assert model.to_dict()["class_name"] == model_class.class_name() == model_class.__name__
    for back in (model_class.from_dict(model.to_dict()), model_class.from_json(model.to_json())):
        assert back.engine.settings == model.engine.settings
        assert {name: getattr(back, name) for name in options} == options


def test_vectors_of_another_model_are_never_taken_from_a_pipelines_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = set()
    for model in ("a/b", "c/d"):
        monkeypatch.setenv(ENVIRONMENT["model"], model)
        keys.add(get_transformation_hash([TextNode(text="one")], VLLMEmbedding()))
        keys.add(get_transformation_hash([TextNode(text="one")], VLLMEmbedding(text_instruction="passage: ")))
    assert len(keys) == 4


def test_a_store_of_vectors_is_part_of_no_dict_but_of_pickles() -> None:
    store = SimpleKVStore()
    store.put("one", {"id": [1.0]}, collection="embeddings")
    embed_model = VLLMEmbedding(base_url="http://127.0.0.1:1", embeddings_cache=store)
    assert "embeddings_cache" not in embed_model.to_dict()
    assert pickle.loads(pickle.dumps(embed_model)).get_text_embedding("one") == [1.0]


@both
def test_a_pickled_one_takes_its_key_from_the_other_environment(
    model_class: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    handler = TokenCountingHandler(tokenizer=str.split)
    model = model_class(
        model=HUB_ID, api_key=SECRET, truncate_prompt_tokens=7, callback_manager=CallbackManager([handler])
    )
    data = pickle.dumps(model)
    monkeypatch.setenv(ENVIRONMENT["api_key"], "theirs")
    monkeypatch.setenv(ENVIRONMENT["model"], "another/model")
    copied = pickle.loads(data)
    assert (copied.truncate_prompt_tokens, copied.model) == (7, HUB_ID)
    assert copied.engine.settings.engine_args == {"runner": "pooling"}
    assert copied.engine.settings.api_key.get_secret_value() == "theirs"


@both
@pytest.mark.parametrize("make", [copy.copy, copy.deepcopy, lambda model: model.model_copy()])
def test_copies_name_the_same_engine_and_keep_the_secret(model_class: Model, make: Any) -> None:
    model = model_class(model=HUB_ID, api_key=SECRET, truncate_prompt_tokens=7)
    copied = make(model)
    assert copied.engine.settings == model.engine.settings
    assert copied.engine.settings.api_key.get_secret_value() == SECRET
    assert copied.truncate_prompt_tokens == 7


@both
def test_an_assigned_setting_has_effect_and_a_bad_one_none(model_class: Model) -> None:
    model = model_class(model=HUB_ID)
    model.engine_args = {"max_num_seqs": 4}
    assert model.engine.settings.engine_args == {"runner": "pooling", "max_num_seqs": 4}
    with pytest.raises(SettingsError, match="timeout = 0"):
        model.timeout = 0
    assert model.timeout == model.engine.settings.timeout == 600


# ---- errors


@pytest.mark.parametrize(
    ("status", "said", "error"),
    [
        (400, "no", RequestRejectedError),
        (400, "This model's maximum context length is 8 tokens", ContextLengthError),
        (401, "no", AuthenticationError),
        (404, "Not Found", ModelNotFoundError),
        (500, "no", ServerError),
    ],
)
async def test_a_failure_has_its_own_class_whichever_way_it_was_asked(
    server: RemoteServer, status: int, said: str, error: type[VLLMError]
) -> None:
    answers(server, {"error": {"message": said, "code": status}}, status)
    embed_model = VLLMEmbedding(base_url=server.url, max_retries=0)
    reranker = VLLMRerank(base_url=server.url, max_retries=0)
    for call in (
        lambda: embed_model.get_query_embedding("a"),
        lambda: embed_model.get_text_embedding("a"),
        lambda: embed_model.get_text_embedding_batch(["a"]),
        lambda: reranker.postprocess_nodes(NODES, query_str="q"),
    ):
        with pytest.raises(error):
            call()
    for made in (
        embed_model.aget_query_embedding("a"),
        embed_model.aget_text_embedding("a"),
        embed_model.aget_text_embedding_batch(["a"]),
        reranker.apostprocess_nodes(NODES, query_str="q"),
    ):
        with pytest.raises(error):
            await made


def test_a_text_that_is_too_long_is_named(server: RemoteServer) -> None:
    answers(server, {"error": {"message": "This model's maximum context length is 8 tokens", "code": 400}}, 400)
    with pytest.raises(ContextLengthError, match=r"texts\[1\] has 10 tokens, and the model's limit is 8"):
        VLLMEmbedding(base_url=server.url).get_text_embedding_batch(["one", "two " * 8])


def test_bad_input_is_refused_before_anything_starts() -> None:
    with pytest.raises(InvalidInputError, match=r"texts\[1\] must be a string, got int"):
        VLLMEmbedding(model=HUB_ID).get_text_embedding_batch(["a", 5])
    with pytest.raises(InvalidInputError, match="no query to rank the nodes by"):
        VLLMRerank(model=HUB_ID).postprocess_nodes(NODES)
