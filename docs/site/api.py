"""The API reference: public names of our packages, from their docstrings.

A page has ``<!-- api: PACKAGE -->`` where they go. Of a class that is derived from a framework's or pydantic's, only
what is ours is shown: their own documentation has the rest, and settings.md the fields.
"""

from __future__ import annotations

import importlib
import inspect
import re
from typing import Any

import pydantic

_OURS = ("shared_engine", "langchain_vllm_local", "llama_index_vllm_local")
_FIRST = ("Engine", "EngineSettings", "GenerationParams")
_PLACE = re.compile(r"<!-- api: (\w+) -->")


def filled(page: str) -> str:
    """The page with its package's names in their place."""
    return _PLACE.sub(lambda place: _all_of(place[1]), page)


def _all_of(package: str) -> str:
    module = importlib.import_module(package)
    names = sorted(module.__all__, key=lambda name: (name not in _FIRST, _is_error(module, name), name.lower()))
    return "\n".join(f"## {name}\n\n{_directive(package, name, getattr(module, name))}" for name in names)


def _is_error(module: Any, name: str) -> bool:
    return issubclass(getattr(module, name), Exception)


def _directive(package: str, name: str, found: type) -> str:
    lines = [f".. autoclass:: {package}.{name}", "   :members:"]
    if not issubclass(found, Exception):
        lines.append("   :inherited-members: object")
    if issubclass(found, pydantic.BaseModel):
        lines.append(f"   :exclude-members: {', '.join(found.model_fields)}")
    body = "\n".join(lines)
    return f"```{{eval-rst}}\n{body}\n```\n"


def _is_skipped(app: Any, what: str, name: str, member: Any, skip: bool, options: Any) -> bool | None:
    """Of a class, whatever was not written here."""
    function = inspect.unwrap(getattr(member, "__func__", member) or member)
    if isinstance(function, property):
        function = function.fget
    home = getattr(function, "__module__", None) or ""
    if name.startswith(("_", "model_")) or (inspect.isroutine(function) and not home.startswith(_OURS)):
        return True
    return None


def _signature(
    app: Any, what: str, name: str, found: Any, options: Any, signature: str | None, returned: str | None
) -> tuple[str, None] | None:
    """Of a class of pydantic: its fields are on a page of their own."""
    if what == "class" and issubclass(found, pydantic.BaseModel):
        return "(**settings)", None
    return None


def _sentence(app: Any, what: str, name: str, found: Any, options: Any, lines: list[str]) -> None:
    """The docstring of a property: napoleon would take what is before a colon for a type."""
    if what == "property":
        lines.insert(0, "")


def setup(app: Any) -> None:
    app.connect("autodoc-process-docstring", _sentence, priority=400)  # napoleon's is 500
    for package in _OURS:  # before autodoc does, which would import with TYPE_CHECKING
        module = importlib.import_module(package)
        for name in module.__all__:
            getattr(module, name)
    app.connect("autodoc-skip-member", _is_skipped)
    app.connect("autodoc-process-signature", _signature)
