"""LangChain's own tests for embeddings; the integration tests on real vLLM with all-MiniLM-L6-v2."""

from __future__ import annotations

from typing import Any

import pytest
from langchain_tests.integration_tests import EmbeddingsIntegrationTests
from langchain_tests.unit_tests import EmbeddingsUnitTests

from langchain_vllm_local import VLLMEmbeddings


class TestVLLMEmbeddingsUnit(EmbeddingsUnitTests):
    @property
    def embeddings_class(self) -> type[VLLMEmbeddings]:
        return VLLMEmbeddings

    @property
    def embedding_model_params(self) -> dict[str, Any]:
        return {"model": "org/name"}

    @property
    def init_from_env_params(self) -> tuple[dict[str, str], dict[str, Any], dict[str, Any]]:
        return (
            {"VLLM_MODEL_PATH": "org/name", "VLLM_API_KEY": "key", "VLLM_DTYPE": "float32"},
            {},
            {"model": "org/name", "api_key": "key", "dtype": "float32"},
        )


class TestVLLMEmbeddings(EmbeddingsIntegrationTests):
    settings: dict[str, Any]

    @pytest.fixture(autouse=True)
    def on_minilm(self, minilm: dict[str, Any]) -> None:
        self.settings = minilm

    @property
    def embeddings_class(self) -> type[VLLMEmbeddings]:
        return VLLMEmbeddings

    @property
    def embedding_model_params(self) -> dict[str, Any]:
        return self.settings
