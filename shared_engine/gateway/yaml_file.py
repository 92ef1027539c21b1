"""A YAML file as plain values, each with the line where it stands. Knows nothing of what is in it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

from shared_engine.errors import SettingsError

Place = tuple[str | int, ...]
_VARIABLE = re.compile(r"\$\{(?:env\.([A-Za-z_][A-Za-z0-9_]*)\})?")
_TIMESTAMP = "tag:yaml.org,2002:timestamp"
_MERGE = "tag:yaml.org,2002:merge"


class _Loader(yaml.SafeLoader):  # type: ignore[misc]  # it has no types
    """Leaves dates as the texts that they are in JSON."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != _TIMESTAMP]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


@dataclass(frozen=True)
class Document:
    """What a file says.

    Attributes:
        lines: from 1, by the place of each value: ``("models", "qwen", "aliases", 0)``.
    """

    name: str
    values: Any = field(repr=False)
    lines: dict[Place, int]

    def where(self, *place: str | int) -> str:
        """The line of a value, for people; of what is not there, that of what it would be in."""
        while place and place not in self.lines:
            place = place[:-1]
        return f"{self.name}, line {self.lines.get(place, 1)}"


def read_yaml(name: str, text: str, environment: Mapping[str, str]) -> Document:
    """All of a file; ``${env.NAME}`` in a text is the variable's value, in which a ``${`` means nothing.

    Raises:
        SettingsError: it is not YAML, says a name twice, names a variable that is not set, or has another ``${``; with
            the line.
    """
    return _Reader(name, environment).read(text)


class _Reader:
    def __init__(self, name: str, environment: Mapping[str, str]) -> None:
        self._name = name
        self._environment = environment
        self._lines: dict[Place, int] = {}
        self._open: set[int] = set()

    def read(self, text: str) -> Document:
        try:
            self._loader = _Loader(text)
            node = self._loader.get_single_node()
            values = None if node is None else self._value(node, ())
        except yaml.MarkedYAMLError as exc:
            mark = exc.problem_mark or exc.context_mark
            line = 1 if mark is None else mark.line + 1
            raise SettingsError(f"{self._name}, line {line}: is not YAML: {exc.problem}") from None
        except yaml.YAMLError as exc:
            raise SettingsError(f"{self._name}: is not YAML: {exc}") from None
        except RecursionError:
            raise SettingsError(f"{self._name}: is nested too deeply") from None
        except (ValueError, OverflowError) as exc:  # of an escape such as "\\UFFFFFFFF"
            line = self._loader.line + 1
            raise SettingsError(f"{self._name}, line {line}: is not YAML: {exc}") from None
        return Document(self._name, values, self._lines)

    def _value(self, node: Any, place: Place) -> Any:
        self._lines.setdefault(place, node.start_mark.line + 1)
        if id(node) in self._open:
            raise self._error(node, "an alias (*) that means what it stands in")
        self._open.add(id(node))
        try:
            if isinstance(node, yaml.MappingNode):
                return self._mapping(node, place)
            if isinstance(node, yaml.SequenceNode):
                return [self._value(each, (*place, index)) for index, each in enumerate(node.value)]
            return self._scalar(node)
        finally:
            self._open.discard(id(node))

    def _mapping(self, node: Any, place: Place) -> dict[str, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise self._error(key, "a name must be a text: put what begins with { or [ in quotes")
            if key.value in seen and key.tag != _MERGE:
                raise self._error(key, f"{key.value!r} stands here twice")
            seen.add(key.value)
        self._loader.flatten_mapping(node)  # <<: *anchor
        found: dict[str, Any] = {}
        for key, value in node.value:
            name = self._scalar(key)
            if not isinstance(name, str):
                raise self._error(key, f"a name must be a text: put {key.value} in quotes")
            self._lines[(*place, name)] = key.start_mark.line + 1
            found[name] = self._value(value, (*place, name))
        return found

    def _scalar(self, node: Any) -> Any:
        try:
            value = self._loader.construct_object(node)
        except (ValueError, LookupError, TypeError, AttributeError, OverflowError):  # of `!!int x`, `!!bool x`, `0x_`
            kind = node.tag.rpartition(":")[2]
            raise self._error(node, f"this can't be read as {kind}: put a text in quotes") from None  # it may be secret
        if isinstance(value, str):
            return _VARIABLE.sub(lambda found: self._variable(node, found[1]), value)
        if value is None or isinstance(value, bool | int | float):
            return value
        raise self._error(node, f"{node.tag} is not used here")

    def _variable(self, node: Any, name: str | None) -> str:
        if name is None:  # passed on, a mistyped variable would be the API key itself
            raise self._error(node, "what begins with ${ must be ${env.NAME}, the variable NAME of the environment")
        if name not in self._environment:
            raise self._error(node, f"${{env.{name}}}: the environment variable {name} is not set")
        return self._environment[name]

    def _error(self, node: Any, text: str) -> SettingsError:
        return SettingsError(f"{self._name}, line {node.start_mark.line + 1}: {text}")
