"""EngineSettings: every setting, its environment variable, its range. The one place that reads the environment.

``EngineFields`` holds the settings that the adapters' own model classes carry too, under the same names; the
adapters inherit it, so a setting is defined once.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, Field, SecretStr, ValidationError, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from shared_engine.errors import SettingsError
from shared_engine.model_files.folder import context_window, model_folder
from shared_engine.validation import describe_invalid

ENVIRONMENT = {
    "model": "VLLM_MODEL_PATH",
    "mode": "VLLM_MODE",
    "base_url": "VLLM_API_URL",
    "api_key": "VLLM_API_KEY",
    "python": "VLLM_PYTHON",
    "gpu_memory_utilization": "VLLM_GPU_MEMORY_UTILIZATION",
    "max_model_len": "VLLM_MAX_MODEL_LEN",
    "tensor_parallel_size": "VLLM_TENSOR_PARALLEL_SIZE",
    "dtype": "VLLM_DTYPE",
    "quantization": "VLLM_QUANTIZATION",
    "revision": "VLLM_REVISION",
    "tokenizer": "VLLM_TOKENIZER",
    "download_dir": "VLLM_DOWNLOAD_DIR",
    "seed": "VLLM_SEED",
    "enforce_eager": "VLLM_ENFORCE_EAGER",
    "trust_remote_code": "VLLM_TRUST_REMOTE_CODE",
    "visible_devices": "VLLM_VISIBLE_DEVICES",
    "engine_args": "VLLM_ENGINE_ARGS",
    "idle_ttl_s": "VLLM_IDLE_TTL_SECONDS",
    "sleep_after_s": "VLLM_SLEEP_AFTER_SECONDS",
    "standby": "VLLM_STANDBY",
    "standby_ttl_s": "VLLM_STANDBY_TTL_SECONDS",
    "pinned": "VLLM_PINNED",
    "max_loaded_engines": "VLLM_MAX_LOADED_ENGINES",
    "start_timeout_s": "VLLM_START_TIMEOUT_SECONDS",
    "stall_timeout_s": "VLLM_STALL_TIMEOUT_SECONDS",
    "show_progress": "VLLM_SHOW_PROGRESS",
    "timeout": "VLLM_REQUEST_TIMEOUT_SECONDS",
    "max_retries": "VLLM_MAX_RETRIES",
    "temperature": "VLLM_DEFAULT_TEMPERATURE",
    "top_p": "VLLM_DEFAULT_TOP_P",
    "top_k": "VLLM_DEFAULT_TOP_K",
    "max_tokens": "VLLM_DEFAULT_MAX_TOKENS",
    "repetition_penalty": "VLLM_DEFAULT_REPETITION_PENALTY",
}
"""Field -> environment variable. None of these reaches vLLM itself, which warns of VLLM_* names it does not know."""

SECRET = ("api_key",)
SAMPLING_DEFAULTS = ("temperature", "top_p", "top_k", "max_tokens", "repetition_penalty")

# Settings of ours that name a vLLM flag: engine_args must not set them a second time.
_OWN_FLAGS = {
    "model", "gpu_memory_utilization", "max_model_len", "tensor_parallel_size", "dtype", "quantization", "revision",
    "tokenizer", "download_dir", "enforce_eager", "trust_remote_code",
}  # fmt: skip
# Decided by how the engine is shared; another value would make it unreachable or public.
_RESERVED_FLAGS = {"uds", "host", "port", "api_key", "served_model_name", "headless", "ssl_keyfile", "ssl_certfile"}


def _normalize_engine_args(args: dict[str, Any]) -> dict[str, Any]:
    normal: dict[str, Any] = {}
    for name, value in args.items():
        flag = name.lstrip("-").replace("-", "_")
        if flag in _OWN_FLAGS:
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
        raise ValueError(f"is no URL: {exc}") from None
    if not has_host:
        raise ValueError("has no host; it must be like http://127.0.0.1:8000/v1")
    if parts.username or parts.password:
        raise ValueError("must not carry a name or password: pass api_key")
    # The OpenAI client libraries name the /v1 root, vLLM's own routes lie beside it: keep the server's root.
    return value.rstrip("/").removesuffix("/v1")


Fraction = Annotated[float, Field(gt=0, le=1)]
Seconds = Annotated[float, Field(gt=0)]


class EngineFields(BaseModel):
    """The settings of an engine, as a pydantic mixin.

    Raises:
        SettingsError: on construction; names field, value and what is allowed.
    """

    model: Annotated[str | None, Field(min_length=1)] = None
    """Folder of a model, or its id on the Hugging Face hub."""
    mode: Literal["local", "remote"] | None = None
    """``local``: a shared engine of this machine; ``remote``: the server at ``base_url``. Default: by base_url."""
    base_url: Annotated[str | None, AfterValidator(_http_url)] = None
    """A vLLM server somebody else runs, with or without ``/v1``. It is never started, stopped or put to sleep."""
    api_key: SecretStr | None = None
    """Sent to ``base_url`` as a bearer token."""
    python: Annotated[str | None, AfterValidator(_absolute_path)] = None
    """Interpreter that has vLLM. Default: the one made by ``vllm-local install``, else this one if it has vLLM."""

    gpu_memory_utilization: Fraction = 0.9
    """Share of the GPU's memory for weights, activations and KV cache."""
    max_model_len: Annotated[int | None, Field(gt=0)] = None
    """Longest prompt and answer together, in tokens. Default: the model's own."""
    tensor_parallel_size: Annotated[int, Field(ge=1)] = 1
    """Number of GPUs the model is split over."""
    dtype: Literal["auto", "half", "float16", "bfloat16", "float", "float32"] = "auto"
    """Data type of weights and activations."""
    quantization: str | None = None
    """Quantization method. Default: what the model's config says."""
    revision: str | None = None
    """Branch, tag or commit of the model on the hub."""
    tokenizer: str | None = None
    """Folder or hub id of another tokenizer."""
    download_dir: Annotated[str | None, AfterValidator(_absolute_path)] = None
    """Where weights from the hub are stored."""
    enforce_eager: bool = False
    """No compilation, no CUDA graphs: starts faster, answers slower."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model. Off: that is the user's decision."""
    visible_devices: str | None = None
    """CUDA_VISIBLE_DEVICES of the engine, such as ``"0,1"``. Default: the environment's."""
    engine_args: Annotated[dict[str, Any], AfterValidator(_normalize_engine_args)] = Field(default_factory=dict)
    """Any other vLLM flag, such as ``{"max_num_seqs": 64}``; True and False stand for ``--flag`` and ``--no-flag``."""

    idle_ttl_s: Seconds = 1800
    """Seconds after the end of the last request until the model leaves memory; ``float("inf")`` for never."""
    sleep_after_s: Seconds | None = None
    """Seconds after the end of the last request until the weights go to RAM, from where they are back in a blink.

    None: never. CUDA only (vLLM's sleep mode, level 1); on a CPU build it has no effect: weights are in RAM there."""
    standby: bool = True
    """Keep vLLM imported, without GPU memory, after the model has left, so that it comes back faster."""
    standby_ttl_s: Seconds = 1800
    """Seconds until standby ends too."""
    pinned: bool = False
    """Never evict this engine to make room for another one. ``idle_ttl_s`` holds all the same."""
    max_loaded_engines: Annotated[int | None, Field(ge=1)] = None
    """At most so many engines loaded on the device: idle ones are evicted before this one starts, least recently used
    first; when all are busy or pinned, it waits. None: as many as fit in memory."""
    start_timeout_s: Seconds = 900
    """How long a caller waits for the engine to be ready, in seconds."""
    stall_timeout_s: Seconds = 300
    """Seconds without any progress after which the engine is taken for hung, and ended: in a start no line in the log
    and no use of the processor, with requests running no step of vLLM's scheduler."""
    show_progress: bool = True
    """Show a bar on the terminal when a call waits more than a second for a start. Off: log lines only."""
    timeout: Annotated[float | None, Field(gt=0)] = 600
    """Seconds a request may go without receiving a byte; None for no limit. Starting the engine is not counted."""
    max_retries: Annotated[int, Field(ge=0)] = 2
    """How often a request is tried again after a failure that can't have reached the caller."""

    temperature: Annotated[float | None, Field(ge=0)] = None
    """Default for requests. None: the model's generation_config."""
    top_p: Annotated[float | None, Field(gt=0, le=1)] = None
    """Default for requests. None: the model's generation_config."""
    top_k: Annotated[int | None, Field(ge=-1)] = None
    """Default for requests. None: the model's generation_config."""
    max_tokens: Annotated[int | None, Field(ge=1)] = None
    """Default for requests. None: up to the model's limit."""
    repetition_penalty: Annotated[float | None, Field(gt=0)] = None
    """Default for requests. None: the model's generation_config."""

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


class _Environment(PydanticBaseSettingsSource):
    """Reads the variables of ENVIRONMENT; an empty one counts as unset."""

    def get_field_value(self, field: Any, field_name: str) -> tuple[Any, str, bool]:  # noqa: ARG002
        return os.environ.get(ENVIRONMENT[field_name]) or None, field_name, False

    def __call__(self) -> dict[str, Any]:
        values = {field: os.environ.get(name) for field, name in ENVIRONMENT.items()}
        return {field: _parse_json(field, value) for field, value in values.items() if value}


def _parse_json(field: str, value: str) -> Any:
    if field != "engine_args":
        return value
    import json

    try:
        return json.loads(value)
    except json.JSONDecodeError as exc:
        raise SettingsError(
            f'{ENVIRONMENT[field]} must be a JSON object such as {{"max_num_seqs": 64}}, got {value!r}: {exc}'
        ) from None


class EngineSettings(EngineFields, BaseSettings):
    """Everything that decides an engine and the defaults of its requests; from arguments, then the environment.

    Frozen; equal settings share one engine process (see command.engine_key for what decides it).

    Raises:
        SettingsError: on construction; names field (and environment variable), value and what is allowed.
    """

    model_config = SettingsConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    seed: int | None = None
    """vLLM's ``--seed``: the engine's own. A request's ``seed`` (GenerationParams) makes that request repeatable."""

    @classmethod
    def _sources(cls, given: Collection[str]) -> dict[str, str]:
        return {field: name for field, name in ENVIRONMENT.items() if field not in given and os.environ.get(name)}

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, _Environment(settings_cls)

    @model_validator(mode="before")
    @classmethod
    def _explicit_endpoint_wins(cls, values: dict[str, Any]) -> dict[str, Any]:
        """An explicit mode wins over a base_url from the environment."""
        if values.get("mode") == "local" and values.get("base_url") == os.environ.get(ENVIRONMENT["base_url"]):
            values = {**values, "base_url": None}
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
        values = {name: getattr(self, name) for name in SAMPLING_DEFAULTS}
        return {name: value for name, value in values.items() if value is not None}


def check_model(model: str | None) -> None:
    """Refuse what can be seen to be no model without starting anything.

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
