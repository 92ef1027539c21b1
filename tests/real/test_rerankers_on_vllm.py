"""Language models that rerank, on real vLLM: their scores are those that transformers computes from the prompt that
their makers name, though nobody says what they are."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from langchain_vllm_local import VLLMRerank
from shared_engine import Engine
from shared_engine.launch.interpreter import find_interpreter
from tests.support.causal_rerankers import DOCUMENTS, NAMES, QUERY
from tests.support.engines import ended_engines
from tests.support.paths import REPOSITORY

pytestmark = [pytest.mark.apart, pytest.mark.long]


@pytest.mark.parametrize("family", ["qwen3", "mxbai", "gemma"])
def test_its_scores_are_those_of_transformers(minilm: dict[str, Any], tmp_path: Path, family: str) -> None:
    folder = tmp_path / NAMES[family]
    script = REPOSITORY / "tests" / "support" / "causal_rerankers.py"
    command = [find_interpreter(None).path, str(script), family, str(folder)]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    expected = json.loads((folder / "scores.json").read_text())
    with ended_engines() as made:
        reranker = VLLMRerank(**{**minilm, "model": str(folder)}, top_n=None)
        made.append(reranker.engine)
        result = Engine(reranker.engine.settings).rerank(QUERY, DOCUMENTS)
        scores = {each.index: each.relevance_score for each in result.results}
        assert [scores[index] for index in range(len(DOCUMENTS))] == pytest.approx(expected, abs=1e-4)
        other = reranker.engine.rerank(QUERY, DOCUMENTS, extra_body={"instruction": "three four five"})
        if family == "qwen3":
            assert sorted(each.relevance_score for each in other.results) != pytest.approx(sorted(expected), abs=1e-4)
