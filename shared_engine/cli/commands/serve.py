"""``vllm-local serve``: the gateway. It alone imports shared_engine.gateway, which needs packages of its own."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import importlib.util
from pathlib import Path

from shared_engine.cli.argument_types import port, seconds
from shared_engine.cli.disk_models import model_named
from shared_engine.cli.early_signals import EarlySignals
from shared_engine.cli.exit_codes import DONE
from shared_engine.cli.interrupts import importing
from shared_engine.errors import SettingsError
from shared_engine.logs import setup
from shared_engine.machine.home import expanded

EXAMPLES = (
    "vllm-local serve Qwen/Qwen3-4B",
    "vllm-local serve --config models.yaml --watch",
    "vllm-local serve --config models.yaml --host 0.0.0.0 --tls-cert cert.pem --tls-key key.pem",
)
INTERRUPTED = "engines stay, as their settings say"
_NEEDED = ("httptools", "prometheus_client", "starlette", "uvicorn", "uvloop", "yaml")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    text = "folder of a model, its id on the hub, or the last part of the name of one on this disk"
    parser.add_argument("models", nargs="*", metavar="MODEL", help=text)
    parser.add_argument("--config", metavar="FILE", help="models.yaml: models, their settings, and who may ask")
    parser.add_argument("--watch", action="store_true", help="read FILE again when it changes; SIGHUP always does that")
    text = "address to listen on (default 127.0.0.1); one of other machines needs api_keys in FILE"
    parser.add_argument("--host", default="127.0.0.1", metavar="ADDRESS", help=text)
    parser.add_argument("--port", type=port, default=8000, metavar="N", help="default 8000; 0: any that is free")
    text = "let everybody ask who reaches the address"
    parser.add_argument("--allow-unauthenticated", action="store_true", help=text)
    parser.add_argument("--tls-cert", metavar="FILE", help="certificate (PEM), for https")
    parser.add_argument("--tls-key", metavar="FILE", help="its key (PEM), if it is in another file")
    text = "how long requests in flight may go on after SIGTERM or Ctrl-C (default 60); a second one ends them"
    parser.add_argument("--drain", type=seconds, default=60.0, metavar="S", help=text)


def run(arguments: argparse.Namespace) -> int:
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise SettingsError(f"serve needs {', '.join(missing)}: pip install 'vllm-local[gateway]'")
    with EarlySignals() as signals:
        return _serve(arguments, signals)


def _serve(arguments: argparse.Namespace, signals: EarlySignals) -> int:
    with importing():
        import uvloop

        from shared_engine.gateway.config import GatewayConfig, config_of, read_config
        from shared_engine.gateway.listening import Listening, Start, bound, url_of
        from shared_engine.gateway.server import serve
        from shared_engine.gateway.watched_file import WatchedFile

    if not arguments.config and not arguments.models:
        arguments.usage_error("there is nothing to serve: give MODEL, or --config FILE")
    if arguments.watch and not arguments.config:
        arguments.usage_error("--watch goes with --config FILE")
    if arguments.tls_key and not arguments.tls_cert:
        arguments.usage_error("--tls-key goes with --tls-cert")
    models = [model_named(model, None) for model in arguments.models]

    def read() -> GatewayConfig:
        return read_config(arguments.config, models) if arguments.config else config_of(models)

    start = Start.of_this_process()
    listening = Listening(
        arguments.host, arguments.port, arguments.drain, arguments.tls_cert, arguments.tls_key,
        arguments.allow_unauthenticated, start.sockets,
    )  # fmt: skip
    # Before it is read: a change from here on counts.
    watched = WatchedFile(expanded(Path(arguments.config))) if arguments.config and arguments.watch else None
    config = read()
    listening.check(config)
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(sock) for sock in bound(listening)]
        setup()
        urls = ", ".join(f"{url_of(listening, sock)}/v1" for sock in sockets)

        def started() -> None:
            print(f"{urls} serves {', '.join(config.models)}", flush=True)

        again = read if arguments.config else None
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(serve(config, listening, sockets, again, watched, start.ready, started, signals.has_hung_up))
    return DONE
