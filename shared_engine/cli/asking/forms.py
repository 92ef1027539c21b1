"""What holds an answer to a form, from the command line: ``--json``, ``--choice``, ``--regex``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from shared_engine.errors import InvalidInputError
from shared_engine.machine.home import expanded

PLAIN_JSON = ""
"""``--json`` without a schema."""


def form_parameters(schema: str | None, choices: Sequence[str] | None, regex: str | None) -> dict[str, Any]:
    """The parameters of a request; none without a form.

    Args:
        schema: of ``--json``: PLAIN_JSON, a JSON object, or a file that has one.

    Raises:
        InvalidInputError: more than one is given, or the schema is none.
    """
    given = [
        name for name, value in (("--json", schema), ("--choice", choices), ("--regex", regex)) if value is not None
    ]
    if len(given) > 1:
        raise InvalidInputError(f"{' and '.join(given)} both hold the answer to a form: pass one of them")
    if choices is not None:
        named = [each.strip() for each in (choices[0].split(",") if len(choices) == 1 else choices)]
        if not all(named):
            raise InvalidInputError(f"--choice {','.join(choices)!r} has an empty choice: --choice A,B,C")
        return {"structured_outputs": {"choice": named}}
    if regex is not None:
        return {"structured_outputs": {"regex": regex}}
    if schema == PLAIN_JSON:
        return {"response_format": {"type": "json_object"}}
    if schema is not None:
        named_schema = {"name": "answer", "schema": _schema(schema), "strict": True}
        return {"response_format": {"type": "json_schema", "json_schema": named_schema}}
    return {}


def _schema(given: str) -> dict[str, Any]:
    where, text = "--json", given
    if not given.lstrip().startswith("{"):
        where = f"--json {given!r:.80}"
        try:
            text = expanded(given).read_text()
        except FileNotFoundError:
            raise InvalidInputError(
                f"{where} is neither a JSON object nor a file; for JSON without a schema put --json last: "
                "MODEL PROMPT --json"
            ) from None
        except (OSError, ValueError) as exc:
            raise InvalidInputError(f"{where} can't be read: {exc}") from exc
    try:
        schema = json.loads(text)
    except json.JSONDecodeError as exc:
        raise InvalidInputError(f"{where} is not JSON: {exc}") from exc
    if not isinstance(schema, dict):
        raise InvalidInputError(f"{where} must be a JSON schema, an object, got {type(schema).__name__}")
    return schema
