"""MODEL and an option for every setting, for commands that use an engine; and the engine that they make."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from shared_engine import settings as settings_module
from shared_engine.cli.disk_models import model_named
from shared_engine.cli.field_options import add_option
from shared_engine.cli.interrupts import importing
from shared_engine.config_files import Given
from shared_engine.declared import Decides, docstrings
from shared_engine.errors import SettingsError
from shared_engine.setting_sources import collect
from shared_engine.settings import SECRET, SETTINGS, EngineSettings

if TYPE_CHECKING:
    from shared_engine.engine import Engine

FROM_ELSEWHERE = "-"
NO_FILE = "none"
_USUAL = (
    "base_url", "api_key", "mode", "max_model_len", "dtype", "quantization", "gpu_memory_utilization",
    "tensor_parallel_size", "engine_args", "idle_ttl_s", "pinned",
)  # fmt: skip
# MODEL is the first; a request's own seed is meant by --seed, the engine's goes into --engine-args.
_NO_OPTION = ("model", "seed")
OPTIONS = tuple(
    name for name, each in SETTINGS.items() if each.decides is not Decides.REQUESTS and name not in _NO_OPTION
)
"""Settings that have an option; defaults of requests are a request's parameters here (sampling_arguments.py)."""


def add_engine_arguments(parser: argparse.ArgumentParser, *, model: bool = True) -> None:
    """MODEL, unless the command has its own, and the options; ``--help`` leaves the rare ones to ``--help-all``."""
    if model:
        text = "folder of a model, its id on the Hugging Face hub, or of a model on this disk the last part of its name"
        other = f'"{FROM_ELSEWHERE}": the model of VLLM_MODEL_PATH, of a config file, or of the server at --base-url'
        parser.add_argument("model", metavar="MODEL", help=f"{text}; {other}")
    described = docstrings(settings_module)
    usual = parser.add_argument_group("engine")
    rare = parser.add_argument_group("further settings (docs/settings.md)")
    add_config_argument(usual)
    hidden: dict[argparse.Action, str | None] = {}
    for name in (*_USUAL, *(name for name in OPTIONS if name not in _USUAL)):
        field = EngineSettings.model_fields[name]
        group = usual if name in _USUAL else rare
        action = add_option(group, name, field, described[name], dest=f"setting_{name}")
        if name in SECRET:
            action.help = (
                f"{action.help}; other users may see command lines: rather {SETTINGS[name].env}, or a config file"
            )
        if group is rare:
            hidden[action], action.help = action.help, argparse.SUPPRESS
    parser.add_argument(
        "--help-all", action=_HelpAll, nargs=0, hidden=hidden, help="show this help with every setting, and exit"
    )


def add_config_argument(group: argparse._ActionsContainer) -> None:
    """Which config files are read."""
    usual = "./vllm-local.toml and ~/.config/vllm-local/config.toml"
    group.add_argument("--config", metavar="FILE", help=f'read this file instead of {usual}; "{NO_FILE}": none')


class _HelpAll(argparse.Action):
    """Prints the help with what is otherwise left out of it."""

    def __init__(self, *args: Any, hidden: Mapping[argparse.Action, str | None], **options: Any) -> None:
        super().__init__(*args, **options)
        self.hidden = hidden
        """The help of options that ``--help`` does not show."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        self.reveal()
        parser.print_help()
        parser.exit()

    def reveal(self) -> None:
        for action, text in self.hidden.items():
            action.help = text


def reveal_all(parser: argparse.ArgumentParser) -> None:
    """Have the parser's help show every option."""
    for action in parser._actions:
        if isinstance(action, _HelpAll):
            action.reveal()


def given_settings(arguments: argparse.Namespace) -> dict[str, Given]:
    """Every setting that was given: as an option, in the environment, in a config file; each from where it counts.

    Raises:
        SettingsError: a config file can't be used, a variable does not hold JSON, or MODEL is short for several.
    """
    options = {name: getattr(arguments, f"setting_{name}", None) for name in OPTIONS}
    given = {name: Given(value, f"--{name.replace('_', '-')}") for name, value in options.items() if value is not None}
    model = getattr(arguments, "model", None)
    if model not in (None, FROM_ELSEWHERE):
        given["model"] = Given(model, "")
    files: Sequence[str] | None = None if arguments.config is None else [arguments.config]
    found = collect(SETTINGS, given, [] if arguments.config == NO_FILE else files)
    if "model" in given and "base_url" not in found:
        place = found.get("download_dir")
        name = model_named(str(model), None if place is None else str(place.value))
        found["model"] = Given(name, "")
    return found


def settings_of(arguments: argparse.Namespace, **defaults: Any) -> EngineSettings:
    """The settings of all that was given.

    Args:
        defaults: of the command, below all else.

    Raises:
        SettingsError: names the setting, its value, and where it came from.
    """
    below = {name: Given(value, "") for name, value in defaults.items()}
    given = {**below, **given_settings(arguments)}
    if not given.keys() & {"model", "base_url", "mode"}:
        raise SettingsError(
            "no model: name a folder or a Hugging Face id here, in VLLM_MODEL_PATH, or as model in a config file; "
            "for a server that already runs, pass --base-url http://host:8000/v1"
        )
    return EngineSettings.from_given(given)


def engine_of(arguments: argparse.Namespace, **defaults: Any) -> Engine:
    """An engine of ``settings_of``; nothing is started."""
    settings = settings_of(arguments, **defaults)
    with importing():
        from shared_engine.engine import Engine  # late: a help does without

    return Engine(settings)
