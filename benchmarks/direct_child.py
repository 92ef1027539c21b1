"""One way to have vLLM in an app whose own Python has it, asked by direct.py through child.py.

No ``if __name__ == "__main__"`` is needed for the first two ways; vllm.LLM, which spawns, needs one.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

from questions import questions

OURS = ("direct", "local")


class Ours:
    def __init__(self, options: dict[str, Any]) -> None:
        from shared_engine import Engine

        self._engine = Engine(**options["settings"], mode=options["way"])
        self.chat(questions(1), 1)

    def chat(self, texts: list[str], tokens: int) -> int:
        """Tokens of the answers."""
        asked = [[{"role": "user", "content": text}] for text in texts]
        options: dict[str, Any] = {"temperature": 0, "max_tokens": tokens, "extra_body": {"ignore_eos": True}}
        if len(asked) == 1:
            return self._engine.chat(asked[0], **options).usage.completion_tokens
        return sum(answer.usage.completion_tokens for answer in self._engine.chat_batch(asked, **options))

    def first_s(self, text: str, tokens: int) -> float:
        began = time.perf_counter()
        took = 0.0
        for chunk in self._engine.stream_chat([{"role": "user", "content": text}], temperature=0, max_tokens=tokens):
            if chunk.text and not took:
                took = time.perf_counter() - began
        return took

    def evict(self) -> None:
        self._engine.evict()


class Theirs:
    def __init__(self, options: dict[str, Any]) -> None:
        from vllm import LLM

        self._llm = LLM(**options["llm"])
        self.chat(questions(1), 1)

    def chat(self, texts: list[str], tokens: int) -> int:
        from vllm import SamplingParams

        params = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True)
        asked = [[{"role": "user", "content": text}] for text in texts]
        outputs = self._llm.chat(asked, params, use_tqdm=False)
        return sum(len(output.outputs[0].token_ids) for output in outputs)


def timed(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def figure(model: Any, request: dict[str, Any]) -> float:
    """Tokens a second of a batch; the median of some calls in ms; seconds of a return."""
    what, tokens = request["do"], request["tokens"]
    (text,) = questions(1)
    if what == "batch":
        texts = questions(request["batch"])
        began = time.perf_counter()
        came = model.chat(texts, tokens)
        assert came == len(texts) * tokens, came
        return float(came / (time.perf_counter() - began))
    if what == "return":
        model.evict()
        return timed(lambda: model.chat([text], 1))
    one: Callable[[], float] = {
        "call": lambda: timed(lambda: model.chat([text], 1)),
        "answer": lambda: timed(lambda: model.chat([text], tokens)),
        "first": lambda: model.first_s(text, tokens),
    }[what]
    return statistics.median(one() for _ in range(request["calls"])) * 1000


def main() -> None:
    options = json.loads(sys.argv[1])
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever vLLM prints must not stand between the replies
    is_ours = options["way"] in OURS
    model = Ours(options) if is_ours else Theirs(options)
    can = ["batch", "call", "answer", *(("first", "return") if is_ours else ())]
    replies.write(json.dumps({"can": can}) + "\n")
    for line in sys.stdin:
        replies.write(json.dumps({"figure": figure(model, json.loads(line))}) + "\n")


if __name__ == "__main__":
    main()
