"""Batches of chats and of texts, each contender with all at once; and what a very long one does to the app's memory."""

from __future__ import annotations

import gc
import resource
import threading
import time
from collections.abc import Callable
from pathlib import Path

from contenders import TextPrompts, chat_openai, langchain, llama_index
from figures import Contender, Row, race
from questions import Answer, questions
from servers import model_name
from stage import BATCH, PEER_ROUNDS, TOKENS, Stage, WrongAnswerError

from shared_engine import Engine

MANY, MANY_TOKENS = 10_000, 16


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
    goals = dict(zip(list(contenders)[1:], (0.97, 1.0, 1.0, 0.75, None), strict=True))
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
    few = texts[:8]
    calls: dict[str, Callable[[], float]] = {
        "ChatOpenAI.batch": lambda: stage.rate(lambda: openai.batch(texts)),
        f"ChatOpenAI.batch(max_concurrency={BATCH})": lambda: stage.rate(
            lambda: openai.batch(texts, max_concurrency=BATCH)
        ),
        "ChatOpenAI.abatch": lambda: stage.rate(lambda: stage.loop.run(openai.abatch(texts))),
    }
    peers = {name: Contender(call, PEER_ROUNDS, lambda: openai.batch(few)) for name, call in calls.items()}
    like = stage.open_ai_like
    if like is not None:
        peers["OpenAILike, gathered"] = Contender(
            lambda: stage.child_rate(like, "chat", len(texts)),
            PEER_ROUNDS,
            lambda: stage.child_rate(like, "chat", len(few)),
        )
    return peers


def text_batches(stage: Stage) -> list[Row]:
    """Batches of texts, without a chat template."""
    count = stage.plan.sized(BATCH)
    model = TextPrompts(stage.plan.settings, TOKENS)
    told = stage.in_process.ask(do="generate", count=count, tokens=TOKENS)["came"]
    counts = [prompt_tokens for prompt_tokens, *_ in told]
    stage.check(model.counted(questions(count)), TOKENS, counts)

    def in_process(what: str) -> float:
        came = stage.in_process.ask(do=what, count=count, tokens=TOKENS)
        return stage.check([Answer(*answer) for answer in came["came"]], TOKENS, counts) / float(came["seconds"])

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
    before = engine.metrics()["generation_tokens"]
    began = time.perf_counter()
    answers = model.batch(texts)
    seconds = time.perf_counter() - began
    if not all(answer.startswith(text) and answer != text for answer, text in zip(answers, texts, strict=True)):
        raise WrongAnswerError("texts are not those of their prompts, in their order")
    deadline = time.monotonic() + 5
    while (made := engine.metrics()["generation_tokens"] - before) != count * tokens:
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
        return stage.check(answers, MANY_TOKENS, counts) / float(came["seconds"])

    def ours() -> float:
        with Memory() as memory:
            rate = text_rate(stage.engine, model, count, MANY_TOKENS)
        growths.append(memory.growth_mb)
        return rate

    contenders = {"ours": Contender(ours, rounds), "LLM.generate": Contender(in_process, rounds)}
    figures = race(contenders, rounds, "tok/s")
    what = f"LangChain VLLM.batch, {count:,} x {MANY_TOKENS}"
    return [
        Row(what, figures["ours"], "tok/s", "LLM.generate", figures["LLM.generate"], goal=0.95),
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
