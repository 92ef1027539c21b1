"""Engines on the fake vLLM, and a server that says what it is told, for hosts and packages of other people."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.fake.conftest import MakeEngine, fake_engine, fake_model, fake_python
from tests.support.remote_server import RemoteServer, running_server

__all__ = ["MakeEngine", "fake_engine", "fake_model", "fake_python"]


@pytest.fixture
def server() -> Iterator[RemoteServer]:
    with running_server() as server:
        yield server
