"""The adapters of one commit, asked line by line by compare.py, behind child.py."""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any


def main() -> None:
    options = json.loads(sys.argv[1])
    sys.path.insert(0, options["tree"])  # before what is installed here
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)

    from shared_engine.runtime.directory import ROOT_VARIABLE

    os.environ[ROOT_VARIABLE] = options["root"]

    from contenders import TextPrompts, langchain, llama_index
    from questions import questions

    import shared_engine

    assert shared_engine.__file__.startswith(options["tree"]), f"{shared_engine.__file__} is another commit's"
    settings = options["settings"]
    engine = shared_engine.Engine(**settings)
    engine.warmup()

    def made() -> float:
        return float(engine.metrics()["generation_tokens"])

    def all_made(before: float, expected: int) -> int:
        deadline = time.monotonic() + 5  # vLLM counts a request some time after its answer
        while (tokens := round(made() - before)) < expected and time.monotonic() < deadline:
            time.sleep(0.05)
        return tokens

    try:
        with asyncio.Runner() as runner:

            def streamed(stream: Callable[[str], Any]) -> Callable[[Sequence[str]], None]:
                async def gathered(texts: Sequence[str]) -> None:
                    await asyncio.gather(*map(stream, texts))

                return lambda texts: runner.run(gathered(texts))

            replies.write(json.dumps({}) + "\n")
            for line in sys.stdin:
                asked = json.loads(line)
                of, _, what = asked["do"].partition(".")
                tokens, texts = asked["tokens"], questions(asked["count"])
                make: Callable[..., Any] = {"chain": langchain, "index": llama_index, "texts": TextPrompts}[of]
                call = getattr(make(settings, tokens), what)
                before, took_ms = made(), []
                began = time.perf_counter()
                if what in ("ask", "aask"):
                    for text in texts:
                        at = time.perf_counter()
                        call(text) if what == "ask" else runner.run(call(text))
                        took_ms.append((time.perf_counter() - at) * 1000)
                elif what == "astream":
                    streamed(call)(texts)
                elif what == "abatch":
                    runner.run(call(texts))
                else:
                    call(texts)
                seconds = time.perf_counter() - began
                came = {"seconds": seconds, "tokens": all_made(before, len(texts) * tokens)}
                if took_ms:
                    came["middle_ms"] = statistics.median(took_ms)
                replies.write(json.dumps(came) + "\n")
    finally:
        engine.shutdown(force=True)


if __name__ == "__main__":
    main()
