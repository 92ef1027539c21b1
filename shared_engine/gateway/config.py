"""The configuration of a gateway: read as a whole, checked as a whole, with the line of all that is wrong in it."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from shared_engine.config_files import Given, check_owner, with_paths
from shared_engine.declared import Decides
from shared_engine.errors import SettingsError
from shared_engine.gateway.config_fields import ApiKey, FileFields, ModelFields
from shared_engine.gateway.yaml_file import Document, Place, read_yaml
from shared_engine.launch.replica_sets import check_replicas
from shared_engine.machine.home import expanded
from shared_engine.settings import SETTINGS, EngineSettings
from shared_engine.validation import say_unknown

OF_ENGINES = tuple(name for name, each in SETTINGS.items() if each.decides is not Decides.REQUESTS)
"""The settings that a model may have in the file; what a request is to have stands in ``set_params``."""
# A variable is one for all models, so it can't say which server a model is on, nor may it send one server's secret to
# another, or open a port that the gateway does not guard.
_NOT_FROM_ENVIRONMENT = (
    "model", "mode", "fallback", "base_url", "api_key", "member_weights", "basic_auth", "default_headers",
    "default_query", "proxy_auth", "replicas", "gpu_ids", "lora_adapters", "serve_tcp",
)  # fmt: skip
_MIN_KEY = 8
_KEY = re.compile(rf"[!-~]{{{_MIN_KEY},}}")
_LIKE_A_KEY = f"{_MIN_KEY} or more letters, digits and signs of ASCII, without blanks"
_OF_A_SHELL = re.compile(r"\$[A-Za-z_][A-Za-z0-9_]*")
_TIMES = ("ttl", "idle_ttl_s")
_TRUTH = TypeAdapter(bool)


@dataclass(frozen=True)
class Key:
    """Who may ask for what.

    Attributes:
        models: None for all.
        requests_per_minute: and ``concurrency_limit``: None for as many as it likes.
        is_admin: it may do what others would feel: unload, pin, cancel, read logs, shut down.
    """

    name: str
    secret: str = field(repr=False)
    models: frozenset[str] | None = None
    requests_per_minute: int | None = None
    concurrency_limit: int | None = None
    is_admin: bool = False


@dataclass(frozen=True)
class ModelConfig:
    """One model of the file."""

    id: str
    settings: EngineSettings
    fields: ModelFields = field(default_factory=ModelFields)

    @property
    def adapters(self) -> tuple[str, ...]:
        return tuple(self.settings.lora_adapters or ())


@dataclass(frozen=True)
class Target:
    """What a name means.

    Attributes:
        set_params: what its requests get.
        adapter: the model's LoRA adapter that is meant, None for the model.
    """

    model: str
    set_params: Mapping[str, Any] = field(default_factory=dict)
    adapter: str | None = None


@dataclass(frozen=True)
class GatewayConfig:
    """All of it, checked.

    Attributes:
        names: everything that a request may call a model.
    """

    models: Mapping[str, ModelConfig]
    names: Mapping[str, Target]
    fields: FileFields
    keys: tuple[Key, ...] = ()


def read_config(
    file: str | os.PathLike[str], models: Sequence[str] = (), environment: Mapping[str, str] | None = None
) -> GatewayConfig:
    """The configuration of a file, and of models beside it.

    Args:
        models: folders, or ids on the hub.

    Raises:
        SettingsError: names every line that is wrong, and why.
    """
    path = expanded(Path(file))
    try:
        with path.open(encoding="utf-8") as opened:
            check_owner(path, os.fstat(opened.fileno()))
            text = opened.read()
    except OSError as exc:
        raise SettingsError(f"{path} can't be read: {exc.strerror}") from None
    except UnicodeDecodeError as exc:
        raise SettingsError(f"{path} is not UTF-8: {exc}") from None
    document = read_yaml(path.name, text, os.environ if environment is None else environment)
    return _Check(document, path.absolute().parent).config(models)


def config_of(models: Sequence[str]) -> GatewayConfig:
    """Of models without a file, with the settings of the environment."""
    return _Check(Document("MODEL", {"models": {}}, {}), Path.cwd()).config(models)


def model_id(model: str) -> str:
    """What a model that has no name of its own is called: an id as it is, a folder by its last component."""
    return model if not os.path.isdir(expanded(model)) else os.path.basename(os.path.abspath(expanded(model)))


class _Check:
    """Collects what is wrong."""

    def __init__(self, document: Document, folder: Path) -> None:
        self._document = document
        self._folder = folder
        self._problems: dict[str, None] = {}

    def config(self, more: Sequence[str]) -> GatewayConfig:
        values = self._document.values
        if not isinstance(values, dict):
            raise SettingsError(f"{self._document.name}: must have models: with a name for each")
        fields = self._declared(FileFields, values, ())
        found = [] if fields is None else [self._model(name, each) for name, each in fields.models.items()]
        models = {model.id: model for model in found if model is not None}
        names = self._names(models)
        for model in more:
            self._add(model, models, names)
        keys = () if fields is None else self._keys(fields.api_keys, names)
        if fields is not None and not fields.models and not more:
            self._say("there is no model", "models")
        if self._problems:
            raise SettingsError("\n".join(self._problems))
        assert fields is not None
        return GatewayConfig(models, names, fields, keys)

    def _say(self, text: str, *place: str | int) -> None:
        self._problems[f"{self._document.where(*place)}: {text}"] = None

    def _declared(self, kind: Any, values: Mapping[str, Any], place: Place) -> Any:
        """The values in their class; None where they are wrong, which is said then."""
        try:
            return kind(**values)
        except ValidationError as exc:
            for error in exc.errors(include_url=False, include_context=False):
                inside = tuple(part for part in error["loc"] if part != "[key]")
                message = error["msg"].removeprefix("Value error, ")
                label = ".".join(map(str, (*place, *inside)))
                if error["type"] == "extra_forbidden":
                    message = say_unknown("setting", str(inside[-1]), kind.model_fields)
                elif error["type"] == "missing":
                    message = f"{label} is missing"
                elif inside and inside[0] != "api_keys":  # of which nothing is shown
                    message = f"{label} = {error['input']!r:.80}: {message}"
                else:
                    message = f"{label}: {message}" if label else message
                self._say(message, *place, *inside)
            return None

    # ---- models

    def _model(self, name: str, values: Mapping[str, Any]) -> ModelConfig | None:
        place = ("models", name)
        merged = _merged(self._document.values.get("defaults") or {}, values)
        known = (*ModelFields.model_fields, *OF_ENGINES)
        unknown = [each for each in merged if each not in known]
        for each in unknown:
            self._say(_unknown(each, known), *self._place(name, each))
        own = {each: value for each, value in merged.items() if each in ModelFields.model_fields}
        fields = self._declared(ModelFields, own, place)
        given = {
            each: Given(with_paths(value, self._folder), self._document.where(*self._place(name, each)))
            for each, value in merged.items()
            if each in OF_ENGINES
        }
        if fields is not None and fields.ttl is not None:
            if "idle_ttl_s" in given:
                self._say("ttl and idle_ttl_s are the same: leave one of them out", *self._place(name, "ttl"))
                return None
            where = self._document.where(*self._place(name, "ttl"))
            given["idle_ttl_s"] = Given(fields.ttl or math.inf, where)
        model = self._given(name, given, fields or ModelFields(), f"{self._document.where(*place)}: models.{name}")
        return None if unknown or fields is None else model

    def _add(self, given: str, models: dict[str, ModelConfig], names: dict[str, Target]) -> None:
        """A model beside those of the file: a name that is taken is never taken over."""
        id_, where = model_id(given), f"MODEL {given}"
        if id_ in names:
            there = f"{id_!r} is a name of {names[id_].model!r} already"
            remedy = f"give it another one in a config file: models: {{another: {{model: {given}}}}}"
            self._problems[f"{where}: {there}; {remedy}"] = None
            return
        model = self._given(id_, {"model": Given(given, "MODEL")}, ModelFields(), where)
        if model is not None:
            models[id_] = model
            names[id_] = Target(id_)

    def _place(self, model: str, setting: str) -> Place:
        own: Place = ("models", model, setting)
        return own if own in self._document.lines else ("defaults", setting)

    def _given(self, name: str, given: Mapping[str, Given], fields: ModelFields, where: str) -> ModelConfig | None:
        below = {each: Given(None, "") for each in _NOT_FROM_ENVIRONMENT}
        quiet = {"show_progress": Given(False, "")}
        try:
            settings = EngineSettings.from_given({**below, **quiet, **given})
            check_replicas(settings)
        except SettingsError as exc:
            self._problems[f"{where}: {exc}"] = None
            return None
        if "direct" in settings.modes:
            self._problems[f"{where}: mode: a gateway's engines are processes of their own: leave it out"] = None
            return None
        return ModelConfig(name, settings, fields)

    def _names(self, models: Mapping[str, ModelConfig]) -> dict[str, Target]:
        names: dict[str, Target] = {}
        for id_, model in models.items():
            params = model.fields.set_params
            self._name(names, id_, Target(id_, params), "models", id_)
            for alias, more in model.fields.aliases.items():
                self._name(names, alias, Target(id_, {**params, **more}), "models", id_, "aliases")
            for adapter in model.adapters:
                self._name(names, adapter, Target(id_, params, adapter), "models", id_, "lora_adapters")
        return names

    def _name(self, names: dict[str, Target], name: str, target: Target, *place: str | int) -> None:
        if name in names:
            self._say(f"{name!r} is a name of {names[name].model!r} already", *place)
        names[name] = target

    # ---- keys

    def _keys(self, declared: Sequence[ApiKey], names: Mapping[str, Target]) -> tuple[Key, ...]:
        keys: list[Key] = []
        for index, each in enumerate(declared):
            place = ("api_keys", index)
            secret = self._in_file(each, place) if each.key is None else self._given_key(each, place)
            for model in each.models or ():
                if model not in names:
                    self._say(f"the key {each.name!r} names a model that is not there: {model!r}", *place, "models")
            if any(each.name == other.name or (secret and secret == other.secret) for other in keys):
                self._say(f"the key {each.name!r}, or its name, stands there twice", *place)
            models = None if each.models is None else frozenset(each.models)
            keys.append(Key(each.name, secret, models, each.requests_per_minute, each.concurrency_limit, each.admin))
        return tuple(keys)

    def _given_key(self, key: ApiKey, place: Place) -> str:
        """Without the end of its line, which secrets of Kubernetes often have; nothing where it is wrong."""
        secret = "" if key.key is None else key.key.get_secret_value().strip()
        if _OF_A_SHELL.fullmatch(secret):
            self._say(
                f"the key {key.name!r} begins with $, as a shell's variable does: write ${{env.NAME}}", *place, "key"
            )
        elif _KEY.fullmatch(secret):
            return secret
        else:
            self._say(f"the key {key.name!r} must be {_LIKE_A_KEY}", *place, "key")
        return ""

    def _in_file(self, key: ApiKey, place: Place) -> str:
        file = key.key_file or ""
        path = expanded(with_paths(file, self._folder))
        try:
            secret = path.read_text().strip()
        except (OSError, UnicodeDecodeError):
            self._say(f"key_file = {file!r} can't be read", *place, "key_file")
            return ""
        if _KEY.fullmatch(secret):
            return secret
        self._say(f"key_file = {file!r} must hold one key, of {_LIKE_A_KEY}", *place, "key_file")
        return ""


def _merged(defaults: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """A model's entry over the defaults. Who pins a model, and does not say how long it stays, has it stay."""
    says_time = any(name in own for name in _TIMES)
    pins = own if "pinned" in own else defaults
    if _is_true(pins.get("pinned")) and not says_time and not any(name in pins for name in _TIMES):
        own, says_time = {**own, "ttl": 0}, True
    return {name: value for name, value in defaults.items() if not (says_time and name in _TIMES)} | dict(own)


def _is_true(value: Any) -> bool:
    """As the settings read it, from ``"true"`` of a variable too; what is neither they refuse."""
    try:
        return _TRUTH.validate_python(value)
    except ValidationError:
        return False


def _unknown(name: str, known: Sequence[str]) -> str:
    """Also for who writes names as llama-swap does."""
    if name in SETTINGS:
        return f"{name} is a request's: put it under set_params"
    snake = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()
    return (
        f"unknown setting {name!r}; did you mean {snake!r}?" if snake in known else say_unknown("setting", name, known)
    )
