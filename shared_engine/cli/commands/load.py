"""``vllm-local load``."""

from __future__ import annotations

import argparse
import math
import time
from typing import TYPE_CHECKING, Any

from shared_engine.cli.engine_arguments import add_engine_arguments, engine_of
from shared_engine.cli.exit_codes import DONE
from shared_engine.cli.table import as_json, duration
from shared_engine.errors import SettingsError

if TYPE_CHECKING:
    from shared_engine.engine import Engine

EXAMPLES = (
    "vllm-local load Qwen/Qwen3-4B",
    "vllm-local load Qwen/Qwen3-4B --pin",
    "vllm-local load BAAI/bge-m3 --pooling",
    "vllm-local unload Qwen3-4B",
)
INTERRUPTED = "a start that has begun goes on"
PINNED = {"pinned": True, "idle_ttl_s": math.inf}
POOLING = {"runner": "pooling"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_engine_arguments(parser)
    text = "keep it loaded until it is unloaded: neither time nor other models take it away (--pinned --idle-ttl-s inf)"
    parser.add_argument("--pin", action="store_true", help=text)
    text = "for embeddings and scores, as embed and rerank load it"
    parser.add_argument("--pooling", action="store_true", help=text)
    parser.add_argument("--json", action="store_true", help="the engine as an object, as of status")


def run(arguments: argparse.Namespace) -> int:
    for name, value in PINNED.items() if arguments.pin else ():
        setattr(arguments, f"setting_{name}", value)
    engine = loading_engine(arguments, is_pooling=arguments.pooling)
    if engine.settings.modes[0] == "direct":
        raise SettingsError("mode='direct' loads a model into this command alone, which ends: leave it out")
    if arguments.pin and engine.settings.is_remote:
        raise SettingsError("--pin keeps an engine of this machine, and base_url is another's: leave one of them out")
    began = time.monotonic()
    with engine:
        engine.warmup()
        told = engine.status(processes=True)
    if arguments.json:
        print(as_json(told.to_json()))
        return DONE
    where = f"{told.name} ({told.short_key})" if told.key else engine.settings.base_url or told.name
    print(f"{where} is ready after {time.monotonic() - began:.1f} s{_how_long(engine)}")
    return DONE


def _how_long(engine: Engine) -> str:
    settings = engine.settings
    if settings.is_remote:
        return ""
    if settings.idle_ttl_s == math.inf:
        return "; it stays until it is unloaded" + ("" if settings.pinned else ", or memory is short")
    return f"; it leaves {duration(settings.idle_ttl_s)} after its last use"


def loading_engine(arguments: argparse.Namespace, *, is_pooling: bool) -> Engine:
    """The engine of the arguments; of a pooling one the same as the adapters' classes use."""
    engine = engine_of(arguments)
    settings = engine.settings
    if not is_pooling or settings.is_remote:
        return engine
    changes: dict[str, Any] = {"engine_args": {**POOLING, **settings.engine_args}}
    return type(engine)(settings.model_copy(update=changes))
