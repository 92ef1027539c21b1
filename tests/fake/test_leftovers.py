"""Nothing stays: processes, shared memory, temporary files. And full disks, large environments."""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import signal
from pathlib import Path

import pytest

import shared_engine
from shared_engine import Engine, EngineStartError, EngineState
from shared_engine.machine.proc import cpu_seconds
from shared_engine.request import spawn
from shared_engine.runtime.record import Record, read_record
from tests.fake.conftest import MakeEngine
from tests.support.callers import (
    ANSWER,
    calls,
    directory_of,
    error_of,
    hello,
    server_group,
    server_pid,
    supervisor_pid,
    transitions,
    wait_for,
)
from tests.support.engines import settings_of
from tests.support.processes import all_processes, any_exists, process_exists, run_app
from tests.support.waiting import wait_until

pytestmark = pytest.mark.timeout(60)
UNLIMITED = resource.RLIM_INFINITY


class Things:
    """What the fake's server has made, beside its processes."""

    def __init__(self, engine: Engine) -> None:
        self._shared = Path(f"/dev/shm/psm_fake{server_pid(engine)}")
        self._scratch = directory_of(engine).scratch
        self._files = list(self._scratch.glob("fake-*"))
        assert self._shared.exists()
        assert len(self._files) == 1

    def left(self) -> list[Path]:
        return [path for path in (self._shared, *self._files) if path.exists()]


def test_an_eviction_leaves_no_files(fake_engine: MakeEngine) -> None:
    engine = fake_engine({"leftovers": True})
    engine.warmup()
    things = Things(engine)
    engine.evict()
    assert things.left() == []


@pytest.mark.smoke
@pytest.mark.parametrize("moment", ["idle", "asleep"])
def test_a_crash_leaves_no_files(fake_engine: MakeEngine, fake_cuda_python: str, moment: str) -> None:
    sleep = {"sleep_after_s": 0.1} if moment == "asleep" else {}
    engine = fake_engine({"leftovers": True}, python=fake_cuda_python, **sleep)
    engine.warmup()
    things = Things(engine)
    if sleep:
        wait_for(engine, EngineState.ASLEEP)
    for pid in server_group(engine):
        with contextlib.suppress(ProcessLookupError):  # the supervisor ends the others as soon as it sees the first end
            os.kill(pid, signal.SIGKILL)
    wait_for(engine, EngineState.FAILED)
    assert things.left() == []


def test_a_start_that_fails_leaves_no_files(fake_engine: MakeEngine) -> None:
    engine = fake_engine({"leftovers": True, "start_delay_s": 1.6, "exit_at": "ready"})
    with calls(engine) as waiting:
        wait_until(lambda: engine.status().server_pid is not None, 10, "the server")
        shared = Path(f"/dev/shm/psm_fake{server_pid(engine)}")
    assert isinstance(waiting[0].exception(), EngineStartError)
    left = [*directory_of(engine).scratch.glob("fake-*"), *([shared] if shared.exists() else [])]
    shared.unlink(missing_ok=True)
    assert left == []


@pytest.mark.smoke
def test_of_a_killed_supervisor_no_process_stays_and_its_next_removes_the_files(
    fake_engine: MakeEngine, fake_cuda_python: str
) -> None:
    engine = fake_engine({"leftovers": True, "spawn_core": True, "start_delay_s": 1}, python=fake_cuda_python)
    engine.warmup()
    things = Things(engine)
    everything = all_processes(engine)
    assert len(everything) >= 4, "supervisor, launcher, API server, EngineCore"
    os.kill(supervisor_pid(engine), signal.SIGKILL)
    wait_until(lambda: not any_exists(everything), 15, "all to be gone")
    assert hello(engine) == ANSWER
    assert things.left() == []


@pytest.mark.smoke
@pytest.mark.parametrize("are", ["missing", "refused"])
def test_without_pidfds_an_engine_starts_ends_and_leaves_nothing(
    fake_engine: MakeEngine, fake_cuda_python: str, monkeypatch: pytest.MonkeyPatch, are: str
) -> None:
    """Some Pythons are built without them, and some kernels and containers refuse them."""
    if are == "missing":
        monkeypatch.delattr(os, "pidfd_open")
        monkeypatch.setattr(spawn, "_SUPERVISE", f"import os; del os.pidfd_open; {spawn._SUPERVISE}")
    else:
        monkeypatch.setattr(os, "pidfd_open", lambda _: os.open("/no/file", os.O_RDONLY))
        refusing = "import os; os.pidfd_open = lambda _: os.open('/no/file', os.O_RDONLY)"
        monkeypatch.setattr(spawn, "_SUPERVISE", f"{refusing}; {spawn._SUPERVISE}")
    engine = fake_engine({"leftovers": True, "spawn_core": True}, python=fake_cuda_python)
    engine.warmup()
    things, everything = Things(engine), all_processes(engine)
    os.kill(supervisor_pid(engine), signal.SIGKILL)
    wait_until(lambda: not any_exists(everything), 15, "all to be gone")
    assert hello(engine) == ANSWER
    assert things.left() == []
    everything = all_processes(engine)
    engine.shutdown()
    assert not any_exists(everything)


def test_a_supervisor_killed_during_a_start_leaves_no_files(fake_engine: MakeEngine) -> None:
    engine = fake_engine({"leftovers": True, "start_delay_s": 3}, max_retries=0)
    with calls(engine) as waiting:
        record = directory_of(engine).record
        wait_until(lambda: (read_record(record) or Record()).shared_files != (), 10, "the record to name the file")
        things = Things(engine)
        os.kill(supervisor_pid(engine), signal.SIGKILL)
    assert waiting[0].exception() is None, "another start answers"
    assert things.left() == []


def test_of_a_supervisor_killed_while_processes_are_made_none_stays(
    fake_engine: MakeEngine, fake_cuda_python: str
) -> None:
    engine = fake_engine({"spawn_core": True, "start_delay_s": 1}, python=fake_cuda_python, max_retries=0)
    with calls(engine) as waiting:
        wait_until(lambda: engine.status().server_pid is not None, 10, "the server")
        wait_until(lambda: len(server_group(engine)) == 3, 10, "resource tracker and EngineCore, which has just begun")
        everything = all_processes(engine)
        os.kill(supervisor_pid(engine), signal.SIGKILL)
        try:
            wait_until(lambda: not any_exists(everything), 10, "all to be gone")
        finally:
            for pid in filter(process_exists, everything):
                os.kill(pid, signal.SIGKILL)
    assert waiting[0].result() == ANSWER


# ---- a disk that is full


def run_limited(engine: Engine, size: int) -> str:
    """What an app says, of whose processes none can write a file larger than ``size`` bytes."""
    out, err = run_app("limited_files", settings_of(engine), str(size)).communicate(timeout=40)
    assert not err, err
    return out.strip()


def test_an_engine_whose_log_can_t_grow_answers(fake_engine: MakeEngine) -> None:
    engine = fake_engine({"flood_bytes": 1_000_000, "flood_at": "request"})
    assert run_limited(engine, 100_000) == ANSWER
    assert directory_of(engine).log.stat().st_size <= 100_000
    assert hello(engine) == ANSWER


def test_an_engine_that_can_t_even_be_described_is_a_typed_error(fake_engine: MakeEngine) -> None:
    said = run_limited(fake_engine(), 10)
    assert "Error" in said.split()[0]
    assert "File too large" in said


@pytest.mark.parametrize("size", [100, 0])
def test_a_record_that_can_t_be_written_is_a_typed_error_and_passes(fake_engine: MakeEngine, size: int) -> None:
    engine = fake_engine(max_retries=0)
    engine.warmup()
    engine.evict()
    pid = supervisor_pid(engine)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (size, UNLIMITED))
    for _ in range(2):
        error = error_of(engine)
        assert isinstance(error, EngineStartError)
        assert "is the disk full?" in error.message
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (UNLIMITED, UNLIMITED))
    assert hello(engine) == ANSWER
    assert engine.status().starts == 2, "it was up all the time"
    assert supervisor_pid(engine) == pid


# ---- large words


def test_an_environment_larger_than_a_line_of_asyncio_is_told(
    fake_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(3):
        monkeypatch.setenv(f"LARGE_{number}", "ä" * 40_000)
    engine = fake_engine()
    assert hello(engine) == ANSWER


def test_a_failure_with_long_lines_is_told(fake_engine: MakeEngine) -> None:
    flood = {"flood_at": "start", "flood_bytes": 200_000, "flood_line_bytes": 12_000}
    engine = fake_engine({**flood, "exit_at": "start"})
    error = error_of(engine)
    assert isinstance(error, EngineStartError)
    assert "exit code 0" in error.message


# ---- doing nothing


def test_an_engine_that_is_never_to_leave_stays_and_costs_its_supervisor_nothing(fake_engine: MakeEngine) -> None:
    engine = fake_engine(idle_ttl_s=float("inf"), standby_ttl_s=float("inf"), start_timeout_s=float("inf"))
    assert hello(engine) == ANSWER
    pid = supervisor_pid(engine)
    used, switches = cpu_seconds([pid]), wakeups(pid)
    with pytest.raises(AssertionError, match="for it to end"):
        wait_until(lambda: engine.status().state is not EngineState.READY, 2, "it to end")
    assert cpu_seconds([pid]) - used <= 0.05
    assert wakeups(pid) - switches < 10
    engine.evict()
    assert transitions(engine)[-1] == "stopping -> standby"
    assert hello(engine) == ANSWER
    assert supervisor_pid(engine) == pid


def wakeups(pid: int) -> int:
    """How often it has waited for something."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("\nvoluntary_ctxt_switches:")[2].split()[0])


@pytest.mark.long
def test_requests_are_safe_from_eviction_after_the_lease_file_was_removed(fake_engine: MakeEngine) -> None:
    engine = fake_engine({"token_delay_s": 0.1}, idle_ttl_s=0.3)
    assert hello(engine) == ANSWER  # this process has the file open
    engine.evict()
    directory_of(engine).lease.unlink()
    engine.shutdown()
    assert hello(engine) == ANSWER, "it takes longer than the time to live"
    assert "starting -> ready" in transitions(engine)[-3:]


@pytest.mark.long
def test_an_engine_whose_files_were_removed_leaves(fake_engine: MakeEngine) -> None:
    engine = fake_engine()
    assert hello(engine) == ANSWER
    everything = all_processes(engine)
    shutil.rmtree(directory_of(engine).path)
    assert hello(engine) == ANSWER, "another one starts"
    wait_until(lambda: not any_exists(everything), 30, "the first to see that nobody can find it")
    assert engine.status().starts == 1


def test_what_an_app_has_installed_does_not_shadow_the_supervisors_standard_library(
    fake_engine: MakeEngine, tmp_path: Path
) -> None:
    site = tmp_path / "site"
    shutil.copytree(Path(shared_engine.__file__).parent, site / "shared_engine")
    for name in ("asyncio", "typing", "dataclasses"):
        (site / f"{name}.py").write_text("raise ImportError('an old package of that name')\n")
    app = run_app("shadowed_standard_library", settings_of(fake_engine()), str(site))
    out, err = app.communicate(timeout=30)
    assert out == ANSWER + "\n", err


def test_a_supervisor_loads_no_packages_and_no_tls(fake_engine: MakeEngine) -> None:
    """One lives beside each engine."""
    engine = fake_engine()
    engine.warmup()
    maps = Path(f"/proc/{engine.status().supervisor_pid}/maps").read_text()
    assert "libssl" not in maps
    assert "site-packages" not in maps
