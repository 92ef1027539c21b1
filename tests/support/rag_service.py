"""The sample application in examples/rag_service: made in this process, and the server of models that it asks."""

from __future__ import annotations

import importlib
import json
import re
import socket
import sys
import threading
import zlib
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import httpx
from aiohttp import web

from tests.support.paths import REPOSITORY
from tests.support.remote_server import Handler, RemoteServer
from tests.support.waiting import wait_until

EXAMPLES = REPOSITORY / "examples"
FRAMEWORKS = ("langchain", "llama_index")
PASSWORD = "The password of the archive is blue-heron-42."
QUESTION = "What is the password of the archive?"
DIMENSIONS = 64


def rag_module(name: str) -> Any:
    """One of its modules."""
    if str(EXAMPLES) not in sys.path:
        sys.path.append(str(EXAMPLES))
    return importlib.import_module(f"rag_service.{name}")


def rag_app(framework: str, database: Path, chat: dict[str, Any], embeddings: dict[str, Any], **more: Any) -> Any:
    """The application on one of the frameworks."""
    rag = {"langchain": "LangChainRag", "llama_index": "LlamaIndexRag"}[framework]
    config = rag_module("config").Config(chat=chat, embeddings=embeddings, database=database, **more)
    return rag_module("service").make_app(getattr(rag_module(f"{framework}_app"), rag), config)


@asynccontextmanager
async def asking(app: Any, *, ends: bool = True) -> AsyncIterator[httpx.AsyncClient]:
    """A client of an application of this process, which then ends, and its engines with it."""
    transport = httpx.ASGITransport(app)
    async with (
        httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1", timeout=60) as client,
        app.router.lifespan_context(app) if ends else nullcontext(),
    ):
        yield client


@contextmanager
def listening(app: Any) -> Iterator[str]:
    """Its URL, under uvicorn, in a thread."""
    import uvicorn

    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", ws="none"))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        wait_until(lambda: server.started, 10, "uvicorn")
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(10)
            assert not thread.is_alive()


def events_of(text: str) -> list[tuple[str, Any]]:
    """Of an answer: the name and the data of each."""
    found = [re.fullmatch(r"event: (\w+)\ndata: (.*)", block) for block in text.split("\n\n")[:-1]]
    assert all(found), text
    return [(match[1], json.loads(match[2])) for match in found if match]


def text_of(events: list[tuple[str, Any]]) -> str:
    return "".join(data["text"] for name, data in events if name == "text")


def embeds_too(server: RemoteServer) -> None:
    """Texts that share words get vectors near to each other; all else goes to the handler that it has."""
    chat: Handler = server.handler

    async def handler(request: web.Request) -> web.StreamResponse:
        if not request.path.endswith("/embeddings"):
            return await chat(request)
        body = await request.json()
        vectors = [{"index": index, "embedding": _vector(text)} for index, text in enumerate(body["input"])]
        return web.json_response({"data": vectors, "usage": {"prompt_tokens": 1, "total_tokens": 1}})

    server.handler = handler


def _vector(text: str) -> list[float]:
    vector = [0.01] * DIMENSIONS
    for word in re.findall(r"\w+", text.lower()):
        vector[zlib.crc32(word.encode()) % DIMENSIONS] += 1.0
    return vector
