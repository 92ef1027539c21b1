"""A server that answers on time: a token every few milliseconds, whatever the machine's vLLM would do meanwhile.

What a client adds to a stream is far less than vLLM's own unrest on a small CPU. Run as a program it writes its URL;
its one argument, in JSON, has the arguments of ``Paced``.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
from contextlib import AbstractAsyncContextManager, nullcontext

from aiohttp import web

GAP_S = 0.004
PROMPT_TOKENS = 8


def _event(content: dict[str, object]) -> bytes:
    head = {"id": "chatcmpl-paced", "object": "chat.completion.chunk", "created": 1, "model": "paced"}
    return b"data: " + json.dumps({**head, **content}).encode() + b"\n\n"


def _piece(delta: dict[str, str], finish_reason: str | None = None) -> bytes:
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
    return _event({"choices": [choice]})


class Paced:
    """
    Args:
        gap_s: the time of a token.
        slots: how many are answered at once, the others wait, as with vLLM's max_num_seqs; None for all.
        spread: the share of gap_s by which an answer may be quicker or slower than another.
    """

    def __init__(self, gap_s: float = GAP_S, slots: int | None = None, spread: float = 0.0) -> None:
        self._gap_s, self._spread = gap_s, spread
        self._chance = random.Random(1)
        self._slots: AbstractAsyncContextManager[None] = nullcontext() if slots is None else asyncio.Semaphore(slots)

    async def chat(self, request: web.Request) -> web.StreamResponse:
        """As many tokens as are asked for, in vLLM's form."""
        asked = await request.json()
        tokens = asked["max_tokens"]
        usage = {"prompt_tokens": PROMPT_TOKENS, "completion_tokens": tokens, "total_tokens": PROMPT_TOKENS + tokens}
        async with self._slots:
            gap_s = self._gap_s * self._chance.uniform(1 - self._spread, 1 + self._spread)
            if asked.get("stream"):
                return await self._streamed(request, tokens, gap_s, usage)
            await asyncio.sleep(tokens * gap_s)
        message = {"role": "assistant", "content": "".join(f" {index}" for index in range(1, tokens + 1))}
        choice = {"index": 0, "message": message, "finish_reason": "length"}
        return web.json_response({"id": "chatcmpl-paced", "model": "paced", "choices": [choice], "usage": usage})

    async def _streamed(
        self, request: web.Request, tokens: int, gap_s: float, usage: dict[str, int]
    ) -> web.StreamResponse:
        """The first token one gap after the request."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8"})
        await response.prepare(request)
        await response.write(_piece({"role": "assistant", "content": ""}))
        for index in range(1, tokens + 1):
            await asyncio.sleep(began + index * gap_s - loop.time())
            await response.write(_piece({"content": f" {index}"}, "length" if index == tokens else None))
        await response.write(_event({"choices": [], "usage": usage}) + b"data: [DONE]\n\n")
        return response


async def serve() -> None:
    app = web.Application()
    app.router.add_post("/v1/chat/completions", Paced(**json.loads(sys.argv[1] if len(sys.argv) > 1 else "{}")).chat)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    port = runner.addresses[0][1]
    print(json.dumps({"url": f"http://127.0.0.1:{port}"}), flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(serve())
