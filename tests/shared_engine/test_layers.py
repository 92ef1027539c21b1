"""What may import what, which names are public, and what must stay light."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import shared_engine
from tests.conftest import REPOSITORY

# From the top down; a module imports only what stands below it.
LAYERS = (
    "__init__",
    "cli",
    "doctor",
    "smoke_test",
    "tiny_model",
    "status_table",
    "engine_user",
    "media_errors",
    "engine",
    "tokens",
    "chat_template",
    "conversation",
    "tokenizer_files",
    "tokenizer_classes",
    "pooling",
    "requests",
    "place",
    "attach",
    "inventory",
    "processes",
    "log_reader",
    "progress_bar",
    "client",
    "io_loop",
    "tools",
    "parameters",
    "structured",
    "wire",
    "command",
    "supervisor",
    "engine_process",
    "neighbours",
    "control_socket",
    "device",
    "watchdog",
    "launcher_process",
    "process_group",
    "engine_log",
    "install",
    "routes",
    "settings",
    "results",
    "parsers",
    "model_folder",
    "local_files",
    "media_parts",
    "start_failures",
    "launcher",
    "interpreter",
    "lease",
    "policy",
    "record",
    "progress",
    "runtime_dir",
    "errors",
)
STANDARD_LIBRARY_ONLY = (
    "supervisor", "engine_process", "control_socket", "neighbours", "device", "watchdog", "launcher_process",
    "process_group", "engine_log", "lease", "policy", "record", "progress", "runtime_dir", "start_failures", "errors",
    "launcher", "model_folder",
)  # fmt: skip


def imported(module: str) -> set[str]:
    """Top-level names of what a module imports; our own as ``shared_engine.<module>``."""
    tree = ast.parse((REPOSITORY / "shared_engine" / f"{module}.py").read_text())
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module == "shared_engine":
            names |= {f"shared_engine.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return names


def test_every_module_has_its_layer() -> None:
    assert {path.stem for path in (REPOSITORY / "shared_engine").glob("*.py")} == set(LAYERS)


@pytest.mark.parametrize("module", LAYERS)
def test_imports_point_down(module: str) -> None:
    own = {name.split(".")[1] for name in imported(module) if name.startswith("shared_engine.")}
    allowed = set(LAYERS[LAYERS.index(module) + 1 :])
    assert own <= allowed, f"{module} imports {own - allowed}"


@pytest.mark.parametrize("module", LAYERS)
def test_the_engine_knows_no_framework(module: str) -> None:
    assert not {name.split(".")[0] for name in imported(module)} & {"langchain_core", "llama_index", "langchain"}


@pytest.mark.parametrize("module", STANDARD_LIBRARY_ONLY)
def test_what_runs_in_the_supervisor_and_the_launcher_needs_no_packages(module: str) -> None:
    foreign = {name.split(".")[0] for name in imported(module)} - set(sys.stdlib_module_names) - {"shared_engine"}
    assert foreign <= ({"vllm", "uvloop"} if module == "launcher" else set())


def test_public_names() -> None:
    assert shared_engine.__all__ == [
        "AuthenticationError",
        "Choice",
        "ContextLengthError",
        "EmbeddingResult",
        "Engine",
        "EngineBusyError",
        "EngineDiedError",
        "EngineError",
        "EngineNotInstalledError",
        "EngineSettings",
        "EngineStartError",
        "EngineStartTimeoutError",
        "EngineState",
        "EngineStatus",
        "EngineStoppedError",
        "GenerationChunk",
        "GenerationParams",
        "GenerationResult",
        "InvalidInputError",
        "LengthFinishReasonError",
        "ModelNotFoundError",
        "PermissionDeniedError",
        "RankedDocument",
        "RateLimitError",
        "RequestError",
        "RequestRejectedError",
        "RequestTimeoutError",
        "RerankResult",
        "ServerConnectionError",
        "ServerError",
        "ServerUnreachableError",
        "SettingsError",
        "TokenUsage",
        "ToolCall",
        "ToolCallDelta",
        "VLLMError",
    ]
    assert all(hasattr(shared_engine, name) for name in shared_engine.__all__)


def loaded_by(code: str) -> set[str]:
    script = f"{code}\nimport sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=REPOSITORY)
    return set(done.stdout.split())


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
    loaded = loaded_by("import shared_engine.supervisor")
    assert not {"pydantic", "msgspec", "aiohttp", "tqdm"} & loaded
