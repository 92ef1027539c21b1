"""Single calls: one at a time, from many threads, and mixed with streams as they arrive."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from bare import Streamed
from contenders import Framework, langchain, llama_index
from figures import Contender, Row, percentile, race
from latency import AGAIN, BARE, measure_calls, middle_and_slowest
from mixed import SHORT_TOKENS, STREAM_TOKENS, Arrival, poisson_trace, replay
from questions import Answer, questions
from stage import Stage

THREADS, CALLS_OF_THREAD, CALL_TOKENS = 64, 4, 16


def one_call(stage: Stage) -> list[Row]:
    """The shortest answer, one at a time."""
    settings = stage.plan.settings

    def checked(ask: Callable[[str], Answer]) -> Callable[[], None]:
        def call() -> None:
            stage.check([ask("Hello number 0")], 1)

        return call

    bare = checked(lambda text: stage.loop.run(stage.bare.chat(text, 1)))
    chain, index = langchain(settings, 1), llama_index(settings, 1)
    calls = {
        BARE: bare,
        "LangChain invoke": checked(chain.ask),
        "LangChain ainvoke": checked(lambda text: stage.loop.run(chain.aask(text))),
        "LlamaIndex chat": checked(index.ask),
        "LlamaIndex achat": checked(lambda text: stage.loop.run(index.aask(text))),
        AGAIN: bare,
    }
    taken = measure_calls(calls, stage.plan.sized(100), stage.plan.rounds)
    return middle_and_slowest(taken, "one call of 1 token", 1.0)


def threads(stage: Stage) -> list[Row]:
    """Threads of an app that each ask one thing after the other."""
    count = stage.plan.sized(THREADS)
    texts = questions(count)
    settings = stage.plan.settings

    async def bare_calls(text: str) -> list[Answer]:
        return [await stage.bare.chat(text, CALL_TOKENS) for _ in range(CALLS_OF_THREAD)]

    async def gathered() -> list[list[Answer]]:
        return await asyncio.gather(*(bare_calls(text) for text in texts))

    with ThreadPoolExecutor(count) as executor:

        def in_threads(model: Framework) -> Callable[[], list[list[Answer]]]:
            def calls(text: str) -> list[Answer]:
                return [model.ask(text) for _ in range(CALLS_OF_THREAD)]

            return lambda: list(executor.map(calls, texts))

        def rate(ask: Callable[[], list[list[Answer]]]) -> float:
            began = time.perf_counter()
            answers = ask()
            seconds = time.perf_counter() - began
            for one_of_each in zip(*answers, strict=True):
                stage.check(one_of_each, CALL_TOKENS)
            return count * CALLS_OF_THREAD / seconds

        sources = {
            BARE: lambda: stage.loop.run(gathered()),
            "LangChain invoke": in_threads(langchain(settings, CALL_TOKENS)),
            "LlamaIndex chat": in_threads(llama_index(settings, CALL_TOKENS)),
        }
        contenders = {name: Contender(partial(rate, ask)) for name, ask in sources.items()}
        figures = race(contenders, stage.plan.rounds, "calls/s")
    return [
        Row(
            f"{count} threads, {CALL_TOKENS} tokens a call: {name}",
            figures[name],
            "calls/s",
            f"{count} gathered bare POSTs",
            figures[BARE],
            goal=0.8,
        )
        for name in list(sources)[1:]
    ]


def mixed(stage: Stage) -> list[Row]:
    """One trace of long streams and short answers, replayed by ours, half in threads and half in tasks, and by bare."""
    trace = poisson_trace(stage.plan.sized(128))
    settings = stage.plan.settings
    models: dict[tuple[str, int], Framework] = {}
    for tokens in (STREAM_TOKENS, SHORT_TOKENS):
        models["LangChain", tokens] = langchain(settings, tokens)
        models["LlamaIndex", tokens] = llama_index(settings, tokens)
    latencies: dict[str, dict[str, list[float]]] = {"stream": {}, "short": {}}

    async def bare(arrival: Arrival) -> Answer:
        if arrival.is_stream:
            return (await stage.bare.stream(arrival.text, arrival.tokens)).answer()
        return await stage.bare.chat(arrival.text, arrival.tokens)

    with ThreadPoolExecutor(len(trace)) as executor:

        async def ours(arrival: Arrival) -> Answer:
            model = models[arrival.framework, arrival.tokens]
            if arrival.is_sync:
                call: Callable[[str], Any] = model.stream if arrival.is_stream else model.ask
                came = await asyncio.get_running_loop().run_in_executor(executor, call, arrival.text)
            else:
                came = await (model.astream if arrival.is_stream else model.aask)(arrival.text)
            return came.answer() if isinstance(came, Streamed) else came

        def slowest(name: str, ask: Callable[[Arrival], Any]) -> float:
            taken, answers = stage.loop.run(replay(trace, ask))
            for kind in (True, False):
                chosen = [place for place, arrival in enumerate(trace) if arrival.is_stream is kind]
                counts = [stage.counts[place] for place in chosen]
                stage.check([answers[place] for place in chosen], trace[chosen[0]].tokens, counts)
                p99 = percentile([taken[place] * 1000 for place in chosen], 99)
                latencies["stream" if kind else "short"].setdefault(name, []).append(p99)
            return percentile([each * 1000 for each in taken], 99)

        def warm_up(ask: Callable[[Arrival], Any]) -> None:
            stage.loop.run(replay(trace[:32], ask))

        rounds = min(2, stage.plan.rounds)
        clients = {BARE: bare, "ours": ours, AGAIN: bare}
        contenders = {
            name: Contender(partial(slowest, name, ask), rounds, partial(warm_up, ask)) for name, ask in clients.items()
        }
        race(contenders, rounds, "ms at p99")
    names = {"stream": f"streams of {STREAM_TOKENS} tokens", "short": f"calls of {SHORT_TOKENS} tokens"}
    rows = []
    for kind, each in latencies.items():
        what = f"mixed load, {names[kind]}, latency, p99"
        against = f"{BARE}, same trace"
        again = Row(f"{what}: {AGAIN}", each[AGAIN], "ms", against, each[BARE], "times at most")
        noise = max(abs(ratio - 1) for ratio in again.results())
        rows += [Row(what, each["ours"], "ms", against, each[BARE], "times at most", 1.15, noise), again]
    return rows
