"""What vllm-local expects of vLLM's CUDA build, held against its wheels; no GPU is needed. `make test-cuda`.

Not part of `make test`: it downloads 330 MB for each release, once.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import pytest

import shared_engine.direct
import shared_engine.launcher
from shared_engine import EngineSettings
from shared_engine.launch import adapters, reproducible
from shared_engine.launch.install import CUDA_MAJOR, CUDA_TORCH
from shared_engine.launch.spec import engine_spec
from shared_engine.model_files import quantization
from shared_engine.model_files.parsers import known_reasoning_parsers, known_tool_parsers
from shared_engine.request import routes
from shared_engine.settings import FLAGS
from shared_engine.vllm_versions import INSTALLED, release_of
from tests.support.cuda_wheel import CudaWheel, parse
from tests.support.vllm_sources import registered
from tests.support.vllm_words import WAITED_FOR, Words

VERSIONS = ("0.32.0", "0.33.0")
SERVER_NAMES = (
    "run_server",
    "run_multi_api_server",
    "make_arg_parser",
    "validate_parsed_serve_args",
    "cli_env_setup",
    "get_mp_context",
)

EVERY_FIELD = {
    "model": "org/name",
    "gpu_memory_utilization": 0.5,
    "max_model_len": 512,
    "tensor_parallel_size": 2,
    "pipeline_parallel_size": 2,
    "data_parallel_size": 2,
    "dtype": "bfloat16",
    "quantization": "fp8",
    "revision": "main",
    "tokenizer": "org/tokenizer",
    "download_dir": "/tmp/models",
    "enforce_eager": True,
    "trust_remote_code": True,
    "seed": 7,
}
SETTINGS: dict[str, dict[str, Any]] = {
    "default": {},
    "every field that has a flag": EVERY_FIELD,
    "sleep": {"sleep_after_s": 5},
    "parallel": {"data_parallel_size": 2, "engine_args": {"api_server_count": 2, "enable_expert_parallel": True}},
    "several machines": {"tensor_parallel_size": 2, "engine_args": {"nnodes": 2, "node_rank": 0, "master_addr": "a"}},
    "backends": {"engine_args": {"distributed_executor_backend": "mp", "data_parallel_backend": "mp"}},
    "lora": {"engine_args": {"enable_lora": True, "max_loras": 2, "max_lora_rank": 32, "lora_modules": ["sql=/l/sql"]}},
    "lora adapters": {"lora_adapters": {}},
    "lora by dicts": {"engine_args": {"enable_lora": True, "lora_modules": [{"name": "sql", "path": "/l/sql"}]}},
    "queue": {"engine_args": {"max_num_queued_reqs": 8, "max_num_seqs": 64, "max_num_batched_tokens": 4096}},
    "kv cache": {"engine_args": {"kv_cache_memory_bytes": 1 << 30, "kv_cache_dtype": "fp8", "block_size": 16}},
    "speculative": {"engine_args": {"speculative_config": {"method": "ngram", "num_speculative_tokens": 3}}},
    "media": {"engine_args": {"limit_mm_per_prompt": {"image": 2}, "allowed_local_media_path": "/tmp"}},
    "pooling": {"engine_args": {"runner": "pooling", "convert": "embed", "pooler_config": {"pooling_type": "MEAN"}}},
    "prefix cache off": {"engine_args": {"enable_prefix_caching": False, "enable_chunked_prefill": False}},
    "compilation": {"engine_args": {"compilation_config": {"mode": 0}, "cudagraph_capture_sizes": [1, 2, 4]}},
    "parsers": {"engine_args": {"tool_call_parser": "hermes", "reasoning_parser": "qwen3"}},
    "parsers of a family": {"model": "Qwen/Qwen3-4B"},
    "generation": {"engine_args": {"generation_config": "vllm", "override_generation_config": {"temperature": 0.5}}},
    "overrides": {"engine_args": {"hf_overrides": {"is_matryoshka": True}, "load_format": "dummy"}},
    "template": {"engine_args": {"chat_template": "{{ messages }}", "default_chat_template_kwargs": {"a": True}}},
    "logs": {"engine_args": {"disable_log_stats": True, "disable_uvicorn_access_log": False}},
}
WRONG: dict[str, dict[str, Any]] = {
    "unknown flag": {"engine_args": {"no_such_flag": 1}},
    "a word for a number": {"engine_args": {"max_num_seqs": "many"}},
}


@pytest.fixture(scope="module", params=VERSIONS)
def wheel(request: pytest.FixtureRequest) -> CudaWheel:
    return CudaWheel(request.param)


# ---- modules


def modules_of(version: str) -> set[str]:
    """Those of vLLM that the launcher's files name, and the table of releases for this one."""
    named = {value for value in vars(release_of(version)).values() if re.fullmatch(r"vllm(\.\w+)+", str(value))}
    for file in Path(shared_engine.launcher.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                named |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                named.add(node.module or "")
            elif isinstance(node, ast.Constant):
                named.add(str(node.value))
    return {name for name in named if re.fullmatch(r"vllm(\.\w+)+", name)}


def cli_args_of(version: str) -> str:
    (module,) = (name for name in modules_of(version) if name.endswith(".cli_args"))
    return module


def test_every_module_that_the_launcher_imports_is_there(wheel: CudaWheel) -> None:
    named = modules_of(wheel.version)
    assert len(named) > 8
    assert not [name for name in sorted(named) if not wheel.has_module(name)]
    sources = "\n".join(wheel.source_of(name) for name in named)
    assert not [name for name in SERVER_NAMES if f"def {name}(" not in sources]
    servers = wheel.source_of("vllm.v1.utils")  # see use_fork_inside_vllm
    assert 'multiprocessing.get_context("spawn")' in servers


def test_what_direct_mode_replaces_is_there(wheel: CudaWheel) -> None:
    named = {
        str(node.value)
        for file in Path(shared_engine.direct.__file__).parent.glob("*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Constant) and re.fullmatch(r"vllm(\.\w+)+", str(node.value))
    }
    assert len(named) > 2
    assert not [name for name in sorted(named) if not wheel.has_module(name)]
    server = wheel.source_of(release_of(wheel.version).api_server)
    assert all(word in server for word in ("async def run_server_worker(", "import serve_http", "await serve_http("))
    metrics = "".join(wheel.source_of(name) for name in named)
    words = ("_gauge_cls = ", "_counter_cls = ", "_histogram_cls = ", "def get_prometheus_registry(")
    assert [word for word in words if word not in metrics] == []


def test_what_adapters_and_reproducible_answers_need_is_there(wheel: CudaWheel) -> None:
    variables = wheel.source_of("vllm.envs")
    assert all(f'"{name}"' in variables for name in (reproducible.VARIABLE, "VLLM_ALLOW_RUNTIME_LORA_UPDATING"))
    server = wheel.source_of("vllm.entrypoints.serve.lora.api_router")
    assert all(f'"{route}"' in server for route in (routes.LOAD_ADAPTER, routes.UNLOAD_ADAPTER))
    (ranks,) = re.findall(r"MaxLoRARanks = Literal\[(.*)\]", wheel.source_of("vllm.config.lora"))
    assert {*map(int, ranks.split(","))} >= {*adapters._RANKS}


def test_every_quantization_that_is_told_apart_is_a_method_of_vllms_or_was_one(wheel: CudaWheel) -> None:
    known = wheel.source_of("vllm.model_executor.layers.quantization")
    names = {*quantization._NEED_QUANTISED, *quantization._WHILE_LOADING}
    of_others = {"marlin", "auto-round", *release_of(wheel.version).lost_quantizations}
    assert {name for name in names if f'"{name}"' not in known} <= of_others


# ---- command lines


@pytest.fixture(scope="module")
def verdicts(wheel: CudaWheel, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str | None]:
    """What vLLM says against each of the settings."""
    python = wheel.make_environment(tmp_path_factory.mktemp("cuda") / wheel.version)
    cases = {**SETTINGS, **WRONG}
    command_lines = [
        engine_spec(EngineSettings(**{"model": "org/name", "python": python, **settings})).argv
        for settings in cases.values()
    ]
    return dict(zip(cases, parse(python, cli_args_of(wheel.version), command_lines), strict=True))


def test_every_setting_that_has_a_flag_is_tried() -> None:
    assert set(EVERY_FIELD) == set(FLAGS)


@pytest.mark.parametrize("case", SETTINGS)
def test_vllm_takes_the_command_line(verdicts: dict[str, str | None], case: str) -> None:
    assert verdicts[case] is None


@pytest.mark.parametrize("case", WRONG)
def test_vllm_refuses_what_is_wrong(verdicts: dict[str, str | None], case: str) -> None:
    assert verdicts[case] is not None


# ---- words


@pytest.fixture(scope="module")
def words(wheel: CudaWheel) -> Words:
    return Words(wheel.version, wheel.sources)


def test_what_nobody_writes_is_found(words: Words) -> None:
    assert words.missing("no such line|Loading weights took") == {("no such line",)}


@pytest.mark.parametrize("what", WAITED_FOR)
def test_the_words_that_are_waited_for_are_there(words: Words, what: str) -> None:
    assert words.missing(*WAITED_FOR[what]) == set()


# ---- parsers


@pytest.mark.parametrize(
    ("folder", "table", "chosen"),
    [
        ("tool_parsers", "_TOOL_PARSERS_TO_REGISTER", known_tool_parsers()),
        ("reasoning", "_REASONING_PARSERS_TO_REGISTER", known_reasoning_parsers()),
    ],
)
def test_every_parser_that_can_be_chosen_exists(
    wheel: CudaWheel, folder: str, table: str, chosen: tuple[str, ...]
) -> None:
    assert set(chosen) <= registered(wheel.sources / folder / "__init__.py", table)


# ---- what is installed


def test_install_rules_out_the_torch_that_is_required() -> None:
    metadata = CudaWheel(INSTALLED).metadata
    for name, version in CUDA_TORCH.items():
        assert f"Requires-Dist: {name}=={version}\n" in metadata
    assert f"[cu{CUDA_MAJOR}]==" in metadata
