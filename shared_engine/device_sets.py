"""The devices of replicas as users write them, ``[0, 1]`` for one each, ``[[0, 1], [2, 3]]`` for two each; and what
contradicts replicas. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from shared_engine.parallelism import Parallelism

DeviceSets = tuple[tuple[str, ...], ...]


def device_sets(value: Any) -> Any:
    """A set of devices for each replica, each by its name in CUDA_VISIBLE_DEVICES.

    Raises:
        ValueError: it is not that.
    """
    if value is None:
        return None
    if isinstance(value, str):  # of an environment variable
        value = _parsed(value)
    if not isinstance(value, list | tuple) or not value:
        raise ValueError("must be a list with a GPU, or a list of GPUs, for each replica, such as [0, 1]")
    sets = tuple(
        tuple(map(_name, each)) if isinstance(each, list | tuple) else (_name(each),)  # one GPU each
        for each in value
    )
    names = [name for each in sets for name in each]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"names {', '.join(twice)} twice: each replica has GPUs of its own")
    if len({len(each) for each in sets}) > 1 or not sets[0]:
        raise ValueError("must name as many GPUs for each replica, and one at least")
    return sets


def _parsed(text: str) -> Any:
    if not text.lstrip().startswith("["):
        return [each.strip() for each in text.split(",")]
    try:
        return json.loads(text)
    except json.JSONDecodeError as exc:
        raise ValueError(f"is not a list in JSON: {exc}") from None


def _name(value: Any) -> str:
    is_number = isinstance(value, int) and not isinstance(value, bool) and value >= 0
    is_name = isinstance(value, str) and (value.isdigit() or value.startswith(("GPU-", "MIG-")))
    if not is_number and not is_name:
        raise ValueError(f"{value!r} is not a GPU: name each by its number, or by its UUID (GPU-..., MIG-...)")
    return str(int(value)) if str(value).isdigit() else str(value)


def with_size_of_sets(values: Mapping[str, Any]) -> dict[str, Any]:
    """Settings whose ``tensor_parallel_size`` is what the sets of ``gpu_ids`` ask for, where it was not given."""
    values = dict(values)
    if values.get("gpu_ids") is None or "tensor_parallel_size" in values:
        return values
    try:
        size = len(device_sets(values["gpu_ids"])[0])
    except ValueError:  # which is told with the field's name
        return values
    try:
        rest = Parallelism.of({**_args(values.get("engine_args")), **values}).world
    except ValueError:  # likewise
        return values
    if size > rest and size % rest == 0:
        values["tensor_parallel_size"] = size // rest
    return values


def _args(engine_args: Any) -> dict[str, Any]:
    if not isinstance(engine_args, Mapping):
        return {}
    return {str(name).lstrip("-").replace("-", "_"): value for name, value in engine_args.items()}


def replica_contradiction(values: Mapping[str, Any], modes: Sequence[str], parallelism: Parallelism) -> str | None:
    """What else is set that replicas can't have, and what to do; None where nothing is.

    Args:
        values: settings, by name.
        modes: where requests go.
        parallelism: of each engine.
    """
    sets: DeviceSets | None = values["gpu_ids"]
    given = "replicas" if sets is None else "gpu_ids"
    several = f"{given} makes several engines of this machine"
    if tuple(modes) == ("remote",):
        return (
            f"{several}, and base_url = {values['base_url']!r} is a server that runs: leave one of them out, or name "
            "several servers with base_url=[...]"
        )
    if "direct" in modes:
        which = f"mode={values['mode']!r}" if modes[0] == "direct" else "fallback='direct'"
        verb = "runs" if tuple(modes) == ("direct",) else "may run"
        return f"{several}, and {which} {verb} one under this process: leave one of them out"
    for name in ("visible_devices", "cpu_omp_threads_bind"):
        if values[name] not in (None, "auto"):
            return f"{given} gives each replica devices of its own: leave {name} = {values[name]!r} out"
    if parallelism.uses_ray or parallelism.nnodes > 1:
        which = "Ray" if parallelism.uses_ray else f"nnodes = {parallelism.nnodes}"
        return f"{several}, each with devices of its own, and {which} takes those of others too: leave one of them out"
    return None if sets is None else _set_contradiction(sets, values["replicas"], parallelism)


def _set_contradiction(sets: DeviceSets, replicas: int | None, parallelism: Parallelism) -> str | None:
    if replicas not in (None, len(sets)):
        return f"replicas = {replicas} contradicts gpu_ids, which names {len(sets)}"
    size = len(sets[0])
    if parallelism.here == size:
        return None
    words = "; ".join(", ".join(each) for each in sets)
    return (
        f"gpu_ids has {size} GPU{'s' * (size > 1)} for each replica ({words}), and {parallelism} asks for "
        f"{parallelism.here}: change one of them"
    )
