"""The parameters of one request: a call's over the constructor's. Pure.

What the call says replaces what contradicts it, even under another name: three parameters switch thinking, and two
hold an answer to a form.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from shared_engine.errors import InvalidInputError
from shared_engine.params import THINKING_SWITCHES

_THINKING = ("enable_thinking", "reasoning_effort")
_FORMS = ("response_format", "structured_outputs")
_MERGED = ("chat_template_kwargs", "extra_body")
_OWN = (*_FORMS, *_THINKING, "n")


def merged_parameters(defaults: Mapping[str, Any], call: Mapping[str, Any]) -> dict[str, Any]:
    """``call`` over ``defaults``.

    Raises:
        InvalidInputError: the call holds the answer to two forms.
    """
    below, above = _with_own_fields(defaults), _with_own_fields(call)
    if _says_thinking(above):
        below = {name: value for name, value in below.items() if name not in _THINKING}
        variables = below.get("chat_template_kwargs") or {}
        below["chat_template_kwargs"] = {name: variables[name] for name in variables if name not in THINKING_SWITCHES}
    forms = [name for name in _FORMS if above.get(name) is not None]
    if len(forms) > 1:
        raise InvalidInputError(f"{' and '.join(forms)} both hold the answer to a form: pass one of them")
    if forms:
        below = {name: value for name, value in below.items() if name not in _FORMS}
    both = {name: {**(below.get(name) or {}), **(above.get(name) or {})} or None for name in _MERGED}
    return {**below, **above, **both}


def _with_own_fields(values: Mapping[str, Any]) -> dict[str, Any]:
    """What ``extra_body`` has under the name of a parameter of ours is that parameter."""
    body = dict(values.get("extra_body") or {})
    variables = {**(values.get("chat_template_kwargs") or {}), **(body.pop("chat_template_kwargs", None) or {})}
    own = {name: body.pop(name) for name in _OWN if name in body}
    return {**values, **own, "chat_template_kwargs": variables or None, "extra_body": body or None}


def _says_thinking(values: Mapping[str, Any]) -> bool:
    variables = values.get("chat_template_kwargs") or {}
    return any(values.get(name) is not None for name in _THINKING) or any(
        name in variables for name in THINKING_SWITCHES
    )
