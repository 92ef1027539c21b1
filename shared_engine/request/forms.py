"""The JSON schema of a request: in the form that the server can hold an answer to, bounded, and shown to the model."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from shared_engine.errors import InvalidInputError
from shared_engine.launch.spec import chooses_form_backend
from shared_engine.model_files.folder import shows_answer_schemas
from shared_engine.params import GenerationParams
from shared_engine.request.bodies import Tools
from shared_engine.request.checks import Message, check_tools
from shared_engine.schemas.bounds import bounded
from shared_engine.schemas.holding import held
from shared_engine.schemas.showing import with_schema_shown
from shared_engine.settings import EngineSettings

CHECKED = "is_checked"
"""In the ``json_schema`` of a response_format, beside name and schema: whoever asks checks the answer. What a server
can't hold it to is left out, in place of an error. Not sent."""


@dataclass(frozen=True)
class AnswerForm:
    """What becomes of a request for the sake of its schema.

    Attributes:
        params: as they are to be sent.
        shown: the schema that the conversation is to say; None for none.
    """

    params: GenerationParams
    shown: Any = None

    def of(self, messages: Sequence[Message]) -> Sequence[Message]:
        return messages if self.shown is None else with_schema_shown(messages, self.shown)


def answer_form(params: GenerationParams, settings: EngineSettings) -> AnswerForm:
    """For a request with these parameters, which are the settings' with a call's on top.

    Raises:
        InvalidInputError: a local engine can't hold an answer to a part of the schema, and nobody checks it; or the
            schema has a pattern that is none. Says where.
    """
    schema, is_checked = _schema_of(params)
    if schema is None:
        return AnswerForm(params)
    form = held(schema, leaves_out=is_checked)
    if form.lost is not None and not is_checked and not settings.is_remote and not _chooses_backend(settings):
        raise InvalidInputError(
            f"{form.lost}: vLLM can't hold an answer to this, and nobody checks this answer; use a pydantic class, or "
            "leave it out"
        )
    sent = _with_schema(params, _bounded(form.schema, params, settings))
    is_shown = settings.show_schema if params.show_schema is None else params.show_schema
    if not is_shown:
        return AnswerForm(sent)
    if _has_a_place(settings):
        named = sent.response_format or {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}
        variables = {"response_format": named, **(sent.chat_template_kwargs or {})}
        return AnswerForm(sent.model_copy(update={"chat_template_kwargs": variables}))
    return AnswerForm(sent, schema)


def with_held_arguments(tools: Tools | None, params: GenerationParams, settings: EngineSettings) -> Tools | None:
    """The tools, whose strict ones have schemas that vLLM can hold their arguments to.

    Raises:
        InvalidInputError: they are not a list of dicts; or as for ``held``.
    """
    return None if tools is None else [_held_tool(tool, params, settings) for tool in check_tools(tools)]


def _held_tool(tool: Mapping[str, Any], params: GenerationParams, settings: EngineSettings) -> Mapping[str, Any]:
    function = tool.get("function")
    if not isinstance(function, Mapping) or function.get("strict") is not True or not function.get("parameters"):
        return tool
    parameters = held(function["parameters"], leaves_out=True, is_shown=True).schema
    return {**tool, "function": {**function, "parameters": _bounded(parameters, params, settings)}}


def _schema_of(params: GenerationParams) -> tuple[Any, bool]:
    """The schema that an answer is to have, None where it is to have none; and whether whoever asks checks it."""
    named = (params.response_format or {}).get("json_schema")
    if isinstance(named, Mapping):
        return named.get("schema"), named.get(CHECKED) is True
    schema = (params.structured_outputs or {}).get("json")
    if isinstance(schema, str):
        try:
            schema = json.loads(schema)
        except (ValueError, RecursionError) as exc:
            raise InvalidInputError(f"structured_outputs.json is not JSON: {exc}") from exc
    return schema, False


def _with_schema(params: GenerationParams, schema: Any) -> GenerationParams:
    if params.response_format is None:
        return params.model_copy(update={"structured_outputs": {**(params.structured_outputs or {}), "json": schema}})
    named = {name: value for name, value in params.response_format["json_schema"].items() if name != CHECKED}
    sent = {**params.response_format, "json_schema": {**named, "schema": schema}}
    return params.model_copy(update={"response_format": sent})


def _bounded(schema: Any, params: GenerationParams, settings: EngineSettings) -> Any:
    length, items = (
        getattr(settings, name) if getattr(params, name) is None else getattr(params, name)
        for name in ("schema_max_length", "schema_max_items")
    )
    return schema if length is None and items is None else bounded(schema, length, items)


def _chooses_backend(settings: EngineSettings) -> bool:
    return chooses_form_backend(settings.engine_args)


def _has_a_place(settings: EngineSettings) -> bool:
    folder = None if settings.is_remote else settings.model_folder()
    return folder is not None and shows_answer_schemas(folder)
