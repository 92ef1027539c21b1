"""The sample application as a process: its engine appears with the first question, and Ctrl-C leaves nothing."""

from __future__ import annotations

import itertools
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from shared_engine import Engine, EngineState
from tests.fake.conftest import MakeEngine
from tests.support.callers import ANSWER
from tests.support.engines import settings_of
from tests.support.processes import all_processes, wait_gone
from tests.support.rag_service import EXAMPLES, PASSWORD, embeds_too, events_of, text_of
from tests.support.remote_server import running_server
from tests.support.waiting import wait_until

pytest.importorskip("fastapi")
START_S, LEAVE_S = 30.0, 20.0
_seeds = itertools.count(70_000)


@dataclass
class Service:
    """One that listens."""

    process: subprocess.Popen[str]
    client: httpx.Client

    def ask(self) -> httpx.Response:
        return self.client.post("/api/ask", json={"question": "What is the password of the archive?"})

    def ended_by(self, number: int) -> tuple[int, str]:
        """Its status, and what it wrote."""
        self.process.send_signal(number)
        _, told = self.process.communicate(timeout=LEAVE_S)
        return self.process.returncode, told


Serve = Callable[..., Any]


@pytest.fixture
def engine_of(fake_engine: MakeEngine) -> MakeEngine:
    """Makes engines that the service has by these settings: ``seed`` is a request's there, the size has a default."""
    return lambda faults=None: fake_engine(
        faults, seed=None, engine_args={"seed": next(_seeds)}, gpu_memory_utilization=0.2
    )


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    with running_server() as far:
        embeds_too(far)

        @contextmanager
        def serve(framework: str, chat: Engine) -> Iterator[Service]:
            environment = {
                **os.environ,
                "PYTHONPATH": str(EXAMPLES.parent),
                "RAG_CHAT": settings_of(chat),
                "RAG_EMBEDDINGS": json.dumps({"base_url": far.url, "model": "far"}),
                "RAG_DATABASE": str(tmp_path / "rag.sqlite"),
            }
            process = subprocess.Popen(
                [sys.executable, "-m", "rag_service", framework, "--port", "0"],
                cwd=EXAMPLES, env=environment, stderr=subprocess.PIPE, text=True,
            )  # fmt: skip
            try:
                with httpx.Client(base_url=url_of(process), timeout=START_S, trust_env=False) as client:
                    assert client.put("/api/documents/one", content=PASSWORD).status_code == 204
                    yield Service(process, client)
            finally:
                if process.poll() is None:
                    process.kill()
                    process.communicate()

        yield serve


def url_of(process: subprocess.Popen[str]) -> str:
    assert process.stderr is not None
    told = []
    for line in process.stderr:
        told.append(line)
        if match := re.search(r"running on (http://[\d.:]+)", line):
            return match[1]
    raise AssertionError("".join(told))


@pytest.mark.parametrize("framework", ["langchain", pytest.param("llama_index", marks=pytest.mark.long)])
def test_an_engine_appears_with_the_first_question_and_leaves_at_ctrl_c(
    engine_of: MakeEngine, serve: Serve, framework: str
) -> None:
    engine = engine_of()
    with serve(framework, engine) as service:
        assert engine.status().state is EngineState.STOPPED
        response = service.ask()
        assert (response.status_code, ANSWER in text_of(events_of(response.text))) == (200, True), response.text
        pids = all_processes(engine)
        assert len(pids) >= 3
        status, told = service.ended_by(signal.SIGINT)
    assert (status, "Traceback" in told) == (0, False), told
    assert wait_gone(pids, 0) == 0
    assert engine.status().state is EngineState.STOPPED


def test_ctrl_c_in_an_answer_ends_it_and_its_engine(engine_of: MakeEngine, serve: Serve) -> None:
    engine = engine_of({"token_delay_s": 0.1})
    engine.warmup()
    pids = all_processes(engine)
    with serve("langchain", engine) as service:
        question = {"question": "What is the password of the archive?"}
        with service.client.stream("POST", "/api/ask", json=question) as response:
            assert response.status_code == 200
            status, told = service.ended_by(signal.SIGINT)
    assert (status, "Traceback" in told) == (0, False), told
    assert wait_gone(pids, 0) == 0


def test_ctrl_c_in_a_start_ends_it(engine_of: MakeEngine, serve: Serve) -> None:
    engine = engine_of({"start_delay_s": 15})
    with serve("langchain", engine) as service, ThreadPoolExecutor(1) as pool:
        asked = pool.submit(service.ask)
        wait_until(lambda: engine.status().state is EngineState.STARTING, START_S, "the engine to start")
        pids = all_processes(engine)
        status, told = service.ended_by(signal.SIGINT)
        assert asked.result().status_code == 500, "uvicorn's own, of what it has cancelled"
    assert status == 0, told
    assert wait_gone(pids, 0) == 0


def test_an_engine_that_another_app_uses_stays(engine_of: MakeEngine, serve: Serve) -> None:
    engine = engine_of({"token_delay_s": 0.1})
    with serve("langchain", engine) as service:
        assert service.ask().status_code == 200
        assert engine.status().starts == 1, "the service's engine is this one"
        stream = engine.stream_chat([{"role": "user", "content": "Hello"}], max_tokens=1500, ignore_eos=True)
        next(stream)
        status, told = service.ended_by(signal.SIGTERM)
    assert (status, "Traceback" in told) == (-signal.SIGTERM, False), told
    assert "another app uses the engine for chat: it stays" in told
    assert next(stream).text, "it goes on"
    stream.close()


def test_a_model_that_does_not_start_is_a_503_with_the_cause(engine_of: MakeEngine, serve: Serve) -> None:
    with serve("llama_index", engine_of({"exit_at": "start", "exit_code": 3})) as service:
        response = service.ask()
        assert response.status_code == 503
        assert "exit" in response.json()["detail"]
        health = service.client.get("/health")
        assert (health.status_code, health.json()["engines"]["chat"]["state"]) == (200, "failed")
