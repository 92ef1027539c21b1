"""Two replicas on real vLLM, each on a core of its own: the second comes with the load, a crash loses nothing."""

from __future__ import annotations

import os
import re
import signal
import threading
from types import SimpleNamespace
from typing import Any

import pytest

from shared_engine import Engine, EngineDiedError, EngineState
from shared_engine.pool import growth
from tests.real.conftest import MakeEngine
from tests.support.paths import REPOSITORY
from tests.support.processes import end_of, run_code
from tests.support.waiting import wait_until

pytestmark = pytest.mark.timeout(150)
READY, STANDBY = EngineState.READY, EngineState.STANDBY
SEED = 4711  # which no other test has
TOKENS = 24
CALL: dict[str, Any] = {"max_tokens": TOKENS, "temperature": 0, "extra_body": {"ignore_eos": True}}
EXAMPLE = (REPOSITORY / "examples/replicas.py").read_text()


class Load:
    """Requests without a pause, some of them streams, so many at once until it ends."""

    def __init__(self, engine: Engine, at_once: int) -> None:
        self._engine = engine
        self._is_over = threading.Event()
        self.lost: list[BaseException] = []
        self.answers = self.cut_off = 0
        self._threads = [threading.Thread(target=self._ask, args=(number,)) for number in range(at_once)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        for thread in self._threads:
            thread.join()

    def _ask(self, number: int) -> None:
        count = 0
        while not self._is_over.is_set():
            count, shown = count + 1, ""
            messages = [{"role": "user", "content": f"Tell me about number {number}, {count}."}]
            try:
                if number % 2:
                    shown = self._engine.chat(messages, **CALL).text
                else:
                    for chunk in self._engine.stream_chat(messages, **CALL):
                        shown += chunk.text
                self.answers += 1
            except EngineDiedError as exc:
                if shown:  # it is told, in the middle of the answer
                    self.cut_off += 1
                else:
                    self.lost.append(exc)
            except BaseException as exc:
                self.lost.append(exc)

    def goes_on(self) -> None:
        before = self.answers
        wait_until(lambda: self.answers > before + 8, 30, "more answers")


def states(engine: Engine) -> list[EngineState]:
    return [member.state for member in engine.status().members]


def shares(engine: Engine) -> list[int]:
    return [member.requests.successes for member in engine.stats().members]


def process_of(engine: Engine, number: int, name: str) -> int:
    """The PID of one of vLLM's processes of one replica."""
    tree = engine.status(processes=True).members[number].processes
    assert tree is not None
    return next(node.pid for node in tree.walk() if node.name.startswith(name))


def test_the_second_comes_with_the_load_a_crash_loses_nothing_and_it_leaves_when_idle(
    own_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And another process, with the example's code, shares both."""
    monkeypatch.setattr(growth, "CALM_S", 1.0)
    args = {"kv_cache_memory_bytes": 64 << 20, "max_num_seqs": 4, "seed": SEED}
    engine = own_engine(replicas=2, idle_ttl_s=3, engine_args=args, seed=None)
    engine.warmup()
    assert states(engine) == [READY, EngineState.STOPPED]
    with Load(engine, 8) as load:
        load.goes_on()
        assert states(engine)[1] is EngineState.STARTING, "nobody waits for it"
        wait_until(lambda: states(engine) == [READY, READY], 60, "the second to be ready")
        wait_until(lambda: shares(engine)[1] > 8, 30, "answers of the second")
        cores = [os.sched_getaffinity(process_of(engine, number, "Worker")) for number in (0, 1)]
        assert cores[0]
        assert not cores[0] & cores[1], "each has cores of its own"

        os.kill(process_of(engine, 1, "EngineCore"), signal.SIGKILL)
        load.goes_on()
        wait_until(lambda: states(engine) == [READY, READY], 60, "the second to be back")
        before = shares(engine)[1]
        wait_until(lambda: shares(engine)[1] > before, 30, "answers of the second again")
    assert load.lost == []
    assert [member.life.failures for member in engine.status().members] == [{}, {"killed": 1}]

    shown = another_apps(engine).splitlines()
    assert shown[0] == "The capital of France is Paris."
    assert shown[1] == "80 answers, 4 of them different"
    assert [int(line.split()[1]) > 0 for line in shown[2:]] == [True, True]
    assert [member.starts for member in engine.status().members] == [1, 2], "it has started none"

    with Load(engine, 1) as load:
        wait_until(lambda: states(engine) == [READY, STANDBY], 30, "the second to be evicted")
    assert load.lost == []
    (_, looks) = re.findall(r"```python\n(.*?)```", (REPOSITORY / "docs/replicas.md").read_text(), re.DOTALL)
    exec(looks, {"llm": SimpleNamespace(engine=engine)})


def another_apps(engine: Engine) -> str:
    """What the example prints, on these engines."""
    settings = engine.settings.model_dump(exclude_unset=True, exclude={"replicas", "model", "seed"})
    written = 'engine_args={"max_num_seqs": 4}'
    assert written in EXAMPLE
    code = EXAMPLE.replace(written, ", ".join(f"{name}={value!r}" for name, value in settings.items()))
    status, out, error = end_of(run_code(code, str(engine.settings.model)), 60)
    assert status == 0, error
    return out
