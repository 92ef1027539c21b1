"""The flags in deploy/ are vLLM's: read in its sources, no engine is started."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from tests.support.paths import REPOSITORY
from tests.support.vllm_sources import registered

pytestmark = pytest.mark.apart

FLAGS = {
    flag.partition("=")[0]
    for path in (REPOSITORY / "deploy").rglob("*.yaml")
    for flag in re.findall(r"(?<=[\[ ])--[a-z-]+=?[\w-]*(?=[,\]])", path.read_text())
} - {"--max-instance-failover-reroute-attempts"}  # production-stack's router's


def fields(file: Path) -> set[str]:
    return {
        node.target.id
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    }


def test_every_flag_of_the_servers_exists(vllm_folder: Path) -> None:
    assert {"--shutdown-timeout", "--tool-call-parser"} <= FLAGS
    known: set[str] = set()
    for name in ("engine/arg_utils.py", "entrypoints/launchers/cli_args.py", "entrypoints/openai/cli_args.py"):
        known |= fields(vllm_folder / name) if (vllm_folder / name).exists() else set()
    assert {flag for flag in FLAGS if flag.removeprefix("--").replace("-", "_") not in known} == set()


def test_the_tool_parser_is_one_of_vllms(vllm_folder: Path) -> None:
    named = {
        parser
        for path in (REPOSITORY / "deploy").rglob("*.yaml")
        for parser in re.findall(r"--tool-call-parser=(\w+)", path.read_text())
    }
    assert named
    assert named <= registered(vllm_folder / "tool_parsers" / "__init__.py", "_TOOL_PARSERS_TO_REGISTER")
