"""The parsers that models get exist in the vLLM that is installed."""

from __future__ import annotations

from pathlib import Path

import pytest

from shared_engine.model_files.parsers import known_reasoning_parsers, known_tool_parsers
from tests.support.vllm_sources import registered

pytestmark = pytest.mark.apart


def test_every_tool_parser_that_can_be_chosen_exists(vllm_folder: Path) -> None:
    names = registered(vllm_folder / "tool_parsers" / "__init__.py", "_TOOL_PARSERS_TO_REGISTER")
    assert set(known_tool_parsers()) <= names


def test_every_reasoning_parser_that_can_be_chosen_exists(vllm_folder: Path) -> None:
    names = registered(vllm_folder / "reasoning" / "__init__.py", "_REASONING_PARSERS_TO_REGISTER")
    assert set(known_reasoning_parsers()) <= names
