"""LangChain's ChatOpenAI and ChatOllama: its own standard suites, through the gateway; the first on vLLM itself too.

`make test-clients`; named so that pytest finds it only when it is asked.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from langchain_core.language_models import BaseChatModel
from langchain_ollama import ChatOllama
from langchain_openai import ChatOpenAI
from langchain_tests.integration_tests import ChatModelIntegrationTests

from tests.clients.conftest import KEY, Server


class _OnTinyChat(ChatModelIntegrationTests):
    """Greedy, so that every run gives the same answers."""

    settings: dict[str, Any]

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return self.settings

    @property
    def standard_chat_model_params(self) -> dict[str, Any]:
        return {}


class _ChatOpenAI(_OnTinyChat):
    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return ChatOpenAI

    @property
    def supports_json_mode(self) -> bool:
        return True

    @property
    def structured_output_kwargs(self) -> dict[str, Any]:
        # tiny_chat would repeat text of its own until max_tokens; vLLM holds a call to its schema where it is strict.
        return {"extra_body": {"repetition_penalty": 1.3}, "strict": True}

    def use(self, server: Server) -> None:
        self.settings = {
            "base_url": server.v1,
            "model": server.models["chat"],
            "api_key": KEY,
            "temperature": 0,
            "max_tokens": 256,
            "max_retries": 0,
            "stream_usage": True,  # which it leaves out where it is given a base_url
        }

    @pytest.mark.xfail(strict=True, reason="tiny_chat has seen no Chinese, and can't copy it")
    def test_unicode_tool_call_integration(self, model: BaseChatModel, **_: Any) -> None:
        super().test_unicode_tool_call_integration(model)


class TestChatOpenAIThroughTheGateway(_ChatOpenAI):
    @pytest.fixture(autouse=True)
    def on_the_gateway(self, through: Server) -> None:
        self.use(through)


class TestChatOpenAIOnVLLMItself(_ChatOpenAI):
    @pytest.fixture(autouse=True)
    def on_vllm(self, itself: Callable[[str], Server]) -> None:
        self.use(itself("chat"))


class TestChatOllama(_OnTinyChat):
    @pytest.fixture(autouse=True)
    def on_the_gateway(self, through: Server) -> None:
        self.settings = {
            "base_url": through.url,
            "model": "chat",
            "client_kwargs": {"headers": {"authorization": f"Bearer {KEY}"}},
            "temperature": 0,
            "num_predict": 256,
            "repeat_penalty": 1.1,  # Ollama's own; else tiny_chat would repeat text of its own until num_predict
        }

    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        chat_ollama: type[BaseChatModel] = ChatOllama
        return chat_ollama

    @property
    def supports_json_mode(self) -> bool:
        return True

    @property
    def has_tool_choice(self) -> bool:
        return False  # Ollama's protocol has none
