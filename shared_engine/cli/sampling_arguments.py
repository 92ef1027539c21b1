"""An option for every parameter of a request, for commands that send some; and the parameters that they make."""

from __future__ import annotations

import argparse
from collections.abc import Collection
from typing import Any

from shared_engine import params as params_module
from shared_engine.cli.field_options import add_option
from shared_engine.declared import docstrings
from shared_engine.params import AnswerFields, CallParams, ContextFields, DefaultFields, GenerationParams, SchemaFields

# MODEL names the model; how a call is made, whether it fits, and what becomes of a schema, are settings, which have
# options of these names; what is asked here is the last message.
_NO_OPTION = {
    *("model", "continue_final_message"),
    *CallParams.model_fields,
    *ContextFields.model_fields,
    *AnswerFields.model_fields,
    *SchemaFields.model_fields,
}
_FLAGS = {"enable_thinking": "--think"}
"""What has another name than its own on the command line."""
_USUAL_FIRST = dict.fromkeys((*DefaultFields.model_fields, *GenerationParams.model_fields))
PARAMETERS = tuple(name for name in _USUAL_FIRST if name not in _NO_OPTION)


def add_sampling_arguments(parser: argparse.ArgumentParser, *, without: Collection[str] = ()) -> None:
    """The options, as a group.

    Args:
        without: parameters that the command has no use for, or gives in its own way.
    """
    described = docstrings(params_module)
    group = parser.add_argument_group("answer")
    for name in PARAMETERS:
        if name not in without:
            field = GenerationParams.model_fields[name]
            add_option(group, name, field, described[name], dest=f"param_{name}", flag=_FLAGS.get(name))


def given_parameters(arguments: argparse.Namespace) -> dict[str, Any]:
    """Those that were given, by name, as GenerationParams takes them.

    Raises:
        InvalidInputError: a value is out of range; names it.
    """
    options = {name: getattr(arguments, f"param_{name}", None) for name in PARAMETERS}
    return GenerationParams(**{name: value for name, value in options.items() if value is not None}).given
