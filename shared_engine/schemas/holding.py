"""A schema in a form that vLLM's grammars hold an answer to.

xgrammar, which engines use (launch/spec.py), can't hold an answer to everything that a schema can say: vLLM refuses to
try (vllm/v1/structured_output/backend_xgrammar.py), or it is ignored, and the answer is wrong without an error. Some of
it can be said in another way. The forms here are taken by all supported releases.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from shared_engine.errors import InvalidInputError
from shared_engine.schemas.keywords import malformed, parts_formed
from shared_engine.schemas.patterns import FORMATS, InvalidPatternError, held_pattern, with_length

_TYPES = frozenset(("string", "number", "integer", "boolean", "null", "array", "object"))
# Refused or ignored, and not to be said otherwise.
_LOST = frozenset((
    "multipleOf", "contains", "minContains", "maxContains", "propertyNames", "not", "if", "then", "else",
    "dependentSchemas", "dependentRequired", "dependencies", "unevaluatedProperties", "unevaluatedItems",
))  # fmt: skip
_REMARKS = frozenset((
    "title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly", "$comment", "$defs",
    "definitions", "type",
))  # fmt: skip
# By the standard these say nothing of values of other types; without a type xgrammar ignores them.
_OF_TYPES = {
    "minimum": "number", "maximum": "number", "exclusiveMinimum": "number", "exclusiveMaximum": "number",
    "minLength": "string", "maxLength": "string", "pattern": "string",
}  # fmt: skip
_WITH_TYPES = frozenset(("type", "enum", "const", "anyOf", "oneOf", "allOf", "$ref"))
_XGRAMMARS_FORMATS = frozenset((
    "email", "date", "time", "date-time", "duration", "ipv4", "ipv6", "hostname", "uuid", "uri", "uri-reference",
    "uri-template", "json-pointer", "relative-json-pointer",
))  # fmt: skip
# Where the model sees the schema, as it sees that of a tool, a word that it knows is worth more than a long pattern.
_READABLE_FORMATS = {"any-date-time": "date-time", "any-time": "time"}
# Releases before 0.30 refuse objects with these, but not where the type is a list.
_OBJECT = ["object"]
_MOST_MULTIPLES = 200
# The whole number next to a bound, which it allows.
_BOUNDS: Mapping[str, Callable[[float], int]] = {
    "minimum": math.ceil,
    "exclusiveMinimum": lambda value: math.floor(value) + 1,
    "maximum": math.floor,
    "exclusiveMaximum": lambda value: math.ceil(value) - 1,
}


_COMPOSED = frozenset(("$ref", "allOf", "anyOf", "oneOf", "not", "if", "additionalProperties", "unevaluatedProperties"))


@dataclass(frozen=True)
class HeldSchema:
    """A schema as a server can hold an answer to it.

    Attributes:
        lost: where the first thing stands that no answer can be held to, such as ``schema.properties.age.not``.
    """

    schema: Any
    lost: str | None = None


def held(schema: Any, *, leaves_out: bool, is_shown: bool = False) -> HeldSchema:
    """The schema in a form that xgrammar holds; a copy.

    Args:
        leaves_out: leave out what can't be held, because the answer is checked, or vLLM would refuse the request.
        is_shown: the model sees this form.

    Raises:
        InvalidInputError: a pattern is not a regular expression, and says where; or the schema is nested too deeply.
    """
    holding = _Holding(schema, leaves_out, is_shown)
    try:
        return HeldSchema(holding.form(schema, "schema"), holding.lost)
    except RecursionError as exc:
        raise InvalidInputError(f"the schema is nested too deeply: {exc}") from exc


class _Holding:
    def __init__(self, root: Any, leaves_out: bool, is_shown: bool) -> None:
        self._root = root
        self._leaves_out = leaves_out
        self._is_shown = is_shown
        self.lost: str | None = None

    def form(self, schema: Any, path: str) -> Any:
        if not isinstance(schema, Mapping):
            return schema
        own = dict(schema)
        own.pop("uniqueItems", None)  # so common that it is taken for a remark
        strange = {keyword: own.pop(keyword) for keyword in malformed(own, but=("required",))}
        for keyword, value in strange.items():
            if value is not None:
                self.lost = self.lost or f"{path}.{keyword}"
        self._join_all_of(own)
        self._hold_type(own, path)
        self._hold_multiples(own)
        self._hold_text(own, path)
        self._hold_names(own, path)
        for keyword in self._not_held(own):
            self._lose(own, keyword, path)
        return {**parts_formed(own, path, self.form), **({} if self._leaves_out else strange)}

    def _lose(self, own: dict[str, Any], keyword: str, path: str) -> None:
        self.lost = self.lost or f"{path}.{keyword}"
        if self._leaves_out:
            own.pop(keyword, None)

    def _not_held(self, own: Mapping[str, Any]) -> list[str]:
        lost = [keyword for keyword in own if keyword in _LOST]
        if len(own.get("patternProperties") or ()) > 1 or ("patternProperties" in own and "properties" in own):
            lost.append("patternProperties")
        if len(own.get("allOf") or ()) > 1 or ("allOf" in own and own.keys() - _REMARKS - {"allOf"}):
            lost.append("allOf")
        if "$ref" in own and self._target(own["$ref"]) is None:
            lost.append("$ref")
        return lost

    def _target(self, reference: Any) -> Any:
        """What a reference is to; None where xgrammar can't find it."""
        first, *names = str(reference).split("/")
        if first != "#":  # of another document, or a name that an "$anchor" gives
            return None
        found = self._root
        for name in names:
            found = found.get(name.replace("~1", "/").replace("~0", "~")) if isinstance(found, Mapping) else None
        return found

    # ---- what can be said in another way

    def _hold_type(self, own: dict[str, Any], path: str) -> None:
        given = own.get("type")
        types = given if isinstance(given, list) else [given] if given is not None else []
        if any(each not in _TYPES for each in types):
            self._lose(own, "type", path)
        if not own.keys() & _WITH_TYPES:
            for keyword in [each for each in own if each in _OF_TYPES]:
                self._lose(own, keyword, path)

    def _join_all_of(self, own: dict[str, Any]) -> None:
        """One schema of several that say different things of one value."""
        branches = own.get("allOf")
        if (
            not isinstance(branches, list)
            or malformed(own)
            or (len(branches) == 1 and not own.keys() - _REMARKS - {"allOf"})
        ):
            return
        joined = {keyword: value for keyword, value in own.items() if keyword != "allOf"}
        for branch in branches:
            is_reference = isinstance(branch, Mapping) and branch.keys() == {"$ref"}
            part = self._target(branch["$ref"]) if is_reference else branch
            if not isinstance(part, Mapping) or part.keys() & _COMPOSED or malformed(part) or not _join(joined, part):
                return
        if joined.keys() & {"enum", "const"} and joined.keys() - _REMARKS - {"enum", "const"}:
            return  # of a list of values xgrammar holds nothing but the list
        own.clear()
        own.update(joined)

    def _hold_multiples(self, own: dict[str, Any]) -> None:
        """A multiple of 5 from 0 to 100 is one of 21 numbers."""
        step = own.get("multipleOf")
        if own.get("type") != "integer" or not isinstance(step, int) or step < 1 or "enum" in own:
            return
        if step == 1:
            del own["multipleOf"]
            return
        bounds = {name: own[name] for name in _BOUNDS if name in own}
        if not all(
            isinstance(value, int) or (isinstance(value, float) and math.isfinite(value)) for value in bounds.values()
        ):
            return
        lows = [_BOUNDS[name](value) for name, value in bounds.items() if "inimum" in name]
        highs = [_BOUNDS[name](value) for name, value in bounds.items() if "aximum" in name]
        if not lows or not highs:
            return
        first, last = -(-max(lows) // step), min(highs) // step
        if first <= last < first + _MOST_MULTIPLES:
            own["enum"] = [number * step for number in range(first, last + 1)]
            for name in ("multipleOf", *bounds):
                del own[name]

    def _hold_text(self, own: dict[str, Any], path: str) -> None:
        """Pattern, format and length: xgrammar holds one of them."""
        self._hold_format(own)
        if isinstance(own.get("pattern"), str):
            pattern = self._pattern(own["pattern"], f"{path}.pattern")
            if pattern is None:
                self._lose(own, "pattern", path)
            else:
                own.pop("format", None)
                own["pattern"] = pattern
        is_bound = own.keys() & {"minLength", "maxLength"}
        if not is_bound or not own.keys() & {"pattern", "format"}:
            return
        least, most = own.get("minLength", 0), own.get("maxLength")
        exact = with_length(own["pattern"], least, most) if "pattern" in own else None
        if exact is not None:
            own["pattern"] = exact
        elif least > 1 or most is not None:
            self._lose(own, min(is_bound), path)
        if exact is not None or self._leaves_out or least <= 1:
            own.pop("minLength", None)
        if exact is not None or self._leaves_out:
            own.pop("maxLength", None)

    def _hold_format(self, own: dict[str, Any]) -> None:
        name = own.get("format")
        if name is None or "enum" in own or "const" in own:
            return
        if self._is_shown:
            name = own["format"] = _READABLE_FORMATS.get(name, name)
        is_known = name in _XGRAMMARS_FORMATS
        if name in FORMATS and "pattern" not in own and not (self._is_shown and is_known):
            own["pattern"] = FORMATS[name]
        if not is_known:  # by the standard a remark
            del own["format"]

    def _pattern(self, pattern: str, path: str) -> str | None:
        try:
            return held_pattern(pattern)
        except InvalidPatternError as exc:
            raise InvalidInputError(f"{path} = {pattern!r:.80} is not a regular expression: {exc}") from exc

    def _hold_names(self, own: dict[str, Any], path: str) -> None:
        """Names of a dict: properties where they are listed, else a pattern."""
        names = own.get("propertyNames")
        if isinstance(names, Mapping) and not own.keys() & {"properties", "patternProperties"}:
            values = own.get("additionalProperties", True)
            names = self._target(names["$ref"]) if "$ref" in names else names
            names = names if isinstance(names, Mapping) and not malformed(names) else {"not": {}}
            listed = [names["const"]] if "const" in names else names.get("enum")
            pattern = self._names_pattern(names, f"{path}.propertyNames.pattern")
            if names == {} or names == {"type": "string"}:
                del own["propertyNames"]
            elif listed is not None:
                own["properties"] = {str(name): values for name in listed}
                own["additionalProperties"] = False
                del own["propertyNames"]
            elif pattern is not None:
                own["type"], own["patternProperties"] = _OBJECT, {pattern: {} if values is True else values}
                own.pop("additionalProperties", None)
                del own["propertyNames"]
        patterns = own.get("patternProperties")
        if isinstance(patterns, Mapping) and len(patterns) == 1 and "properties" not in own:
            ((pattern, values),) = patterns.items()
            exact = self._pattern(pattern, f"{path}.patternProperties")
            if exact is None:
                self._lose(own, "patternProperties", path)
            else:
                own["type"], own["patternProperties"] = _OBJECT, {exact: values}

    def _names_pattern(self, names: Mapping[str, Any], path: str) -> str | None:
        """A pattern for what the names of an object are held to; None where there is none."""
        is_bound = names.keys() & {"minLength", "maxLength"}
        pattern = names.get("pattern", FORMATS.get(names.get("format", "")))
        if pattern is None:
            return f"^.{{{names.get('minLength', 0)},{names.get('maxLength', '')}}}$" if is_bound else None
        exact = self._pattern(pattern, path)
        if exact is None or not is_bound:
            return exact
        return with_length(exact, names.get("minLength", 0), names.get("maxLength"))


def _join(joined: dict[str, Any], part: Mapping[str, Any]) -> bool:
    """Whether all of ``part`` could be added to ``joined``."""
    for keyword, value in part.items():
        before = joined.get(keyword, value)
        if keyword == "required":
            joined[keyword] = [
                *joined.get(keyword, ()),
                *(name for name in value if name not in joined.get(keyword, ())),
            ]
        elif keyword == "properties" and not joined.get(keyword, {}).keys() & value.keys():
            joined[keyword] = {**joined.get(keyword, {}), **value}
        elif keyword in _REMARKS - {"type"} or before == value:
            joined[keyword] = before
        else:
            return False
    return True
