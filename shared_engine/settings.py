"""EngineSettings: every setting, with its environment variable, range, default and what it decides, declared once.

``EngineFields`` holds the settings that the adapters' own model classes carry too, under the same names; the
adapters inherit it, so a setting is defined once.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, ConfigDict, Field, SecretStr, ValidationError, model_validator

from shared_engine.declared import Decides, Setting, declared
from shared_engine.errors import SettingsError
from shared_engine.model_files.folder import context_window, model_folder
from shared_engine.params import DefaultFields
from shared_engine.validation import describe_invalid

SECRET = ("api_key",)
# Decided by how the engine is shared; another value would make it unreachable or public.
_RESERVED_FLAGS = {"uds", "host", "port", "api_key", "served_model_name", "headless", "ssl_keyfile", "ssl_certfile"}


def _normalize_engine_args(args: dict[str, Any]) -> dict[str, Any]:
    normal: dict[str, Any] = {}
    for name, value in args.items():
        flag = name.lstrip("-").replace("-", "_")
        if flag in EngineFields.model_fields and flag in FLAGS:  # seed is a setting of Engine alone
            raise ValueError(f"{name!r} is a setting of its own: pass {flag}=... instead")
        if flag in _RESERVED_FLAGS:
            raise ValueError(f"{name!r} is chosen by vllm-local and can't be set")
        if isinstance(value, str) and value.startswith(("./", "../", "~")):
            value = os.path.abspath(os.path.expanduser(value))
        normal[flag] = value
    return normal


def _absolute_path(value: str | None) -> str | None:
    return None if value is None else os.path.abspath(os.path.expanduser(value))


def _http_url(value: str | None) -> str | None:
    if value is None:
        return None
    if not value.startswith(("http://", "https://")):
        raise ValueError("must start with http:// or https://, such as http://127.0.0.1:8000/v1")
    try:
        parts = urlsplit(value)
        has_host = bool(parts.hostname) and parts.port != 0
    except ValueError as exc:
        raise ValueError(f"is not a valid URL: {exc}") from None
    if not has_host:
        raise ValueError("has no host; it must be like http://127.0.0.1:8000/v1")
    if parts.username or parts.password:
        raise ValueError("must not carry a name or password: pass api_key")
    # The OpenAI client libraries name the /v1 root, vLLM's own routes lie beside it: keep the server's root.
    return value.rstrip("/").removesuffix("/v1")


Fraction = Annotated[float, Field(gt=0, le=1)]
Seconds = Annotated[float, Field(gt=0)]


class EngineFields(DefaultFields):
    """The settings of an engine, as a pydantic mixin.

    Raises:
        SettingsError: on construction; names field, value and what is allowed.
    """

    model: Annotated[str | None, Field(min_length=1), Setting("VLLM_MODEL_PATH", Decides.ENGINE, "--model")] = None
    """Folder of a model, or its id on the Hugging Face hub."""
    mode: Annotated[Literal["local", "remote"] | None, Setting("VLLM_MODE", Decides.CALLS)] = None
    """``local``: a shared engine of this machine; ``remote``: the server at ``base_url``. Default: by base_url."""
    base_url: Annotated[str | None, AfterValidator(_http_url), Setting("VLLM_API_URL", Decides.CALLS)] = None
    """A remote vLLM server, with or without ``/v1``. It is never started, stopped or put to sleep."""
    api_key: Annotated[SecretStr | None, Setting("VLLM_API_KEY", Decides.CALLS)] = None
    """Sent to ``base_url`` as a bearer token."""
    python: Annotated[str | None, AfterValidator(_absolute_path), Setting("VLLM_PYTHON", Decides.ENGINE)] = None
    """Interpreter that has vLLM. Default: the one made by ``vllm-local install``, else this one if it has vLLM."""

    gpu_memory_utilization: Annotated[
        Fraction, Setting("VLLM_GPU_MEMORY_UTILIZATION", Decides.ENGINE, "--gpu-memory-utilization")
    ] = 0.9
    """Share of the GPU's memory for weights, activations and KV cache."""
    max_model_len: Annotated[
        int | None, Field(gt=0), Setting("VLLM_MAX_MODEL_LEN", Decides.ENGINE, "--max-model-len")
    ] = None
    """Longest prompt and answer together, in tokens. Default: the model's own."""
    tensor_parallel_size: Annotated[
        int, Field(ge=1), Setting("VLLM_TENSOR_PARALLEL_SIZE", Decides.ENGINE, "--tensor-parallel-size")
    ] = 1
    """Number of GPUs the model is split over."""
    dtype: Annotated[
        Literal["auto", "half", "float16", "bfloat16", "float", "float32"],
        Setting("VLLM_DTYPE", Decides.ENGINE, "--dtype"),
    ] = "auto"
    """Data type of weights and activations."""
    quantization: Annotated[str | None, Setting("VLLM_QUANTIZATION", Decides.ENGINE, "--quantization")] = None
    """Quantization method. Default: what the model's config says."""
    revision: Annotated[str | None, Setting("VLLM_REVISION", Decides.ENGINE, "--revision")] = None
    """Branch, tag or commit of the model on the hub."""
    tokenizer: Annotated[str | None, Setting("VLLM_TOKENIZER", Decides.ENGINE, "--tokenizer")] = None
    """Folder or hub id of another tokenizer."""
    download_dir: Annotated[
        str | None, AfterValidator(_absolute_path), Setting("VLLM_DOWNLOAD_DIR", Decides.ENGINE, "--download-dir")
    ] = None
    """Where weights from the hub are stored."""
    enforce_eager: Annotated[bool, Setting("VLLM_ENFORCE_EAGER", Decides.ENGINE, "--enforce-eager")] = False
    """No compilation, no CUDA graphs: starts faster, answers slower."""
    trust_remote_code: Annotated[bool, Setting("VLLM_TRUST_REMOTE_CODE", Decides.ENGINE, "--trust-remote-code")] = False
    """Run Python code that comes with the model. Off: that is the user's decision."""
    visible_devices: Annotated[str | None, Setting("VLLM_VISIBLE_DEVICES", Decides.ENGINE)] = None
    """CUDA_VISIBLE_DEVICES of the engine, such as ``"0,1"``. Default: the environment's."""
    engine_args: Annotated[
        dict[str, Any],
        AfterValidator(_normalize_engine_args),
        Setting("VLLM_ENGINE_ARGS", Decides.ENGINE, is_json=True),
    ] = Field(default_factory=dict)
    """Any other vLLM flag, such as ``{"max_num_seqs": 64}``; True and False stand for ``--flag`` and ``--no-flag``."""

    idle_ttl_s: Annotated[Seconds, Setting("VLLM_IDLE_TTL_SECONDS", Decides.KEEPING)] = 1800
    """Seconds after the end of the last request until the model leaves memory; ``float("inf")`` for never."""
    sleep_after_s: Annotated[Seconds | None, Setting("VLLM_SLEEP_AFTER_SECONDS", Decides.KEEPING)] = None
    """Seconds after the end of the last request until the weights go to RAM, from where the next
    request brings them back.

    None: never. CUDA only (vLLM's sleep mode, level 1); on a CPU build it has no effect: weights are in RAM there."""
    standby: Annotated[bool, Setting("VLLM_STANDBY", Decides.KEEPING)] = True
    """Keep vLLM imported, without GPU memory, after the model has left, so that it comes back faster."""
    standby_ttl_s: Annotated[Seconds, Setting("VLLM_STANDBY_TTL_SECONDS", Decides.KEEPING)] = 1800
    """Seconds until standby ends too."""
    pinned: Annotated[bool, Setting("VLLM_PINNED", Decides.KEEPING)] = False
    """Never evict this engine to make room for another one. ``idle_ttl_s`` holds all the same."""
    max_loaded_engines: Annotated[int | None, Field(ge=1), Setting("VLLM_MAX_LOADED_ENGINES", Decides.KEEPING)] = None
    """At most so many engines loaded on the device: idle ones are evicted before this one starts, least recently used
    first; when all are busy or pinned, it waits. None: as many as fit in memory."""
    start_timeout_s: Annotated[Seconds, Setting("VLLM_START_TIMEOUT_SECONDS", Decides.KEEPING)] = 900
    """How long a caller waits for the engine to be ready, in seconds."""
    stall_timeout_s: Annotated[Seconds, Setting("VLLM_STALL_TIMEOUT_SECONDS", Decides.KEEPING)] = 300
    """Seconds without any progress after which the engine is taken for hung, and ended: in a start no line in the log
    and no use of the processor, with requests running no step of vLLM's scheduler."""
    show_progress: Annotated[bool, Setting("VLLM_SHOW_PROGRESS", Decides.CALLS)] = True
    """Show a bar on the terminal when a call waits more than a second for a start. Off: log lines only."""
    timeout: Annotated[float | None, Field(gt=0), Setting("VLLM_REQUEST_TIMEOUT_SECONDS", Decides.CALLS)] = 600
    """Seconds a request may go without receiving a byte; None for no limit. Starting the engine is not counted."""
    max_retries: Annotated[int, Field(ge=0), Setting("VLLM_MAX_RETRIES", Decides.CALLS)] = 2
    """How often a request is tried again after a failure that can't have reached the caller."""

    if not TYPE_CHECKING:  # checkers and editors see the fields instead

        def __init__(self, *positional: Any, **values: Any) -> None:
            if positional:
                name = type(self).__name__
                raise SettingsError(f"settings are keywords: {name}(model=...), got {name}({positional[0]!r:.80})")
            try:
                super().__init__(**values)
            except ValidationError as exc:
                message = describe_invalid(exc, type(self).model_fields, "setting", SECRET, self._sources(values))
                raise SettingsError(message) from None

    @classmethod
    def _sources(cls, given: Collection[str]) -> dict[str, str]:  # noqa: ARG003
        """Names of the environment variables that values not ``given`` came from, by field."""
        return {}

    def engine_settings(self) -> EngineSettings:
        """The settings that were given here; what was not comes from the environment."""
        given = {name: getattr(self, name) for name in EngineFields.model_fields if name in self.model_fields_set}
        return EngineSettings(**given)

    def __getstate__(self) -> dict[Any, Any]:
        """For pickling: without the secret, which the other process reads from VLLM_API_KEY."""
        state = super().__getstate__()
        return {
            **state,
            "__dict__": {**state["__dict__"], **dict.fromkeys(SECRET)},
            "__pydantic_fields_set__": state["__pydantic_fields_set__"] - set(SECRET),
        }


class EngineSettings(EngineFields):
    """Everything that decides an engine and the defaults of its requests; from arguments, then the environment.

    Frozen; equal settings share one engine process (``Decides.ENGINE``, see launch/spec.py).

    Raises:
        SettingsError: on construction; names field (and environment variable), value and what is allowed.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)

    seed: Annotated[int | None, Setting("VLLM_SEED", Decides.ENGINE, "--seed")] = None
    """vLLM's ``--seed``: the engine's own. A request's ``seed`` (GenerationParams) makes that request repeatable."""

    @classmethod
    def _sources(cls, given: Collection[str]) -> dict[str, str]:
        return {name: ENVIRONMENT[name] for name in _from_environment(given)}

    @model_validator(mode="before")
    @classmethod
    def _read_environment(cls, values: dict[str, Any]) -> dict[str, Any]:
        values = {**_from_environment(values), **values}
        if values.get("mode") == "local" and values.get("base_url") == os.environ.get(ENVIRONMENT["base_url"]):
            values["base_url"] = None  # an explicit mode wins over a base_url from the environment
        return values

    @model_validator(mode="after")
    def _check_endpoint(self) -> EngineSettings:
        if self.seed is not None and "seed" in self.engine_args:
            raise ValueError("seed is given twice: as a setting and in engine_args")
        if self.mode == "local" and self.base_url is not None:
            raise ValueError(f"mode='local' contradicts base_url={self.base_url!r}: leave one of them out")
        if self.mode == "remote" and self.base_url is None:
            raise ValueError("mode='remote' needs base_url=... (or VLLM_API_URL), such as http://127.0.0.1:8000/v1")
        if self.sleep_after_s is not None and self.sleep_after_s >= self.idle_ttl_s:
            raise ValueError(
                f"sleep_after_s = {self.sleep_after_s:g} must be below idle_ttl_s = {self.idle_ttl_s:g}: "
                "the engine would leave memory before it falls asleep"
            )
        if self.base_url is None:
            check_model(self.model)
        return self

    @property
    def is_remote(self) -> bool:
        return self.base_url is not None

    def model_folder(self) -> Path | None:
        """Where the model's files lie on this machine; None for a remote model and one that was never downloaded."""
        if self.is_remote or self.model is None:
            return None
        return model_folder(self.model, self.revision, self.download_dir)

    def context_window(self) -> int | None:
        """Tokens of prompt and answer together, as far as that is known without asking a server."""
        folder = self.model_folder()
        return self.max_model_len or (None if folder is None else context_window(folder))

    @property
    def sampling_defaults(self) -> dict[str, Any]:
        """The defaults for requests that are set."""
        values = {name: getattr(self, name) for name in DefaultFields.model_fields}
        return {name: value for name, value in values.items() if value is not None}


SETTINGS = declared(EngineSettings)
"""Every setting, by name."""
ENVIRONMENT = {name: setting.env for name, setting in SETTINGS.items()}
"""Setting -> environment variable."""
FLAGS = {name: setting.flag for name, setting in SETTINGS.items() if setting.flag}
"""Setting -> the flag of ``vllm serve`` that it stands for."""


def _from_environment(given: Collection[str]) -> dict[str, Any]:
    """The values of settings that were not ``given``; an empty variable counts as unset."""
    values = {name: os.environ.get(variable) for name, variable in ENVIRONMENT.items() if name not in given}
    return {
        name: _parse_json(ENVIRONMENT[name], value) if SETTINGS[name].is_json else value
        for name, value in values.items()
        if value
    }


def _parse_json(variable: str, value: str) -> Any:
    try:
        return json.loads(value)
    except json.JSONDecodeError as exc:
        raise SettingsError(
            f'{variable} must be a JSON object such as {{"max_num_seqs": 64}}, got {value!r}: {exc}'
        ) from None


def check_model(model: str | None) -> None:
    """Refuse what is visibly not a model, without starting anything.

    Raises:
        SettingsError: no model named, no such folder, or a folder without config.json.
    """
    if model is None:
        raise SettingsError(
            "no model: pass model='<folder or Hugging Face id>', or set VLLM_MODEL_PATH; "
            "for a server that already runs, pass base_url='http://host:8000/v1'"
        )
    path = Path(model).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise SettingsError(
                f"model = {model!r}: the folder {path.resolve()} has no config.json, so it holds no model"
            )
    elif path.is_file():
        if path.suffix != ".gguf":
            raise SettingsError(f"model = {model!r} is a file; name the folder that holds config.json and the weights")
    elif model.startswith(("/", ".", "~")) or model.count("/") > 1:
        raise SettingsError(f"model = {model!r}: no such folder ({path.absolute()})")
