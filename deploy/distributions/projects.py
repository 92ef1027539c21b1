"""The distributions beside vllm-local, by whose names people search, and which bring it with the right extra.

The code is in vllm-local alone. The others need it in just their own version, and hold the modules that LlamaIndex's
users import from, or nothing but their names. They are written from the one table here and from ``pyproject.toml``, so
they can't differ from either.
"""

from __future__ import annotations

import json
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
REPOSITORY = HERE.parents[1]
PROJECT: dict[str, Any] = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
MAIN: str = PROJECT["name"]


@dataclass(frozen=True)
class Distribution:
    """One that brings vllm-local with an extra. Its README is ``NAME.md`` beside this file.

    Attributes:
        module: from which its classes can be imported, in a namespace package of LlamaIndex; None: only where they are.
        classes: of ``llama_index_vllm_local``.
    """

    name: str
    extra: str
    description: str
    keywords: tuple[str, ...]
    module: str | None = None
    classes: tuple[str, ...] = ()


DISTRIBUTIONS = (
    Distribution(
        name="langchain-vllm-local",
        extra="langchain",
        description="LangChain on a vLLM of your own machine, started on the first call and shared by all apps",
        keywords=("langchain", "vllm", "llm", "local", "embeddings", "rerank"),
    ),
    Distribution(
        name="llama-index-llms-vllm-local",
        extra="llama-index",
        description="LlamaIndex LLM on a vLLM of your own machine, started on the first call and shared by all apps",
        keywords=("llama-index", "vllm", "llm", "local"),
        module="llama_index.llms.vllm_local",
        classes=("VLLM",),
    ),
    Distribution(
        name="llama-index-embeddings-vllm-local",
        extra="llama-index",
        description="LlamaIndex embeddings, dense and sparse, on a vLLM of your own machine that all apps share",
        keywords=("llama-index", "vllm", "embeddings", "sparse-embeddings", "local"),
        module="llama_index.embeddings.vllm_local",
        classes=("VLLMEmbedding", "VLLMSparseEmbedding"),
    ),
    Distribution(
        name="llama-index-postprocessor-vllm-local-rerank",
        extra="llama-index",
        description="LlamaIndex reranker on a vLLM of your own machine that all apps share",
        keywords=("llama-index", "vllm", "rerank", "local"),
        module="llama_index.postprocessor.vllm_local_rerank",
        classes=("VLLMRerank",),
    ),
)


def write_project(distribution: Distribution, folder: Path) -> None:
    """The distribution's own project, complete, in a new folder."""
    folder.mkdir(parents=True)
    (folder / "pyproject.toml").write_text(_pyproject(distribution))
    (folder / "README.md").write_text((HERE / f"{distribution.name}.md").read_text())
    (folder / "LICENSE").write_bytes((REPOSITORY / "LICENSE").read_bytes())
    if distribution.module:
        package = folder.joinpath(*distribution.module.split("."))
        package.mkdir(parents=True)
        (package / "__init__.py").write_text(_module(distribution))
        (package / "py.typed").touch()


def _module(distribution: Distribution) -> str:
    names = ", ".join(distribution.classes)
    exported = ", ".join(f'"{name}"' for name in distribution.classes)
    return f"""\
\"\"\"{distribution.description}.\"\"\"

from llama_index_vllm_local import {names}

__all__ = [{exported}]
"""


def _pyproject(distribution: Distribution) -> str:
    """With LlamaIndex's own table, where it is one of its integrations."""
    project = {
        "name": distribution.name,
        "version": PROJECT["version"],
        "description": distribution.description,
        "readme": "README.md",
        "license": PROJECT["license"],
        "license-files": ["LICENSE"],
        "requires-python": PROJECT["requires-python"],
        "keywords": list(distribution.keywords),
        "classifiers": PROJECT["classifiers"],
        "dependencies": [f"{MAIN}[{distribution.extra}]=={PROJECT['version']}"],
    }
    authors = ", ".join(f"{{ name = {_toml(author['name'])} }}" for author in PROJECT["authors"])
    lines = [
        "[build-system]",
        'requires = ["hatchling>=1.27"]',
        'build-backend = "hatchling.build"',
        "",
        "[project]",
        *(f"{key} = {_toml(value)}" for key, value in project.items()),
        f"authors = [{authors}]",
        "",
        "[project.urls]",
        *(f"{key} = {_toml(value)}" for key, value in PROJECT["urls"].items()),
        "",
        "[tool.hatch.build.targets.wheel]",
    ]
    if distribution.module is None:
        return "\n".join([*lines, "bypass-selection = true", ""])
    lines += [
        'packages = ["llama_index"]',
        "",
        "[tool.llamahub]",
        "contains_example = false",
        f"import_path = {_toml(distribution.module)}",
        "",
        "[tool.llamahub.class_authors]",
        *(f"{name} = {_toml(MAIN)}" for name in distribution.classes),
        "",
    ]
    return "\n".join(lines)


def _toml(value: str | list[str]) -> str:
    return json.dumps(value, ensure_ascii=False)  # of text and lists of it, TOML's form is JSON's
