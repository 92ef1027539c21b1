"""RAM as a start finds it: the machine's, or what a container leaves of it; and that it has run out."""

from __future__ import annotations

from pathlib import Path

import pytest

from shared_engine.machine import memory
from shared_engine.machine.memory import Memory, ram
from shared_engine.runtime.directory import RuntimeDir
from shared_engine.runtime.engine_log import EngineLog
from shared_engine.runtime.progress import ProgressReader, StartPhase
from shared_engine.runtime.record import FailureKind
from shared_engine.runtime.spec import EngineSpec
from shared_engine.supervisor import engine_process
from shared_engine.supervisor.ends import Exit
from shared_engine.supervisor.engine_process import EngineProcess

MIB = 1 << 20
UNLIMITED = 9223372036854771712


def version_1(folder: Path, limit: int, used: int, cached: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "memory.limit_in_bytes").write_text(f"{limit}\n")
    (folder / "memory.usage_in_bytes").write_text(f"{used}\n")
    own = "inactive_file 0\nactive_file 0\n"
    (folder / "memory.stat").write_text(f"{own}total_inactive_file {cached - 1}\ntotal_active_file 1\n")


def version_2(folder: Path, limit: int | str, used: int, cached: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "memory.max").write_text(f"{limit}\n")
    (folder / "memory.current").write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 5\ninactive_file {cached - 1}\nactive_file 1\n")


@pytest.fixture
def groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a test makes the cgroups' files; which of them it is in, it writes to ``cgroup``."""
    monkeypatch.setattr(memory, "CGROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(memory, "CGROUP_FILES", tmp_path / "fs")
    return tmp_path / "fs"


def test_a_container_s_limit_counts_and_what_it_may_drop_is_free(groups: Path) -> None:
    groups.with_name("cgroup").write_text("0::/\n")
    version_2(groups, 100 * MIB, 80 * MIB, 30 * MIB)
    assert ram() == Memory(50 * MIB, 100 * MIB)


def test_of_several_limits_the_tightest_counts(groups: Path) -> None:
    groups.with_name("cgroup").write_text("0::/app.slice/a.service\n")
    version_2(groups / "app.slice" / "a.service", 200 * MIB, 10 * MIB, 1)
    version_2(groups / "app.slice", 100 * MIB, 80 * MIB, 5 * MIB)
    version_2(groups, "max", 0, 1)
    assert ram() == Memory(25 * MIB, 100 * MIB)


@pytest.mark.parametrize("path", ["/docker/1234", "/"])
def test_version_1_of_a_container_whose_path_is_the_host_s(groups: Path, path: str) -> None:
    groups.with_name("cgroup").write_text(f"4:cpu,memory:{path}\n1:name=systemd:/x\n0::{path}\n")
    version_1(groups / "memory", 100 * MIB, 80 * MIB, 30 * MIB)
    assert ram() == Memory(50 * MIB, 100 * MIB)


def test_without_a_limit_the_machine_counts(groups: Path) -> None:
    machine = ram()
    assert machine is not None
    groups.with_name("cgroup").write_text("4:memory:/\n0::/\n")
    version_1(groups / "memory", UNLIMITED, 80 * MIB, 30 * MIB)
    version_2(groups, "max", 80 * MIB, 30 * MIB)
    limited = ram()
    assert limited is not None
    assert limited.total == machine.total


@pytest.mark.parametrize(("kills", "kind"), [(1, FailureKind.MEMORY), (0, FailureKind.START)])
def test_a_start_that_the_kernel_has_ended_lacked_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kills: int, kind: FailureKind
) -> None:
    spec, log = EngineSpec((), "/no/python", "0.32.0", "org/model"), EngineLog(tmp_path / "log")
    process = EngineProcess(RuntimeDir(tmp_path), spec, log, ProgressReader(StartPhase.CONFIG))
    monkeypatch.setattr(engine_process, "out_of_memory_kills", lambda: kills)
    assert process._explained(Exit("vLLM's EngineCore", -9)).failure.kind is kind
