"""JSON with one blank at most between two of its parts, for all that xgrammar holds to a schema.

Where any number is allowed, which is vLLM's default, small models write blanks up to ``max_tokens``, and the answer is
lost. vLLM's own switch (``disable_any_whitespace``) allows none at all, which models don't write either, and does not
reach the arguments of tool calls.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import inspect
import json
import sys
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

MODULE, LIMIT = "xgrammar.compiler", "max_whitespace_cnt"
MOST = 1


def allow_few_blanks(compiler: ModuleType) -> None:
    """Limit the blanks in what xgrammar's GrammarCompiler makes. No-op where it has no such limit."""
    kind = getattr(compiler, "GrammarCompiler", None)
    of_schema = getattr(kind, "compile_json_schema", None)
    of_tag = getattr(kind, "compile_structural_tag", None)
    if of_schema is None or of_tag is None or LIMIT not in inspect.signature(of_schema).parameters:
        return
    kind.compile_json_schema = _of_schema(of_schema)  # type: ignore[union-attr]  # it has the method
    kind.compile_structural_tag = _of_tag(of_tag)  # type: ignore[union-attr]


def allow_few_blanks_when_imported() -> None:
    """In a process that vLLM has spawned, which imports xgrammar with the first request that needs it, or never."""
    if MODULE in sys.modules:
        allow_few_blanks(sys.modules[MODULE])
    else:
        sys.meta_path.insert(0, _Finder())


def _of_schema(compile_json_schema: Callable[..., Any]) -> Callable[..., Any]:
    def call(self: Any, schema: Any, *rest: Any, **named: Any) -> Any:
        is_free = not rest and named.get("any_whitespace", True)
        return compile_json_schema(self, schema, *rest, **({LIMIT: MOST, **named} if is_free else named))

    return call


def _of_tag(compile_structural_tag: Callable[..., Any]) -> Callable[..., Any]:
    def call(self: Any, tag: Any, *rest: Any, **named: Any) -> Any:
        limited = json.dumps(limited_tag(json.loads(tag))) if isinstance(tag, str) and not rest and not named else tag
        return compile_structural_tag(self, limited, *rest, **named)

    return call


def limited_tag(tag: Any) -> Any:
    """A structural tag, whose JSON schemas that say nothing of it have the limit; the schemas stay as they are."""
    if isinstance(tag, list):
        return [limited_tag(each) for each in tag]
    if not isinstance(tag, dict):
        return tag
    own = {name: value if name == "json_schema" else limited_tag(value) for name, value in tag.items()}
    is_json = own.get("type") == "json_schema" and own.get("style", "json") == "json"
    return {**own, LIMIT: MOST} if is_json and own.get(LIMIT) is None else own


class _Finder(importlib.abc.MetaPathFinder):
    """Finds nothing itself: lets the others find the module, and limits it once it was imported."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name != MODULE:
            return None
        sys.meta_path.remove(self)
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_and_limit(module: ModuleType) -> None:
                execute(module)
                allow_few_blanks(module)

            spec.loader.exec_module = execute_and_limit  # type: ignore[method-assign]
        return spec
