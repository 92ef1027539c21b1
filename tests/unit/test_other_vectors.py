"""Vectors of tokens, sparse vectors, vectors of images: what is sent, how answers are read, which text is at fault.
Against a real HTTP server; on real vLLM: tests/real/test_vectors_on_vllm.py."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import math
from array import array
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from llama_index.core.base.embeddings.base_sparse import BaseSparseEmbedding
from llama_index.core.embeddings import MultiModalEmbedding

from llama_index_vllm_local import VLLMEmbedding, VLLMSparseEmbedding
from shared_engine import ContextLengthError, Engine, InvalidInputError, ModelNotFoundError, ServerError, SettingsError
from shared_engine.model_files.pooling_recipes import with_recipe
from tests.support.choosy_server import LONG, NAN, refused, vllms
from tests.support.remote_server import RemoteServer, running_server
from tests.support.vision_model import png

DENSE_ENGINE = "Try switching the model's pooling_task via --pooler-config.task token_embed."
USAGE = {"prompt_tokens": 5, "total_tokens": 5}


@pytest.fixture
def server() -> Iterator[RemoteServer]:
    with running_server() as server:
        yield server


def answers(server: RemoteServer, answer: Callable[[str, dict[str, Any]], Any]) -> None:
    """``answer`` gives of a path and a body the items of ``data``, or a response."""

    async def handler(request: web.Request) -> web.StreamResponse:
        body = await request.json()
        for text in body.get("input", ()):
            refusal = vllms(text)
            if refusal is not None:
                return refused(*refusal)
        said = answer(request.path, body)
        if isinstance(said, web.StreamResponse):
            return said
        content = json.dumps({"model": "served", "data": said[::-1], "usage": USAGE}).replace("NaN", "null")
        return web.Response(text=content, content_type="application/json")

    server.handler = handler


def not_found() -> web.Response:
    return web.json_response({"detail": "Not Found"}, status=404)


# ---- of tokens


def of_tokens(path: str, body: dict[str, Any]) -> Any:
    assert (path, body["encoding_format"]) == ("/pooling", "float")
    numbers = [[[float(len(word)), math.nan if word == NAN.split()[1] else 1.0] for word in text.split()]
               for text in body["input"]]  # fmt: skip
    if body["task"] == "token_classify":
        numbers = [[vector[:1] for vector in text] for text in numbers]
    return [{"index": index, "data": each} for index, each in enumerate(numbers)]


async def test_each_token_has_its_vector(server: RemoteServer) -> None:
    answers(server, of_tokens)
    engine = Engine(base_url=server.url, model="served")
    texts = ["one three", "fifteen"]
    expected = [[[3.0, 1.0], [5.0, 1.0]], [[7.0, 1.0]]]
    for result in (await engine.aembed_tokens(texts), await asyncio.to_thread(engine.embed_tokens, texts)):
        assert (result.embeddings, result.model, result.usage.prompt_tokens) == (expected, "served", 5)
    assert server.requests[-1][1] == {
        "model": "served", "input": texts, "task": "token_embed", "encoding_format": "float",
    }  # fmt: skip
    await engine.aembed_tokens(["a"], prefix="query: ", truncate_prompt_tokens=-1, extra_body={"use_activation": False})
    sent = server.requests[-1][1]
    assert (sent["input"], sent["truncate_prompt_tokens"], sent["use_activation"]) == (["query: a"], -1, False)
    assert (await engine.aembed_tokens([])).embeddings == []


def test_a_bad_text_costs_only_itself_here_too(server: RemoteServer) -> None:
    answers(server, of_tokens)
    engine = Engine(base_url=server.url, model="served")
    texts: list[Any] = ["a b", LONG, NAN, 5, "abc"]
    result = engine.embed_tokens(texts, on_error="none")
    assert [each is None for each in result.embeddings] == [False, True, True, True, False]
    kinds = [(failure.index, type(failure.error)) for failure in result.failures]
    assert kinds == [(1, ContextLengthError), (2, ServerError), (3, InvalidInputError)]
    for bad, error, words in ((LONG, ContextLengthError, "texts|too long"), (NAN, ServerError, r"NaN.*texts\[1\]")):
        with pytest.raises(error, match=words):
            engine.embed_tokens(["a", bad])


def test_an_engine_for_other_vectors_says_what_it_was_started_for(server: RemoteServer) -> None:
    answers(server, lambda *_: refused(400, DENSE_ENGINE))
    engine = Engine(base_url=server.url, model="served")
    for on_error in ("raise", "none"):
        with pytest.raises(
            SettingsError, match=r'another task: engine_args=\{"pooler_config": \{"task": "token_embed"'
        ):
            engine.embed_tokens(["a"], on_error=on_error)
    assert len(server.requests) == 2
    answers(server, lambda *_: not_found())
    with pytest.raises(ModelNotFoundError, match="/pooling, so its model gives nothing for single tokens"):
        engine.embed_tokens(["a"])


# ---- sparse


def vocabulary(path: str, body: dict[str, Any]) -> Any:
    assert path == "/v1/embeddings"
    vectors = [[0.0, float(len(text)), 0.0, math.nan if text == NAN else 0.5] for text in body["input"]]
    encoded = [base64.b64encode(array("f", vector).tobytes()).decode() for vector in vectors]
    return [{"index": index, "embedding": each} for index, each in enumerate(encoded)]


def weights(path: str, body: dict[str, Any]) -> Any:
    return refused(501, "The model does not support Embeddings API") if "embed" in path else of_tokens(path, body)


def only_weights(path: str, body: dict[str, Any]) -> Any:
    return not_found() if "embed" in path else of_tokens(path, body)


async def engine_sync(url: str, texts: list[Any], **more: Any) -> Any:
    return (await asyncio.to_thread(Engine(base_url=url, model="served").embed_sparse, texts, **more)).embeddings


async def engine_async(url: str, texts: list[Any], **more: Any) -> Any:
    return (await Engine(base_url=url, model="served").aembed_sparse(texts, **more)).embeddings


async def llama_index_sync(url: str, texts: list[Any], **more: Any) -> Any:
    model = VLLMSparseEmbedding(base_url=url, model="served", **more)
    return await asyncio.to_thread(model.get_text_embedding_batch, texts)


async def llama_index_async(url: str, texts: list[Any], **more: Any) -> Any:
    return await VLLMSparseEmbedding(base_url=url, model="served", **more).aget_text_embedding_batch(texts)


each_way = pytest.mark.parametrize("way", [engine_sync, engine_async, llama_index_sync, llama_index_async])
Way = Callable[..., Awaitable[Any]]


@each_way
async def test_sparse_vectors_have_what_is_not_zero(server: RemoteServer, way: Way) -> None:
    answers(server, vocabulary)
    assert await way(server.url, ["abc", "a"]) == [{1: 3.0, 3: 0.5}, {1: 1.0, 3: 0.5}]
    failed = await way(server.url, ["abc", NAN, LONG], on_error="none")
    assert [vector or None for vector in failed] == [{1: 3.0, 3: 0.5}, None, None]
    with pytest.raises(ServerError, match=r"NaN or infinite numbers for texts\[1\]"):
        await way(server.url, ["abc", NAN])


@each_way
@pytest.mark.parametrize("answer", [weights, only_weights])  # vLLM; one that has no such route
async def test_weights_of_tokens_become_sparse_vectors(
    server: RemoteServer, way: Way, answer: Callable[[str, dict[str, Any]], Any]
) -> None:
    answers(server, answer)  # tokens 0, 1, ...; the weight is the word's length
    assert await way(server.url, ["one three", "a"]) == [{0: 3.0, 1: 5.0}, {0: 1.0}]
    assert [body["task"] for _, body in server.requests if "task" in body] == ["token_classify"]


def test_the_highest_weight_of_a_token_counts(server: RemoteServer) -> None:
    from shared_engine.request.pooling_forms import weights_by_token

    assert weights_by_token([[0.5], [0.0], [0.75], [0.25]], [7, 8, 7, 9], is_cut=False) == {7: 0.75, 9: 0.25}
    assert weights_by_token([[0.5]], [7, 8], is_cut=True) == {7: 0.5}
    for tokens, is_cut in (([7, 8], False), ([], True)):
        with pytest.raises(ServerError, match=f"1 weights for {len(tokens)} tokens"):
            weights_by_token([[0.5]], tokens, is_cut=is_cut)


@each_way
async def test_dense_vectors_are_not_taken_for_sparse_ones(server: RemoteServer, way: Way) -> None:
    answers(server, lambda _, body: [{"index": 0, "embedding": [0.5, -0.5]}])
    with pytest.raises(SettingsError, match="the model's vectors are dense"):
        await way(server.url, ["a"])


def test_the_class_for_sparse_vectors_tells_vllm_which_of_bge_m3_s_are_wanted(tmp_path: Path) -> None:
    assert issubclass(VLLMSparseEmbedding, BaseSparseEmbedding)
    for model in ("BAAI/bge-m3", str(tmp_path)):
        (tmp_path / "config.json").write_text("{}")
        (tmp_path / "sparse_linear.pt").write_bytes(b"")
        args = VLLMSparseEmbedding(model=model).engine.settings.engine_args
        assert args["pooler_config"] == {"task": "token_classify"}
        assert args["hf_overrides"] == {"architectures": ["BgeM3EmbeddingModel"]}
    own = {"pooler_config": {"task": "embed"}}
    assert VLLMSparseEmbedding(model="BAAI/bge-m3", engine_args=own).engine.settings.engine_args.items() >= own.items()
    other = VLLMSparseEmbedding(model="naver/splade-v3")
    assert (other.engine.settings.engine_args, other.model_name) == ({"runner": "pooling"}, "naver/splade-v3")
    with pytest.raises(SettingsError, match="unknown setting 'dimension'"):
        VLLMSparseEmbedding(model="a/b", dimension=3)  # type: ignore[call-arg]


def test_a_splade_is_called_so(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"architectures": ["BertForMaskedLM"]}')
    modules = [{"type": "sentence_transformers.sparse_encoder.models.SpladePooling"}]
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    args = with_recipe(str(tmp_path), tmp_path, {"runner": "pooling"})
    assert args["hf_overrides"] == {"architectures": ["BertSpladeSparseEmbeddingModel"]}


# ---- of images


def of_messages(path: str, body: dict[str, Any]) -> Any:
    (message,) = body["messages"]
    (part,) = message["content"]
    return [{"index": 0, "embedding": [float(len(part["image_url"]["url"])), 1.0]}]


RED = png(255, 0, 0)
DATA_URL = "data:image/png;base64," + base64.b64encode(RED).decode()


@pytest.mark.parametrize("form", ["path", "file url", "data url", "stream", "url"])
async def test_an_image_is_sent_as_a_message(server: RemoteServer, tmp_path: Path, form: str) -> None:
    answers(server, of_messages)
    file = tmp_path / "red.png"
    file.write_bytes(RED)
    given: Any = {
        "path": str(file), "file url": file.as_uri(), "data url": DATA_URL, "stream": io.BytesIO(RED),
        "url": "https://example.org/red.png",
    }[form]  # fmt: skip
    url = given if form == "url" else DATA_URL
    embed_model = VLLMEmbedding(base_url=server.url, model="served", truncate_prompt_tokens=-1)
    assert isinstance(embed_model, MultiModalEmbedding)
    for vectors in (
        [await asyncio.to_thread(embed_model.get_image_embedding, given)],
        [await embed_model.aget_image_embedding(given)],
        await asyncio.to_thread(embed_model.get_image_embedding_batch, [given]),
        await embed_model.aget_image_embedding_batch([given]),
    ):
        assert vectors == [[float(len(url)), 1.0]]
    content = [{"type": "image_url", "image_url": {"url": url}}]
    sent = {"model": "served", "messages": [{"role": "user", "content": content}], "encoding_format": "float"}
    assert [body for _, body in server.requests] == [{**sent, "truncate_prompt_tokens": -1}] * 4


async def test_one_bad_image_costs_only_itself(server: RemoteServer) -> None:
    def refuses(path: str, body: dict[str, Any]) -> Any:
        is_bad = "bad" in body["messages"][0]["content"][0]["image_url"]["url"]
        return refused(400, "cannot identify image file") if is_bad else of_messages(path, body)

    answers(server, refuses)
    urls = ["http://a/1", "http://a/bad", "http://a/3"]
    conversations = [[{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}] for url in urls]
    engine = Engine(base_url=server.url, model="served")
    result = await engine.aembed_messages(conversations, on_error="none")
    assert [each is None for each in result.embeddings] == [False, True, False]
    assert [failure.index for failure in result.failures] == [1]
    with pytest.raises(InvalidInputError, match=r"conversations\[1\]"):
        await engine.aembed_messages([conversations[0], []])


def test_a_file_that_is_no_image_is_named(tmp_path: Path, server: RemoteServer) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(InvalidInputError, match=r"images\[0\].*notes.txt"):
        VLLMEmbedding(base_url=server.url, model="served").get_image_embedding(str(tmp_path / "notes.txt"))
    assert not server.requests
