"""What is known of a model before it is loaded: its files here, what vLLM will make of them, and whether it fits.

Starts nothing and asks nobody. What is not known is None.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from shared_engine.adapting import model_facts
from shared_engine.cli.table import size
from shared_engine.errors import VLLMError
from shared_engine.launch.fit import misfit_of
from shared_engine.launch.spec import engine_spec, launch_environment
from shared_engine.machine.gpu import device_named, find_gpus
from shared_engine.machine.home import expanded
from shared_engine.machine.memory import ram
from shared_engine.model_files.folder import chat_template, context_window, inputs, kind_of, read_json
from shared_engine.model_files.parsers import choose_parsers
from shared_engine.model_files.quantization import quantization_of
from shared_engine.model_files.weights import parameter_count, weights_bytes
from shared_engine.params import THINKING_SWITCHES
from shared_engine.runtime.spec import EngineSpec
from shared_engine.settings import EngineSettings

_BYTES = {"float32": 4, "float": 4, "float16": 2, "half": 2, "bfloat16": 2}
_GENERATION = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "max_new_tokens")


def describe(settings: EngineSettings) -> dict[str, Any]:
    """Of the model that these settings name, by names for programs.

    Raises:
        SettingsError: the settings can't start an engine.
    """
    folder = settings.model_folder()
    parsers = choose_parsers(settings.model or "", settings.engine_args)
    told: dict[str, Any] = {
        "model": settings.model,
        "folder": None if folder is None else str(folder),
        "tool_call_parser": parsers.get("tool_call_parser"),
        "reasoning_parser": parsers.get("reasoning_parser"),
    }
    file = expanded(settings.model or "")
    if file.is_file():
        return {**told, "file": str(file), "weights_bytes": file.stat().st_size}
    if folder is None:
        return told
    config = read_json(folder / "config.json")
    weights = weights_bytes(folder)
    quantization = settings.quantization or quantization_of(folder)
    template = chat_template(folder)
    told |= {
        "architecture": next(iter(config.get("architectures") or ()), None),
        "kind": kind_of(folder, config),
        "parameters": None if quantization else parameter_count(folder),
        "weights_bytes": weights or None,
        "dtype": settings.dtype if settings.dtype != "auto" else _text(config, "dtype") or _text(config, "torch_dtype"),
        "quantization": quantization,
        "context_window": settings.context_window(),
        "longest_context": context_window(folder),
        "inputs": ["text", *sorted(inputs(folder))],
        "chat_template": model_facts.has_chat_template(settings) is not False and template is not None,
        "tools_in_template": template is not None and bool(re.search(r"\btools\b", template)),
        "thinking_switch": template is not None and any(name in template for name in THINKING_SWITCHES),
        "generation_defaults": {
            name: value
            for name, value in read_json(folder / "generation_config.json").items()
            if name in _GENERATION and value is not None
        },
        "licence": licence_of(folder),
    }
    return {**told, **_memory(settings, config, weights)}


def licence_of(folder: Path) -> str | None:
    """As the model's README says in its head, else the first line of its licence."""
    readme = _read(folder / "README.md")
    head = re.match(r"---\n(.*?)\n---", readme, re.DOTALL)
    for name in ("license_name", "license"):
        found = re.search(rf"^{name}: *['\"]?([^'\"\n]+?)['\"]? *$", head[1] if head else "", re.MULTILINE)
        if found:
            return found[1]
    for file in sorted(folder.glob("LICEN[CS]E*")):
        lines = [line.strip() for line in _read(file).splitlines() if line.strip()]
        if lines:
            return lines[0]
    return None


def _read(file: Path) -> str:
    try:
        return file.read_text(errors="replace")
    except OSError:
        return ""


def _text(config: dict[str, Any], name: str) -> str | None:
    value = config.get(name) or (config.get("text_config") or {}).get(name)
    return value if isinstance(value, str) else None


# ---- memory


@dataclass(frozen=True)
class Fit:
    """Whether a model fits into the memory that is free now.

    Attributes:
        device: ``cpu``, or ``cuda:0``, ...
        needed: bytes of each device: weights and KV cache, or of a GPU the share that vLLM takes.
        cache: bytes of the KV cache, on each device.
    """

    device: str
    needed: int
    cache: int
    free: int

    @property
    def fits(self) -> bool:
        return self.needed <= self.free and self.cache > 0


def _memory(settings: EngineSettings, config: dict[str, Any], weights: int) -> dict[str, Any]:
    try:
        spec = engine_spec(settings)
    except VLLMError as exc:
        return {"fits": None, "memory": str(exc)}
    misfit = misfit_of(spec, launch_environment(os.environ))
    if misfit is not None:
        return {"fits": False, "memory": str(misfit)}
    fit = fit_of(spec, weights)
    if fit is None:
        return {"fits": None, "memory": f"nothing is known of {', '.join(spec.devices)}"}
    per_token = cache_bytes_per_token(config, settings)
    tokens = None if per_token is None else fit.cache // (per_token // settings.tensor_parallel_size or 1)
    words = f"{size(fit.needed)} of {size(fit.free)} that are free on {fit.device}, with {size(fit.cache)} of KV cache"
    return {"fits": fit.fits, "memory": words, "cache_bytes": fit.cache, "cache_tokens": tokens}


def fit_of(spec: EngineSpec, weights: int) -> Fit | None:
    """Of the first of its devices; None where nothing is known of that."""
    device = spec.devices[0]
    if device == "cpu":
        memory = ram()
        cache = next((int(value) for flag, value in pairwise(spec.argv) if flag == "--kv-cache-memory-bytes"), 0)
        return None if memory is None else Fit(device, weights + cache, cache, memory.free)
    gpu = device_named(device, find_gpus())
    if gpu is None or gpu.memory_total is None or gpu.memory_free is None:
        return None
    needed = int(gpu.memory_total * spec.memory_share)
    return Fit(device, needed, max(0, needed - weights // len(spec.devices)), gpu.memory_free)


def cache_bytes_per_token(config: dict[str, Any], settings: EngineSettings) -> int | None:
    """Of the KV cache on all devices; None of models that keep something else for a token, or for whole requests."""
    text = config.get("text_config")
    config = text if isinstance(text, dict) else config
    layers, heads = config.get("num_hidden_layers"), config.get("num_attention_heads")
    kinds = set(config.get("layer_types") or ("full_attention",))
    if not isinstance(layers, int) or not isinstance(heads, int) or kinds != {"full_attention"}:
        return None
    if any(word in str(config.get("model_type")) for word in ("bert", "mamba", "jamba", "rwkv", "t5")):
        return None
    dtype = settings.dtype if settings.dtype != "auto" else _text(config, "dtype") or _text(config, "torch_dtype")
    width = 1 if str(settings.engine_args.get("kv_cache_dtype", "")).startswith("fp8") else _BYTES.get(dtype or "", 2)
    latent = config.get("kv_lora_rank")
    if isinstance(latent, int):
        return layers * (latent + int(config.get("qk_rope_head_dim") or 0)) * width
    head = config.get("head_dim") or int(config.get("hidden_size") or 0) // heads
    return 2 * layers * int(config.get("num_key_value_heads") or heads) * int(head) * width
