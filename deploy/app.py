"""The app in the images of this folder: questions over HTTP, answered by one ChatVLLM.

    POST /ask      {"question": "..."}: the answer as plain text, as it is written
    GET  /healthz  200 while this process runs; looks at nothing else
    GET  /readyz   200 once an answer was possible; before, 503 and why not

Where vLLM is, the environment says: VLLM_MODEL_PATH is an engine of this machine, VLLM_API_URL one server or several.
APP_HOST (127.0.0.1) and APP_PORT (8080) are where it listens. APP_KEY is what callers send as a bearer token; without
one it listens on this machine only.
"""

import asyncio
import hmac
import ipaddress
import logging
import os
import sys
from collections.abc import AsyncIterator

from aiohttp import web

from langchain_vllm_local import ChatVLLM
from shared_engine import VLLMError

HOST, PORT = os.environ.get("APP_HOST", "127.0.0.1"), int(os.environ.get("APP_PORT", "8080"))
KEY = os.environ.get("APP_KEY", "")
LLM = web.AppKey("llm", ChatVLLM)
PROBLEM = web.AppKey("problem", list[str])
RETRY_S = 5.0
FINISH_S = 60.0
"""How long requests may go on after SIGTERM: below terminationGracePeriodSeconds and stop_grace_period."""


async def ask(request: web.Request) -> web.StreamResponse:
    given = request.headers.get("Authorization", "")
    if KEY and not hmac.compare_digest(given.encode(), f"Bearer {KEY}".encode()):
        return web.json_response({"error": "the key is missing or wrong"}, status=401)
    try:
        question = str((await request.json())["question"])
    except (ValueError, KeyError, TypeError):
        return web.json_response({"error": 'the body must be {"question": "..."}'}, status=400)
    pieces = request.app[LLM].astream(question)
    try:
        first = await anext(pieces)
    except VLLMError as exc:
        logging.error("%s", exc)
        return web.json_response({"error": str(exc)}, status=502)
    response = web.StreamResponse(headers={"Content-Type": "text/plain; charset=utf-8"})
    await response.prepare(request)
    await response.write(first.text.encode())
    async for piece in pieces:  # an error now cuts the connection: the caller sees that the answer is not whole
        await response.write(piece.text.encode())
    return response


async def healthz(_: web.Request) -> web.Response:
    return web.Response(text="ok\n")


async def readyz(request: web.Request) -> web.Response:
    problem = request.app[PROBLEM]
    return web.Response(text=f"{problem[0]}\n", status=503) if problem else web.Response(text="ready\n")


async def warmed_up(app: web.Application) -> AsyncIterator[None]:
    """Starts the engine, or looks for the servers, while probes are answered already."""

    async def warm_up() -> None:
        while app[PROBLEM]:
            try:
                await app[LLM].engine.awarmup()
            except VLLMError as exc:
                logging.error("%s", exc)
                app[PROBLEM][:] = [str(exc)]
                await asyncio.sleep(RETRY_S)
            else:
                app[PROBLEM].clear()

    task = asyncio.create_task(warm_up())
    yield
    task.cancel()


def make_app() -> web.Application:
    app = web.Application()
    app[LLM] = ChatVLLM(temperature=0, max_tokens=512)
    app[PROBLEM] = ["starting"]
    app.add_routes([web.post("/ask", ask), web.get("/healthz", healthz), web.get("/readyz", readyz)])
    app.cleanup_ctx.append(warmed_up)
    return app


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    if not KEY and not is_loopback(HOST):
        sys.exit(f"APP_HOST={HOST} is open to others: set APP_KEY, or APP_HOST=127.0.0.1")
    # A caller that leaves has its request ended in vLLM too.
    web.run_app(make_app(), host=HOST, port=PORT, shutdown_timeout=FINISH_S, handler_cancellation=True)
