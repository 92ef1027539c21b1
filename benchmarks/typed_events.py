"""What a chunk costs in ``stream_events(version="v3")``: our own events, and those that LangChain's core makes of our
chunks, in turns. The engine is replaced by a list of chunks. Prints a table and writes nothing.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator
from typing import Any

from figures import Contender, Row, race, say, table

from langchain_vllm_local import ChatVLLM
from shared_engine import Engine, GenerationChunk
from shared_engine.results import TokenUsage

CHUNKS = 5_000
ROUNDS = 9
ANSWER = [
    *(GenerationChunk(text="word ", model="m", request_id="r") for _ in range(CHUNKS)),
    GenerationChunk(finish_reason="stop", model="m", request_id="r"),
    GenerationChunk(usage=TokenUsage(), model="m", request_id="r"),
]


class Bridged(ChatVLLM):
    """Without events of its own."""


def microseconds(model: ChatVLLM) -> float:
    """Of processor time, for each chunk."""
    before = time.process_time()
    assert len(list(model.stream_events("Hi", version="v3").text)) == CHUNKS
    return (time.process_time() - before) / CHUNKS * 1e6


def answer(*_: Any, **__: Any) -> Iterator[GenerationChunk]:
    yield from ANSWER


def main() -> None:
    warnings.simplefilter("ignore")  # it is a beta, says core
    setattr(Engine, "stream_chat", answer)  # noqa: B010
    setattr(Bridged, "_stream_chat_model_events", None)  # noqa: B010  # in the class it would be a field of pydantic's
    contenders = {
        "our own": Contender(lambda: microseconds(ChatVLLM(model="m"))),
        "by core's bridge": Contender(lambda: microseconds(Bridged(model="m"))),
    }
    figures = race(contenders, ROUNDS, "us", rest_s=0)
    ours, bridge = figures.values()
    row = Row("stream_events(version='v3'), each chunk", ours, "us", "core's bridge", bridge, "times at most")
    say("\n".join(table([row])))


if __name__ == "__main__":
    main()
