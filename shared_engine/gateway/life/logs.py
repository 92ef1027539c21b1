"""The log of a model's engine: its last lines, and what comes after them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from shared_engine.gateway.catalog import ServedModel
from shared_engine.gateway.refusals import RefusedError
from shared_engine.observe.engine_info import EngineInfo
from shared_engine.observe.log_lines import LineReader, LogLine
from shared_engine.observe.log_reader import FollowedLog, read_log
from shared_engine.request.threads import in_a_thread
from shared_engine.runtime.redacted import redacted

MAX_LINES = 10_000
POLL_S = 0.25


async def log_file_of(model: ServedModel, member: str | None) -> Path:
    """Of the engine; of replicas of the one that is named, else of the first that is alive.

    Raises:
        RefusedError: it has none here.
        VLLMError: it can't be looked for.
    """
    info = await model.endpoint.status(processes=False)
    found: list[EngineInfo] = [each for each in info.members or (info,) if member in (None, each.member)]
    found.sort(key=lambda each: not each.is_alive)
    if not found or found[0].log_file is None:
        raise RefusedError(404, f"{model.config.id} has no log on this machine", "no_log")
    return Path(found[0].log_file)


async def last_lines(file: Path, count: int) -> list[dict[str, Any]]:
    """None where there is no file yet."""

    def read() -> list[dict[str, Any]]:
        reader = LineReader()
        lines = [line for text in read_log(file, count) for line in reader.feed(text)]
        return [_shown(line) for line in (*lines, *reader.end())]

    return await in_a_thread(read)


async def follow(file: Path, count: int) -> AsyncIterator[dict[str, Any]]:
    """The last lines, and each that comes, also of the next starts."""
    log, reader = await in_a_thread(lambda: FollowedLog(file)), LineReader()
    try:
        for line in await last_lines(file, count):
            yield line
        while True:
            text = await in_a_thread(log.read)
            for each in reader.feed(text):
                yield _shown(each)
            if not text:
                await asyncio.sleep(POLL_S)
    finally:
        log.close()


def _shown(line: LogLine) -> dict[str, Any]:
    return {**line.to_json(), "message": redacted(line.text)}
