"""A request's random numbers while its prompt is processed in parts."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from shared_engine.launcher.seeds import keep_seeds_of_unfinished_prompts


class Runner:
    """Three requests with a seed, the second of which has more of its prompt to come."""

    def __init__(self) -> None:
        self.input_batch = SimpleNamespace(generators={0: "first", 1: "second", 3: "fourth"})
        self.discard_request_mask = SimpleNamespace(np=[False, True, False, False])

    def _sample(self, logits: str) -> Any:
        return logits, dict(self.input_batch.generators)

    def _bookkeeping_sync(self, *, fails: bool) -> Any:
        if fails:
            raise RuntimeError
        return dict(self.input_batch.generators)


def test_only_requests_whose_prompt_is_done_use_up_random_numbers() -> None:
    keep_seeds_of_unfinished_prompts(SimpleNamespace(CPUModelRunner=Runner))
    runner = Runner()
    assert runner._sample("logits") == ("logits", {0: "first", 3: "fourth"})
    assert runner._bookkeeping_sync(fails=False) == {0: "first", 3: "fourth"}
    with pytest.raises(RuntimeError):
        runner._bookkeeping_sync(fails=True)
    assert runner.input_batch.generators == {0: "first", 1: "second", 3: "fourth"}


def test_another_runner_is_left_as_it_is() -> None:
    other: Any = type("Other", (), {"_sample": len})
    keep_seeds_of_unfinished_prompts(SimpleNamespace(CPUModelRunner=other))
    keep_seeds_of_unfinished_prompts(SimpleNamespace())
    assert other._sample is len
