"""An app that is process 1 of a container, without an init: it collects nobody's processes but its own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from shared_engine.runtime.directory import ROOT_VARIABLE
from tests.fake.conftest import MakeEngine
from tests.support.callers import ANSWER
from tests.support.engines import settings_of
from tests.support.paths import REPOSITORY
from tests.support.processes import APPS

NAMESPACE = ("unshare", "--user", "--map-root-user", "--pid", "--fork", "--kill-child", "--mount-proc")


@pytest.fixture
def root() -> Iterator[Path]:
    """A runtime directory of the container's: PIDs in it are those of its namespace."""
    folder = Path(tempfile.mkdtemp(prefix="vlc-", dir="/tmp"))
    yield folder
    shutil.rmtree(folder)


def in_a_namespace(root: Path, *command: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, ROOT_VARIABLE: str(root), "PYTHONPATH": str(REPOSITORY)}
    return subprocess.run(
        [*NAMESPACE, *command], capture_output=True, text=True, env=environment, timeout=50, check=False
    )


def app(root: Path, settings: str, *arguments: str, status: int = 0) -> dict[str, Any]:
    """What the app says, as process 1."""
    if in_a_namespace(root, "true").returncode != 0:
        pytest.skip("this machine allows no namespaces")
    done = in_a_namespace(root, sys.executable, str(APPS / "process_one.py"), settings, *arguments)
    assert done.returncode == status, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_engines_of_an_app_that_is_process_1_start_die_come_back_and_end(fake_engine: MakeEngine, root: Path) -> None:
    found = app(root, settings_of(fake_engine()))
    assert found["answers"] == [ANSWER] * 3
    assert found["is_another"]
    assert set(found["left"]) <= {"Z"}, "nothing runs on; who has ended is nobody's to collect"


@pytest.mark.long
def test_a_container_that_is_started_again_finds_its_runtime_directory_and_clears_up(
    fake_engine: MakeEngine, root: Path
) -> None:
    """In Kubernetes /tmp and /dev/shm are the pod's, and outlive its container."""
    before = set(Path("/dev/shm").glob("psm_fake*"))
    settings = settings_of(fake_engine({"leftovers": True}))
    assert app(root, settings, "ends", status=1)["answers"] == [ANSWER]
    left = set(Path("/dev/shm").glob("psm_fake*")) - before
    assert left, "the kernel ended it before it could clear up"
    assert app(root, settings)["answers"] == [ANSWER] * 3
    assert [path for path in left if path.exists()] == []
