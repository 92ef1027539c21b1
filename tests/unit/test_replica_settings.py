"""Replicas as users write them: which devices each has, and what is refused before anything starts."""

from __future__ import annotations

import pickle
import re
from pathlib import Path
from typing import Any

import pytest

from langchain_vllm_local import ChatVLLM, VLLMEmbeddings
from llama_index_vllm_local import VLLM, VLLMEmbedding, VLLMRerank
from shared_engine import Engine, EngineSettings, SettingsError
from shared_engine.launch import replica_sets
from shared_engine.launch.interpreter import Interpreter
from shared_engine.launch.replica_sets import core_shares, settings_of_replicas
from shared_engine.launch.spec import engine_spec
from shared_engine.machine.nvidia import gpus_by_files
from tests.support.paths import REPOSITORY

CPU = Interpreter("/python", "0.32.0", "cpu")
CUDA = Interpreter("/python", "0.32.0", "cuda")
ONE_OF_EACH = [(number,) for number in range(8)]


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four GPUs and eight cores."""
    monkeypatch.setattr(replica_sets, "gpus_by_files", lambda: 4)
    monkeypatch.setattr(replica_sets, "usable_cores", lambda: ONE_OF_EACH)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def made(interpreter: Interpreter = CUDA, **settings: Any) -> dict[str, EngineSettings]:
    return settings_of_replicas(EngineSettings(model="org/name", **settings), interpreter)


def refused(interpreter: Interpreter = CUDA, **settings: Any) -> str:
    with pytest.raises(SettingsError) as raised:
        made(interpreter, **settings)
    return str(raised.value)


# ---- which devices


@pytest.mark.parametrize(
    ("settings", "visible", "names", "size"),
    [
        ({"replicas": 2}, None, ["0", "1"], 1),
        ({"replicas": 2}, "2,3,1", ["2", "3"], 1),
        ({"replicas": 2, "tensor_parallel_size": 2}, None, ["0,1", "2,3"], 2),
        ({"gpu_ids": [3, 1]}, None, ["3", "1"], 1),
        ({"gpu_ids": (2,)}, None, ["2"], 1),
        ({"gpu_ids": ["GPU-a", "MIG-b"]}, None, ["GPU-a", "MIG-b"], 1),
        ({"gpu_ids": [[0, 1], [2, 3]]}, None, ["0,1", "2,3"], 2),
        ({"gpu_ids": [[0, 1], [2, 3]], "tensor_parallel_size": 2}, None, ["0,1", "2,3"], 2),
        ({"gpu_ids": "[[0, 1], [2, 3]]"}, None, ["0,1", "2,3"], 2),
        ({"gpu_ids": "1,0", "replicas": 2}, None, ["1", "0"], 1),
        ({"gpu_ids": [2, 3]}, "3,2", ["2", "3"], 1),
        ({"gpu_ids": [2, 3]}, "GPU-a,GPU-b", ["2", "3"], 1),
    ],
)
def test_each_has_gpus_of_its_own(
    settings: dict[str, Any], visible: str | None, names: list[str], size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    replicas = made(**settings)
    assert list(replicas) == [f"cuda:{each}" for each in names]
    assert [each.visible_devices for each in replicas.values()] == names
    assert {each.tensor_parallel_size for each in replicas.values()} == {size}
    assert not any(each.is_replicated for each in replicas.values())


def test_pipeline_stages_have_gpus_too() -> None:
    assert made(gpu_ids=[[0, 1], [2, 3]], pipeline_parallel_size=2)["cuda:0,1"].tensor_parallel_size == 1
    assert list(made(replicas=2, pipeline_parallel_size=2)) == ["cuda:0,1", "cuda:2,3"]
    four = EngineSettings(model="org/name", gpu_ids=[[0, 1, 2, 3]], pipeline_parallel_size=2)
    assert four.tensor_parallel_size == 2


def test_an_app_that_names_the_devices_of_one_shares_it() -> None:
    one = made(gpu_ids=[[0, 1], [2, 3]], max_model_len=512)["cuda:2,3"]
    by_hand = EngineSettings(model="org/name", visible_devices="2,3", tensor_parallel_size=2, max_model_len=512)
    assert engine_spec(one, CUDA).key == engine_spec(by_hand, CUDA).key
    bound = made(CPU, replicas=2)["cpu:0-2"]
    by_hand = EngineSettings(model="org/name", cpu_omp_threads_bind="0-2")
    assert engine_spec(bound, CPU).key == engine_spec(by_hand, CPU).key
    assert engine_spec(bound, CPU).environment["VLLM_CPU_OMP_THREADS_BIND"] == "0-2"


@pytest.mark.parametrize(
    ("cores", "replicas", "workers", "shares"),
    [
        ([(0,), (1,)], 2, 1, [[[0]], [[1]]]),
        ([(0,), (1,), (2,), (3,)], 2, 1, [[[0]], [[2]]]),
        (ONE_OF_EACH, 2, 1, [[[0, 1, 2]], [[4, 5, 6]]]),
        (ONE_OF_EACH, 2, 2, [[[0], [2]], [[4], [6]]]),
        ([(0, 2), (1, 3)], 2, 1, [[[2]], [[3]]]),
        ([(0, 2), (1, 3)], 4, 1, [[[0]], [[2]], [[1]], [[3]]]),
        ([(0,), (1,)], 3, 1, None),
        ([(0,), (1,), (2,)], 2, 2, None),
    ],
)
def test_the_cores_are_shared_out(
    cores: list[tuple[int, ...]], replicas: int, workers: int, shares: list[list[list[int]]] | None
) -> None:
    assert core_shares(cores, replicas, workers) == shares


def test_on_a_cpu_each_has_cores_of_its_own() -> None:
    assert [each.cpu_omp_threads_bind for each in made(CPU, replicas=2).values()] == ["0-2", "4-6"]
    assert list(made(CPU, replicas=2, tensor_parallel_size=2)) == ["cpu:0|2", "cpu:4|6"]


# ---- what is refused


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"gpu_ids": []}, ["gpu_ids = []", "such as [0, 1]"]),
        ({"gpu_ids": 2}, ["gpu_ids = 2", "must be a list"]),
        ({"gpu_ids": [0, 0]}, ["names 0 twice"]),
        ({"gpu_ids": "0,00"}, ["names 0 twice"]),
        ({"gpu_ids": [[0, 1], [1, 2]]}, ["names 1 twice"]),
        ({"gpu_ids": [[0, 1], [2]]}, ["as many GPUs for each replica"]),
        ({"gpu_ids": [[], []]}, ["one at least"]),
        ({"gpu_ids": [True, -1]}, ["True is not a GPU"]),
        ({"gpu_ids": [-1]}, ["-1 is not a GPU"]),
        ({"gpu_ids": ["cuda:0"]}, ["'cuda:0' is not a GPU", "GPU-..."]),
        ({"gpu_ids": "[0, 1"}, ["not a list in JSON"]),
        ({"gpu_ids": [0, 1], "replicas": 3}, ["replicas = 3 contradicts gpu_ids, which names 2"]),
        ({"gpu_ids": [0, 1], "tensor_parallel_size": 2}, ["1 GPU for each replica (0; 1)", "for 2: change"]),
        ({"gpu_ids": [[0, 1], [2, 3]], "tensor_parallel_size": 1}, ["2 GPUs for each replica (0, 1; 2, 3)", "for 1"]),
        ({"gpu_ids": [[0, 1, 2]], "pipeline_parallel_size": 2}, ["3 GPUs", "for 2: change"]),
        ({"gpu_ids": [0], "visible_devices": "0"}, ["leave visible_devices = '0' out"]),
        ({"replicas": 2, "visible_devices": "0,1"}, ["leave visible_devices = '0,1' out"]),
        ({"replicas": 2, "cpu_omp_threads_bind": "0-3"}, ["leave cpu_omp_threads_bind = '0-3' out"]),
        ({"replicas": 0}, ["replicas = 0", "greater than or equal to 1"]),
        ({"replicas": 2, "start": "never"}, ["start = 'never'", "'lazy' or 'all'"]),
        ({"replicas": 2, "base_url": "http://x"}, ["replicas makes several engines of this machine", "base_url=[...]"]),
        ({"gpu_ids": [0], "base_url": "http://x"}, ["gpu_ids makes several engines", "http://x"]),
        ({"replicas": 2, "mode": "direct"}, ["mode='direct' runs one under this process"]),
        ({"replicas": 2, "mode": "auto"}, ["mode='auto' may run one"]),
        ({"replicas": 2, "fallback": ["direct"]}, ["fallback='direct' may run one"]),
        (
            {"replicas": 2, "engine_args": {"nnodes": 2}, "tensor_parallel_size": 2},
            ["nnodes = 2 takes those of others"],
        ),
        ({"replicas": 2, "engine_args": {"distributed_executor_backend": "ray"}}, ["Ray takes those of others"]),
        ({"gpu_ids": [0, 1], "data_parallel_size": 2}, ["data_parallel_size=2 asks for 2"]),
        ({"replicas": 5}, ["replicas = 5 need 5 GPUs", "visible are 0, 1, 2, 3"]),
        ({"replicas": 3, "tensor_parallel_size": 2}, ["replicas = 3 with 2 GPUs each need 6"]),
        ({"gpu_ids": [0, 7]}, ["gpu_ids: 7 can't be used", "visible are 0, 1, 2, 3"]),
    ],
)
def test_wrong_replicas_are_told(settings: dict[str, Any], words: list[str]) -> None:
    told = refused(**settings)
    assert all(word in told for word in words), told


def test_what_is_not_visible_is_told_with_what_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2, 3")
    assert "gpu_ids: 0 can't be used: visible are 2, 3 (CUDA_VISIBLE_DEVICES='2, 3')" in refused(gpu_ids=[0, 2])
    assert "need 3 GPUs, as each has its own: visible are 2, 3" in refused(replicas=3)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert "CUDA_VISIBLE_DEVICES='' shows none" in refused(replicas=2)


def test_a_machine_without_gpus_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replica_sets, "gpus_by_files", lambda: 0)
    assert "gpu_ids: 0, 1 can't be used: this machine shows no GPU" in refused(gpu_ids=[0, 1])
    assert "replicas = 2 need 2 GPUs" in refused(replicas=2)
    told = refused(CPU, gpu_ids=[0, 1])
    assert "/python is a build for the CPU: pass replicas=2" in told
    monkeypatch.setattr(replica_sets, "gpus_by_files", lambda: None)
    assert list(made(gpu_ids=[8, 9])) == ["cuda:8", "cuda:9"], "where no file tells, vLLM tries"
    assert list(made(replicas=2)) == ["cuda:0", "cuda:1"]


def test_too_few_cores_and_too_little_room_are_told() -> None:
    assert "replicas = 9 need a core of their own for each worker: this process may use 8" in refused(CPU, replicas=9)
    assert "replicas = 5 with 2 workers each" in refused(CPU, replicas=5, tensor_parallel_size=2)
    assert "max_loaded_engines = 1 leaves no room for replicas = 2" in refused(CPU, replicas=2, max_loaded_engines=1)
    assert len(made(replicas=2, max_loaded_engines=1)) == 2, "of each GPU by itself"


@pytest.mark.parametrize("make", [Engine, ChatVLLM, VLLM, VLLMEmbeddings, VLLMEmbedding, VLLMRerank])
def test_objects_refuse_at_construction(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replica_sets, "find_interpreter", lambda _: CPU)
    with pytest.raises(SettingsError, match="a build for the CPU"):
        make(model="org/name", gpu_ids=[0, 1])
    assert make(model="org/name", replicas=2) is not None


def test_files_of_the_driver_tell_how_many_gpus_there_are(tmp_path: Path) -> None:
    assert gpus_by_files(tmp_path) == 0
    for name in ("nvidia0", "nvidia3", "nvidiactl", "nvidia-uvm"):
        (tmp_path / "dev").mkdir(exist_ok=True)
        (tmp_path / "dev" / name).touch()
    assert gpus_by_files(tmp_path) == 2
    (tmp_path / "dev/kfd").touch()
    assert gpus_by_files(tmp_path) is None, "AMD's"


# ---- copies


@pytest.mark.parametrize("make", [ChatVLLM, VLLM])
def test_copies_assignments_and_pickles_keep_the_sets(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replica_sets, "find_interpreter", lambda _: CUDA)
    model = make(model="org/name", gpu_ids=[[0, 1], [2, 3]])
    for each in (
        model,
        model.model_copy(),
        model.model_copy(update={"idle_ttl_s": 5}),
        pickle.loads(pickle.dumps(model)),
    ):
        assert each.gpu_ids == (("0", "1"), ("2", "3"))
        assert each.engine.settings.tensor_parallel_size == 2
    model.gpu_ids = [[2, 3]]
    assert model.engine.settings.replica_count == 1
    with pytest.raises(SettingsError, match="1 GPU for each replica"):
        model.gpu_ids = [2]
    plain = pickle.loads(pickle.dumps(Engine(model="org/name", gpu_ids=[1, 0], start="all")))
    assert plain.settings.gpu_ids == (("1",), ("0",))
    assert plain.max_concurrency == 2 * Engine(model="org/name").max_concurrency


def test_replicas_stand_before_a_remote_fallback() -> None:
    settings = EngineSettings(model="org/name", mode="local", replicas=2, fallback=["remote"], base_url="http://x")
    assert settings.is_replicated
    assert settings.modes == ("local", "remote")


def test_what_the_page_shows_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replica_sets, "find_interpreter", lambda _: CUDA)
    (first, _) = re.findall(r"```python\n(.*?)```", (REPOSITORY / "docs/replicas.md").read_text(), re.DOTALL)
    exec(first, {"ChatVLLM": ChatVLLM})
