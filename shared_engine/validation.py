"""What settings and parameters have in common: the form of headers, and how what is refused is described."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Container, Iterable, Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, SecretStr, ValidationError

from shared_engine.declared import Converted

# What the classes are called from which people come, for the same thing.
OTHER_NAMES = {
    "api_base": "base_url", "api_url": "base_url", "openai_api_base": "base_url", "openai_api_key": "api_key",
    "request_timeout": "timeout", "max_new_tokens": "max_tokens", "num_predict": "max_tokens",
    "max_completion_tokens": "max_tokens", "num_ctx": "max_model_len", "keep_alive": "idle_ttl_s",
    "vllm_kwargs": "engine_args", "additional_kwargs": "extra_body", "model_kwargs": "extra_body",
    "stop_sequences": "stop", "thinking": "enable_thinking", "guided_json": "structured_outputs",
    "model_name": "model", "model_path": "model", "cache_dir": "download_dir", "normalize": "extra_body",
    "openai_proxy": "proxy", "headers": "default_headers", "verify": "ssl_verify", "verify_ssl": "ssl_verify",
}  # fmt: skip


def text_values(value: Any) -> Any:
    """Numbers and the like as they are written in a header or a query; a text is the JSON of all."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except json.JSONDecodeError:
            raise ValueError("must be a dict, or a JSON object") from None
    if not isinstance(value, Mapping):
        return value
    return {name: str(each) if isinstance(each, (int, float)) else each for name, each in value.items()}


def _headers(value: dict[str, SecretStr] | None) -> dict[str, SecretStr] | None:
    for name, secret in (value or {}).items():
        if not re.fullmatch(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", name):
            raise ValueError(f"{name!r} is not the name of a header")
        if re.search(r"[\r\n\0]", secret.get_secret_value()):
            raise ValueError(f"the value of {name!r} has a line break in it")
    return value


Headers = Annotated[
    Converted[dict[str, SecretStr] | None, Mapping[str, str | float | SecretStr] | None],
    AfterValidator(_headers),
]
"""Headers of requests, by name; their values may be secret, and are not shown."""


def say_unknown(kind: str, name: str, known: Iterable[str], of_calls: Container[str] = ()) -> str:
    """The message for a ``kind`` (setting, parameter) that does not exist, with the name that may be meant.

    Args:
        of_calls: names of parameters of a call, where settings are asked for.
    """
    if name in of_calls:
        return f"{name!r} is a parameter of a call, and not a {kind}: pass it to the call (in LangChain also by bind)"
    names = sorted(known)
    near = OTHER_NAMES.get(name)
    if near not in names:
        near = next(iter(difflib.get_close_matches(name, names, n=1)), None)
    return f"unknown {kind} {name!r}; " + (f"did you mean {near!r}?" if near else f"known: {', '.join(names)}")


def describe_invalid(
    exc: ValidationError,
    known: Iterable[str],
    kind: str,
    secret: Iterable[str] = (),
    sources: Mapping[str, str] | None = None,
    of_calls: Container[str] = (),
) -> str:
    """Say which ``kind`` (field) is wrong, with which value, and what is allowed; secret values are left out.

    Args:
        known: all names, to offer the nearest one for an unknown name.
        sources: for a value that is no argument, where it came from: an environment variable, a file.
        of_calls: see ``say_unknown``.
    """
    lines: list[str] = []
    sources = sources or {}
    for error in exc.errors(include_url=False, include_context=False):
        name = ".".join(str(part) for part in error["loc"]) or kind
        field = str(error["loc"][0]) if error["loc"] else ""
        label = f"{name} (from {sources[field]})" if field in sources else name
        if error["type"] == "extra_forbidden":
            lines.append(
                say_unknown(kind, name, known, of_calls) + (f" (in {sources[field]})" if field in sources else "")
            )
            continue
        message = error["msg"].removeprefix("Value error, ")
        if not field:  # about the whole, whose input may hold a secret
            lines.append(with_sources(message, sources))
        elif field in secret:
            lines.append(f"{label}: {message}")
        else:
            lines.append(f"{label} = {error['input']!r}: {message}")
    return "; ".join(dict.fromkeys(lines))


def with_sources(message: str, sources: Mapping[str, str]) -> str:
    """The message, and where the values came from that it names as ``mode = 'local'`` or ``mode='local'``."""
    named = [f"{name} from {source}" for name, source in sources.items() if re.search(rf"\b{name} ?=", message)]
    return message + (f" ({', '.join(named)})" if named else "")
