"""vLLM in process, round by round on request: ``LLM.chat``, ``.generate``, ``.embed``, and LangChain's community VLLM.

Runs in the engine's own Python, behind child.py. A line on stdin asks for a round, a line on stdout is what came of it.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

from questions import Answer, passages, questions, sample


class Recorded:
    """An LLM of which community's VLLM keeps the texts only: this keeps what it answered."""

    def __init__(self, llm: Any) -> None:
        self._llm = llm
        self.outputs: list[Any] = []

    def generate(self, *arguments: Any, **keywords: Any) -> list[Any]:
        self.outputs = self._llm.generate(*arguments, **keywords)
        return self.outputs


def community_batch(llm: Any, path: str, tokens: int) -> tuple[Callable[[list[str]], list[Any]] | None, str]:
    """``batch`` of langchain_community's VLLM on this LLM; None, and why, where it does not run.

    Its package comes from another environment, behind all that this one has.
    """
    sys.path.append(path)
    try:
        from langchain_community.llms.vllm import VLLM

        recorded = Recorded(llm)
        model = VLLM.model_construct(client=recorded, temperature=0.0, max_new_tokens=tokens, ignore_eos=True)

        def batch(texts: list[str]) -> list[Any]:
            answers = model.batch(texts)
            assert answers == [output.outputs[0].text for output in recorded.outputs]
            return recorded.outputs

        batch(["Hello"])
    except Exception as exc:  # a peer that does not run is a result, too
        return None, f"{type(exc).__name__}: {exc}"
    return batch, ""


def answers_of(outputs: list[Any]) -> list[Answer]:
    return [
        Answer(len(output.prompt_token_ids), len(output.outputs[0].token_ids), output.outputs[0].text)
        for output in outputs
    ]


def main() -> None:
    options = json.loads(sys.argv[1])
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever vLLM prints must not stand between the replies

    from vllm import LLM, SamplingParams

    llm = LLM(**options["llm"])
    community, why_not = None, "not asked for"
    if options.get("community"):
        community, why_not = community_batch(llm, options["community"], options["tokens"])
    replies.write(json.dumps({"community": why_not}) + "\n")
    for line in sys.stdin:
        request = json.loads(line)
        count, tokens = request["count"], request.get("tokens", 1)
        texts = passages(count) if request["do"] == "embed" else questions(count)
        conversations = [[{"role": "user", "content": text}] for text in texts]
        params = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True)
        began = time.perf_counter()
        if request["do"] == "chat":
            outputs = llm.chat(conversations, params, use_tqdm=False)
        elif request["do"] == "generate":
            outputs = llm.generate(texts, params, use_tqdm=False)
        elif request["do"] == "embed":
            outputs = llm.embed(texts, use_tqdm=False)
        else:
            assert community is not None
            outputs = community(texts)
        seconds = time.perf_counter() - began
        came: list[Any]
        if request["do"] == "embed":
            came = [outputs[index].outputs.embedding for index in sample(count)]
        else:
            came = answers_of(outputs)
        replies.write(json.dumps({"seconds": seconds, "came": came}) + "\n")


if __name__ == "__main__":
    main()
