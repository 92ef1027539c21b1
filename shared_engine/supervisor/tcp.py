"""Has a server that is ready listen on TCP too, for other programs."""

from __future__ import annotations

import json

from shared_engine.launcher.tcp import OPEN
from shared_engine.runtime.keep_policy import TcpAddress
from shared_engine.supervisor.http import http
from shared_engine.supervisor.owned_engine import OwnedEngine

OPEN_TIMEOUT_S = 10.0


async def open_port(engine: OwnedEngine, wish: TcpAddress | None) -> str | None:
    """Have the address opened, and its port in the record; nothing happens where it was opened before.

    Returns:
        Why that can't be, in words; None when it is.
    """
    if wish is None:
        return None
    keeper = engine.keeper
    host = f"[{wish.host}]" if ":" in wish.host else wish.host
    what = {"host": wish.host, "port": wish.port, "key": wish.key, "folder": str(engine.directory.path)}
    try:
        status, body = await http(keeper.record.socket, "POST", OPEN, OPEN_TIMEOUT_S, what)
        answer = json.loads(body)
    except (OSError, ValueError) as exc:
        return f"serve_tcp: the server does not open {host}:{wish.port} ({exc})"
    if status != 200:
        why = answer.get("error") if isinstance(answer, dict) else None
        return f"serve_tcp = '{host}:{wish.port}' can't be opened: {why or f'HTTP {status}'}"
    address = f"{host}:{answer['port']}"
    if address not in keeper.record.tcp:
        engine.log.note(f"listens on {address} too{', with a key' if wish.key else ''}")
        keeper.publish(tcp=(*keeper.record.tcp, address))
    return None
