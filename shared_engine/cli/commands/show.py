"""``vllm-local show``."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

from shared_engine.cli.engine_arguments import add_engine_arguments, settings_of
from shared_engine.cli.exit_codes import DONE
from shared_engine.cli.model_description import describe
from shared_engine.cli.table import as_json, size
from shared_engine.errors import SettingsError
from shared_engine.observe.log_reader import printable

EXAMPLES = (
    "vllm-local show Qwen/Qwen3-4B",
    "vllm-local show ./my-model --max-model-len 8192",
    "vllm-local show Qwen/Qwen3-4B --json",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_engine_arguments(parser)
    parser.add_argument("--json", action="store_true", help="an object")


def run(arguments: argparse.Namespace) -> int:
    settings = settings_of(arguments)
    if settings.model is None or settings.is_remote:
        raise SettingsError("show tells of a model on this machine: name a folder or a hub id, without base_url")
    told = describe(settings)
    if arguments.json:
        print(as_json(told))
    else:
        for name, text in lines(told):
            print(f"{name:<12}  {printable(text)}")
    return DONE


def lines(told: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """What ``describe`` has found, for people."""
    yield "model", str(told["model"])
    if "file" in told:
        yield "file", f"{told['file']}, {size(told['weights_bytes'])}: vLLM alone reads what is in it"
        return
    if told["folder"] is None:
        yield "files", f"not on this disk: `vllm-local pull {told['model']}`"
        yield "parsers", f"{_parsers(told)} (by its name)"
        return
    yield "files", told["folder"]
    yield "kind", f"{told['kind']} ({told['architecture'] or 'no architecture named'})"
    yield "weights", ", ".join(_weights(told))
    yield "context", _context(told)
    yield "inputs", ", ".join(told["inputs"])
    if told["kind"] in ("chat", "text"):
        yield "template", _template(told)
        yield "parsers", _parsers(told)
    if told["generation_defaults"]:
        yield "defaults", ", ".join(f"{name} {value}" for name, value in told["generation_defaults"].items())
    yield "licence", told["licence"] or "not named in its files"
    verdict = {True: "fits: ", False: "does not fit now: ", None: "not known whether it fits: "}[told["fits"]]
    yield "memory", verdict + told["memory"]


def _weights(told: dict[str, Any]) -> Iterator[str]:
    if told["parameters"]:
        yield f"{counted(told['parameters'])} parameters"
    yield size(told["weights_bytes"]) if told["weights_bytes"] else "none in this folder"
    yield str(told["dtype"] or "no dtype named")
    yield f"quantised: {told['quantization']}" if told["quantization"] else "not quantised"


def counted(number: int) -> str:
    """``3.3M``, ``4.02B``."""
    return f"{number / 1e9:.2f}B" if number >= 1e9 else f"{number / 1e6:.1f}M"


def _context(told: dict[str, Any]) -> str:
    window, longest, cached = told["context_window"], told["longest_context"], told.get("cache_tokens")
    text = "not named in its files" if window is None else f"{window} tokens"
    if longest is not None and longest != window:
        text += f" (its own: {longest})"
    return text + ("" if cached is None else f"; the KV cache holds about {cached}")


def _template(told: dict[str, Any]) -> str:
    if not told["chat_template"]:
        return "none: text only"
    has = [
        name
        for name, key in (("tools", "tools_in_template"), ("a switch for thinking", "thinking_switch"))
        if told[key]
    ]
    return "chat" + (f", with {' and '.join(has)}" if has else "")


def _parsers(told: dict[str, Any]) -> str:
    tools, reasoning = told["tool_call_parser"], told["reasoning_parser"]
    return f"tool calls: {tools or 'none known'}; reasoning: {reasoning or 'none known'}"
