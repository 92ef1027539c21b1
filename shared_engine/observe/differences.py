"""Engines of one model, and the flags in which they differ: to people they look the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from shared_engine.observe.engine_info import EngineInfo
from shared_engine.runtime.directory import runtime_dir
from shared_engine.runtime.spec import EngineSpec, read_spec


def differences(engines: Sequence[EngineInfo]) -> dict[str, str]:
    """By key, what sets an engine apart from the others of its model here: ``--max-model-len 512``."""
    specs: dict[str | None, dict[str, EngineSpec]] = {}
    for engine in engines:
        try:
            spec = read_spec(runtime_dir(engine.key or "").spec)
        except (OSError, ValueError):
            continue
        specs.setdefault(engine.model, {})[engine.key or ""] = spec
    told: dict[str, str] = {}
    for alike in specs.values():
        flags = {key: _flags(spec) for key, spec in alike.items()}
        shared = set.intersection(*(set(each.items()) for each in flags.values()))
        names = sorted({name for each in flags.values() for name, _ in each.items() - shared})
        for key, own in flags.items():
            if names:
                told[key] = " ".join(own.get(name, f"no {name}") for name in names)
    return told


def _flags(spec: EngineSpec) -> Mapping[str, str]:
    """By the name of each flag, it and its values as they are written; and what is decided beside them."""
    flags: dict[str, str] = {}
    name = ""
    for part in spec.argv:
        if part.startswith("--"):
            name = part
        flags[name] = f"{flags[name]} {part}" if name in flags else part
    return {
        **flags,
        "devices": f"on {','.join(spec.devices)}",
        "version": f"vLLM {spec.vllm_version}",
        "python": spec.python,
    }
