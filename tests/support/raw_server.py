"""A server that sends the bytes that a test wants sent: for what a proper HTTP server would not do."""

from __future__ import annotations

import asyncio
import json
import ssl
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

OK = b"HTTP/1.1 200 OK\r\n"
STREAM = OK + b"Content-Type: text/event-stream\r\n"
CHUNKED = STREAM + b"Transfer-Encoding: chunked\r\n\r\n"
LAST_CHUNK = b"0\r\n\r\n"
DONE = b"data: [DONE]\n\n"


class Conversation:
    """One connection.

    Attributes:
        number: counts the connections, from 1.
    """

    def __init__(self, number: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.number = number
        self._reader = reader
        self._writer = writer

    async def request(self) -> tuple[str, dict[str, Any]]:
        """The next request's first line and headers, and its JSON.

        Raises:
            asyncio.IncompleteReadError: the client has hung up.
        """
        head = (await self._reader.readuntil(b"\r\n\r\n")).decode()
        length = next(
            (line.split(":")[1] for line in head.split("\r\n") if line.lower().startswith("content-len")), "0"
        )
        return head, json.loads(await self._reader.readexactly(int(length)) or b"{}")

    async def send(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    def reset(self) -> None:
        """End it as a machine does that knows nothing of it."""
        self._writer.transport.abort()


Script = Callable[[Conversation], Awaitable[None]]


class RawServer:
    """Answers each connection with ``script``, and closes it then.

    Attributes:
        connections: how many there were.
    """

    def __init__(self, script: Script) -> None:
        self._script = script
        self.url = ""
        self.connections = 0
        self._transports: list[asyncio.WriteTransport] = []

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._transports.append(writer.transport)
        try:
            with suppress(asyncio.IncompleteReadError, ConnectionError):
                await self._script(Conversation(self.connections, reader, writer))
        finally:
            writer.close()

    async def end(self) -> None:
        """Leave no task and no socket."""
        await asyncio.sleep(0.02)  # a connection that was just accepted has no task yet
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        for transport in self._transports:
            transport.abort()
        await asyncio.sleep(0.01)  # asyncio closes their sockets in its next round


@contextmanager
def raw_server(script: Script, tls: ssl.SSLContext | None = None) -> Iterator[RawServer]:
    """On a free port of this machine, in a thread of its own."""
    raw = RawServer(script)
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    starting = asyncio.start_server(raw.handle, "127.0.0.1", 0, ssl=tls)
    server = asyncio.run_coroutine_threadsafe(starting, loop).result(10)
    raw.url = f"{'https' if tls else 'http'}://127.0.0.1:{server.sockets[0].getsockname()[1]}"

    async def stop() -> None:
        server.close()
        await raw.end()

    try:
        yield raw
    finally:
        asyncio.run_coroutine_threadsafe(stop(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()


def sends(*pieces: bytes) -> Script:
    """A script: read a request, send these bytes, close."""

    async def script(conversation: Conversation) -> None:
        await conversation.request()
        for piece in pieces:
            await conversation.send(piece)

    return script


def chunked(*pieces: bytes) -> bytes:
    """The pieces in HTTP's chunks, without the last one."""
    return b"".join(f"{len(piece):x}\r\n".encode() + piece + b"\r\n" for piece in pieces if piece)


def event(*choices: dict[str, Any], **fields: Any) -> bytes:
    """A server-sent event with these choices."""
    return b"data: " + json.dumps({"id": "c", "model": "served", "choices": choices, **fields}).encode() + b"\n\n"


def piece(text: str | None = None, finish_reason: str | None = None, index: int = 0) -> dict[str, Any]:
    """A choice of a streamed chat answer."""
    return {"index": index, "delta": {"content": text}, "finish_reason": finish_reason}


def whole(body: bytes, head: bytes = OK + b"Content-Type: application/json\r\n") -> bytes:
    """An answer with its length."""
    return head + f"Content-Length: {len(body)}\r\n\r\n".encode() + body
