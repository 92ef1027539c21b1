"""A context longer than the KV cache can hold: as much of it as fits."""

from __future__ import annotations

from typing import Any

import pytest

from shared_engine import ContextLengthError, EngineStartError
from tests.real.conftest import MakeEngine

HELLO = [{"role": "user", "content": "Hello"}]
SMALL: dict[str, Any] = {"engine_args": {"kv_cache_memory_bytes": 1 << 20}}


@pytest.mark.long
def test_a_context_that_does_not_fit_becomes_as_long_as_fits(own_engine: MakeEngine) -> None:
    too_long = own_engine(max_model_len=2048, **SMALL)
    with pytest.raises(EngineStartError, match="'auto' takes the longest that fits"):
        too_long.warmup()
    too_long.shutdown()
    engine = own_engine(max_model_len="auto", **SMALL)
    assert engine.context_window == 2048, "the model's own, as long as nothing else is known"
    assert engine.chat(HELLO, max_tokens=8).text
    length = engine.status().max_model_len
    assert length is not None
    assert 16 < length < 2048
    assert engine.context_window == length
    with pytest.raises(ContextLengthError) as caught:
        engine.generate("word " * 3000)
    assert caught.value.max_model_len == length
    assert engine.generate("Hello").usage.total_tokens <= length
