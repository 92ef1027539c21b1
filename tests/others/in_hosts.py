"""Where apps are put by other people's programs: each runs for real, with an engine on the fake vLLM.

By its name, which pytest does not look for: `make test-others` makes the environment of tests/others/hosts.txt.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import itertools
import json
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from langchain_vllm_local import ChatVLLM
from shared_engine import Engine, EngineError
from tests.others.conftest import MakeEngine
from tests.support.callers import ANSWER
from tests.support.engines import settings_of
from tests.support.paths import REPOSITORY
from tests.support.plain_server import free_port, running
from tests.support.waiting import wait_until

pytestmark = pytest.mark.timeout(180)
BOTH = f"{ANSWER} {ANSWER}"
START_S = 40.0
_number = itertools.count()


@pytest.fixture
def engine(fake_engine: MakeEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Engine:
    # An adapter's seed is that of its requests: the delay sets the engines of the tests apart.
    engine = fake_engine({"token_delay_s": 0.01 + next(_number) / 1e6}, seed=None)
    monkeypatch.setenv("SETTINGS", settings_of(engine))
    monkeypatch.setenv("FOLDER", str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    return engine


def was_shared(engine: Engine) -> bool:
    """All of them have used one engine, which was started once."""
    return engine.status().starts == 1


# ---- gunicorn


@pytest.mark.parametrize(
    "options",
    [
        ["-k", "sync", "-w", "2"],
        ["-k", "gthread", "-w", "2", "--threads", "4"],
        ["-k", "gevent", "-w", "2"],
        ["-k", "gevent", "-w", "2", "--preload"],
    ],
    ids=" ".join,
)
def test_gunicorn(engine: Engine, tmp_path: Path, options: list[str]) -> None:
    port = free_port()
    command = [sys.executable, "-m", "gunicorn", "-b", f"127.0.0.1:{port}", "--timeout", "60", *options]

    def ask(_: int = 0) -> tuple[int, str]:
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=60)) as connection:
            connection.request("GET", "/")
            with connection.getresponse() as response:
                return response.status, response.read().decode()

    def is_up() -> bool:
        try:
            return bool(ask()[0])
        except OSError:
            return False

    log = tmp_path / "gunicorn.log"
    with running([*command, "tests.others.apps.web:app"], log):
        wait_until(is_up, START_S, "gunicorn")
        with ThreadPoolExecutor(8) as pool:
            assert list(pool.map(ask, range(16))) == [(200, BOTH)] * 16, log.read_text()
    assert was_shared(engine)


# ---- Celery


@contextmanager
def celery_worker(folder: Path, *options: str) -> Iterator[Path]:
    for name in ("queue", "control", "results"):
        (folder / name).mkdir()
    command = [sys.executable, "-m", "celery", "-A", "tests.others.apps.tasks", "worker", "--loglevel", "INFO"]
    log = folder / "worker.log"
    with running([*command, "--without-gossip", "--without-mingle", *options], log):
        yield log


@pytest.mark.parametrize(
    ("options", "processes"),
    [
        (["-P", "prefork", "-c", "2"], 2),
        (["-P", "threads", "-c", "4"], 1),
        (["-P", "gevent", "-c", "4"], 1),
        (["-P", "eventlet", "-c", "4"], 1),
        (["-P", "solo"], 1),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_celery(engine: Engine, tmp_path: Path, options: list[str], processes: int) -> None:
    from tests.others.apps.tasks import celery_of

    with celery_worker(tmp_path, *options) as log, celery_of(tmp_path) as client:
        results = [client.send_task("tests.others.apps.tasks.ask") for _ in range(8)]
        try:
            told = [result.get(timeout=START_S) for result in results]
        except Exception:
            pytest.fail(log.read_text())
    assert [text for text, _ in told] == [BOTH] * 8
    assert len({pid for _, pid in told}) <= processes
    assert was_shared(engine)


# ---- Dask


def test_dask(engine: Engine) -> None:
    from distributed import Client, LocalCluster

    llm = ChatVLLM(**json.loads(os.environ["SETTINGS"]))
    with (
        LocalCluster(n_workers=2, threads_per_worker=2, processes=True, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        asked = client.map(lambda number: (llm.invoke(f"Hello {number}").text, os.getpid()), range(12))
        told = client.gather(asked)
    assert {text for text, _ in told} == {ANSWER}
    assert os.getpid() not in {pid for _, pid in told}
    assert was_shared(engine)


# ---- Streamlit, Gradio, marimo


def test_streamlit_runs_a_page_again_and_again(engine: Engine) -> None:
    from streamlit.testing.v1 import AppTest

    page = AppTest.from_file(str(REPOSITORY / "tests" / "others" / "apps" / "page.py"), default_timeout=START_S)
    page.run()
    for _ in range(3):
        page.button[0].click().run()
        assert not page.exception
        assert [each.value for each in page.markdown] == [ANSWER] * 3
    assert was_shared(engine)


def test_gradio(engine: Engine) -> None:
    import gradio
    from gradio_client import Client

    llm = ChatVLLM(**json.loads(os.environ["SETTINGS"]))

    def whole(text: str) -> str:
        return str(llm.invoke(text).text)

    async def awaited(text: str) -> str:
        return str((await llm.ainvoke(text)).text)

    async def streamed(text: str) -> Any:
        so_far = ""
        async for chunk in llm.astream(text):
            so_far += chunk.text
            yield so_far

    with gradio.Blocks() as blocks:
        for handler in (whole, awaited, streamed):
            gradio.Interface(handler, "text", "text", api_name=handler.__name__)
    _, url, _ = blocks.launch(prevent_thread_lock=True, quiet=True, server_port=free_port())
    try:
        client = Client(url, verbose=False)
        for name in ("/whole", "/awaited", "/streamed"):
            jobs = [client.submit("Hello", api_name=name) for _ in range(4)]
            assert [job.result(timeout=START_S) for job in jobs] == [ANSWER] * 4, name
    finally:
        blocks.close()
    assert was_shared(engine)


def test_marimo(engine: Engine) -> None:
    command = [sys.executable, str(REPOSITORY / "tests" / "others" / "apps" / "notebook.py")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=START_S, check=False)
    assert done.stdout.strip() == str([ANSWER] * 3), done.stderr
    assert was_shared(engine)


# ---- trio, nest_asyncio, uvloop


def test_trio_asks_in_threads(engine: Engine) -> None:
    import anyio.to_thread
    import trio

    llm = ChatVLLM(**json.loads(os.environ["SETTINGS"]))
    told: list[str] = []

    async def ask() -> None:
        told.append((await anyio.to_thread.run_sync(llm.invoke, "Hello")).text)

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            for _ in range(4):
                nursery.start_soon(ask)
        with pytest.raises(EngineError, match="under trio"):
            await engine.achat([{"role": "user", "content": "Hello"}])

    trio.run(main)
    assert told == [ANSWER] * 4
    assert asyncio.run(llm.ainvoke("Hello")).text == ANSWER


def test_an_unpickled_model_asks_the_same_engine(engine: Engine) -> None:
    """As Spark's and Ray's workers get it."""
    llm = pickle.loads(pickle.dumps(ChatVLLM(**json.loads(os.environ["SETTINGS"]))))
    told: list[str] = []
    threads = [threading.Thread(target=lambda: told.append(llm.invoke("Hello").text)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert told == [ANSWER] * 3
    assert was_shared(engine)
