"""How one engine is spread over devices, and which of vLLM's flags for that contradict each other. Pure.

What vLLM itself refuses in clear words as it reads its flags is left to it (vllm/config/parallel.py). Here is what it
would find out after minutes, or never, or what can't be an engine of ours.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

_SIZES = (
    "tensor_parallel_size",
    "pipeline_parallel_size",
    "prefill_context_parallel_size",
    "data_parallel_size",
)
_SERVE = "start each with `vllm serve` and pass base_url=[...] with their addresses"
NO_ENGINE: Mapping[str, str] = {
    "headless": "a headless server answers no requests, so it can't be an engine: start it on its machine with `vllm "
    "serve MODEL --headless ...`, and here the node that answers (engine_args with nnodes and master_addr), or that "
    "one with `vllm serve` too, and pass base_url=...",
    **dict.fromkeys(
        (
            "data_parallel_rank",
            "data_parallel_start_rank",
            "data_parallel_external_lb",
            "data_parallel_hybrid_lb",
            "data_parallel_multi_port_external_lb",
        ),
        f"it makes a server one of several, between which something else balances: {_SERVE}; or leave it out, and "
        "vLLM balances by itself between data_parallel_size EngineCores",
    ),
}
"""Flags of ``vllm serve`` that no engine of ours can have, and what to do instead."""


@dataclass(frozen=True)
class Parallelism:
    """vLLM's parallelism of one engine.

    Attributes:
        sizes: those of the degrees that are above 1, by vLLM's names.
        data: data_parallel_size: how many EngineCores there are.
        nnodes: machines that have a part of the engine.
        here: workers on this machine, each with a device of its own; 0 where others' may be among them.
    """

    sizes: Mapping[str, int]
    tensor: int
    pipeline: int
    data: int
    nnodes: int
    here: int
    backend: str | None
    data_backend: str
    api_servers: int

    @classmethod
    def of(cls, args: Mapping[str, Any]) -> Parallelism:
        """By vLLM's arguments; those that are not there have vLLM's defaults.

        Raises:
            ValueError: one of the numbers is none.
        """
        counts = {name: _count(args, name) for name in _SIZES}
        data, nnodes = counts["data_parallel_size"], _count(args, "nnodes")
        world = math.prod(counts.values())
        backend, data_backend = args.get("distributed_executor_backend"), args.get("data_parallel_backend") or "mp"
        local = args.get("data_parallel_size_local")
        is_elsewhere = backend == "ray" or data_backend == "ray"
        here = world // nnodes if nnodes > 1 else world // data * (data if local is None else int(local))
        return cls(
            sizes={name: count for name, count in counts.items() if count > 1},
            tensor=counts["tensor_parallel_size"],
            pipeline=counts["pipeline_parallel_size"],
            data=data,
            nnodes=nnodes,
            here=0 if is_elsewhere else here,
            backend=None if backend is None else str(backend),
            data_backend=str(data_backend),
            api_servers=_count(args, "api_server_count"),
        )

    @property
    def world(self) -> int:
        """Workers on all machines."""
        return math.prod(self.sizes.values())

    @property
    def uses_ray(self) -> bool:
        return "ray" in (self.backend, self.data_backend)

    @property
    def on_ray(self) -> str:
        """What asks for Ray, as users write it."""
        return f"{'distributed_executor_backend' if self.backend == 'ray' else 'data_parallel_backend'}='ray'"

    def __str__(self) -> str:
        """Such as ``tensor_parallel_size=4 x data_parallel_size=2``."""
        return " x ".join(f"{name}={size}" for name, size in self.sizes.items()) or "tensor_parallel_size=1"

    def needs(self, devices: str) -> str:
        """Such as ``tensor_parallel_size=4 x data_parallel_size=2 needs 8 devices``."""
        on = f" on each of nnodes={self.nnodes} machines" if self.nnodes > 1 else ""
        return f"{self} needs {self.here} {devices}{on}"

    @property
    def lower(self) -> str:
        """What to do where it needs too many."""
        return f"lower {' or '.join(self.sizes)}" if self.sizes else "make one visible"


def _count(args: Mapping[str, Any], name: str) -> int:
    value = args.get(name)
    if value is None:
        return 1
    if isinstance(value, bool) or not str(value).isdigit() or int(value) < 1:
        raise ValueError(f"{name} = {value!r} must be a whole number, 1 or more")
    return int(value)


def parallel_contradiction(args: Mapping[str, Any], *, takes_adapters: bool, is_direct: bool) -> str | None:
    """Why no engine can have these of vLLM's arguments, and what to do; None where vLLM may take them.

    Args:
        takes_adapters: it takes LoRA adapters at run time.
        is_direct: it runs under the app itself.
    """
    try:
        parallel = Parallelism.of(args)
    except ValueError as exc:
        return str(exc)
    return next(_contradictions(parallel, args, takes_adapters, is_direct), None)


def _contradictions(
    parallel: Parallelism, args: Mapping[str, Any], takes_adapters: bool, is_direct: bool
) -> Iterator[str]:
    backend, servers, nnodes = parallel.backend, parallel.api_servers, parallel.nnodes
    if backend == "external_launcher":
        yield (
            "distributed_executor_backend='external_launcher' is for workers that torchrun starts, which vllm-local "
            'does not: use "mp", or start them so and pass base_url=...'
        )
    if backend == "uni" and parallel.world > parallel.data:
        yield f"distributed_executor_backend='uni' runs one worker, and {parallel} needs more: use \"mp\""
    if nnodes > 1 and parallel.uses_ray:
        yield f"nnodes={nnodes} contradicts {parallel.on_ray}, which finds the other machines by itself: leave one out"
    rank = int(args.get("node_rank") or 0)
    if rank > 0:
        yield (
            f"node_rank={rank}: only node 0 answers requests, so only that can be an engine: start this one with "
            f"`vllm serve MODEL --headless --nnodes {nnodes} --node-rank {rank} --master-addr ...`"
        )
    if nnodes > 1 and parallel.world % nnodes:
        yield f"nnodes={nnodes} must divide the {parallel.world} workers of {parallel}: change one of them"
    if servers > 1 and takes_adapters:
        yield (
            f"api_server_count={servers} contradicts lora_adapters (or enable_lora): vLLM loads adapters at run time "
            "into one API server only: leave api_server_count out"
        )
    if servers > 1 and is_direct:
        yield f"api_server_count={servers} contradicts mode='direct', where vLLM runs no API server: leave one out"


def args_of(argv: Sequence[str]) -> dict[str, Any]:
    """vLLM's arguments by their names, from a command line; a switch has the value that follows it."""
    return {flag.removeprefix("--").replace("-", "_"): value for flag, value in pairwise(argv) if flag.startswith("--")}
