"""A pickle that an earlier release made: workers of a queue are often brought up to date before who sends them work."""

from __future__ import annotations

from typing import Any

import pytest

from langchain_vllm_local import VLLM as LangChainVLLM
from langchain_vllm_local import ChatVLLM, VLLMEmbeddings
from langchain_vllm_local import VLLMRerank as LangChainRerank
from llama_index_vllm_local import VLLM, VLLMEmbedding, VLLMRerank
from shared_engine.adapting.framework_model import GenerationModel

SETTINGS = {"base_url": "http://127.0.0.1:9", "model": "served", "timeout": 7.0}
NEWER = ("show_schema", "schema_max_items", "merge_messages", "min_tokens", "n")
"""Fields that earlier releases did not have, or might not have had."""


@pytest.mark.parametrize(
    "kind", [ChatVLLM, LangChainVLLM, VLLMEmbeddings, LangChainRerank, VLLM, VLLMEmbedding, VLLMRerank]
)
def test_a_field_that_it_has_not_has_its_default(kind: Any) -> None:
    made = kind(**SETTINGS)
    state = made.__getstate__()
    for name in NEWER:
        state["__dict__"].pop(name, None)
    back = kind.__new__(kind)
    back.__setstate__(state)
    assert (back.timeout, back.engine.settings.timeout) == (7.0, 7.0)
    for name in NEWER:
        assert getattr(back, name, None) == getattr(made, name, None)
    if isinstance(back, GenerationModel):
        assert back._request_defaults() == made._request_defaults()
