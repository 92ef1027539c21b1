"""The socket callers ask the supervisor on: one JSON object a line, one request a connection. Standard library only.

A caller that hangs up only stops waiting: what it waited for goes on.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

Answer = dict[str, Any]
Tell = Callable[[Answer], None]
"""Sends a line ahead of the answer."""
GONE: Answer = {"ok": True}
BACKLOG = 256
MAX_LINE_BYTES = 1 << 24  # a request carries the caller's environment, an answer the log's last lines


async def serve_callers(path: Path, obey: Callable[[Answer, Tell], Awaitable[Answer | None]]) -> asyncio.Server:
    """Listen on ``path``; ``obey`` gives the answer to a request, None where the connection just ends."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        def tell(answer: Answer) -> None:
            if not writer.is_closing():
                writer.write(json.dumps(answer).encode() + b"\n")

        try:
            line = await reader.readline()
            if not line:
                return
            answering = asyncio.ensure_future(obey(json.loads(line), tell))
            hanging_up = asyncio.ensure_future(reader.read(1))
            await asyncio.wait({answering, hanging_up}, return_when=asyncio.FIRST_COMPLETED)
            hanging_up.cancel()
            if not answering.done():
                answering.cancel()
                return
            answer = answering.result()
            if answer is not None:
                tell(answer)
                await writer.drain()
        except ConnectionError:
            pass  # the caller has gone
        finally:
            writer.close()

    return await asyncio.start_unix_server(serve, str(path), backlog=BACKLOG, limit=MAX_LINE_BYTES)
