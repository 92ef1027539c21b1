"""Callbacks that keep each chunk of which they hear."""

from __future__ import annotations

from typing import Any

from langchain_core.callbacks import AsyncCallbackHandler, BaseCallbackHandler


class Tokens(BaseCallbackHandler):
    def __init__(self) -> None:
        self.chunks: list[Any] = []

    def on_llm_new_token(self, token: Any, *, chunk: Any = None, **kwargs: Any) -> None:
        assert chunk.text == token
        self.chunks.append(chunk)


class AsyncTokens(AsyncCallbackHandler):
    def __init__(self) -> None:
        self.chunks: list[Any] = []

    async def on_llm_new_token(self, token: Any, *, chunk: Any = None, **kwargs: Any) -> None:
        assert chunk.text == token
        self.chunks.append(chunk)
