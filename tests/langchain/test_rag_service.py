"""The sample application on both frameworks: documents, answers, errors; before a server that answers as told."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from shared_engine.errors import (
    AuthenticationError,
    ContextLengthError,
    EngineBusyError,
    EngineNotInstalledError,
    EngineStartError,
    InvalidInputError,
    RateLimitError,
    RequestTimeoutError,
    ServerUnreachableError,
)
from tests.support.paths import TINY_CHAT
from tests.support.rag_service import (
    EXAMPLES,
    FRAMEWORKS,
    PASSWORD,
    QUESTION,
    asking,
    embeds_too,
    events_of,
    listening,
    rag_app,
    rag_module,
    text_of,
)
from tests.support.remote_server import RemoteServer, running_server
from tests.support.scripted import answers

pytest.importorskip("fastapi")
NOBODY = "http://127.0.0.1:9/v1"  # the discard port: nothing listens
PARKING = "Parking at the north gate costs 4 euros a day."
each_framework = pytest.mark.parametrize("framework", FRAMEWORKS)


@pytest.fixture
def server() -> Iterator[RemoteServer]:
    with running_server() as running:
        answers(running, PASSWORD)
        embeds_too(running)
        yield running


@pytest.fixture
def made(server: RemoteServer, tmp_path: Path) -> Any:
    """Makes the application; ``made("langchain")``."""
    far = {"base_url": server.url, "max_retries": 0}

    def make(framework: str, chat: dict[str, Any] | None = None, **more: Any) -> Any:
        embeddings = more.pop("embeddings", far)
        return rag_app(framework, tmp_path / "rag.sqlite", {**far, **(chat or {})}, embeddings, **more)

    return make


async def with_documents(client: httpx.AsyncClient) -> None:
    for name, text in (("archive/secrets.txt", PASSWORD), ("parking", PARKING)):
        assert (await client.put(f"/api/documents/{name}", content=text)).status_code == 204


async def ask(client: httpx.AsyncClient, question: str = QUESTION) -> httpx.Response:
    return await client.post("/api/ask", json={"question": question})


# ---- answers


@each_framework
async def test_an_answer_comes_with_its_sources_and_what_it_took(
    server: RemoteServer, made: Any, framework: str
) -> None:
    async with asking(made(framework, sources=1)) as client:
        await with_documents(client)
        response = await ask(client)
        assert response.headers["content-type"].startswith("text/event-stream")
        events = events_of(response.text)
        health = (await client.get("/health")).json()
    names = [name for name, _ in events]
    assert names == ["sources", *["text"] * (len(events) - 2), "usage"]
    assert len(events) > 4, "as it comes, not in one piece"
    ((source,),) = [data for name, data in events if name == "sources"]
    assert (source["document"], source["text"]) == ("archive/secrets.txt", PASSWORD)
    assert source["score"] > 0.8
    assert text_of(events) == PASSWORD
    assert events[-1][1] == {"prompt_tokens": 11, "completion_tokens": 1}
    assert [health[name] for name in ("answers", "prompt_tokens", "completion_tokens")] == [1, 11, 1]
    said = "".join(message["content"] for message in server.requests[-1][1]["messages"])
    assert PASSWORD in said
    assert QUESTION in said
    assert PARKING not in said


@pytest.mark.slow
@each_framework
async def test_a_document_is_put_replaced_and_removed(made: Any, framework: str) -> None:
    async with asking(made(framework, chunk_characters=60)) as client:
        await with_documents(client)
        long = " ".join(f"Sentence {number} is about the tower." for number in range(20))
        assert (await client.put("/api/documents/parking", content=long)).status_code == 204
        listed = (await client.get("/api/documents")).json()
        assert [each["name"] for each in listed] == ["archive/secrets.txt", "parking"]
        assert listed[1]["characters"] == len(long)
        assert listed[1]["chunks"] >= len(long) / 60
        sources = events_of((await ask(client, "parking at the north gate")).text)[0][1]
        assert all("Parking" not in each["text"] and len(each["text"]) <= 60 for each in sources)
        assert (await client.delete("/api/documents/parking")).status_code == 204
        assert (await client.delete("/api/documents/parking")).status_code == 404
        assert len((await client.get("/api/documents")).json()) == 1
        assert [each["document"] for each in events_of((await ask(client)).text)[0][1]] == ["archive/secrets.txt"]


async def test_the_other_framework_goes_on_with_the_same_documents_and_counts(made: Any) -> None:
    async with asking(made("langchain")) as client:
        await with_documents(client)
        await ask(client)
    async with asking(made("llama_index")) as client:
        assert text_of(events_of((await ask(client)).text)) == PASSWORD
        assert (await client.get("/health")).json()["answers"] == 2


@pytest.mark.slow
@each_framework
@pytest.mark.parametrize("after", ["nothing", "a word"])
def test_a_client_that_leaves_ends_its_request_in_the_server(
    server: RemoteServer, made: Any, framework: str, after: str
) -> None:
    with listening(made(framework)) as url, httpx.Client(base_url=url, trust_env=False) as client:
        client.put("/api/documents/one", content=PASSWORD)
        server.streams(*([] if after == "nothing" else ["An", " answer"]), then="hang")
        embeds_too(server)
        if after == "nothing":
            with pytest.raises(httpx.ReadTimeout):
                client.post("/api/ask", json={"question": QUESTION}, timeout=0.2)
        else:
            with client.stream("POST", "/api/ask", json={"question": QUESTION}) as response:
                assert "sources" in next(response.iter_text())
        assert server.aborted.wait(10)


# ---- errors


@each_framework
async def test_without_documents_there_is_no_answer(server: RemoteServer, made: Any, framework: str) -> None:
    async with asking(made(framework)) as client:
        response = await ask(client)
    assert (response.status_code, response.json()) == (409, {"detail": "there are no documents yet: add one first"})
    assert server.requests == [], "and no engine was asked"


@pytest.mark.parametrize(
    ("content", "status", "told"),
    [
        (b"x" * 101, 413, "the document has more than 100 bytes"),
        (b" \n", 400, "a document has a name and text"),
        (b"\xff\xfe", 400, "not text in UTF-8"),
    ],
)
async def test_a_document_that_is_not_taken(
    server: RemoteServer, made: Any, content: bytes, status: int, told: str
) -> None:
    async with asking(made("langchain", max_document_bytes=100)) as client:
        response = await client.put("/api/documents/one", content=content)
        assert (response.status_code, told in response.json()["detail"]) == (status, True)
        assert (await client.get("/api/documents")).json() == []
    assert server.requests == []


async def test_no_more_of_a_document_is_read_than_may_be(made: Any) -> None:
    read = []

    async def endless() -> Any:
        while True:
            read.append(b"x" * 40)
            yield read[-1]

    async with asking(made("langchain", max_document_bytes=100)) as client:
        # httpx's transport for applications takes a body whole: so the application is asked as a server would.
        sent: list[Any] = []
        body = endless()
        scope = {
            "type": "http", "method": "PUT", "path": "/api/documents/one", "raw_path": b"/api/documents/one",
            "query_string": b"", "headers": [(b"host", b"127.0.0.1")], "scheme": "http", "http_version": "1.1",
        }  # fmt: skip

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": await anext(body), "more_body": True}

        async def send(message: Any) -> None:
            sent.append(message)

        assert isinstance(client._transport, httpx.ASGITransport)
        await client._transport.app(scope, receive, send)
    assert sent[0]["status"] == 413
    assert len(read) == 3


@each_framework
async def test_a_model_that_can_not_start_is_a_503_that_says_why(made: Any, framework: str, tmp_path: Path) -> None:
    nothing = tmp_path / "no-python"
    async with asking(
        made(framework, chat={"base_url": None, "model": str(TINY_CHAT), "python": str(nothing)})
    ) as client:
        await with_documents(client)
        response = await ask(client)
        assert response.status_code == 503
        assert str(nothing) in response.json()["detail"]
        assert (await client.get("/health")).status_code == 200, "it is the model that is not well"


@each_framework
async def test_a_server_that_is_not_there_is_a_502(made: Any, framework: str) -> None:
    async with asking(made(framework, chat={"base_url": NOBODY})) as client:
        await with_documents(client)
        response = await ask(client)
        assert response.status_code == 502
        assert "127.0.0.1:9" in response.json()["detail"]


@each_framework
async def test_a_document_that_can_not_be_embedded_is_not_kept(server: RemoteServer, made: Any, framework: str) -> None:
    async with asking(made(framework)) as client:
        server.fails(500, message="out of order")
        response = await client.put("/api/documents/one", content=PASSWORD)
        assert (response.status_code, "out of order" in response.json()["detail"]) == (502, True)
        assert (await client.get("/api/documents")).json() == []


@each_framework
async def test_an_answer_that_breaks_off_says_so(server: RemoteServer, made: Any, framework: str) -> None:
    async with asking(made(framework)) as client:
        await with_documents(client)
        server.streams("The password", then="cut")
        embeds_too(server)
        response = await ask(client)
        *_, last = events = events_of(response.text)
        assert (response.status_code, text_of(events), last[0]) == (200, "The password", "error")
        assert "127.0.0.1" in last[1]["detail"]
        assert (await client.get("/health")).json()["answers"] == 0


@pytest.mark.parametrize("body", [{}, {"question": ""}, {"question": "x" * 4001}, {"question": 1}, []])
async def test_what_is_no_question_is_refused(server: RemoteServer, made: Any, body: object) -> None:
    async with asking(made("langchain")) as client:
        await with_documents(client)
        asked = len(server.requests)
        assert (await client.post("/api/ask", json=body)).status_code == 422
    assert len(server.requests) == asked


async def test_pages_of_other_sites_can_not_ask(made: Any) -> None:
    """A form or a script there may send text without asking first, but no JSON and no PUT; and no other host's name."""
    async with asking(made("langchain")) as client:
        await with_documents(client)
        typed = {"Content-Type": "text/plain"}
        assert (await client.post("/api/ask", content=b'{"question": "a"}', headers=typed)).status_code == 422
        assert (await client.get("/api/documents", headers={"Host": "evil.example"})).status_code == 400
        preflight = {"Origin": "http://evil.example", "Access-Control-Request-Method": "PUT"}
        response = await client.request("OPTIONS", "/api/documents/one", headers=preflight)
        assert "access-control-allow-origin" not in response.headers


def test_each_error_has_a_status_of_its_kind() -> None:
    service = rag_module("service")
    found = {
        type(error).__name__: service.status_of(error)
        for error in (
            EngineNotInstalledError("no"), EngineStartError("no"), EngineBusyError("no"), RateLimitError("no", 429),
            sqlite3.OperationalError("disk is full"), ContextLengthError("no"), InvalidInputError("no"),
            RequestTimeoutError("no"), ServerUnreachableError("no"), AuthenticationError("no", 401),
        )
    }  # fmt: skip
    assert found == {
        "EngineNotInstalledError": 503, "EngineStartError": 503, "EngineBusyError": 503, "RateLimitError": 503,
        "OperationalError": 503, "ContextLengthError": 413, "InvalidInputError": 400,
        "RequestTimeoutError": 504, "ServerUnreachableError": 502, "AuthenticationError": 502,
    }  # fmt: skip


# ---- what runs it


@pytest.mark.slow
async def test_health_shows_the_engines_and_metrics_the_tokens(made: Any, server: RemoteServer) -> None:
    async with asking(made("langchain")) as client:
        await with_documents(client)
        await ask(client)
        engines = (await client.get("/health")).json()["engines"]
        assert {name: engine["state"] for name, engine in engines.items()} == {"chat": "ready", "embeddings": "ready"}
        text = (await client.get("/metrics")).text
    line = f'vllm_local_tokens_total{{engine_key="{server.url}",kind="completion",model=""}} '
    assert any(each.startswith(line) and float(each.split()[-1]) >= 1 for each in text.splitlines())


def test_vectors_of_another_model_are_refused(made: Any) -> None:
    made("langchain", embeddings={"base_url": NOBODY, "model": "one"})
    with pytest.raises(ValueError, match="are of one, not of another: give another file"):
        made("langchain", embeddings={"base_url": NOBODY, "model": "another"})


def test_so_are_those_of_another_server_that_the_environment_names(made: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_API_URL", NOBODY)
    made("langchain", embeddings={})
    made("langchain", embeddings={})
    monkeypatch.setenv("VLLM_API_URL", "http://127.0.0.1:7/v1")
    with pytest.raises(ValueError, match=r"are of http://127\.0\.0\.1:9.*, not of http://127\.0\.0\.1:7"):
        made("langchain", embeddings={})


def test_what_the_environment_says() -> None:
    of = rag_module("config").config_of
    plain = of({})
    assert plain.chat["model"] == str(EXAMPLES / "tiny_chat")
    assert "MiniLM" in plain.embeddings["model"] or "minilm" in plain.embeddings["model"]
    assert plain.chat["idle_ttl_s"] == plain.embeddings["idle_ttl_s"] == 300
    given = of({"RAG_CHAT": '{"model": "Qwen/Qwen3-4B", "max_tokens": 9}', "RAG_DATABASE": "other.sqlite"})
    assert (given.chat["model"], given.chat["max_tokens"], given.chat["temperature"]) == ("Qwen/Qwen3-4B", 9, 0)
    assert given.database == Path("other.sqlite")
    for remote in ({"RAG_CHAT": '{"base_url": "http://a/v1"}'}, {"VLLM_API_URL": "http://a/v1"}):
        assert "model" not in of(remote).chat, "that server says itself what it has"
    assert "model" in of({"RAG_CHAT": '{"base_url": "http://a/v1"}'}).embeddings
    for wrong in ("{", "[]", "Qwen/Qwen3-4B"):
        with pytest.raises(ValueError, match=r"RAG_CHAT=.* is not a JSON object"):
            of({"RAG_CHAT": wrong})


def test_each_app_is_short() -> None:
    for framework in FRAMEWORKS:
        assert len((EXAMPLES / "rag_service" / f"{framework}_app.py").read_text().splitlines()) < 200
