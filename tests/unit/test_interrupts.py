"""Ctrl-C at any moment: the caller is back at once, and its requests have ended in the server."""

from __future__ import annotations

import json

import pytest

from tests.support.processes import end_of, run_app

# Some hundredths of a second, but where others have the processor. What is not interrupted waits for ever here.
BACK_S = 4.0

QUICK = ["engine.chat"]
OTHERS = [
    "engine.stream_chat", "engine.generate_batch", "engine.achat_batch",
    "engine.embed", "engine.rerank", "engine.achat", "engine.astream_chat", "engine.aembed",
    "langchain.invoke", "langchain.stream", "langchain.batch", "langchain.generate", "langchain.text_batch",
    "langchain.embed", "langchain.rerank", "langchain.ainvoke", "langchain.abatch", "langchain.agenerate",
    "langchain.astream", "llama_index.chat", "llama_index.stream_chat", "llama_index.complete_batch",
    "llama_index.chat_batch", "llama_index.embed", "llama_index.achat", "llama_index.achat_batch",
    "llama_index.astream_chat",
]  # fmt: skip


def worst_moment(name: str, step: int) -> tuple[str, float, int]:
    """Where Ctrl-C took longest, the seconds, and how many moments were tried."""
    status, out, err = end_of(run_app("interrupted", name, str(step)), 60)
    assert status == 0, err
    worst, _, count = out.strip().rpartition(" ")
    where, seconds = json.loads(worst)
    return where, seconds, int(count)


@pytest.mark.parametrize(
    "name", [*QUICK, *(pytest.param(name, marks=(pytest.mark.slow, pytest.mark.long)) for name in OTHERS)]
)
def test_ctrl_c_brings_the_caller_back_and_ends_its_requests(name: str) -> None:
    where, seconds, count = worst_moment(name, step=7)
    assert count >= 5
    assert seconds < BACK_S, where
