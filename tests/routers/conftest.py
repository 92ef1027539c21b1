"""What the tests of routers share: three plain servers on tiny_chat with its adapters, one on MiniLM."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.adapters import LORA_FLAGS
from tests.support.plain_server import PlainServer, plain_server, plain_servers

FLAGS = [*LORA_FLAGS, "--tool-strict-level", "parameter"]  # the router leaves out which tools are strict


@pytest.fixture(scope="session")
def servers(tiny_chat: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[PlainServer]]:
    """Three that may be asked, and not broken."""
    with plain_servers(3, tiny_chat, tmp_path_factory.mktemp("servers"), flags=FLAGS) as servers:
        yield servers


@pytest.fixture(scope="session")
def embedder(minilm: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[PlainServer]:
    with plain_server(minilm, tmp_path_factory.mktemp("embedder")) as server:
        yield server
