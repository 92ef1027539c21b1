"""What every client is shown: the gateway, and vLLM's own servers of the same engines."""

from __future__ import annotations

import inspect
import json
import os
import subprocess
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from shared_engine import Engine
from tests.support.gateways import gateway
from tests.support.paths import REPOSITORY
from tests.support.same_answers import without_its_own

HERE = Path(__file__).parent
KEY = "the-clients-key"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """One event loop for all: ChatOpenAI keeps its connections for the next model, and they belong to their loop."""
    for item in items:
        if (
            item.path.parent == HERE
            and isinstance(item, pytest.Function)
            and inspect.iscoroutinefunction(item.function)
        ):
            item.add_marker(pytest.mark.asyncio(loop_scope="session"), append=False)


@dataclass(frozen=True)
class Server:
    """One that a client may ask.

    Attributes:
        url: without ``/v1``.
        models: its name for each of ours.
    """

    url: str
    models: Mapping[str, str]

    @property
    def v1(self) -> str:
        return f"{self.url}/v1"


SETTINGS = {"chat": "lora_chat", "minilm": "minilm", "vision": "vision"}
"""The fixture that has the settings of each model."""


@pytest.fixture(scope="session")
def through(
    lora_chat: dict[str, Any], minilm: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """The gateway before two models."""
    yield from _gateway({"chat": lora_chat, "minilm": minilm}, tmp_path_factory.mktemp("gate"))


@pytest.fixture(scope="session")
def seeing(vision: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The gateway before a model that sees, which takes a while to be made."""
    yield from _gateway({"vision": vision}, tmp_path_factory.mktemp("gate"))


def _gateway(models: dict[str, dict[str, Any]], folder: Path) -> Iterator[Server]:
    with gateway({"models": models, "api_keys": [{"name": "clients", "key": KEY}]}, folder) as gate:
        yield Server(gate.url, {name: name for name in models})


@pytest.fixture(scope="session")
def itself(request: pytest.FixtureRequest) -> Callable[[str], Server]:
    """vLLM's own server of a model, at a port of its own; it is started when it is asked for."""

    @cache
    def server(name: str) -> Server:
        settings = request.getfixturevalue(SETTINGS[name])
        engine = Engine(**settings, serve_tcp=True, api_key=KEY)
        engine.warmup()
        (url,) = engine.status().urls
        return Server(url.removesuffix("/v1"), {name: settings["model"]})

    return server


def same(answers: Any) -> Any:
    """What two clients' answers are compared by: without ids and times, streams as their events put together."""
    if isinstance(answers, list):  # a stream
        events = b"".join(b"data: " + _json(each) + b"\n\n" for each in answers)
        return without_its_own(events)
    return without_its_own(_json(answers))


def _json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), sort_keys=True).encode()


def run_node(script: str, given: Any) -> Any:
    """What a script of this folder prints, as JSON; what is given to it comes on its stdin."""
    done = subprocess.run(
        ["node", str(HERE / script)],
        input=json.dumps(given),
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
        cwd=REPOSITORY,
        env={name: value for name, value in os.environ.items() if name in ("PATH", "HOME")},
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
