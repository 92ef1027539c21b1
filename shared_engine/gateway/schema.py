"""The JSON schema of models.yaml, for editors: made of the declarations."""

from __future__ import annotations

from typing import Any

from shared_engine import settings as settings_module
from shared_engine.declared import docstrings
from shared_engine.gateway.config import OF_ENGINES
from shared_engine.gateway.config_fields import FileFields, ModelFields
from shared_engine.settings import EngineSettings

_FROM_ENVIRONMENT = {"type": "string", "pattern": r"\$\{env\."}


def models_schema() -> dict[str, Any]:
    """The schema, as JSON has it."""
    file, model, engine = (kind.model_json_schema() for kind in (FileFields, ModelFields, EngineSettings))
    described = docstrings(settings_module)
    properties: dict[str, Any] = dict(model["properties"])
    for name in OF_ENGINES:
        properties[name] = {**engine["properties"][name], "description": " ".join(described[name].split())}
    definitions = {**file.pop("$defs", {}), **model.get("$defs", {}), **engine.get("$defs", {})}
    definitions["Model"] = {
        "type": ["object", "null"],
        "description": " ".join((ModelFields.__doc__ or "").split()),
        "properties": {name: _or_variable(each) for name, each in sorted(properties.items())},
        "additionalProperties": False,
    }
    file["properties"]["models"] = {
        "description": file["properties"]["models"]["description"],
        "type": "object",
        "additionalProperties": {"$ref": "#/$defs/Model"},
    }
    file["properties"]["defaults"] = {
        "$ref": "#/$defs/Model", "description": file["properties"]["defaults"]["description"]
    }  # fmt: skip
    aliases = definitions["Model"]["properties"]["aliases"]["anyOf"]
    aliases.append({"type": "array", "items": {"type": "string"}})
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **file,
        "title": "models.yaml",
        "$defs": definitions,
    }


def _or_variable(field: dict[str, Any]) -> dict[str, Any]:
    """A field, or a text that names a variable of the environment."""
    told: dict[str, Any] = {name: field[name] for name in ("description", "default") if name in field}
    kinds = {name: each for name, each in field.items() if name not in (*told, "title")}
    return {**told, "anyOf": [*(kinds["anyOf"] if set(kinds) == {"anyOf"} else [kinds]), dict(_FROM_ENVIRONMENT)]}
