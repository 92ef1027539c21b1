"""The fake has a server of its own: nobody looks into this one."""

from __future__ import annotations


class Server:
    async def serve(self) -> None: ...
