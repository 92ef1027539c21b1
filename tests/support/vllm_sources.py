"""What stands in vLLM's Python files, read and not imported."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from re import _constants, _parser  # type: ignore[attr-defined]  # the parser of patterns, which has no public name
from typing import Any, cast

MIN_FRAGMENT = 4
# Not a space among the flags: "3% Completed" has no field.
_PRINTF_FIELD = re.compile(r"%[-+#0]*\d*(?:\.\d+)?[a-zA-Z]")


def registered(file: Path, table: str) -> set[str]:
    """The names in the table that vLLM registers its parsers from."""
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == table:
            return set(cast(dict[str, object], ast.literal_eval(node.value)))
    raise AssertionError(f"{file} has no {table}")


def texts(folder: Path) -> list[str]:
    """Every string of the files below ``folder``, adjacent ones joined, with nothing in place of their fields."""
    found: set[str] = set()
    for file in sorted(folder.rglob("*.py")):
        found |= {_PRINTF_FIELD.sub("", text) for text in _strings(ast.parse(file.read_text()))}
    return sorted(found)


def _strings(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield "".join(str(part.value) for part in node.values if isinstance(part, ast.Constant))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value
        elif isinstance(node, ast.ClassDef):
            yield node.name  # the name of an error is in the log too


def has(all_texts: list[str], fragments: tuple[str, ...]) -> bool:
    """Whether one of the texts has all of these, in this order."""
    pattern = re.compile(".*".join(map(re.escape, fragments)), re.IGNORECASE | re.DOTALL)
    return any(pattern.search(text) for text in all_texts)


def fragments(pattern: str) -> set[tuple[str, ...]]:
    """What stands literally in texts that a regular expression finds: one tuple for each of its alternatives."""
    found = set()
    for alternative in _alternatives(list(_parser.parse(pattern))):
        literal = tuple(part for part in alternative.split("\0") if len(part.strip()) >= MIN_FRAGMENT)
        if literal:
            found.add(literal)
    return found


def _alternatives(nodes: list[Any]) -> list[str]:
    """Texts, with a zero byte where something else than a literal stands."""
    texts = [""]
    for kind, value in nodes:
        if kind is _constants.LITERAL:
            here = [chr(value)]
        elif kind is _constants.SUBPATTERN:
            here = _alternatives(list(value[3]))
        elif kind is _constants.BRANCH:
            here = [text for branch in value[1] for text in _alternatives(list(branch))]
        else:
            here = ["\0"]
        texts = [text + more for text in texts for more in here]
    return texts
