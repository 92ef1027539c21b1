"""The engines that the contenders run on, up side by side; how much is measured, and what an answer must be."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from bare import Bare
from child import Child
from questions import Answer, questions
from servers import HERE, llm_options, model_name

from shared_engine import Engine, EngineSettings
from shared_engine.launch.interpreter import find_interpreter
from tests.support.plain_server import plain_server

PEERS = HERE.parent / ".venv-peers"
TOKENS = 64
BATCH = 256
PEER_ROUNDS = 1  # a peer may take a minute for it; each is warm by then


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
    rounds: int = 3
    size: float = 1.0
    peers: Path | None = PEERS
    only: str = ""

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
        return self.check([Answer(*answer) for answer in came["came"]], TOKENS) / float(came["seconds"])


def set_stage(plan: Plan, folder: Path, stack: ExitStack) -> Stage:
    """All engines up; they are gone when the stack is closed."""
    python = find_interpreter(EngineSettings(**plan.settings).python).path
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
    stage.url = stack.enter_context(plain_server(plan.settings, folder)).url
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
