"""EngineSettings: every setting, with its environment variable, range, default and what it decides, declared once.

``EngineFields`` holds the settings that the adapters' own model classes carry too, under the same names; the
adapters inherit it, so a setting is defined once.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)

from shared_engine.addresses import (
    DNS,
    FILE,
    host_and_port,
    proxy_url,
    server_roots,
    split_urls,
    tcp_address,
    user_and_password,
)
from shared_engine.config_files import Given
from shared_engine.declared import UNSET, Converted, Decides, Setting, declared
from shared_engine.device_sets import DeviceSets, device_sets, replica_contradiction, with_size_of_sets
from shared_engine.errors import InvalidInputError, SettingsError
from shared_engine.machine.home import expanded
from shared_engine.machine.sockets import is_loopback
from shared_engine.model_files.adapter import read_adapter
from shared_engine.model_files.folder import context_window, model_folder
from shared_engine.model_files.parallel import indivisible_heads, lacks_experts
from shared_engine.model_files.quantization import contradiction
from shared_engine.parallelism import NO_ENGINE, Parallelism, parallel_contradiction
from shared_engine.params import DefaultFields, GenerationParams
from shared_engine.setting_sources import collect, from_environment, is_here
from shared_engine.validation import Headers, describe_invalid, text_values, with_sources

# Decided by how the engine is shared; another value would make it unreachable or public.
_RESERVED_FLAGS = {
    "uds": "",
    **dict.fromkeys(("host", "port", "api_key"), "; serve_tcp has it listen on TCP too"),
    "served_model_name": "; models.yaml of `vllm-local serve` gives models other names",
    **dict.fromkeys(("ssl_keyfile", "ssl_certfile"), "; `vllm-local serve` has --tls-cert and --tls-key"),
}
"""And what to do instead."""


def _normalize_engine_args(args: dict[str, Any]) -> dict[str, Any]:
    normal: dict[str, Any] = {}
    for name, value in args.items():
        flag = name.lstrip("-").replace("-", "_")
        if flag in EngineFields.model_fields and flag in FLAGS:  # seed is a setting of Engine alone
            raise ValueError(f"{name!r} is a setting of its own: pass {flag}=... instead")
        if flag in _RESERVED_FLAGS:
            raise ValueError(f"{name!r} is chosen by vllm-local and can't be set{_RESERVED_FLAGS[flag]}")
        if flag in NO_ENGINE and value not in (None, False):
            raise ValueError(f"{name} = {value!r}: {NO_ENGINE[flag]}")
        if isinstance(value, str) and value.startswith(("./", "../", "~")):
            value = os.path.abspath(expanded(value))
        normal[flag] = value
    return normal


def _path(value: Any) -> Any:
    """A Path is as good as its text."""
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def _listed(value: Any) -> Any:
    """Of an environment variable: names with commas between them."""
    return tuple(name.strip() for name in value.split(",")) if isinstance(value, str) else value


def _adapter_paths(value: Any) -> Any:
    """Folders by their absolute path; ids of the hub stay as they are."""
    if not isinstance(value, Mapping):
        return value
    return {name: _adapter_path(_path(path)) for name, path in value.items()}


def _adapter_path(path: Any) -> Any:
    if not isinstance(path, str):
        return path
    is_id = path.count("/") == 1 and not path.startswith((".", "~", "/")) and not os.path.exists(path)
    return path if is_id else os.path.abspath(expanded(path))


def _absolute_path(value: str | None) -> str | None:
    return None if value is None else os.path.abspath(expanded(value))


def _length_or_auto(value: object) -> object:
    if value is None or value in ("auto", -1, "-1"):  # -1 is vLLM's own word for it
        return None if value is None else "auto"
    if isinstance(value, int | str) and not isinstance(value, bool) and str(value).isdigit() and int(value) > 0:
        return int(value)
    raise ValueError("must be a number of tokens greater than 0, or 'auto'")


def _characters_or_auto(value: object) -> object:
    value = _or_none(value)
    if value is None or value == "auto":
        return value
    if isinstance(value, int | str) and not isinstance(value, bool) and str(value).isdigit() and int(value) > 0:
        return int(value)
    raise ValueError("must be a number of characters greater than 0, 'auto' or None")


def _or_none(value: object) -> object:
    """For a variable, an option or a file, which have no None."""
    return None if isinstance(value, str) and value.lower() == "none" else value


def _numbers(value: object) -> object:
    """Also as a variable of the environment has them."""
    return value.split(",") if isinstance(value, str) else value


Place = Literal["local", "direct", "remote"]
PathText = Converted[str | None, str | os.PathLike[str] | None]
Fraction = Annotated[float, Field(gt=0, le=1)]
Seconds = Annotated[float, Field(gt=0)]
NotEmpty = Annotated[str, Field(min_length=1)]


class EngineFields(DefaultFields):
    """The settings of an engine, as a pydantic mixin.

    Raises:
        SettingsError: on construction; names field, value and what is allowed.
    """

    model: Annotated[
        PathText, Field(min_length=1), BeforeValidator(_path), Setting("VLLM_MODEL_PATH", Decides.ENGINE, "--model")
    ] = UNSET
    """Folder of a model, or its id on the Hugging Face hub."""
    mode: Annotated[Literal["local", "direct", "remote", "auto"] | None, Setting("VLLM_MODE", Decides.CALLS)] = None
    """``local``: a shared engine of this machine; ``direct``: one under this process alone, with vLLM in the app's own
    Python; ``remote``: the server at ``base_url``; ``auto``: ``direct``, and ``fallback`` where that can't start.
    Default: by base_url."""
    fallback: Annotated[
        Converted[tuple[Place, ...] | None, Sequence[Place] | None],
        BeforeValidator(_listed),
        Setting("VLLM_FALLBACK", Decides.CALLS),
    ] = UNSET
    """What is used instead when an engine can't start, in this order. Default: with ``mode="auto"`` ``("local",
    "remote")``, the second only with a ``base_url``; else nothing."""
    base_url: Annotated[
        Converted[str | tuple[str, ...] | None, str | Sequence[str] | None],
        AfterValidator(server_roots),
        Setting("VLLM_API_URL", Decides.CALLS),
    ] = UNSET
    """A remote vLLM server, or another one with OpenAI's protocol. It is never started, stopped or put to sleep.

    With or without ``/v1`` or a route at its end; a ``user:password@`` in it is ``basic_auth``, a query is
    ``default_query``. A list, or several between commas, ``file:///...`` or ``dns+http://...``: a fleet
    (docs/fleets.md)."""
    api_key: Annotated[
        Converted[SecretStr | tuple[SecretStr, ...] | None, str | SecretStr | Sequence[str | SecretStr] | None],
        Field(exclude=True),
        Setting("VLLM_API_KEY", Decides.CALLS, is_secret=True),
    ] = UNSET
    """Sent to ``base_url`` as a bearer token. Of a fleet one for all, or a list with one for each. With ``serve_tcp``
    what requests over TCP must have."""
    member_weights: Annotated[
        Converted[tuple[Annotated[float, Field(gt=0)], ...] | None, Sequence[float] | None],
        BeforeValidator(_numbers),
        Setting("VLLM_MEMBER_WEIGHTS", Decides.CALLS),
    ] = UNSET
    """Of a fleet: each server's share of the requests, against the others'. Default: equal."""
    basic_auth: Annotated[
        Converted[
            SecretStr | tuple[SecretStr | None, ...] | None, str | SecretStr | Sequence[str | SecretStr | None] | None
        ],
        AfterValidator(user_and_password),
        Field(exclude=True),
        Setting("VLLM_BASIC_AUTH", Decides.CALLS, is_secret=True),
    ] = UNSET
    """``user:password``, sent to ``base_url`` instead of a bearer token."""
    default_headers: Annotated[
        Headers,
        BeforeValidator(text_values),
        Field(exclude=True),
        Setting("VLLM_DEFAULT_HEADERS", Decides.CALLS, is_json=True, is_secret=True),
    ] = UNSET
    """Headers of every request to ``base_url``, such as ``{"X-Tenant": "a"}``. Their values are kept secret."""
    default_query: Annotated[
        Converted[dict[str, str] | None, Mapping[str, str | float] | None],
        BeforeValidator(text_values),
        Setting("VLLM_DEFAULT_QUERY", Decides.CALLS, is_json=True),
    ] = UNSET
    """Query of every request to ``base_url``, such as ``{"api-version": "1"}``. Not for secrets: it is shown."""
    proxy: Annotated[str | None, AfterValidator(proxy_url), Setting("VLLM_PROXY", Decides.CALLS)] = None
    """HTTP proxy for ``base_url``; ``"none"`` for none. Default: the environment's (``HTTP_PROXY``, ``HTTPS_PROXY``,
    ``ALL_PROXY``, ``NO_PROXY``), never for this machine itself."""
    proxy_auth: Annotated[
        Converted[SecretStr | None, str | SecretStr | None],
        AfterValidator(user_and_password),
        Field(exclude=True),
        Setting("VLLM_PROXY_AUTH", Decides.CALLS, is_secret=True),
    ] = UNSET
    """``user:password`` for ``proxy``; a ``user:password@`` in ``proxy`` is taken from there."""
    ssl_verify: Annotated[bool, Setting("VLLM_SSL_VERIFY", Decides.CALLS)] = True
    """Check the certificate of ``base_url``. Off: whoever is between can read and change everything."""
    ssl_ca_certs: Annotated[
        PathText, BeforeValidator(_path), AfterValidator(_absolute_path), Setting("VLLM_SSL_CA_CERTS", Decides.CALLS)
    ] = UNSET
    """File (PEM) of the authorities whose certificates are accepted. Default: the system's, or ``SSL_CERT_FILE``."""
    ssl_certfile: Annotated[
        PathText, BeforeValidator(_path), AfterValidator(_absolute_path), Setting("VLLM_SSL_CERTFILE", Decides.CALLS)
    ] = UNSET
    """File (PEM) of the client's certificate, for a server that wants one."""
    ssl_keyfile: Annotated[
        PathText, BeforeValidator(_path), AfterValidator(_absolute_path), Setting("VLLM_SSL_KEYFILE", Decides.CALLS)
    ] = UNSET
    """File (PEM) of its key, unencrypted. Default: in ``ssl_certfile``."""
    python: Annotated[
        PathText, BeforeValidator(_path), AfterValidator(_absolute_path), Setting("VLLM_PYTHON", Decides.ENGINE)
    ] = UNSET
    """Interpreter that has vLLM. Default: the one made by ``vllm-local install``, else this one if it has vLLM."""

    gpu_memory_utilization: Annotated[
        Fraction, Setting("VLLM_GPU_MEMORY_UTILIZATION", Decides.ENGINE, "--gpu-memory-utilization")
    ] = 0.9
    """Share of the GPU's memory for weights, activations and KV cache."""
    max_model_len: Annotated[
        int | Literal["auto"] | None,
        BeforeValidator(_length_or_auto),
        Setting("VLLM_MAX_MODEL_LEN", Decides.ENGINE, "--max-model-len"),
    ] = None
    """Longest prompt and answer together, in tokens. ``"auto"``: the model's own, or as much as fits in memory.
    Default: the model's own; on a CPU ``"auto"``."""
    tensor_parallel_size: Annotated[
        int, Field(ge=1), Setting("VLLM_TENSOR_PARALLEL_SIZE", Decides.ENGINE, "--tensor-parallel-size")
    ] = 1
    """Number of GPUs that each layer of the model is split over; on a CPU, of workers with cores of their own."""
    pipeline_parallel_size: Annotated[
        int, Field(ge=1), Setting("VLLM_PIPELINE_PARALLEL_SIZE", Decides.ENGINE, "--pipeline-parallel-size")
    ] = 1
    """Number of groups that the layers are shared out to, each with ``tensor_parallel_size`` GPUs."""
    data_parallel_size: Annotated[
        int, Field(ge=1), Setting("VLLM_DATA_PARALLEL_SIZE", Decides.ENGINE, "--data-parallel-size")
    ] = 1
    """Number of copies of the model in one engine, each with GPUs of its own. vLLM shares the requests out; the copies
    start, leave and die together. Of a model of experts, the copies may share those
    (``engine_args={"enable_expert_parallel": True}``)."""
    dtype: Annotated[
        Literal["auto", "half", "float16", "bfloat16", "float", "float32"],
        Setting("VLLM_DTYPE", Decides.ENGINE, "--dtype"),
    ] = "auto"
    """Data type of weights and activations."""
    quantization: Annotated[str | None, Setting("VLLM_QUANTIZATION", Decides.ENGINE, "--quantization")] = None
    """Quantization method. Default: what the model's config says, which this must not contradict. ``fp8`` quantises a
    plain model while it is loaded (not on a CPU build)."""
    revision: Annotated[str | None, Setting("VLLM_REVISION", Decides.ENGINE, "--revision")] = None
    """Branch, tag or commit of the model on the hub."""
    tokenizer: Annotated[PathText, BeforeValidator(_path), Setting("VLLM_TOKENIZER", Decides.ENGINE, "--tokenizer")] = (
        UNSET
    )
    """Folder or hub id of another tokenizer."""
    download_dir: Annotated[
        PathText,
        BeforeValidator(_path),
        AfterValidator(_absolute_path),
        Setting("VLLM_DOWNLOAD_DIR", Decides.ENGINE, "--download-dir"),
    ] = UNSET
    """Where weights from the hub are stored."""
    enforce_eager: Annotated[bool, Setting("VLLM_ENFORCE_EAGER", Decides.ENGINE, "--enforce-eager")] = False
    """No compilation, no CUDA graphs: starts faster, answers slower."""
    trust_remote_code: Annotated[bool, Setting("VLLM_TRUST_REMOTE_CODE", Decides.ENGINE, "--trust-remote-code")] = False
    """Run Python code that comes with the model. Off: that is the user's decision."""
    reproducible: Annotated[bool, Setting("VLLM_REPRODUCIBLE", Decides.ENGINE)] = False
    """The same request has the same answer: each is held to temperature 0 and seed 42 (or ``seed``), whatever its call
    says, and vLLM computes it alike in every batch (its batch invariance), on NVIDIA GPUs of compute capability 8.0 or
    more. On a CPU, where vLLM has none, in float32 unless ``dtype`` is given. A ``base_url``'s requests are held, its
    server is as it is."""
    visible_devices: Annotated[str | None, Setting("VLLM_VISIBLE_DEVICES", Decides.ENGINE)] = None
    """CUDA_VISIBLE_DEVICES of the engine, such as ``"0,1"``. Default: the environment's; without it, of several GPUs
    those with the most free memory."""
    cpu_omp_threads_bind: Annotated[str | None, Setting("VLLM_CPU_OMP_THREADS_BIND", Decides.ENGINE)] = None
    """Of a CPU build: the cores that vLLM's threads run on, such as ``"0-3"``; ``"nobind"`` for any. Default: all."""
    replicas: Annotated[int | None, Field(ge=1), Setting("VLLM_REPLICAS", Decides.CALLS)] = None
    """So many engines with the same model behind this object, each on GPUs of its own, the first ones that are visible;
    on a CPU build each with its share of the cores (docs/replicas.md)."""
    gpu_ids: Annotated[
        Converted[DeviceSets | None, Sequence[int | str | Sequence[int | str]] | None],
        BeforeValidator(device_sets),
        Setting("VLLM_GPU_IDS", Decides.CALLS),
    ] = UNSET
    """The GPUs of each replica: ``[0, 1]`` for two with one GPU each, ``[[0, 1], [2, 3]]`` for two with two GPUs each,
    which then is ``tensor_parallel_size`` too. By number or UUID, as CUDA_VISIBLE_DEVICES has them."""
    start: Annotated[Literal["lazy", "all"], Setting("VLLM_REPLICAS_START", Decides.CALLS)] = "lazy"
    """``lazy``: of the replicas the first one starts, and each next one when the others have all that they take at
    once. ``all``: all start with the first request."""
    engine_args: Annotated[
        dict[str, Any],
        AfterValidator(_normalize_engine_args),
        Setting("VLLM_ENGINE_ARGS", Decides.ENGINE, is_json=True),
    ] = Field(default_factory=dict)
    """Any other vLLM flag, such as ``{"max_num_seqs": 64}``; True and False stand for ``--flag`` and ``--no-flag``."""
    lora_adapters: Annotated[
        Converted[dict[NotEmpty, NotEmpty] | None, Mapping[str, str | os.PathLike[str]] | None],
        BeforeValidator(_adapter_paths),
        Setting("VLLM_LORA_ADAPTERS", Decides.CALLS, is_json=True),
    ] = UNSET
    """LoRA adapters by name, each a folder or an id on the hub: ``{"sql": "/adapters/sql"}``. A request names one by
    ``lora="sql"``. ``{}`` for an engine that takes adapters at run time (``Engine.load_adapter``). Which ones there are
    does not decide the engine; that it takes any, up to which rank and how many in one batch, does."""

    idle_ttl_s: Annotated[Seconds, Setting("VLLM_IDLE_TTL_SECONDS", Decides.KEEPING)] = 1800
    """Seconds after the end of the last request until the model leaves memory; ``inf`` for never.

    In Python that is ``float("inf")``.
    """
    sleep_after_s: Annotated[Seconds | None, Setting("VLLM_SLEEP_AFTER_SECONDS", Decides.KEEPING)] = None
    """Seconds after the end of the last request until the weights go to RAM, from where the next
    request brings them back.

    None: never. CUDA only (vLLM's sleep mode, level 1); on a CPU build it has no effect: weights are in RAM there."""
    standby: Annotated[bool, Setting("VLLM_STANDBY", Decides.KEEPING)] = True
    """Keep vLLM imported, without GPU memory, after the model has left, so that it comes back faster."""
    standby_ttl_s: Annotated[Seconds, Setting("VLLM_STANDBY_TTL_SECONDS", Decides.KEEPING)] = 1800
    """Seconds until standby ends too; 120 at most after a start that failed."""
    pinned: Annotated[bool, Setting("VLLM_PINNED", Decides.KEEPING)] = False
    """Never evict this engine to make room for another one. ``idle_ttl_s`` holds all the same."""
    max_loaded_engines: Annotated[int | None, Field(ge=1), Setting("VLLM_MAX_LOADED_ENGINES", Decides.KEEPING)] = None
    """At most so many engines loaded on the device: idle ones are evicted before this one starts, least recently used
    first; when all are busy or pinned, it waits. None: as many as fit in memory."""
    serve_tcp: Annotated[
        Converted[str | bool | None, str | int | None],
        BeforeValidator(tcp_address),
        Setting("VLLM_SERVE_TCP", Decides.KEEPING),
    ] = UNSET
    """Other programs reach a local engine too, by OpenAI's API on TCP: ``"127.0.0.1:8000"``, or ``True`` for any port
    of this machine. Where the port is taken, the next free one; ``Engine.status().urls`` names it. Open while the
    engine is ready, from the first request on; other addresses and keys have ports of their own (docs/serve_tcp.md)."""
    start_timeout_s: Annotated[Seconds, Setting("VLLM_START_TIMEOUT_SECONDS", Decides.KEEPING)] = 900
    """How long a caller waits for the engine to be ready, in seconds. The start goes on while it makes progress."""
    stall_timeout_s: Annotated[Seconds, Setting("VLLM_STALL_TIMEOUT_SECONDS", Decides.KEEPING)] = 300
    """Seconds without any progress after which the engine is taken for hung, and ended: in a start no line in the log,
    no byte of a download and no use of the processor, with requests running no step of vLLM's scheduler."""
    show_progress: Annotated[bool, Setting("VLLM_SHOW_PROGRESS", Decides.CALLS)] = True
    """Show a bar on the terminal when a call waits more than a second for a start. Off: log lines only."""
    verbose: Annotated[bool, Setting("VLLM_VERBOSE", Decides.CALLS)] = False
    """vLLM's own log in this process's log, line by line with its level, as loggers ``shared_engine.vllm`` and
    ``shared_engine.supervisor``, from the first request until ``close``. Not of a remote server."""
    timeout: Annotated[
        float | None,
        Field(gt=0),
        BeforeValidator(_or_none),
        Setting("VLLM_REQUEST_TIMEOUT_SECONDS", Decides.CALLS),
    ] = 600
    """Limit of silence: seconds a request may go without receiving a byte; None (as a variable, option or in a file
    ``none``) for no limit. The engine's start is not counted, nor the time in which it works on an answer that comes
    in one piece. A call's own ``timeout`` limits all of that call."""
    check_context: Annotated[bool, Setting("VLLM_CHECK_CONTEXT", Decides.CALLS)] = False
    """Count each prompt before it is sent, and before the engine is started for it: if prompt and ``max_tokens``
    together do not fit the model, that is a ``ContextLengthError`` with all numbers. Of images the server counts."""
    truncate_completion: Annotated[bool, Setting("VLLM_TRUNCATE_COMPLETION", Decides.CALLS)] = False
    """Lower a request's ``max_tokens`` to what its prompt leaves, and say so in the answer (``max_tokens_lowered_to``).
    The prompt is counted as for ``check_context``, and refused if it leaves nothing."""
    merge_messages: Annotated[Literal["auto", "never", "always"], Setting("VLLM_MERGE_MESSAGES", Decides.CALLS)] = (
        "auto"
    )
    """``auto``: a conversation that the model's chat template does not take is sent in a form that it takes: late
    system messages at the front, neighbours of one role joined, ... (docs/messages.md). ``always``: those two in every
    conversation. ``never``: all is sent as it is."""
    max_tool_result_chars: Annotated[
        int | Literal["auto"] | None,
        BeforeValidator(_characters_or_auto),
        Setting("VLLM_MAX_TOOL_RESULT_CHARS", Decides.CALLS),
    ] = "auto"
    """Longest result of a tool, in characters; of a longer one the beginning and the end are sent, with a note of how
    much is left out. ``auto``: what is too long for the context window by itself, at four characters a token, is cut to
    half a character a token. None (as a variable, option or in a file ``none``): nothing is cut."""
    show_schema: Annotated[bool, Setting("VLLM_SHOW_SCHEMA", Decides.CALLS)] = True
    """Say the JSON schema that an answer is held to in the prompt of a chat, at the end of the user's last message: its
    names, units and descriptions. vLLM itself tells the model nothing of it. Where the model's chat template has a
    place for it (``response_format``), it goes there."""
    schema_max_length: Annotated[int | None, Field(ge=1), Setting("VLLM_SCHEMA_MAX_LENGTH", Decides.CALLS)] = None
    """The most characters of a string in a structured answer, or in the arguments of a strict tool, for which the
    schema has no maxLength, pattern or format. None: a model that repeats itself goes on to ``max_tokens``."""
    schema_max_items: Annotated[int | None, Field(ge=1), Setting("VLLM_SCHEMA_MAX_ITEMS", Decides.CALLS)] = None
    """The most entries of an array or a dict in such an answer for which the schema has no limit."""
    max_retries: Annotated[int, Field(ge=0), Setting("VLLM_MAX_RETRIES", Decides.CALLS)] = 2
    """How often a request is tried again after a failure that may pass, as long as nothing has reached the caller."""

    if not TYPE_CHECKING:  # checkers and editors see the fields instead

        def __init__(self, *positional: Any, **values: Any) -> None:
            if positional:
                name = type(self).__name__
                raise SettingsError(f"settings are keywords: {name}(model=...), got {name}({positional[0]!r:.80})")
            self._fill(values, self._sources(values))

    def _fill(self, values: Mapping[str, Any], sources: Mapping[str, str]) -> None:
        """Take these values; an error says of those in ``sources`` where they came from."""
        try:
            super().__init__(**values)
        except ValidationError as exc:
            message = describe_invalid(exc, type(self).model_fields, "setting", SECRET, sources, self._of_calls())
            raise SettingsError(message) from None
        except (SettingsError, InvalidInputError) as exc:  # of a default for requests, or a model that is none
            raise SettingsError(with_sources(str(exc), sources)) from None

    @classmethod
    def _of_calls(cls) -> frozenset[str]:
        """Names that are a call's parameters, and no settings."""
        return OF_CALLS

    @field_validator("base_url", "api_key", "basic_auth", "proxy_auth", mode="before")
    @classmethod
    def _as_given(cls, value: Any) -> Any:
        """Pyrefly refuses every value for a ``Converted`` field of pydantic that has no validator of this mode."""
        return value

    @model_validator(mode="before")
    @classmethod
    def _split_urls(cls, values: Any) -> Any:
        """Credentials stand in URLs only until here: a URL is shown in errors, logs and pickles."""
        if not isinstance(values, Mapping):
            return values
        return split_urls(values)

    @classmethod
    def _sources(cls, given: Collection[str]) -> dict[str, str]:  # noqa: ARG003
        """Names of the environment variables that values not ``given`` came from, by field."""
        return {}

    def engine_settings(self) -> EngineSettings:
        """The settings that were given here; what was not comes from the environment."""
        given = {name: getattr(self, name) for name in EngineFields.model_fields if name in self.model_fields_set}
        return EngineSettings(**given)

    def __getstate__(self) -> dict[Any, Any]:
        """For pickling: without secrets, which the other process reads from its environment."""
        state = super().__getstate__()
        return {
            **state,
            "__dict__": {**state["__dict__"], **dict.fromkeys(NOT_PICKLED)},
            "__pydantic_fields_set__": state["__pydantic_fields_set__"] - set(NOT_PICKLED),
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
    def from_file(cls, *files: str | os.PathLike[str], **values: Any) -> EngineSettings:
        """Settings of config files: TOML with settings under their names, an earlier file before a later one.

        Secrets in them don't go to another process by pickle, as ever: it would read its own environment.

        Args:
            files: default: ``./vllm-local.toml`` and ``~/.config/vllm-local/config.toml``, where they are there.
            values: settings, which win over the environment, which wins over the files.
        """
        given = {name: Given(value, "") for name, value in values.items()}
        return cls.from_given(collect(SETTINGS, given, files or None))

    @classmethod
    def from_given(cls, given: Mapping[str, Given]) -> EngineSettings:
        """Of what ``collect`` has found; an error says where a value came from."""
        made = cls.__new__(cls)
        sources = {name: each.source for name, each in given.items() if each.source}
        made._fill({name: each.value for name, each in given.items()}, sources)
        return made

    @classmethod
    def _sources(cls, given: Collection[str]) -> dict[str, str]:
        return {name: ENVIRONMENT[name] for name in from_environment(SETTINGS, given)}

    @model_validator(mode="before")
    @classmethod
    def _read_environment(cls, values: dict[str, Any]) -> dict[str, Any]:
        values = {**from_environment(SETTINGS, values), **values}
        if is_here(values) and values.get("base_url") == os.environ.get(ENVIRONMENT["base_url"]):
            values["base_url"] = None  # an explicit mode wins over a base_url from the environment
        if values.get("mode") == "direct" and values.get("python") == os.environ.get(ENVIRONMENT["python"]):
            values["python"] = None
        return with_size_of_sets(values)

    @model_validator(mode="after")
    def _check_endpoint(self) -> EngineSettings:
        if self.seed is not None and "seed" in self.engine_args:
            raise ValueError("seed is given twice: as a setting and in engine_args")
        if self.modes == ("direct",) and self.python not in (None, sys.executable):
            raise ValueError(
                f"mode='direct' runs vLLM in this Python ({sys.executable}), which contradicts python={self.python!r}: "
                "leave one of them out"
            )
        if self.base_url is not None and "remote" not in self.modes:
            raise ValueError(f"mode={self.mode!r} contradicts base_url={self.base_url!r}: leave one of them out")
        if self.base_url is None and "remote" in (self.fallback or ()):
            raise ValueError("fallback='remote' needs base_url=... (or VLLM_API_URL), such as http://127.0.0.1:8000/v1")
        if self.mode == "remote" and self.base_url is None:
            raise ValueError("mode='remote' needs base_url=... (or VLLM_API_URL), such as http://127.0.0.1:8000/v1")
        self._check_fleet()
        self._check_replicas()
        if self.api_key is not None and self.basic_auth is not None:
            raise ValueError(
                "api_key (or VLLM_API_KEY) and the user and password of base_url (basic_auth, VLLM_BASIC_AUTH) would "
                "both be sent as the Authorization header: leave one of them out"
            )
        for name in ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile"):
            path = getattr(self, name)
            if path is not None and not os.path.isfile(path):
                raise ValueError(f"{name} = {path!r}: no such file")
        if self.ssl_keyfile is not None and self.ssl_certfile is None:
            raise ValueError("ssl_keyfile goes with ssl_certfile, which is not given")
        if self.sleep_after_s is not None and self.sleep_after_s >= self.idle_ttl_s:
            raise ValueError(
                f"sleep_after_s = {self.sleep_after_s:g} must be below idle_ttl_s = {self.idle_ttl_s:g}: "
                "the engine would leave memory before it falls asleep"
            )
        if isinstance(self.serve_tcp, str):
            self._check_tcp(self.serve_tcp)
        if not self.is_remote:
            check_model(self.model)
            self._check_adapters()
            self._check_quantization()
            self._check_parallelism()
        return self

    def _check_tcp(self, address: str) -> None:
        if "local" not in self.modes:
            if address == tcp_address(os.environ.get(ENVIRONMENT["serve_tcp"])):
                return  # it is for the local ones of this process
            raise ValueError(
                f"serve_tcp = {address!r} is of a local engine, and mode is {self.modes[0]!r}: leave it out"
            )
        if isinstance(self.api_key, tuple):
            raise ValueError(f"serve_tcp = {address!r} takes one api_key, not {len(self.api_key)}")
        if self.api_key is None and not is_loopback(host_and_port(address)[0]):
            raise ValueError(
                f"serve_tcp = {address!r} lets other machines in: pass api_key=... (or VLLM_API_KEY), which their "
                "requests must then have as their bearer token, or an address of this machine, such as 127.0.0.1:8000"
            )

    def _check_adapters(self) -> None:
        adapters = self.lora_adapters
        if adapters is not None and self.engine_args.get("enable_lora") is False:
            raise ValueError("lora_adapters contradicts engine_args={'enable_lora': False}: leave one of them out")
        limit = self.engine_args.get("max_lora_rank")
        for name, path in (adapters or {}).items():
            if name == self.model:
                raise ValueError(f"lora_adapters: {name!r} is the model's own name")
            try:
                rank = read_adapter(path).rank
            except ValueError as exc:
                raise ValueError(f"lora_adapters[{name!r}] = {path!r}: {exc}") from None
            if rank is not None and limit is not None and rank > int(limit):
                raise ValueError(
                    f"lora_adapters[{name!r}] = {path!r}: its rank is {rank}, and engine_args says max_lora_rank = "
                    f"{limit}: raise it, or leave it out"
                )

    def _check_quantization(self) -> None:
        folder = None if self.quantization is None else self.model_folder()
        problem = None if folder is None else contradiction(self.quantization or "", folder)
        if problem is not None:
            raise ValueError(f"quantization = {self.quantization!r}: {problem}")

    def _check_parallelism(self) -> None:
        problem = parallel_contradiction(
            self._parallel_args,
            takes_adapters=self.lora_adapters is not None or bool(self.engine_args.get("enable_lora")),
            is_direct="direct" in self.modes,
        )
        if problem is not None:
            raise ValueError(problem)
        has_experts = self.engine_args.get("enable_expert_parallel")
        folder = self.model_folder() if self.tensor_parallel_size > 1 or has_experts else None
        if folder is None:
            return
        heads = indivisible_heads(folder, self.tensor_parallel_size)
        if heads is not None:
            raise ValueError(f"tensor_parallel_size = {self.tensor_parallel_size}: {heads}")
        if has_experts and lacks_experts(folder):
            raise ValueError(
                f"enable_expert_parallel shares out experts, and the model in {folder} has none: leave it out "
                "(tensor_parallel_size and data_parallel_size hold all the same)"
            )

    @property
    def _parallel_args(self) -> dict[str, Any]:
        sizes = ("tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size")
        return {**self.engine_args, **{name: getattr(self, name) for name in sizes}}

    @property
    def parallelism(self) -> Parallelism:
        """How the engine is spread over devices."""
        return Parallelism.of(self._parallel_args)

    @property
    def modes(self) -> tuple[Place, ...]:
        """Where requests go: to the first of these that can start."""
        first = ("remote" if self.base_url else "local") if self.mode is None else self.mode
        rest = self.fallback or ()
        if first == "auto":
            first = "direct"
            if self.fallback is None:
                rest = ("local", "remote") if self.base_url else ("local",)
        modes = tuple(dict.fromkeys((first, *rest)))
        return ("remote",) if self.model is None and "remote" in modes else modes

    def _check_fleet(self) -> None:
        count = len(self.base_url) if isinstance(self.base_url, tuple) else 1
        for name in ("api_key", "member_weights"):
            value = getattr(self, name)
            if isinstance(value, tuple) and len(value) != count:
                raise ValueError(f"{name} has {len(value)} values for {count} base_url: give one for each")

    def _check_replicas(self) -> None:
        if not self.is_replicated:
            return
        names = ("replicas", "gpu_ids", "base_url", "mode", "visible_devices", "cpu_omp_threads_bind")
        values = {name: getattr(self, name) for name in names}
        problem = replica_contradiction(values, self.modes, self.parallelism)
        if problem is not None:
            raise ValueError(problem)

    @property
    def is_replicated(self) -> bool:
        """Several engines of this machine, or one for which ``gpu_ids`` says where."""
        return self.gpu_ids is not None or self.replica_count > 1

    @property
    def replica_count(self) -> int:
        return len(self.gpu_ids) if self.gpu_ids is not None else self.replicas or 1

    @property
    def is_remote(self) -> bool:
        """All requests go to a server that is not ours."""
        return self.modes == ("remote",)

    @property
    def is_fleet(self) -> bool:
        """Several servers, or a list of them."""
        return isinstance(self.base_url, tuple) or (self.base_url or "").startswith((FILE, DNS))

    def members(self) -> list[EngineSettings]:
        """The settings of each server by itself of a fleet that names them."""
        if not isinstance(self.base_url, tuple):
            return []
        return [
            self.model_copy(
                update={
                    "base_url": url,
                    "api_key": self.api_key[index] if isinstance(self.api_key, tuple) else self.api_key,
                    "basic_auth": self.basic_auth[index] if isinstance(self.basic_auth, tuple) else self.basic_auth,
                    "member_weights": None,
                }
            )
            for index, url in enumerate(self.base_url)
        ]

    def model_folder(self) -> Path | None:
        """Where the model's files lie on this machine; None for a remote model and one that was never downloaded."""
        if self.is_remote or self.model is None:
            return None
        return model_folder(self.model, self.revision, self.download_dir)

    def context_window(self) -> int | None:
        """Tokens of prompt and answer together, as far as that is known without asking a server."""
        if isinstance(self.max_model_len, int):
            return self.max_model_len
        folder = self.model_folder()
        return None if folder is None else context_window(folder)

    @property
    def sampling_defaults(self) -> dict[str, Any]:
        """The defaults for requests that are set."""
        values = {name: getattr(self, name) for name in DefaultFields.model_fields}
        return {name: value for name, value in values.items() if value is not None}


SETTINGS = declared(EngineSettings)
"""Every setting, by name."""
OF_CALLS = frozenset(GenerationParams.model_fields) - frozenset(SETTINGS)
"""Parameters of a call that no setting is a default of."""
SECRET = tuple(name for name, setting in SETTINGS.items() if setting.is_secret)
"""Never shown, dumped or pickled: another process reads them from its environment."""
NOT_PICKLED = (*SECRET, "serve_tcp")
"""A port that was to have a key must not be opened without one by whoever unpickles the object."""
ENVIRONMENT = {name: setting.env for name, setting in SETTINGS.items()}
"""Setting -> environment variable."""
FLAGS = {name: setting.flag for name, setting in SETTINGS.items() if setting.flag}
"""Setting -> the flag of ``vllm serve`` that it stands for."""


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
    path = expanded(model)
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
