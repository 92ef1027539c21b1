"""Two replicas on real vLLM, each on a core of its own: the second comes with the load, a crash loses nothing."""

from __future__ import annotations

import itertools
import os
import re
import signal
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from shared_engine import Engine, EngineDiedError, EngineState
from shared_engine.pool import growth
from tests.real.conftest import MakeEngine
from tests.support.load import Load
from tests.support.paths import REPOSITORY
from tests.support.processes import end_of, run_code
from tests.support.waiting import wait_until

pytestmark = pytest.mark.timeout(150)
READY, STANDBY = EngineState.READY, EngineState.STANDBY
SEED = 4711  # which no other test has
TOKENS = 24
CALL: dict[str, Any] = {"max_tokens": TOKENS, "temperature": 0, "extra_body": {"ignore_eos": True}}
EXAMPLE = (REPOSITORY / "examples/replicas.py").read_text()


def asking(engine: Engine) -> Callable[[], None]:
    """A call that asks something new, every second time as a stream, which may be cut off once it has begun."""
    numbers = itertools.count()

    def ask() -> None:
        number, shown = next(numbers), ""
        messages = [{"role": "user", "content": f"Tell me about number {number}."}]
        if number % 2:
            engine.chat(messages, **CALL)
            return
        try:
            for chunk in engine.stream_chat(messages, **CALL):
                shown += chunk.text
        except EngineDiedError:
            if not shown:
                raise

    return ask


def states(engine: Engine) -> list[EngineState]:
    return [member.state for member in engine.status().members]


def shares(engine: Engine) -> list[int]:
    return [member.requests.successes for member in engine.stats().members]


def process_of(engine: Engine, number: int, name: str) -> int:
    """The PID of one of vLLM's processes of one replica."""
    tree = engine.status(processes=True).members[number].processes
    assert tree is not None
    return next(node.pid for node in tree.walk() if node.name.startswith(name))


@pytest.mark.long
def test_the_second_comes_with_the_load_a_crash_loses_nothing_and_it_leaves_when_idle(
    own_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And another process, with the example's code, shares both."""
    monkeypatch.setattr(growth, "CALM_S", 1.0)
    args = {"kv_cache_memory_bytes": 64 << 20, "max_num_seqs": 4, "seed": SEED}
    engine = own_engine(replicas=2, idle_ttl_s=3, engine_args=args, seed=None)
    engine.warmup()
    assert states(engine) == [READY, EngineState.STOPPED]
    with Load(asking(engine), 8) as load:
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
    assert load.errors == []
    assert [member.life.failures for member in engine.status().members] == [{}, {"killed": 1}]

    shown = another_apps(engine).splitlines()
    assert shown[0] == "The capital of France is Paris."
    assert shown[1] == "80 answers, 4 of them different"
    assert [int(line.split()[1]) > 0 for line in shown[2:]] == [True, True]
    assert [member.starts for member in engine.status().members] == [1, 2], "it has started none"

    with Load(asking(engine), 1) as load:
        wait_until(lambda: states(engine) == [READY, STANDBY], 30, "the second to be evicted")
    assert load.errors == []
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
