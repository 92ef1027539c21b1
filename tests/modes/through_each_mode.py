"""The adapters' own tests on vLLM, LangChain's standard suites among them, in direct mode, on a remote server and on a
fleet of two. `make test-modes`.

Named so that pytest finds it only when it is asked: it takes minutes. In the default mode `make test` runs them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.adapters import LORA_FLAGS
from tests.support.plain_server import PlainServer, plain_servers
from tests.support.suites import VLLM_AS_IT_IS, assert_suites_pass, assert_suites_pass_in_direct_mode

pytestmark = pytest.mark.timeout(1800)
each_suite = pytest.mark.parametrize("suite", ["tests/langchain", "tests/llama_index"])


@each_suite
def test_direct(suite: str) -> None:
    assert_suites_pass_in_direct_mode([suite])


@pytest.fixture(scope="module")
def servers(tiny_chat: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[PlainServer]]:
    loads = {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1"}
    folder = tmp_path_factory.mktemp("servers")
    with plain_servers(2, tiny_chat, folder, flags=LORA_FLAGS, environment=loads) as servers:
        yield servers


@pytest.fixture(scope="module")
def embedders(minilm: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[PlainServer]]:
    with plain_servers(2, minilm, tmp_path_factory.mktemp("embedders")) as servers:
        yield servers


@each_suite
def test_remote(servers: list[PlainServer], embedders: list[PlainServer], suite: str) -> None:
    assert_suites_pass([suite], servers[0].url, embedders[0].url, VLLM_AS_IT_IS)


@each_suite
def test_fleet(servers: list[PlainServer], embedders: list[PlainServer], suite: str) -> None:
    chat_urls, embedding_urls = (",".join(server.url for server in each) for each in (servers, embedders))
    assert_suites_pass([suite], chat_urls, embedding_urls, VLLM_AS_IT_IS)
