"""Options of the command line made of declared fields: of settings, and of a request's parameters.

An option only reads words: what a value may be is checked by the field itself, as for a program.
"""

from __future__ import annotations

import argparse
import re
import types
from collections.abc import Iterator
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from shared_engine.cli.argument_types import json_object

_SEVERAL = " (may be repeated)"


def add_option(
    group: argparse._ArgumentGroup,
    name: str,
    field: FieldInfo,
    description: str,
    *,
    dest: str,
    flag: str | None = None,
) -> argparse.Action:
    """Add the option for a field: ``--max-model-len N``. It is None where it is not given.

    Args:
        description: the field's docstring; its first sentence becomes the help.
        flag: its name, where it is another one.
    """
    text = _as_in_a_help(first_sentence(description)).replace("%", "%%")
    flag = flag or f"--{name.replace('_', '-')}"
    kinds = set(_kinds(field.annotation))
    if kinds == {bool}:
        return group.add_argument(flag, dest=dest, action=argparse.BooleanOptionalAction, help=text)
    if dict in kinds:
        return group.add_argument(flag, dest=dest, type=json_object, metavar="JSON", help=text)
    if list in kinds:
        metavar = "N" if int in _items(field.annotation) else "TEXT"
        return group.add_argument(flag, dest=dest, action="append", metavar=metavar, help=text + _SEVERAL)
    if bool in kinds:  # or a number: logprobs; or a text: serve_tcp
        metavar = "TEXT" if str in kinds else "N"
        return group.add_argument(flag, dest=dest, nargs="?", const=True, metavar=metavar, help=text)
    words = [str(word) for kind in kinds if isinstance(kind, tuple) for word in kind]
    if words and len(kinds) == 1:
        return group.add_argument(flag, dest=dest, choices=words, help=text)
    if {int, float} & kinds:
        words.insert(0, "N")
    return group.add_argument(flag, dest=dest, metavar="|".join(words) or "TEXT", help=text)


def _kinds(annotation: Any) -> Iterator[Any]:
    """What a value may be: types, and a tuple of the words for a Literal; None is what is not given."""
    origin = get_origin(annotation)
    if origin in (Union, types.UnionType):
        for each in get_args(annotation):
            yield from _kinds(each)
    elif origin is Annotated:
        yield from _kinds(get_args(annotation)[0])
    elif origin is Literal:
        yield get_args(annotation)
    elif annotation is not type(None):
        yield origin or annotation


def _items(annotation: Any) -> set[Any]:
    """What the lists among a value's types have in them."""
    if get_origin(annotation) is list:
        return set(_kinds(get_args(annotation)[0]))
    return {kind for each in get_args(annotation) for kind in _items(each)}


def _as_in_a_help(sentence: str) -> str:
    """Without the capital of its first word, unless that has others: ``LoRA``, ``HTTP``."""
    word = sentence.partition(" ")[0]
    return sentence[:1].lower() + sentence[1:] if word[1:] == word[1:].lower() else sentence


def first_sentence(description: str) -> str:
    """Of a docstring, in one line, without marks and full stop."""
    text = " ".join(description.split()).replace("``", "")
    sentence = re.match(r".*?(?<!\.)\.(?= |$)", text)
    return (sentence[0] if sentence else text).rstrip(".")
