"""Our own adapters' tests on vLLM, LangChain's standard suites among them, through the gateway. `make test-clients`.

Named so that pytest finds it only when it is asked: it takes minutes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.support.gateways import gateway
from tests.support.suites import BEHIND_ONE_URL, assert_suites_pass

LEFT_OUT = {
    **BEHIND_ONE_URL,
    "a_call_names_its_adapter": "an answer has the engine's own name of the adapter",
    "structured_output_is_the_adapters": "the same",
    "(test_llama_index_lora and constructors_adapter)": "the same",
    "loaded_at_run_time": "a gateway has the adapters of its file",
}
"""Tests that do not hold through it, by a part of their names, and why: docs/gateway.md."""


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("suite", ["tests/langchain", "tests/llama_index"])
def test_the_adapters_reach_it_as_any_server(
    lora_chat: dict[str, Any], minilm: dict[str, Any], tmp_path: Path, suite: str
) -> None:
    models = {settings["model"]: settings for settings in (lora_chat, minilm)}
    with gateway({"models": models}, tmp_path) as gate:
        assert_suites_pass([suite], gate.url, gate.url, LEFT_OUT)
