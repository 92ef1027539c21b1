"""Embeddings and scores, against a real HTTP server that answers as told: what is sent, in which order, what is at
fault."""

from __future__ import annotations

import asyncio
import base64
from array import array
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from aiohttp import web

from shared_engine import (
    AuthenticationError,
    ContextLengthError,
    Engine,
    EngineState,
    InvalidInputError,
    ModelNotFoundError,
    RankedDocument,
    RequestRejectedError,
    ServerError,
)
from shared_engine.request.sending import MAX_COUNTED_BYTES
from tests.support.remote_server import RemoteServer, running_server

LIMIT = 10
TOO_LONG = (
    f"This model's maximum context length is {LIMIT} tokens. However, your prompt contains at least {LIMIT + 1} input "
    "tokens, which exceeds this limit even without any output tokens. Please reduce the length of the input prompt."
)


@pytest.fixture
def server() -> Iterator[RemoteServer]:
    with running_server() as server:
        server.handler = embedding
        yield server


def vector(text: str) -> list[float]:
    return [float(len(text)), 0.1]


def in_32_bits(values: list[float]) -> list[float]:
    return array("f", values).tolist()


def item(index: int, text: str, encoding_format: str) -> dict[str, Any]:
    values = vector(text)
    encoded = base64.b64encode(array("f", values).tobytes()).decode()
    return {"index": index, "embedding": encoded if encoding_format == "base64" else values}


async def embedding(request: web.Request) -> web.StreamResponse:
    """As vLLM answers: base64 where it is asked for, and a text that is too long fails the request."""
    body = await request.json()
    texts = body["input"]
    if any(len(text.split()) + 2 > LIMIT for text in texts):
        return refusal(400, TOO_LONG)
    data = [item(index, text, body["encoding_format"]) for index, text in enumerate(texts)]
    usage = {"prompt_tokens": len(texts), "total_tokens": len(texts)}
    return web.json_response({"model": "served", "data": data[::-1], "usage": usage})


def refusal(status: int, message: str) -> web.Response:
    return web.json_response({"error": {"message": message, "code": status}}, status=status)


HELLO = [{"role": "user", "content": "Hello"}]


def refuses(server: RemoteServer, status: int, content: dict[str, Any]) -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        return web.json_response(content, status=status)

    server.handler = handler


def bodies(server: RemoteServer) -> list[dict[str, Any]]:
    return [body for _, body in server.requests]


# ---- embeddings


def test_texts_go_in_requests_of_bounded_size_and_come_back_in_order(server: RemoteServer) -> None:
    texts = ["x" * count for count in range(150)]
    done: list[int] = []
    engine = Engine(base_url=server.url)

    def tell(count: int) -> None:
        assert engine.is_ready()
        done.append(count)

    result = engine.embed(texts, on_progress=tell)
    assert result.embeddings == [in_32_bits(vector(text)) for text in texts]
    assert (result.usage.prompt_tokens, result.model) == (150, "served")
    assert sorted(len(body["input"]) for body in bodies(server)) == [22, 64, 64]
    assert sorted(done) == [22, 64, 64]


@pytest.mark.parametrize(
    ("engine_args", "batch_size", "size", "at_once"),
    [
        ({}, 64, 64, 8),  # twice vLLM's default of 256 texts
        pytest.param({}, 1, 1, 512, marks=pytest.mark.slow),
        ({"max_num_seqs": 8}, 64, 4, 4),
        ({"max_num_seqs": 8, "max_num_queued_reqs": 8}, 64, 2, 4),  # never more than the queue takes
        ({"max_num_seqs": 1, "max_num_queued_reqs": 1}, 64, 1, 1),
    ],
)
def test_as_many_texts_are_in_flight_as_keep_the_engine_busy(
    server: RemoteServer, engine_args: dict[str, Any], batch_size: int, size: int, at_once: int
) -> None:
    now, most, complete = 0, 0, asyncio.Event()

    async def handler(request: web.Request) -> web.StreamResponse:
        nonlocal now, most
        now += 1
        most = max(most, now)
        if now == at_once:
            complete.set()
        await asyncio.wait_for(complete.wait(), 10)
        now -= 1
        return await embedding(request)

    server.handler = handler
    engine = Engine(base_url=server.url, engine_args=engine_args)
    engine.embed(["x"] * size * at_once * 3, batch_size=batch_size)
    assert most == at_once
    assert {len(body["input"]) for body in bodies(server)} == {size}


async def test_what_is_asked_for_is_sent(server: RemoteServer) -> None:
    engine = Engine(base_url=server.url, model="served")
    await engine.aembed(
        ["a", ""],
        prefix="query: ",
        dimensions=3,
        truncate_prompt_tokens=-1,
        extra_body={"truncation_side": "left", "dimensions": 4},
    )
    assert bodies(server) == [
        {
            "model": "served",
            "input": ["query: a", "query: "],
            "encoding_format": "base64",
            "dimensions": 4,
            "truncate_prompt_tokens": -1,
            "truncation_side": "left",
        }
    ]


def test_a_remote_models_own_prefixes_are_not_known(server: RemoteServer) -> None:
    Engine(base_url=server.url).embed(["a"], input_type="query")
    assert bodies(server)[0]["input"] == ["a"]


def test_a_server_without_base64_is_asked_for_numbers_from_then_on(server: RemoteServer) -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        if (await request.json())["encoding_format"] != "float":
            return refusal(422, "encoding_format: only float is supported")
        return await embedding(request)

    server.handler = handler
    engine = Engine(base_url=server.url)
    assert engine.embed(["abc"]).embeddings == [[3.0, 0.1]]
    assert engine.embed(["abcd"]).embeddings == [[4.0, 0.1]]
    assert [body["encoding_format"] for body in bodies(server)] == ["base64", "float", "float"]


def test_a_server_that_ignores_base64_is_understood(server: RemoteServer) -> None:
    refuses(server, 200, {"data": [{"index": 0, "embedding": [0.5, 1]}]})
    assert Engine(base_url=server.url).embed(["a"]).embeddings == [[0.5, 1.0]]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "0 embeddings for 1 texts"),
        ([{"index": 0, "embedding": "AAA"}], "not base64"),
        ([{"index": 0, "embedding": "AAAA"}], "not base64"),  # three bytes are no 32-bit float
        ([{"index": 0, "embedding": {}}], "not what vLLM sends"),
    ],
)
def test_an_answer_that_makes_no_sense_is_an_error(server: RemoteServer, data: Any, message: str) -> None:
    refuses(server, 200, {"data": data})
    with pytest.raises(ServerError, match=message):
        Engine(base_url=server.url).embed(["a"])


@pytest.mark.parametrize("position", [0, 5, 99])
def test_a_text_that_is_too_long_is_named(server: RemoteServer, position: int) -> None:
    texts = ["short"] * 100
    texts[position] = "long " * 20
    with pytest.raises(
        ContextLengthError, match=rf"texts\[{position}\] has 22 tokens.*truncate_prompt_tokens"
    ) as caught:
        Engine(base_url=server.url).embed(texts)
    assert (caught.value.prompt_tokens, caught.value.max_model_len) == (22, LIMIT)


def test_a_text_that_would_take_long_to_count_is_named_without(server: RemoteServer) -> None:
    server.counts_tokens = False
    texts = ["short"] * 64
    texts[40] = "long " * MAX_COUNTED_BYTES
    expected = rf"texts\[40\] is too long \({len(texts[40])} characters\).*limit|maximum.*truncate_prompt_tokens"
    with pytest.raises(ContextLengthError, match=expected) as caught:
        Engine(base_url=server.url).embed(texts)
    assert caught.value.max_model_len == LIMIT
    assert [len(body["input"]) for body in bodies(server)] == [64, 1]


def test_a_long_text_that_fits_is_not_named(server: RemoteServer) -> None:
    texts = ["x" * (2 * MAX_COUNTED_BYTES), "long " * 20, "short"]
    with pytest.raises(ContextLengthError, match=r"texts\[1\] has 22 tokens"):
        Engine(base_url=server.url).embed(texts)


@pytest.mark.parametrize(("count", "where"), [(1, r"texts\[0\]:"), (3, r"one of texts\[0:3\]:")])
def test_a_text_that_is_too_long_is_named_as_well_as_a_server_that_counts_nothing_allows(
    server: RemoteServer, count: int, where: str
) -> None:
    server.counts_tokens = False
    with pytest.raises(ContextLengthError, match=where):
        Engine(base_url=server.url).embed(["long " * 20] * count)


def test_empty_texts_are_named_where_a_model_can_not_embed_them(server: RemoteServer) -> None:
    refuses(server, 400, {"error": {"message": "The decoder prompt cannot be empty", "code": 400}})
    with pytest.raises(RequestRejectedError, match=r"empty: texts\[1\], texts\[3\];"):
        Engine(base_url=server.url).embed(["a", "", "b", ""])


def test_refused_dimensions_come_with_a_remedy(server: RemoteServer) -> None:
    message = "Model 'm' does not support Matryoshka embeddings; dimensions must be unset (received dimensions=8)."
    refuses(server, 400, {"error": {"message": message, "code": 400}})
    with pytest.raises(RequestRejectedError, match=r"dimensions=8.*is_matryoshka"):
        Engine(base_url=server.url).embed(["a"], dimensions=8)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda engine: engine.embed(["a"]), "/v1/embeddings, so its model makes no embeddings"),
        (lambda engine: engine.rerank("q", ["a"]), "/v1/rerank, so its model does not rerank"),
        (lambda engine: engine.chat(HELLO), "/v1/chat/completions, so its model generates no text"),
        (lambda engine: list(engine.stream_chat(HELLO)), "/v1/chat/completions, so its model generates no text"),
    ],
)
def test_a_model_of_another_kind_is_called_so(
    server: RemoteServer, call: Callable[[Engine], object], message: str
) -> None:
    refuses(server, 404, {"detail": "Not Found"})
    with pytest.raises(ModelNotFoundError, match=message):
        call(Engine(base_url=server.url))
    refuses(server, 404, {"error": {"message": "The model `x` does not exist.", "code": 404}})
    with pytest.raises(ModelNotFoundError, match="The model `x` does not exist") as caught:
        call(Engine(base_url=server.url))
    assert "runner" not in str(caught.value)


def test_any_other_refusal_is_passed_on_as_it_is(server: RemoteServer) -> None:
    refuses(server, 401, {"error": "Unauthorized"})
    with pytest.raises(AuthenticationError, match=r"^HTTP 401: Unauthorized$"):
        Engine(base_url=server.url).embed([""])


# ---- scores


def scores(*pairs: tuple[int, float]) -> dict[str, Any]:
    results = [{"index": index, "document": {"text": "x"}, "relevance_score": score} for index, score in pairs]
    return {"model": "served", "usage": {"prompt_tokens": 9, "total_tokens": 9}, "results": results}


def test_documents_come_best_first(server: RemoteServer) -> None:
    refuses(server, 200, scores((0, 0.25), (1, 0.75), (2, -0.5)))
    result = Engine(base_url=server.url).rerank("q", ["a", "b", "c"], top_n=2, extra_body={"instruction": "i"})
    assert result.results == (
        RankedDocument(index=1, relevance_score=0.75),
        RankedDocument(index=0, relevance_score=0.25),
    )
    assert (result.usage.prompt_tokens, result.model) == (9, "served")
    sent = {"query": "q", "documents": ["a", "b", "c"], "top_n": 2, "instruction": "i"}
    assert bodies(server) == [{"model": "served", **sent}]


def test_equal_scores_keep_the_order_of_the_documents(server: RemoteServer) -> None:
    refuses(server, 200, scores((0, 0.5), (1, 0.5), (2, 0.5)))
    result = Engine(base_url=server.url).rerank("q", ["a", "b", "c"])
    assert [ranked.index for ranked in result.results] == [0, 1, 2]


@pytest.mark.parametrize(
    ("pairs", "top_n"),
    [([], 1), ([(0, 0.5)], None), ([(0, 0.5)], 2), ([(0, 0.5), (0, 0.25)], None), ([(0, 0.5), (2, 0.5)], None)],
)
def test_scores_that_are_not_the_documents_are_an_error(
    server: RemoteServer, pairs: list[tuple[int, float]], top_n: int | None
) -> None:
    refuses(server, 200, scores(*pairs))
    with pytest.raises(ServerError, match="of 2 documents"):
        Engine(base_url=server.url).rerank("q", ["a", "b"], top_n=top_n)


def test_the_document_that_is_too_long_is_named(server: RemoteServer) -> None:
    refuses(server, 400, {"error": {"message": TOO_LONG, "code": 400}})
    engine = Engine(base_url=server.url)
    expected = rf"documents\[1\] \(22 tokens\) with the query \(4 tokens\) exceeds the model's limit of {LIMIT}"
    with pytest.raises(ContextLengthError, match=expected):
        engine.rerank("two words", ["short", "long " * 20, "long " * 9])
    server.counts_tokens = False
    with pytest.raises(ContextLengthError, match="maximum context length is 10"):
        engine.rerank("two words", ["short", "long " * 20])
    long = "long " * MAX_COUNTED_BYTES
    expected = rf"documents\[1\] \({len(long)} characters\) with the query \(9 characters\) is too long"
    with pytest.raises(ContextLengthError, match=expected):
        engine.rerank("two words", ["short", long, "long"])
    assert bodies(server)[-1]["documents"] == [long]


# ---- what is not sent


def test_nothing_is_asked_for_no_texts(server: RemoteServer) -> None:
    engine = Engine(base_url=server.url)
    assert engine.embed([]).embeddings == []
    assert engine.rerank("q", []).results == ()
    assert not server.requests


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda engine: engine.embed("one string"), "texts must be a list of strings, got str"),
        (lambda engine: engine.embed(["a", 5]), r"texts\[1\] must be a string, got int: 5"),
        (lambda engine: engine.embed(["a"], dimensions=0), "dimensions = 0: must be a whole number, 1 or more"),
        (lambda engine: engine.embed(["a"], batch_size=0), "batch_size = 0"),
        (lambda engine: engine.embed(["a"], truncate_prompt_tokens=-2), "truncate_prompt_tokens = -2"),
        (lambda engine: engine.embed(["a"], input_type="passage"), "input_type = 'passage'"),
        (lambda engine: engine.embed(["a"], extra_body={"embed_dtype": "float16"}), "embed_dtype"),
        (lambda engine: engine.embed(["a"], extra_body={"x": object()}), "JSON"),
        (lambda engine: engine.rerank(5, ["a"]), "query must be a string"),
        (lambda engine: engine.rerank("q", "a"), "documents must be a list"),
        (lambda engine: engine.rerank("q", ["a", None]), r"documents\[1\] must be a string"),
        (lambda engine: engine.rerank("q", ["a"], top_n=0), "top_n = 0"),
    ],
)
def test_bad_input_is_refused_before_anything_is_sent(
    server: RemoteServer, call: Callable[[Any], object], message: str
) -> None:
    with pytest.raises(InvalidInputError, match=message):
        call(Engine(base_url=server.url))
    assert not server.requests


def test_a_router_that_can_not_read_scores_is_asked_to_pass_them_on_from_then_on(server: RemoteServer) -> None:
    """vllm-router 0.1.17 answers so, in plain text, whatever vLLM has said."""
    paths = []

    async def handler(request: web.Request) -> web.StreamResponse:
        paths.append(request.path)
        if request.path != "/v2/rerank":
            return web.Response(status=500, text="Failed to build rerank response")
        return web.json_response({"results": [{"index": 0, "relevance_score": 0.5}]})

    server.handler = handler
    engine = Engine(base_url=server.url)
    for _ in range(2):
        assert [each.relevance_score for each in engine.rerank("q", ["a"], truncate_prompt_tokens=-1).results] == [0.5]
    assert paths == ["/v1/rerank", "/v2/rerank", "/v2/rerank"]
    assert [body.get("truncate_prompt_tokens") for body in bodies(server)] == [-1] * 3
    assert engine.stats().requests.retries == 0


def test_a_router_that_can_pass_no_scores_on_is_an_error_with_its_words(server: RemoteServer) -> None:
    refuses(server, 500, {"error": {"message": "Failed to build rerank response", "code": 500}})
    with pytest.raises(ServerError, match="Failed to build rerank response"):
        Engine(base_url=server.url).rerank("q", ["a"])
    assert len(server.requests) == 2


def test_a_text_that_is_too_long_though_it_was_to_be_cut_has_met_a_router(server: RemoteServer) -> None:
    with pytest.raises(ContextLengthError, match="truncate_prompt_tokens was sent, and has not reached the model"):
        Engine(base_url=server.url).embed(["long " * 20], truncate_prompt_tokens=-1)


def test_a_router_that_names_another_model_is_asked_to_pass_the_request_on(server: RemoteServer) -> None:
    """vllm-router 0.1.17 sends ``default`` in place of the model."""

    async def handler(request: web.Request) -> web.StreamResponse:
        if request.path != "/v2/rerank":
            return refusal(404, "The model `default` does not exist.")
        return web.json_response({"results": [{"index": 0, "relevance_score": 0.5}]})

    server.handler = handler
    servers = {"one": server.url, "fleet": [server.url, "http://127.0.0.1:9"]}
    for base_url in servers.values():
        engine = Engine(base_url=base_url, model="served")
        assert [each.relevance_score for each in engine.rerank("q", ["a"]).results] == [0.5]
        assert engine.status().state is EngineState.READY
