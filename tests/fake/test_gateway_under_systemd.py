"""The units of deploy/systemd under a real systemd: the gateway restarts and is replaced, its engine stays."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.fake.conftest import MakeEngine
from tests.support.callers import ANSWER, HELLO
from tests.support.command import given_to
from tests.support.paths import REPOSITORY
from tests.support.plain_server import free_port
from tests.support.user_manager import UserManager, lacking, user_manager
from tests.support.waiting import wait_until

pytestmark = pytest.mark.skipif((reason := lacking()) is not None, reason=str(reason))

UNITS = REPOSITORY / "deploy" / "systemd"
SERVICE = "vllm-local.service"


@pytest.fixture
def manager(runtime_root: Path) -> Iterator[UserManager]:
    with user_manager(runtime_root / "systemd") as manager:
        yield manager


class Service:
    """The gateway under its manager, with the user's units of deploy/systemd."""

    def __init__(self, manager: UserManager, models: dict[str, Any]) -> None:
        self.manager = manager
        self.file = manager.units.parent.parent / "vllm-local" / "models.yaml"
        self.file.parent.mkdir()
        self.write({"models": models})
        self.port = free_port()
        socket = (UNITS / "vllm-local.socket").read_text()
        service = (UNITS / "user" / SERVICE).read_text()
        command = f"{sys.executable} -m shared_engine.cli serve"
        for text, old, new in (
            (socket, "127.0.0.1:8000", f"127.0.0.1:{self.port}"),
            (service, "%h/.local/bin/vllm-local serve", command),
        ):
            assert old in text
            name = "vllm-local.socket" if text is socket else SERVICE
            (manager.units / name).write_text(text.replace(old, new))
        own = manager.units / f"{SERVICE}.d"
        own.mkdir()
        (own / "here.conf").write_text(f"[Service]\nWorkingDirectory={REPOSITORY}\n")
        manager.systemctl("daemon-reload")

    def write(self, content: dict[str, Any]) -> None:
        self.file.write_text(json.dumps(content))

    def client(self) -> httpx.Client:
        return httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=60, trust_env=False)

    @property
    def main_pid(self) -> int:
        return int(self.manager.shown(SERVICE, "MainPID"))

    def asked(self) -> str:
        with self.client() as client:
            answer = client.post("/v1/chat/completions", json={"model": "one", "messages": HELLO})
            assert answer.status_code == 200, answer.text
            return str(answer.json()["choices"][0]["message"]["content"])


def test_nobody_is_refused_while_the_service_restarts_or_is_replaced(
    fake_engine: MakeEngine, manager: UserManager
) -> None:
    engine = fake_engine({"token_delay_s": 0.05})
    service = Service(manager, {"one": given_to(engine)})
    manager.systemctl("start", "vllm-local.socket")
    assert service.asked() == ANSWER  # the first to ask starts the service
    first, engine_pid = service.main_pid, engine.status().server_pid
    assert manager.shown(SERVICE, "ActiveState") == "active"

    service.write({"models": {"one": given_to(engine)}, "comment_interval_s": "often"})
    manager.systemctl("reload", SERVICE)
    wait_until(lambda: "stays as it was" in manager.shown(SERVICE, "StatusText"), 20, "the wrong file to be told")
    service.write({"models": {"one": given_to(engine)}})

    answers: list[str] = []
    is_over = threading.Event()

    def ask() -> None:
        while not is_over.is_set():
            answers.append(service.asked())

    asking = [threading.Thread(target=ask) for _ in range(3)]
    for thread in asking:
        thread.start()
    try:
        manager.systemctl("restart", SERVICE)
        second = service.main_pid
        manager.systemctl("kill", "--kill-whom=main", "--signal=USR2", SERVICE)
        wait_until(lambda: service.main_pid != second, 30, "another process to be the service")
        assert manager.shown(SERVICE, "ActiveState") == "active"
    finally:
        is_over.set()
        for thread in asking:
            thread.join()
    assert set(answers) == {ANSWER}
    assert len({first, second, service.main_pid}) == 3
    assert engine.status().server_pid == engine_pid  # it is in a scope of its own

    with ThreadPoolExecutor(1) as pool:
        last = pool.submit(service.asked)
        wait_until(lambda: engine.metrics()["num_requests_running"] == 1, 10, "a request to run")
        manager.systemctl("stop", "vllm-local.socket", SERVICE)
        assert last.result() == ANSWER  # it was waited for
    assert manager.shown(SERVICE, "Result") == "success"
    assert engine.is_ready()
    with pytest.raises(httpx.ConnectError):
        service.asked()


@pytest.mark.parametrize("mode", ["--system", "--user"])
def test_systemd_finds_nothing_wrong_with_the_units(mode: str, tmp_path: Path) -> None:
    program = tmp_path / "vllm-local"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    folder = UNITS / "user" if mode == "--user" else UNITS
    words = (folder / SERVICE).read_text().replace("%h/.local/bin/", f"{tmp_path}/").replace("/opt/", f"{tmp_path}/")
    (tmp_path / SERVICE).write_text(words.replace("vllm-local/bin/", ""))
    shutil.copy(UNITS / "vllm-local.socket", tmp_path)
    files = [str(tmp_path / name) for name in (SERVICE, "vllm-local.socket")]
    command = ["systemd-analyze", mode, "verify", "--man=no", *files]
    environment = {**os.environ, "XDG_RUNTIME_DIR": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
