"""Streams: many at once, and when the first token and the following ones come."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from bare import Bare, Streamed
from child import Child
from contenders import chat_openai, langchain, llama_index
from figures import Contender, Row, race
from latency import AGAIN, BARE, measure_streams, stream_rows
from paced_server import PROMPT_TOKENS
from questions import Answer, questions
from servers import HERE, model_name
from stage import BATCH, PEER_ROUNDS, TOKENS, Stage, WrongAnswerError


def many_streams(stage: Stage) -> list[Row]:
    """All streams at once, on one event loop."""
    count = stage.plan.sized(BATCH)
    texts = questions(count)

    def rate(stream: Callable[[str], Coroutine[Any, Any, Streamed]]) -> Callable[[], float]:
        async def gathered() -> list[Streamed]:
            return await asyncio.gather(*(stream(text) for text in texts))

        return lambda: stage.rate(lambda: [streamed.answer() for streamed in stage.loop.run(gathered())])

    settings = stage.plan.settings
    contenders = {
        BARE: Contender(rate(partial(stage.bare.stream, tokens=TOKENS))),
        "LangChain ChatVLLM.astream": Contender(rate(langchain(settings, TOKENS).astream)),
        "LlamaIndex astream_chat": Contender(rate(llama_index(settings, TOKENS).astream)),
    }
    ours = list(contenders)[1:]
    against: dict[str, float | None] = {BARE: 0.9}
    if stage.url is not None:
        openai = chat_openai(model_name(settings), stage.url, TOKENS)
        contenders["ChatOpenAI.astream"] = Contender(rate(openai.astream), PEER_ROUNDS, lambda: openai.batch(texts[:8]))
        against["ChatOpenAI.astream"] = 10.0
    figures = race(contenders, stage.plan.rounds, "tok/s")
    return [
        Row(f"{name}, {count} at once", figures[name], "tok/s", other, figures[other], goal=goal)
        for other, goal in against.items()
        for name in ours
    ]


def stream_latency(stage: Stage) -> list[Row]:
    """Time to first token and gaps, of one stream and of eight at once, on vLLM."""
    bare = partial(stage.bare.stream, tokens=TOKENS)
    rounds = min(2, stage.plan.rounds)  # more would drown in vLLM's own noise as well
    return _stream_rows(stage, "vLLM", stage.plan.settings, bare, partial(_check_streams, stage), rounds)


def paced_latency(stage: Stage, folder: Path) -> list[Row]:
    """The same on a server that keeps time, over TCP, where nothing is seen but what the client adds."""
    script, log = HERE / "paced_server.py", folder / "paced_server.log"
    with Child(sys.executable, script, {}, log, leaves_at_eof=False) as server:
        url = server.told["url"]
        bare = Bare("paced", url=url)
        try:
            settings = {"base_url": url, "model": "paced"}
            paced = partial(bare.stream, tokens=TOKENS)
            return _stream_rows(stage, "on time", settings, paced, _check_paced, stage.plan.rounds)
        finally:
            stage.loop.run(bare.close())


def _stream_rows(
    stage: Stage,
    where: str,
    settings: Mapping[str, Any],
    bare: Callable[[str], Coroutine[Any, Any, Streamed]],
    check: Callable[[list[Streamed]], None],
    rounds: int,
) -> list[Row]:
    chain, index = langchain(settings, TOKENS), llama_index(settings, TOKENS)
    rows = []
    with ThreadPoolExecutor(8) as threads:

        def tasks(stream: Callable[[str], Coroutine[Any, Any, Streamed]]) -> Callable[[list[str]], list[Streamed]]:
            async def gathered(texts: list[str]) -> list[Streamed]:
                return await asyncio.gather(*(stream(text) for text in texts))

            return lambda texts: stage.loop.run(gathered(texts))

        def in_threads(stream: Callable[[str], Streamed]) -> Callable[[list[str]], list[Streamed]]:
            return lambda texts: list(threads.map(stream, texts))

        sources = {
            BARE: tasks(bare),
            "LangChain astream": tasks(chain.astream),
            "LangChain stream": in_threads(chain.stream),
            "LlamaIndex astream_chat": tasks(index.astream),
            "LlamaIndex stream_chat": in_threads(index.stream),
            AGAIN: tasks(bare),
        }
        for at_once, groups in ((1, 8), (8, 2)):
            streams = measure_streams(sources, questions(at_once), stage.plan.sized(groups, 2), rounds, check)
            rows += stream_rows(streams, f"{where}, {at_once} stream{'s' if at_once > 1 else ''}")
    return rows


def _check_paced(streams: list[Streamed]) -> None:
    expected = "".join(f" {index}" for index in range(1, TOKENS + 1))
    if any(streamed.answer() != Answer(PROMPT_TOKENS, TOKENS, expected) for streamed in streams):
        raise WrongAnswerError(f"streams of the server that keeps time are not what it sent: {streams[0].answer()}")


def _check_streams(stage: Stage, streams: list[Streamed]) -> None:
    stage.check([streamed.answer() for streamed in streams], TOKENS)
