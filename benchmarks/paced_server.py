"""A server that streams on time: a token every few milliseconds, whatever the machine's vLLM would do meanwhile.

What a client adds to a stream is far less than vLLM's own unrest on a small CPU. Run as a program it writes its URL.
"""

from __future__ import annotations

import asyncio
import json

from aiohttp import web

GAP_S = 0.004
PROMPT_TOKENS = 8


def _event(content: dict[str, object]) -> bytes:
    head = {"id": "chatcmpl-paced", "object": "chat.completion.chunk", "created": 1, "model": "paced"}
    return b"data: " + json.dumps({**head, **content}).encode() + b"\n\n"


def _piece(delta: dict[str, str], finish_reason: str | None = None) -> bytes:
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
    return _event({"choices": [choice]})


async def chat(request: web.Request) -> web.StreamResponse:
    """As many tokens as are asked for, the first one GAP_S after the request, in vLLM's form."""
    tokens = (await request.json())["max_tokens"]
    loop = asyncio.get_running_loop()
    began = loop.time()
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8"})
    await response.prepare(request)
    await response.write(_piece({"role": "assistant", "content": ""}))
    for index in range(1, tokens + 1):
        await asyncio.sleep(began + index * GAP_S - loop.time())
        await response.write(_piece({"content": f" {index}"}, "length" if index == tokens else None))
    usage = {"prompt_tokens": PROMPT_TOKENS, "completion_tokens": tokens, "total_tokens": PROMPT_TOKENS + tokens}
    await response.write(_event({"choices": [], "usage": usage}) + b"data: [DONE]\n\n")
    return response


async def serve() -> None:
    app = web.Application()
    app.router.add_post("/v1/chat/completions", chat)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    port = runner.addresses[0][1]
    print(json.dumps({"url": f"http://127.0.0.1:{port}"}), flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(serve())
