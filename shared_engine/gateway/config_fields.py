"""What may stand in models.yaml beside the settings of engines, declared once: the schema is made of it."""

from __future__ import annotations

import ipaddress
import json
import re
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, model_validator

Name = Annotated[str, Field(min_length=1, max_length=256, pattern=r"^[^\x00-\x1f\x7f]+$")]
Params = dict[Annotated[str, Field(min_length=1)], Any]
Domain = Annotated[str, Field(pattern=r"^(\*|(\*\.)?[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*|[0-9A-Fa-f:.]+)$")]
# Named by the gateway itself, or what a request is about, or what decides how its client reads the answer.
_NOT_TO_SET = ("model", "messages", "prompt", "input", "stream", "stream_options")
_ORIGIN = re.compile(
    r"(?!http://.*:80$|https://.*:443$)"  # which browsers leave out
    r"https?://([a-z0-9_-]+(\.[a-z0-9_-]+)*|\[[0-9a-f:.]+\])(:[1-9][0-9]{0,4})?"
    r"|(?!https?:)[a-z][a-z0-9+.-]*://[^/?#*\s]*"  # an extension's, or a desktop app's
)
_HOST = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*")


def _by_name(value: Any) -> Any:
    """Aliases in a list set nothing."""
    is_list = isinstance(value, list) and all(isinstance(each, str) for each in value)
    return {each: {} for each in value} if is_list else value


def _nothing(value: Any) -> Any:
    """A name with nothing after it."""
    return {} if value is None else value


def _settable(params: dict[str, Any]) -> dict[str, Any]:
    for name in _NOT_TO_SET:
        if name in params:
            raise ValueError(f"{name!r} is the request's own and can't be set for it")
    if "keep_alive" in params:
        raise ValueError("'keep_alive' is not for the model's server: say ttl beside set_params")
    return params


SetParams = Annotated[Params, BeforeValidator(_nothing), AfterValidator(_settable)]


def _network(value: str) -> str:
    ipaddress.ip_network(value)  # says what is wrong
    return value


def _origin(value: str) -> str:
    """It is compared as a whole with what a browser sends."""
    if value in ("*", "null"):  # a page without an origin is one that any page can have made
        raise ValueError("would let every web page ask: name the origins, such as https://app.example.com")
    if not _ORIGIN.fullmatch(value):
        told = "in small letters, without its scheme's usual port, and with nothing after it, not even a slash"
        raise ValueError(f"must be an origin as browsers send it, such as https://app.example.com: {told}")
    return value


def _host(value: str) -> str:
    if not _HOST.fullmatch(value):
        try:
            ipaddress.IPv6Address(value)
        except ValueError:
            told = "must be a name or address alone, such as gw.example.com: without a scheme, a port, or *"
            raise ValueError(told) from None
    return value


Network = Annotated[str, AfterValidator(_network)]
Origin = Annotated[str, AfterValidator(_origin)]
Host = Annotated[str, AfterValidator(_host)]


class _Declared(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class ApiKey(_Declared):
    """A key, and what it opens."""

    name: Name
    """For logs and messages; the key itself is in neither."""
    key: Annotated[SecretStr | None, Field(min_length=8)] = None
    """The key, or better ``${env.NAME}``."""
    key_file: str | None = None
    """A file that holds it, and nothing else."""
    models: tuple[Name, ...] | None = None
    """The models that it may use. Default: all."""
    requests_per_minute: Annotated[int | None, Field(ge=1)] = None
    """So many requests a minute, which may come at once; others are answered 429. Default: no limit."""
    concurrency_limit: Annotated[int | None, Field(ge=1)] = None
    """So many requests at once; others are answered 429. Default: no limit."""
    admin: bool = False
    """It may unload and pin models, cancel others' requests, read logs, and shut the gateway down."""

    @model_validator(mode="after")
    def _check(self) -> ApiKey:
        if (self.key is None) == (self.key_file is None):
            raise ValueError("give key or key_file, one of them")
        return self


class ModelFields(_Declared):
    """What the gateway makes of a model. Every setting of an engine stands beside these, under its own name."""

    aliases: Annotated[dict[Name, SetParams], BeforeValidator(_by_name)] = Field(default_factory=dict)
    """Other names: a list; or by name what is set in requests that use it, beside ``set_params``:
    ``{"qwen:low": {"chat_template_kwargs": {"enable_thinking": false}}}``."""
    set_params: SetParams = Field(default_factory=dict)
    """What every request has, whatever it says itself: ``{"temperature": 0.2}``. Not whether it is a stream."""
    ttl: Annotated[float | None, Field(ge=0)] = None
    """Seconds after the end of the last request until the model leaves memory, as ``idle_ttl_s``; 0: never."""
    preload: bool = False
    """Load it when the gateway starts. ``/ready`` answers 200 only then."""
    concurrency_limit: Annotated[int, Field(ge=1)] = 1000
    """So many requests at once; others wait."""
    queue_limit: Annotated[int, Field(ge=0)] = 1000
    """So many may wait for ``concurrency_limit``; others are answered 429."""
    unlisted: bool = False
    """Not in ``/v1/models``; it answers all the same."""
    name: str | None = None
    """For people, in ``/v1/models``."""
    description: str | None = None
    """For people, in ``/v1/models``."""
    metadata: Annotated[Params, BeforeValidator(_nothing)] = Field(default_factory=dict)
    """Whatever programs want to find in ``/v1/models``."""

    @model_validator(mode="after")
    def _check(self) -> ModelFields:
        try:
            json.dumps([self.set_params, self.metadata, self.aliases], allow_nan=False)
        except ValueError:
            raise ValueError("set_params, aliases and metadata are JSON, which has no .inf and no .nan") from None
        return self


class FileFields(_Declared):
    """The file."""

    models: dict[Name, Annotated[dict[str, Any], BeforeValidator(_nothing)]]
    """Each model by the name that requests use."""
    defaults: Annotated[dict[str, Any], BeforeValidator(_nothing)] = Field(default_factory=dict)
    """What holds for each model that does not say otherwise."""
    api_keys: tuple[ApiKey, ...] = ()
    """Who may ask. Without any: everybody who reaches the address."""
    allowed_hosts: tuple[Host, ...] = ()
    """Names (or addresses) without a port, besides localhost, by which the gateway may be called on a loopback address,
    as behind a proxy; on other addresses, if given, the only ones."""
    cors_origins: tuple[Origin, ...] = ()
    """Web pages that may ask, each by its origin as browsers send it: ``["https://app.example.com"]``."""
    media_domains: tuple[Domain, ...] = ()
    """Hosts from which images, audio and video are fetched by URL: ``img.example.com``, ``*.example.com``, ``*`` (all).
    Default: none; what is sent as data always works."""
    media_networks: tuple[Network, ...] = ()
    """Networks that are not public, from which may be fetched if ``media_domains`` names the host: ``10.0.0.0/8``."""
    max_media: Annotated[int, Field(ge=0)] = 64
    """Most images, sounds and videos in one request."""
    max_media_bytes: Annotated[int, Field(ge=1)] = 32 << 20
    """Largest of them."""
    media_timeout_s: Annotated[float, Field(gt=0)] = 10.0
    """How long the fetching for one request may take."""
    max_body_bytes: Annotated[int, Field(ge=1024)] = 64 << 20
    """Longest request."""
    turn_s: Annotated[float, Field(ge=0)] = 10.0
    """Where not all models fit: seconds until a busy one has to make room, once it is loaded, and its requests wait."""
    comment_interval_s: Annotated[float, Field(gt=0)] = 10.0
    """While a stream waits for its model: seconds between comments, so that proxies do not cut the connection."""
