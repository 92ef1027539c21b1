"""What a framework does round its calls of models, read from its sources: what it catches, and what it passes."""

from __future__ import annotations

import ast
import importlib.util
import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import NamedTuple


class Caught(NamedTuple):
    """One ``except`` round a call of a model, after which the framework goes on without the answer.

    Attributes:
        where: the function, such as ``response_synthesizers.refine:Refine._update_response``.
        classes: what is caught, as it stands there.
    """

    where: str
    classes: str


def caught_round(package: str, calls: Collection[str], skip: Collection[str] = ()) -> set[Caught]:
    """Every such place in ``package``.

    Args:
        calls: names of the functions and methods that ask a model, or come to it. A loop over a stream is one, too.
        skip: modules left out, by the beginning of their names.
    """
    found: set[Caught] = set()
    for module, tree in _modules(package):
        if not module.startswith(tuple(skip)):
            for name, function in _functions(tree):
                for handler in _handlers(function, calls):
                    found.add(Caught(f"{module}:{name}", ast.unparse(handler.type) if handler.type else ""))
    return found


def keywords_of(package: str, methods: Collection[str]) -> set[str]:
    """The keywords that ``package`` passes to these methods of a model."""
    return {
        keyword.arg
        for _, tree in _modules(package)
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in methods
        if re.search("llm|model", ast.unparse(node.func.value), re.IGNORECASE)
        for keyword in node.keywords
        if keyword.arg is not None
    }


def _modules(package: str) -> Iterator[tuple[str, ast.Module]]:
    spec = importlib.util.find_spec(package)
    assert spec is not None and spec.submodule_search_locations
    (folder,) = spec.submodule_search_locations
    for file in sorted(Path(folder).rglob("*.py")):
        yield ".".join(file.relative_to(folder).with_suffix("").parts), ast.parse(file.read_text())


def _functions(tree: ast.AST, above: str = "") -> Iterator[tuple[str, ast.AST]]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            name = f"{above}{node.name}"
            if not isinstance(node, ast.ClassDef):
                yield name, node
            yield from _functions(node, f"{name}.")
        else:
            yield from _functions(node, above)


def _handlers(function: ast.AST, calls: Collection[str]) -> Iterator[ast.ExceptHandler]:
    for node in _own(function):
        if isinstance(node, ast.Try) and any(_asks(part, calls) for part in node.body):
            yield from (handler for handler in node.handlers if not isinstance(handler.body[-1], ast.Raise))


def _own(function: ast.AST) -> Iterator[ast.AST]:
    """What is in the function, but not in one inside it."""
    for node in ast.iter_child_nodes(function):
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            yield node
            yield from _own(node)


def _asks(part: ast.AST, calls: Collection[str]) -> bool:
    return any(_is_call(node, calls) for node in (part, *_own(part)))


def _is_call(node: ast.AST, calls: Collection[str]) -> bool:
    if isinstance(node, (ast.For, ast.AsyncFor)):
        return any(word in ast.unparse(node.iter) for word in ("stream", "_gen"))
    if not isinstance(node, ast.Call):
        return False
    name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", None)
    return name in calls
