"""Regular expressions of JSON schemas, as xgrammar reads them.

By the standard a pattern is searched for: ``@`` is any text with an @ in it. xgrammar takes it for the whole text,
anchors or not, so that the answer could be nothing but "@"; it ignores what it does not know (lookahead), or vLLM
refuses the request for it (``\\b``, ``\\p{L}``, backreferences).
"""

from __future__ import annotations

import re

# What stands between two quotes of a JSON string, and needs no escape, is all that a pattern of xgrammar can write.
_ANYTHING = ".*"
_CLASS_ESCAPES = frozenset("dDwWsS")
_IN_SETS = frozenset("nrtfv")  # outside a set, JSON would have to write them with a backslash, which no pattern can
_GROUPS = re.compile(r"\?(?::|P?<[A-Za-z_]\w*>)")
_COUNT = re.compile(r"\{(\d+)(,(\d*))?\}")
_TOKEN = re.compile(r"\\.|\[\^?(?:\\.|[^\]\\])(?:\\.|[^\]\\])*\]|.", re.DOTALL)
_HEX = re.compile(r"u[0-9A-Fa-f]{4}|x[0-9A-Fa-f]{2}")
_WITH_A_BACKSLASH = frozenset((*range(0x20), ord('"'), ord("\\")))

_YEAR = r"(?:\d{3}[1-9]|\d{2}[1-9]0|\d[1-9]00|[1-9]000)"
_LEAP_YEAR = r"(?:\d{2}(?:0[48]|[2468][048]|[13579][26])|(?:0[48]|[2468][048]|[13579][26])00)"
_DATE = (
    rf"(?:{_YEAR}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12]\d|3[01])|(?:0[469]|11)-(?:0[1-9]|[12]\d|30)"
    rf"|02-(?:0[1-9]|1\d|2[0-8]))|{_LEAP_YEAR}-02-29)"
)
_TIME = r"(?:[01]\d|2[0-3]):[0-5]\d:[0-5]\d(?:\.\d{1,6}){0,1}"
_OFFSET = r"(?:Z|[+-](?:[01]\d|2[0-3]):[0-5]\d)"
_BYTE = r"(?:25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)"
_IPV4 = rf"(?:{_BYTE}\.){{3}}{_BYTE}"
_HEXES = "[0-9a-f]"
_NUMBER = r"-?\d+(?:\.\d+){0,1}"

FORMATS = {
    name: f"^{pattern}$"
    for name, pattern in {
        # xgrammar's own let the 31st of April, a second 60, and a zero before a byte pass.
        "date": _DATE,
        "time": _TIME + _OFFSET,
        "date-time": f"{_DATE}T{_TIME}{_OFFSET}",
        "ipv4": _IPV4,
        # Those that xgrammar does not know: of pydantic's types, and of classes (adapting/class_schemas.py).
        "naive-time": _TIME,
        "naive-date-time": f"{_DATE}T{_TIME}",
        "any-time": f"{_TIME}{_OFFSET}{{0,1}}",
        "any-date-time": f"{_DATE}T{_TIME}{_OFFSET}{{0,1}}",
        "uuid": f"{_HEXES}{{8}}-{_HEXES}{{4}}-{_HEXES}{{4}}-{_HEXES}{{4}}-{_HEXES}{{12}}",
        "integer": r"(?:0|-?[1-9]\d*)",
        "decimal": _NUMBER,
        "complex": rf"{_NUMBER}(?:[+-]\d+(?:\.\d+){{0,1}}j){{0,1}}",
        "ipv4interface": rf"{_IPV4}(?:/(?:3[0-2]|[12]?\d)){{0,1}}",
        "base64": "(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=){0,1}",
        "base64url": "(?:[A-Za-z0-9_-]{4})*(?:[A-Za-z0-9_-]{2}==|[A-Za-z0-9_-]{3}=){0,1}",
        **{
            f"uuid{version}": f"{_HEXES}{{8}}-{_HEXES}{{4}}-{version}{_HEXES}{{3}}-[89ab]{_HEXES}{{3}}-{_HEXES}{{12}}"
            for version in range(1, 9)
        },
    }.items()
}
"""Formats of strings as patterns, where those of xgrammar are missing or let wrong values pass."""


class InvalidPatternError(ValueError):
    """It is not a regular expression."""


def held_pattern(pattern: str) -> str | None:
    """The pattern in a form that xgrammar holds a string to; None where there is none. It may allow less than the
    pattern itself: nothing that JSON writes with a backslash.

    Raises:
        InvalidPatternError: a group or a set has no end, or no beginning.
    """
    flags, pattern = ("(?i)", pattern[4:]) if pattern.startswith("(?i)") else ("", pattern)
    branches = _branches(pattern)
    if branches is None:
        return None
    whole = [_whole(tokens) for tokens in branches]
    if None in whole:
        return None
    return f"{flags}^{whole[0]}$" if len(whole) == 1 else f"{flags}^(?:{'|'.join(map(str, whole))})$"


def with_length(pattern: str, least: int, most: int | None) -> str | None:
    """A pattern of ``held_pattern`` that allows only texts of this length; None where that can't be said.

    It can of one kind of characters, repeated: ``^[A-Z]+$`` with 2 to 4 characters is ``^[A-Z]{2,4}$``.
    """
    tokens = _TOKEN.findall(pattern.removeprefix("(?i)").removeprefix("^").removesuffix("$"))
    if not tokens or tokens[0] in ("(", "^", "$", "|"):
        return None
    rest = "".join(tokens[1:])
    count = _COUNT.fullmatch(rest)
    if rest in ("+", "*"):
        low, high = int(rest == "+"), None
    elif count:
        low = int(count[1])
        high = low if count[2] is None else int(count[3]) if count[3] else None
    else:
        return None
    low = max(low, least)
    high = most if high is None else high if most is None else min(high, most)
    if high is not None and high < low:
        return None
    flags = "(?i)" if pattern.startswith("(?i)") else ""
    return f"{flags}^{tokens[0]}{{{low},{'' if high is None else high}}}$"


def _branches(pattern: str) -> list[list[str]] | None:
    """The alternatives, each as its tokens; None where a token is of a kind that xgrammar does not hold."""
    branches: list[list[str]] = [[]]
    depth, at, is_held = 0, 0, True
    while at < len(pattern):
        match = _TOKEN.match(pattern, at)
        assert match is not None
        token = match[0]
        at = match.end()
        if token == "[":
            if "]" not in pattern[at:]:
                raise InvalidPatternError("a set has no end")
            is_held = False
        elif token == "(":
            depth += 1
            group = _GROUPS.match(pattern, at)
            if group:
                token, at = "(?:", group.end()
            elif pattern[at : at + 1] == "?":
                is_held = False
        elif token == ")":
            depth -= 1
            if depth < 0:
                raise InvalidPatternError("a group has no beginning")
        elif token == "{":
            count = _COUNT.match(pattern, at - 1)
            if count is None:
                is_held = False
            else:
                token, at = count[0], count.end()
        elif len(token) > 1 and token[0] == "\\":
            hexes = _HEX.match(pattern, match.start() + 1)
            if hexes:
                token, at = f"\\{hexes[0]}", hexes.end()
        if token == "?" and branches[-1][-1:] == [")"]:
            # Of a group with a repetition, `(b1+)?`, xgrammar takes a part without the beginning: "1".
            token, at = "{0,1}", at + (pattern[at : at + 1] == "?")
        if token == "|" and depth == 0:
            branches.append([])
        else:
            branches[-1].append(token)
    if depth:
        raise InvalidPatternError("a group has no end")
    return branches if is_held and all(_is_held(token) for each in branches for token in each) else None


def _is_held(token: str) -> bool:
    if token[0] == "[":
        letters = {escape[1] for escape in re.findall(r"\\.", token)} - _CLASS_ESCAPES - _IN_SETS - {"x", "u"}
        return not (token.startswith("[[") or "&&" in token or any(letter.isalnum() for letter in letters))
    if token[0] != "\\":
        return token != '"'
    if len(token) > 2:  # \u0041
        return int.from_bytes(bytes.fromhex(token[2:])) not in _WITH_A_BACKSLASH
    letter = token[1]
    is_anchor = letter in "AzZ"  # in the middle it is refused there
    return is_anchor or letter in _CLASS_ESCAPES or not (letter.isalnum() or letter in '"\\')


def _whole(tokens: list[str]) -> str | None:
    """One alternative as a match of the whole text; None if it has an anchor in its middle."""
    begins = bool(tokens) and tokens[0] in ("^", "\\A")
    tokens = tokens[begins:]
    ends = bool(tokens) and tokens[-1] in ("$", "\\z", "\\Z")
    tokens = tokens[: len(tokens) - ends]
    if any(token in ("^", "$", "\\A", "\\z", "\\Z") for token in tokens):
        return None
    body = "".join(tokens)
    return ("" if begins else _ANYTHING) + body + ("" if ends else _ANYTHING)
