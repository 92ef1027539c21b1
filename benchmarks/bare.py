"""Bare aiohttp on a vLLM server: the least that a client can do. What ours adds to it is what is measured."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import msgspec
from questions import Answer

CHAT = "/v1/chat/completions"


class _Usage(msgspec.Struct):
    prompt_tokens: int
    completion_tokens: int


class _Text(msgspec.Struct):
    content: str | None = None


class _Choice(msgspec.Struct):
    message: _Text = msgspec.field(default_factory=_Text)
    delta: _Text = msgspec.field(default_factory=_Text)


class _Body(msgspec.Struct):
    choices: list[_Choice]
    usage: _Usage | None = None


_decode = msgspec.json.Decoder(_Body).decode


@dataclass
class Streamed:
    """One stream: when it was asked for, when each piece of text came, and what the answer is."""

    began: float = field(default_factory=time.perf_counter)
    times: list[float] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    prompt_tokens: int = 0
    completion_tokens: int = 0

    def add(self, text: str) -> None:
        if text:
            self.times.append(time.perf_counter())
            self.texts.append(text)

    def answer(self) -> Answer:
        return Answer(self.prompt_tokens, self.completion_tokens, "".join(self.texts))

    @property
    def first_s(self) -> float:
        return self.times[0] - self.began

    @property
    def gaps_s(self) -> list[float]:
        return [after - before for before, after in zip(self.times, self.times[1:], strict=False)]


class Bare:
    """Chats of a server, as many at once as are asked for. Belongs to the loop that opened it.

    Args:
        socket: the server's Unix socket; else ``url`` is where it listens.
    """

    def __init__(self, model: str, *, socket: str | None = None, url: str = "http://engine") -> None:
        self._model = model
        self._socket = socket
        self._url = url
        self._made: aiohttp.ClientSession | None = None

    def _session(self) -> aiohttp.ClientSession:
        if self._made is None:
            to_socket = aiohttp.UnixConnector(self._socket, limit=0) if self._socket else None
            self._made = aiohttp.ClientSession(connector=to_socket or aiohttp.TCPConnector(limit=0))
        return self._made

    async def close(self) -> None:
        if self._made is not None:
            await self._made.close()
            self._made = None

    def _post(self, text: str, tokens: int, **more: Any) -> Any:
        body = {
            "model": self._model,
            "messages": [{"role": "user", "content": text}],
            "temperature": 0,
            "max_tokens": tokens,
            "ignore_eos": True,
            **more,
        }
        headers = {"Content-Type": "application/json"}
        return self._session().post(self._url + CHAT, data=msgspec.json.encode(body), headers=headers)

    async def chat(self, text: str, tokens: int) -> Answer:
        async with self._post(text, tokens) as response:
            content = await response.read()
            assert response.status == 200, content
        body = _decode(content)
        assert body.usage is not None
        return Answer(body.usage.prompt_tokens, body.usage.completion_tokens, body.choices[0].message.content or "")

    async def gathered(self, texts: Iterable[str], tokens: int) -> list[Answer]:
        return await asyncio.gather(*(self.chat(text, tokens) for text in texts))

    async def stream(self, text: str, tokens: int) -> Streamed:
        streamed = Streamed()
        async with self._post(text, tokens, stream=True, stream_options={"include_usage": True}) as response:
            assert response.status == 200, await response.read()
            async for event in _events(response.content):
                body = _decode(event)
                if body.choices:
                    streamed.add(body.choices[0].delta.content or "")
                if body.usage is not None:
                    streamed.prompt_tokens = body.usage.prompt_tokens
                    streamed.completion_tokens = body.usage.completion_tokens
        return streamed


async def _events(content: aiohttp.StreamReader) -> AsyncIterator[bytes]:
    rest = b""
    async for data in content.iter_any():
        *events, rest = (rest + data).split(b"\n\n")
        for event in events:
            if event != b"data: [DONE]":
                yield event[6:]
