"""Where settings come from: what was given, else the environment, else config files. Knows their declarations only."""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Collection, Mapping
from typing import Any

from shared_engine.config_files import Given, default_files, read_files
from shared_engine.declared import Setting
from shared_engine.errors import SettingsError

NEAR = 0.8


def collect(
    settings: Mapping[str, Setting],
    values: Mapping[str, Given],
    files: Collection[str | os.PathLike[str]] | None = None,
) -> dict[str, Given]:
    """Every setting that is given anywhere, from where it counts: ``values``, then the environment, then the files.

    Args:
        settings: all that there are, by name.
        files: an earlier one wins. None: the default ones (config_files.py).

    Raises:
        SettingsError: a file is not to be used, or a variable does not hold JSON.
    """
    environment = {name: Given(value, settings[name].env) for name, value in from_environment(settings, values).items()}
    found: dict[str, Given] = {}
    for layer in (dict(values), environment, read_files(default_files(os.environ) if files is None else files)):
        found |= {
            name: each for name, each in layer.items() if name not in found and not _contradicts(name, each, found)
        }
    return found


def _contradicts(name: str, given: Given, above: Mapping[str, Given]) -> bool:
    """Whether a value of a lower layer names another place for the requests than a higher one."""
    values = {name: each.value for name, each in above.items()}
    if name == "base_url":
        return is_here(values)
    if name == "python":
        return values.get("mode") == "direct"
    return name == "mode" and given.value in ("local", "direct") and "base_url" in values


def is_here(values: Mapping[str, Any]) -> bool:
    """Whether a mode is given that goes to no server."""
    return values.get("mode") in ("local", "direct") and "remote" not in (values.get("fallback") or ())


def from_environment(settings: Mapping[str, Setting], given: Collection[str]) -> dict[str, Any]:
    """The values of settings that were not ``given``; an empty variable counts as unset."""
    values = {name: os.environ.get(each.env) for name, each in settings.items() if name not in given}
    return {
        name: _parse_json(settings[name], value) if settings[name].is_json else value
        for name, value in values.items()
        if value
    }


def misspelt(settings: Mapping[str, Setting], environment: Collection[str]) -> dict[str, str]:
    """Variables that seem to be meant for a setting and are read by none, each with the one that may be meant.

    No name of vLLM's own is near enough to be among them; tests/real/test_cli_on_vllm.py compares them.
    """
    variables = {each.env for each in settings.values()}
    by_setting = {f"VLLM_{name.upper()}": each.env for name, each in settings.items()}
    found = {}
    for name in environment:
        if name.startswith("VLLM_") and name not in variables:
            near = by_setting.get(name) or next(iter(difflib.get_close_matches(name, variables, 1, NEAR)), None)
            if near is not None:
                found[name] = near
    return found


def _parse_json(setting: Setting, value: str) -> Any:
    try:
        return json.loads(value)
    except json.JSONDecodeError as exc:
        shown = "" if setting.is_secret else f", got {value!r}"
        raise SettingsError(f'{setting.env} must be a JSON object such as {{"name": "value"}}{shown}: {exc}') from None
