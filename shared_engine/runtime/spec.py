"""EngineSpec: what decides one server process. Written by the client that starts a supervisor."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from shared_engine.runtime.files import read_own
from shared_engine.runtime.typed_json import parse, typed

PROTOCOL = 10
"""Version of the messages between client, supervisor and launcher; engines of another version have other keys."""


@dataclass(frozen=True)
class EngineSpec:
    """Equal specs have equal keys and share one engine.

    Attributes:
        argv: the arguments of ``vllm serve``, without the socket, which is new at each start.
        python: the interpreter that has vLLM.
        vllm_version: for messages; a new version is a new engine.
        model: as requests name it.
        environment: variables set on top of the environment of the process that starts the engine.
        devices: what it runs on: ``cpu``, or ``cuda:0``, ``cuda:1``, ...; one engine at a time starts on a device.
        memory_share: of each device's memory, asked for at the start.
        memory_bytes: of each device, asked for at the start; 0 where that is not known.
        protocol: see PROTOCOL.
    """

    argv: tuple[str, ...]
    python: str
    vllm_version: str
    model: str
    environment: Mapping[str, str] = field(default_factory=dict)
    devices: tuple[str, ...] = ("cpu",)
    memory_share: float = 0.0
    memory_bytes: int = 0
    protocol: int = PROTOCOL

    @property
    def key(self) -> str:
        """16 hex digits; the name of the engine's runtime directory."""
        # Not a cached_property: before Python 3.12 it holds a lock, which a child forked meanwhile would never get.
        if "_key" not in self.__dict__:
            import hashlib  # late: it loads OpenSSL, and the supervisor, which imports this module, has no use for it

            canonical = json.dumps(asdict(self), sort_keys=True, default=list)
            self.__dict__["_key"] = hashlib.sha256(canonical.encode()).hexdigest()[:16]
        key: str = self.__dict__["_key"]
        return key

    def to_json(self) -> str:
        return json.dumps({**asdict(self), "environment": dict(self.environment)})


def read_spec(path: Path) -> EngineSpec:
    """The spec in a file that ``to_json`` was written to.

    Raises:
        OSError, ValueError: there is none.
    """
    return typed(EngineSpec, parse(read_own(path)))
