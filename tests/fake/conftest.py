"""Engines on the fake vLLM: everything of ours is real, and needs no vLLM."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from shared_engine import Engine
from tests.support.engines import ended_engines
from tests.support.fake_nvml import FakeNvml
from tests.support.fake_vllm.environment import make_environment
from tests.support.gateways import gateway
from tests.support.paths import TINY_CHAT

MakeEngine = Callable[..., Engine]
_seeds = itertools.count(1)


@pytest.fixture(scope="session")
def fake_python(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The Python of an environment with the fake's CPU build."""
    return make_environment(tmp_path_factory.mktemp("fake") / "engine-cpu", "cpu")


@pytest.fixture(scope="session")
def fake_cuda_python(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The same of its CUDA build: it can sleep, and nothing in it dies with its parent."""
    return make_environment(tmp_path_factory.mktemp("fake") / "engine-cuda", "cuda")


@pytest.fixture(scope="session")
def fake_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """All of a model that anybody but vLLM looks at."""
    folder = tmp_path_factory.mktemp("model")
    shutil.copy(TINY_CHAT / "config.json", folder / "config.json")
    return str(folder)


@pytest.fixture
def fake_engine(fake_python: str, fake_model: str, runtime_root: Path) -> Iterator[MakeEngine]:
    """Makes engines with the given faults, which no other test has; they are gone when the test ends.

    ``fake_engine({"exit_at": "start"}, idle_ttl_s=1)``; the knobs are in fake_vllm/package/vllm/fake_faults.py.
    """
    with ended_engines() as made:

        def make(faults: dict[str, Any] | None = None, **settings: Any) -> Engine:
            defaults = {
                "model": fake_model,
                "python": fake_python,
                "seed": next(_seeds),  # makes the key another one
                "idle_ttl_s": 60,
                "standby_ttl_s": 60,
                "start_timeout_s": 20,
                "timeout": 20,
            }
            engine_args = {"fake": faults or {}, **settings.get("engine_args", {})}
            made.append(Engine(**{**defaults, **settings, "engine_args": engine_args}))
            return made[-1]

        yield make


@pytest.fixture
def serve(tmp_path: Path) -> Callable[..., Any]:
    """Runs a gateway before these models, with other fields of its file as keywords."""
    return lambda models, *options, **fields: gateway({"models": models, **fields}, tmp_path, *options)


@pytest.fixture
def slow_to_end(fake_engine: MakeEngine, fake_cuda_python: str, fake_gpus: FakeNvml) -> MakeEngine:
    """Makes engines whose memory the driver gives back only after 0.7 s, or so it seems."""
    fake_gpus.show("sleep 0.7")

    def make(faults: dict[str, Any] | None = None, **settings: Any) -> Engine:
        return fake_engine(faults, **{"python": fake_cuda_python, **settings})

    return make
