"""The limit of blanks in JSON: what is asked of xgrammar, however its compiler comes to be imported."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from shared_engine.launcher.blanks import allow_few_blanks, limited_tag

SCHEMA = {"type": "object", "properties": {"type": {"const": "json_schema"}}}
COMPILER = """
class GrammarCompiler:
    def compile_json_schema(self, schema, *, any_whitespace=True, separators=None, max_whitespace_cnt=None):
        return schema, any_whitespace, separators, max_whitespace_cnt

    def compile_structural_tag(self, structural_tag, triggers=None):
        return structural_tag, triggers
"""


@pytest.fixture
def compiler() -> Any:
    module = ModuleType("xgrammar.compiler")
    exec(COMPILER, vars(module))
    allow_few_blanks(module)
    return vars(module)["GrammarCompiler"]()


def test_json_has_one_blank_at_most_unless_it_has_none(compiler: Any) -> None:
    assert compiler.compile_json_schema("{}", any_whitespace=True, separators=None) == ("{}", True, None, 1)
    assert compiler.compile_json_schema("{}") == ("{}", True, None, 1)
    assert compiler.compile_json_schema("{}", max_whitespace_cnt=3)[-1] == 3
    assert compiler.compile_json_schema("{}", any_whitespace=False, separators=(",", ":")) == (
        "{}", False, (",", ":"), None,
    )  # fmt: skip


def test_so_do_the_arguments_of_tool_calls(compiler: Any) -> None:
    content = {"type": "json_schema", "json_schema": SCHEMA, "style": "json", "max_whitespace_cnt": None}
    other = {"type": "json_schema", "json_schema": SCHEMA, "style": "qwen_xml", "max_whitespace_cnt": None}
    bound = {"type": "json_schema", "json_schema": SCHEMA, "max_whitespace_cnt": 4}
    tags = [{"type": "tag", "begin": "<", "content": each, "end": ">"} for each in (content, other, bound)]
    tag = {"type": "structural_tag", "format": {"type": "triggered_tags", "triggers": ["<"], "tags": tags}}
    text, _ = compiler.compile_structural_tag(json.dumps(tag))
    limits = [each["content"]["max_whitespace_cnt"] for each in json.loads(text)["format"]["tags"]]
    assert limits == [1, None, 4]
    assert limited_tag(tag)["format"]["tags"][0]["content"]["json_schema"] == SCHEMA
    assert compiler.compile_structural_tag(["an older form"], ["<"]) == (["an older form"], ["<"])


def test_a_compiler_without_the_limit_is_left_alone() -> None:
    module = ModuleType("xgrammar.compiler")
    exec(COMPILER.replace(", max_whitespace_cnt=None", "").replace(", max_whitespace_cnt", ""), vars(module))
    before = dict(vars(vars(module)["GrammarCompiler"]))
    allow_few_blanks(module)
    assert dict(vars(vars(module)["GrammarCompiler"])) == before
    allow_few_blanks(ModuleType("xgrammar.compiler"))


@pytest.mark.slow
def test_a_process_that_vllm_spawned_limits_it_with_the_import(tmp_path: Path) -> None:
    (tmp_path / "xgrammar").mkdir()
    (tmp_path / "xgrammar/__init__.py").write_text("")
    (tmp_path / "xgrammar/compiler.py").write_text(COMPILER)
    script = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from shared_engine.launcher.blanks import allow_few_blanks_when_imported\n"
        "allow_few_blanks_when_imported(); assert 'xgrammar' not in sys.modules\n"
        "from xgrammar.compiler import GrammarCompiler\n"
        "print(GrammarCompiler().compile_json_schema('{}')[-1], type(sys.meta_path[0]).__name__)"
    )
    told = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=True)
    assert told.stdout.split()[0] == "1"
    assert "_Finder" not in told.stdout
