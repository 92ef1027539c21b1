"""What a forwarded answer says that it cost, without its being read whole where it is large."""

from __future__ import annotations

import json
from typing import Any

import pytest

from shared_engine.request import usage
from shared_engine.request.usage import LARGE, told_by_ends

USAGE = {"prompt_tokens": 7, "total_tokens": 7, "prompt_tokens_details": {"cached_tokens": 2}}
LARGE_PART = "x" * LARGE


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize(
    "answer",
    [
        {"id": "e", "data": [LARGE_PART], "usage": USAGE},
        {"id": "r", "usage": USAGE, "results": [{"document": {"text": LARGE_PART + 'my "usage": {}'}}]},
        {"data": [LARGE_PART], "usage": USAGE, "model": "served"},
    ],
)
def test_the_usage_of_a_large_answer_is_read_without_the_rest(
    answer: dict[str, Any], indent: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    told_by = usage.told_by

    def reading(body: bytes) -> usage.Told | None:
        sizes.append(len(body))
        return told_by(body)

    monkeypatch.setattr(usage, "told_by", reading)
    told = told_by_ends(json.dumps(answer, indent=indent).encode())
    assert told is not None
    assert told.usage is not None
    assert (told.usage.prompt_tokens, told.usage.cached_tokens) == (7, 2)
    assert max(sizes) < 1000


@pytest.mark.parametrize("answer", [{"data": [LARGE_PART]}, [LARGE_PART], {"data": [LARGE_PART], "usage": None}])
def test_a_large_answer_may_say_nothing_of_its_usage(answer: Any) -> None:
    told = told_by_ends(json.dumps(answer).encode())
    assert told is not None
    assert told.usage is None
