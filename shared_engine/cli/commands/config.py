"""``vllm-local config``."""

from __future__ import annotations

import argparse
import json
import os
from typing import Any

from pydantic import SecretStr

from shared_engine.cli.engine_arguments import add_engine_arguments, given_settings
from shared_engine.cli.exit_codes import DONE
from shared_engine.cli.table import as_json, table
from shared_engine.cli.terminal import complain
from shared_engine.config_files import Given
from shared_engine.errors import SettingsError
from shared_engine.setting_sources import misspelt
from shared_engine.settings import SECRET, SETTINGS, EngineSettings
from shared_engine.validation import say_unknown

DEFAULT = "default"
HIDDEN = "********"
NO_MODEL = "no/model"  # settings want one; nothing is looked up under this name
EXAMPLES = (
    "vllm-local config",
    "vllm-local config --given",
    "vllm-local config max_model_len idle_ttl_s",
    "vllm-local config --json --max-model-len 8192",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("names", nargs="*", metavar="SETTING", help="only these (default: all)")
    add_engine_arguments(parser, model=False)
    parser.add_argument("--given", action="store_true", help="only those that are not at their default")
    parser.add_argument("--json", action="store_true", help="an object with value and source for each setting")


def run(arguments: argparse.Namespace) -> int:
    for name in arguments.names:
        if name not in SETTINGS:
            raise SettingsError(say_unknown("setting", name, SETTINGS))
    given = given_settings(arguments)
    needs_model = "model" not in given and "base_url" not in given
    settings = EngineSettings.from_given({**given, "model": Given(NO_MODEL, "")} if needs_model else given)
    names = arguments.names or [name for name in SETTINGS if not arguments.given or name in given]
    rows = [(name, _value(settings, name, given), _source(name, given)) for name in names]
    if arguments.json:
        print(as_json({name: {"value": value, "source": source} for name, value, source in rows}))
    elif rows:
        told = [(name, _as_in_a_file(value), source) for name, value, source in rows]
        print("\n".join(table([("SETTING", "VALUE", "SOURCE"), *told], least=((1, 30),))))
    else:
        print("every setting is at its default")
    for name, meant in misspelt(SETTINGS, os.environ).items():
        complain(f"{name} is set, and no setting reads it; did you mean {meant}?")
    return DONE


def _as_in_a_file(value: Any) -> str:
    """In TOML's words, without quotes; an empty one is not set."""
    if value is None or isinstance(value, str):
        return value or ""
    if isinstance(value, float):
        return f"{value:g}"
    return json.dumps(value, default=str)


def _value(settings: EngineSettings, name: str, given: dict[str, Given]) -> Any:
    """In JSON's types; of a secret only whether there is one."""
    if name == "model" and name not in given:
        return None
    value = getattr(settings, name)
    if name in SECRET or isinstance(value, SecretStr):
        return None if value is None else HIDDEN
    return value


def _source(name: str, given: dict[str, Given]) -> str:
    return given[name].source if name in given else DEFAULT
