"""A quantised model on vLLM's CPU build: tiny_chat with 8-bit weights (compressed-tensors, W8A8)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from shared_engine import Engine, SettingsError
from tests.support.quantised_model import make_quantised_model


@pytest.mark.long
def test_a_quantised_model_answers_and_what_contradicts_it_is_refused(
    own_engine: Callable[..., Engine], tmp_path: Path
) -> None:
    model = make_quantised_model(tmp_path / "tiny_chat")
    with pytest.raises(SettingsError, match="is compressed-tensors, not awq"):
        own_engine(model=model, quantization="awq")
    engine = own_engine(model=model, quantization="compressed-tensors", temperature=0)
    capitals = {"France": "Paris", "Italy": "Rome", "Spain": "Madrid", "Japan": "Tokyo"}
    asked = [[{"role": "user", "content": f"What is the capital of {country}?"}] for country in capitals]
    answers = [result.text for result in engine.chat_batch(asked)]
    assert answers == [f"The capital of {country} is {city}." for country, city in capitals.items()]
