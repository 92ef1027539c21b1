"""vLLM's own application of its API server, in this process: what ``vllm serve`` builds, handed over in place of a
server. Its routes, parsers, templates and errors are those of a local engine.

Runs on the event loop of one engine. Imports vLLM.
"""

from __future__ import annotations

import asyncio
import importlib
import logging
from collections.abc import Awaitable, Callable, Sequence
from contextvars import ContextVar
from types import SimpleNamespace
from typing import Any, NoReturn

from shared_engine.direct.children import use_for_processes
from shared_engine.launcher.api_server import installed_release, parsed
from shared_engine.launcher.compiler import compile_refusal, without_compiling
from shared_engine.launcher.cores import bind_workers_apart
from shared_engine.launcher.replacing import replace_everywhere
from shared_engine.launcher.vllm_build import is_cpu_build

IN_PLACE_OF_AN_ADDRESS = "this process"

Serve = Callable[[Any], Awaitable[None]]
_log = logging.getLogger("shared_engine")


class InvalidArgumentsError(Exception):
    """vLLM's words for arguments that it does not take."""


async def run_application(argv: Sequence[str], serve: Serve) -> None:
    """Start vLLM and have ``serve`` use its ASGI application; end it when that returns.

    Raises:
        Exception: whatever vLLM raises when it does not start.
    """
    release = installed_release()
    api_server = import_server()
    args = parsed(_arguments(argv), release, on_error=_refuse)
    bind_workers_apart(args)
    _serve.set(serve)
    _registry.set(importlib.import_module("prometheus_client").CollectorRegistry())
    await api_server.run_server_worker(IN_PLACE_OF_AN_ADDRESS, _NoSocket(), args)


def import_server() -> Any:
    """Import vLLM's API server, and change what in it is made for a process of its own; return the module."""
    api_server: Any = importlib.import_module(installed_release().api_server)
    importlib.import_module("vllm.v1.engine.utils")  # has the name of what is replaced
    use_for_processes()
    _use_own_metrics()
    if not getattr(api_server.serve_http, "is_ours", False):
        api_server.serve_http = _handing_over(api_server.serve_http)
    return api_server


def _refuse(message: str) -> NoReturn:
    raise InvalidArgumentsError(message)


def _arguments(argv: Sequence[str]) -> list[str]:
    refusal = compile_refusal() if is_cpu_build() else None
    if refusal is None:
        return list(argv)
    _log.warning("the model is not compiled, and answers slower: %s", refusal)
    return without_compiling(list(argv))


class _NoSocket:
    """Stands where vLLM has the socket that it listens on."""

    def close(self) -> None:
        pass


_serve: ContextVar[Serve | None] = ContextVar("vllm_local_serve", default=None)


def _handing_over(serve_http: Any) -> Any:
    async def hand_over(app: Any, *args: Any, **kwargs: Any) -> Any:
        serve = _serve.get()
        if serve is None:  # the app has a server of vLLM's of its own
            return await serve_http(app, *args, **kwargs)
        # vLLM's handler of a dead engine tells the server to end: here it is seen by the end of the process.
        app.state.server = SimpleNamespace(should_exit=False)
        await serve(app)
        return asyncio.get_running_loop().create_task(asyncio.sleep(0))  # what vLLM waits for after its engine's end

    hand_over.is_ours = True  # type: ignore[attr-defined]
    return hand_over


# ---- vLLM's metrics

_registry: ContextVar[Any] = ContextVar("vllm_local_registry", default=None)


def metrics_text() -> str:
    """vLLM's metrics of the running context's engine, as its /metrics has them."""
    return str(importlib.import_module("prometheus_client").generate_latest(_registry.get()).decode())


def _use_own_metrics() -> None:
    """Each engine of this process has its own: in the app's registry one would push out the other."""
    loggers: Any = importlib.import_module("vllm.v1.metrics.loggers")
    prometheus: Any = importlib.import_module("vllm.v1.metrics.prometheus")
    pick = prometheus.get_prometheus_registry
    if getattr(pick, "is_ours", False):
        return

    def get_prometheus_registry() -> Any:
        return pick() if _registry.get() is None else _registry.get()

    get_prometheus_registry.is_ours = True  # type: ignore[attr-defined]
    replace_everywhere(pick, get_prometheus_registry)
    for name in ("_gauge_cls", "_counter_cls", "_histogram_cls"):
        setattr(loggers.PrometheusStatLogger, name, staticmethod(_in_own(getattr(loggers.PrometheusStatLogger, name))))


def _in_own(kind: Any) -> Any:
    def make(*args: Any, **kwargs: Any) -> Any:
        if _registry.get() is not None:
            kwargs.setdefault("registry", _registry.get())
        return kind(*args, **kwargs)

    return make
