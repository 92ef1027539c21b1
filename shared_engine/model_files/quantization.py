"""How a model's weights are quantised, by its own files, and whether that is what somebody asks for.

Names as in vllm/model_executor/layers/quantization/__init__.py. Only what vLLM is certain to refuse is refused.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from shared_engine.model_files.folder import read_json

# Kernels, or readers, for weights of these methods.
_READ_BY = {
    "awq": ("awq", "auto_awq", "awq_marlin", "marlin", "moe_wna16", "humming", "inc"),
    "gptq": ("gptq", "auto_gptq", "gptq_marlin", "marlin", "moe_wna16", "humming", "inc", "auto-round"),
    "auto-round": ("auto-round", "inc"),
    "inc": ("auto-round", "inc"),
}
# These quantise a plain model's weights while it is loaded.
_WHILE_LOADING = (
    "fp8", "fp8_per_tensor", "fp8_per_block", "fp8_per_channel", "int8_per_channel_weight_only", "nvfp4_per_token",
    "mxfp8", "mxfp4", "online", "experts_int8", "bitsandbytes", "torchao", "humming", "quark", "inc",
)  # fmt: skip
# These read weights that somebody has quantised before.
_NEED_QUANTISED = (
    "awq", "auto_awq", "awq_marlin", "gptq", "auto_gptq", "gptq_marlin", "marlin", "compressed-tensors", "modelopt",
    "modelopt_fp4", "modelopt_mxfp8", "modelopt_mixed", "fbgemm_fp8", "moe_wna16", "auto-round", "gpt_oss_mxfp4",
)  # fmt: skip
# vLLM itself chooses among the methods that have one of these in their names.
_FAMILIES = ("modelopt", "mxfp4", "mxfp8")
# Beside config.json, where older tools said how they had quantised.
_OLD_FILES = ("quantize_config.json", "quant_config.json")


def quantization_of(folder: Path) -> str | None:
    """The method that a model's weights are quantised with, in vLLM's word; None for a plain model."""
    config = read_json(folder / "config.json")
    text = config.get("text_config")  # of a model that also sees or hears
    for part in (config, text if isinstance(text, dict) else {}):
        for name in ("quantization_config", "compression_config"):
            method = _method(part.get(name))
            if method is not None:
                return method
    exported = read_json(folder / "hf_quant_config.json").get("quantization")  # NVIDIA's modelopt
    return "modelopt" if isinstance(exported, dict) and exported.get("quant_algo") else None


def _method(config: Any) -> str | None:
    if not isinstance(config, dict):
        return None
    method = config.get("quant_method")
    if isinstance(method, str) and method:
        return method.lower().replace("compressed_tensors", "compressed-tensors")
    if config.get("load_in_4bit") or config.get("load_in_8bit"):
        return "bitsandbytes"
    return "modelopt" if config.get("quant_algo") or config.get("producer") else None


def contradiction(asked: str, folder: Path) -> str | None:
    """Why the model in this folder can't be served with the quantization ``asked``; None where that is not certain."""
    asked, has = asked.lower(), quantization_of(folder)
    if has is None:
        if asked not in _NEED_QUANTISED or any((folder / name).is_file() for name in _OLD_FILES):
            return None
        return (
            f"the model in {folder} is not pre-quantised, and {asked} needs a model that is: leave it out, or name a "
            "model with such weights; fp8 quantises a plain one while it is loaded"
        )
    if asked == has or asked in _READ_BY.get(has, ()) or _is_of_one_family(asked, has):
        return None
    if asked not in (*_NEED_QUANTISED, *_WHILE_LOADING):
        return None  # a plugin's, or a newer vLLM's
    return f"the model in {folder} is {has}, not {asked}: leave it out, and vLLM takes what the model has"


def _is_of_one_family(asked: str, has: str) -> bool:
    return asked == "humming" or any(family in asked and family in has for family in _FAMILIES)
