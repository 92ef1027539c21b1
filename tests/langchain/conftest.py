"""What the LangChain tests share; and which files need more than langchain-core."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec

import pytest

from tests.support.remote_server import RemoteServer, running_server

# Agents are in langchain and langgraph, which the environment of the oldest releases does not have.
collect_ignore = (
    []
    if find_spec("langchain")
    else [
        "test_langchain_agents.py",
        "test_agent_threads.py",
        "test_langchain_error_effects.py",
        "test_langchain_strict_servers.py",
    ]
)


@pytest.fixture
def server() -> Iterator[RemoteServer]:
    with running_server() as server:
        yield server
