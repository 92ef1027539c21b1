"""LangChain's own tests for images, on real vLLM with a tiny model that sees."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from langchain_tests.integration_tests import ChatModelIntegrationTests
from langchain_tests.unit_tests.chat_models import ChatModelTests

from langchain_vllm_local import ChatVLLM
from tests.support.vision_model import png

pytestmark = pytest.mark.engine


class TestImages(ChatModelTests):
    """Only these: with random weights the model says nothing that the other tests look for; tiny_chat passes them."""

    settings: dict[str, Any]

    test_image_inputs = ChatModelIntegrationTests.test_image_inputs
    test_image_tool_message = ChatModelIntegrationTests.test_image_tool_message
    test_anthropic_inputs = ChatModelIntegrationTests.test_anthropic_inputs

    @pytest.fixture(autouse=True)
    def on_vision(self, vision: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
        self.settings = {**vision, "temperature": 0.0, "max_tokens": 16}
        # The suite downloads a picture to send it; any will do, and the tests are to pass without the internet.
        monkeypatch.setattr(httpx, "get", lambda *_, **__: httpx.Response(200, content=png(255, 0, 0)))

    @property
    def chat_model_class(self) -> type[ChatVLLM]:
        return ChatVLLM

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return self.settings

    @property
    def supports_image_inputs(self) -> bool:
        return True

    @property
    def supports_image_urls(self) -> bool:
        return False  # the suite's URL is on the internet; test_images.py has vLLM fetch one of this machine

    @property
    def supports_image_tool_message(self) -> bool:
        return True

    @property
    def supports_anthropic_inputs(self) -> bool:
        return True
