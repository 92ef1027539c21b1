"""One HTTP request to the server of a Unix socket, for a supervisor, which has no packages."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping


async def http(
    socket: str,
    method: str,
    path: str,
    timeout: float,
    body: object = None,
    headers: Mapping[str, str] | None = None,
) -> tuple[int, bytes]:
    """One request to the server of a Unix socket: status and body.

    Raises:
        OSError: no answer, or none that is HTTP; TimeoutError is one.
    """
    content = b"" if body is None else json.dumps(body).encode()
    more = "".join(f"{name}: {value}\r\n" for name, value in (headers or {}).items())
    head = (
        f"{method} {path} HTTP/1.1\r\nHost: engine\r\nConnection: close\r\n{more}"
        f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
    )
    async with asyncio.timeout(timeout):
        reader, writer = await asyncio.open_unix_connection(socket)
        try:
            writer.write(head.encode() + content)
            answer = await reader.read()
        finally:
            writer.close()
    first, _, rest = answer.partition(b"\r\n")
    words = first.split()
    if len(words) < 2 or not words[1].isdigit():
        raise ConnectionError(f"no HTTP answer to {method} {path}")
    return int(words[1]), rest.partition(b"\r\n\r\n")[2]
