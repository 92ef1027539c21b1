"""What may import what, which names are public, and what must stay light."""

from __future__ import annotations

import ast
import functools
import subprocess
import sys
from pathlib import Path

import pytest

import shared_engine
from tests.support.paths import REPOSITORY

PACKAGE = REPOSITORY / "shared_engine"

# Folders and public modules of shared_engine, from the top down: each imports only itself and what stands below it.
ORDER = (
    "__init__",
    "cli",
    "gateway",
    "adapting",
    "prometheus",
    "engine",
    "openai_client",
    "token_count",
    "request",
    "conversations",
    "pool",
    "direct",
    "launch",
    "settings",
    "setting_sources",
    "config_files",
    "addresses",
    "device_sets",
    "parallelism",
    "params",
    "validation",
    "declared",
    "answer_file",
    "results",
    "stats",
    "schemas",
    "model_files",
    "logs",
    "gpu",
    "observe",
    "supervisor",
    "launcher",
    "runtime",
    "machine",
    "vllm_versions",
    "errors",
)
# What runs beside each engine, or in vLLM's own Python, needs no packages.
STANDARD_LIBRARY_ONLY = (
    "logs",
    "gpu",
    "observe",
    "supervisor",
    "runtime",
    "machine",
    "launcher",
    "model_files",
    "vllm_versions",
    "errors",
)
FOR_ADAPTERS = {"adapting", "declared", "errors", "results", "params", "settings"}
ADAPTERS = sorted(
    path for name in ("langchain", "llama_index") for path in (REPOSITORY / f"{name}_vllm_local").glob("*.py")
)
MODULES = sorted(PACKAGE.rglob("*.py"))


def room(module: Path) -> str:
    """The folder, or the public module, that a file is, or belongs to."""
    return module.relative_to(PACKAGE).with_suffix("").parts[0]


each_room = pytest.mark.parametrize("name", sorted({room(module) for module in MODULES}))


def imported_by(name: str) -> dict[str, set[str]]:
    """Dotted names of all that the modules of a room import, by module."""
    return {str(module.relative_to(PACKAGE)): imported(module) for module in MODULES if room(module) == name}


@functools.cache
def imported(module: Path) -> set[str]:
    """Dotted names of all that a module imports."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(module.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module == "shared_engine":
            names |= {f"shared_engine.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return names


def test_every_folder_has_its_place_and_says_what_it_is() -> None:
    assert {room(module) for module in MODULES} == set(ORDER)
    for folder in PACKAGE.glob("*/__init__.py"):
        assert ast.get_docstring(ast.parse(folder.read_text())), folder


@each_room
def test_imports_point_down(name: str) -> None:
    above = set(ORDER[: ORDER.index(name)])
    for module, names in imported_by(name).items():
        own = {each.split(".")[1] for each in names if each.startswith("shared_engine.")}
        assert not own & above, module


@each_room
def test_the_engine_knows_no_framework(name: str) -> None:
    for module, names in imported_by(name).items():
        assert not {each.split(".")[0] for each in names} & {"langchain_core", "llama_index", "langchain"}, module


@pytest.mark.parametrize("module", ADAPTERS, ids=lambda path: path.relative_to(REPOSITORY).as_posix())
def test_an_adapter_imports_only_what_is_public_or_made_for_adapters(module: Path) -> None:
    ours = {name.split(".")[1] for name in imported(module) if name.startswith("shared_engine.")}
    assert ours - set(shared_engine.__all__) <= FOR_ADAPTERS


@pytest.mark.parametrize("name", STANDARD_LIBRARY_ONLY)
def test_what_runs_beside_an_engine_needs_no_packages(name: str) -> None:
    allowed = {"vllm", "uvloop", "torch", "huggingface_hub"} if name == "launcher" else set()
    for module, names in imported_by(name).items():
        foreign = {each.split(".")[0] for each in names} - set(sys.stdlib_module_names) - {"shared_engine"}
        assert foreign <= allowed, module


def test_public_names() -> None:
    assert sorted(shared_engine.__all__) == [
        "AuthenticationError",
        "Choice",
        "ChunkPlan",
        "ContextLengthError",
        "EmbeddingResult",
        "Engine",
        "EngineBusyError",
        "EngineDiedError",
        "EngineError",
        "EngineInfo",
        "EngineNotInstalledError",
        "EngineSettings",
        "EngineStartError",
        "EngineStartTimeoutError",
        "EngineState",
        "EngineStats",
        "EngineStoppedError",
        "GPUAlert",
        "GPUMonitor",
        "GPUProcess",
        "GPUStats",
        "GenerationChunk",
        "GenerationParams",
        "GenerationResult",
        "InvalidInputError",
        "ItemFailure",
        "LengthFinishReasonError",
        "LifeStats",
        "ModelNotFoundError",
        "MultiVectorResult",
        "PermissionDeniedError",
        "RankedDocument",
        "RateLimitError",
        "RequestError",
        "RequestRejectedError",
        "RequestStats",
        "RequestTimeoutError",
        "RerankResult",
        "ServerConnectionError",
        "ServerError",
        "ServerUnreachableError",
        "SettingsError",
        "SparseResult",
        "Timing",
        "TokenUsage",
        "ToolCall",
        "ToolCallDelta",
        "VLLMError",
        "VectorFile",
    ]
    assert all(hasattr(shared_engine, name) for name in shared_engine.__all__)


def loaded_by(code: str) -> set[str]:
    script = f"{code}\nimport sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=REPOSITORY)
    return set(done.stdout.split())


@pytest.mark.slow
def test_constructing_an_engine_imports_nothing_heavy(tmp_path: Path) -> None:
    heavy = {"torch", "vllm", "openai", "transformers", "tokenizers", "jinja2", "aiohttp"}
    assert not heavy & loaded_by("from shared_engine import Engine; Engine(model='org/name')")
    chat = "from langchain_vllm_local import ChatVLLM; ChatVLLM(model='org/name')"
    assert not heavy & loaded_by(chat)
    assert "langchain_core.language_models.llms" not in loaded_by("import langchain_vllm_local")
    pooling = "from llama_index_vllm_local import VLLMEmbedding as E, VLLMRerank as R; E(model='a/b'); R(model='a/b')"
    assert heavy & loaded_by(pooling) <= {"jinja2"}  # which is LlamaIndex's own
    assert "llama_index.core" not in loaded_by("import llama_index_vllm_local")


def test_the_supervisor_stays_small() -> None:
    loaded = loaded_by("import shared_engine.supervisor.main")
    assert not {"pydantic", "msgspec", "aiohttp", "tqdm"} & loaded
