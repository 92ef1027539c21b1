"""Which class of transformers loads a tokenizer.json, and whether that class takes it as it is.

Follows transformers 5.16 to 5.19, which vLLM 0.32 asks for, without importing it. There, some classes take no more
than vocabulary, merges, post-processor and added tokens from the file, and bring the rest themselves.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# The tables follow models/auto/tokenization_auto.py.
_PLAIN_CLASSES = ("PreTrainedTokenizerFast", "TokenizersBackend")
PLAIN_MODEL_TYPES = frozenset({
    "arctic", "chatlm", "deepseek_v2", "deepseek_v3", "ernie4_5", "ernie4_5_moe", "flex_olmo", "glm", "glm4",
    "glm4_moe", "glm4_moe_lite", "gpt_bigcode", "granite", "granitemoe", "granitemoehybrid", "granitemoeshared",
    "h2ovl_chat", "hyperclovax", "internlm2", "jamba", "minicpm3", "minimax_m2", "ministral", "ministral3", "mistral",
    "mistral3", "mixtral", "modernbert", "modernbert-decoder", "nemotron", "olmo2", "olmo3", "olmo_hybrid",
    "persimmon", "phi3", "phimoe", "smolvlm", "stablelm", "step3p5",
})  # fmt: skip
"""Loaded as it is, whatever class tokenizer_config.json names."""
FORCED_CLASSES = {
    "qwen2": "Qwen2Tokenizer",
    "qwen3_5": "Qwen3_5Tokenizer",
    "qwen3_5_moe": "Qwen3_5Tokenizer",
    "qwen3_5_moe_text": "Qwen3_5Tokenizer",
    "qwen4_exp": "Qwen3_5Tokenizer",
    "hyperclovax_vision_v2": "GPT2Tokenizer",
}
"""Model type -> class, whatever class tokenizer_config.json names."""


@dataclass(frozen=True)
class RebuiltClass:
    """What a class brings itself.

    Attributes:
        special_tokens: those it has where tokenizer_config.json says nothing.
    """

    normalizer: Mapping[str, Any] | None
    pre_tokenizer: Mapping[str, Any]
    special_tokens: Mapping[str, str]
    unk_token: str | None = None
    fuse_unk: bool = False
    byte_fallback: bool = False


def _split(pattern: Mapping[str, str], behavior: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": pattern, "behavior": behavior, "invert": False}


def _byte_level(*, use_regex: bool) -> dict[str, Any]:
    return {"type": "ByteLevel", "add_prefix_space": False, "use_regex": use_regex}


def _qwen(words: str) -> RebuiltClass:
    pattern = rf"(?i:'s|'t|'re|'ve|'m|'ll|'d)|{words}|\s*[\r\n]+|\s+(?!\S)|\s+"
    splits = [_split({"Regex": pattern}, "Isolated"), _byte_level(use_regex=False)]
    return RebuiltClass(
        normalizer={"type": "NFC"},
        pre_tokenizer={"type": "Sequence", "pretokenizers": splits},
        special_tokens=dict.fromkeys(("eos_token", "unk_token", "pad_token"), "<|endoftext|>"),
    )


REBUILT_CLASSES = {
    "Qwen2Tokenizer": _qwen(r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"),
    "Qwen3_5Tokenizer": _qwen(r"[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*"),
    "GPT2Tokenizer": RebuiltClass(
        normalizer=None,
        pre_tokenizer=_byte_level(use_regex=True),
        special_tokens=dict.fromkeys(("bos_token", "eos_token", "unk_token"), "<|endoftext|>"),
    ),
    "GemmaTokenizer": RebuiltClass(
        normalizer={"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        pre_tokenizer=_split({"String": " "}, "MergedWithPrevious"),
        special_tokens={f"{name}_token": f"<{name}>" for name in ("bos", "eos", "unk", "pad", "mask")},
        unk_token="<unk>",
        fuse_unk=True,
        byte_fallback=True,
    ),
}
"""The common ones. What others bring is not known here."""


def class_of(model_type: str | None, named: str | None) -> str | None:
    """The class that loads tokenizer.json, where that is not one that takes it as it is.

    Args:
        model_type: from config.json.
        named: the ``tokenizer_class`` that the files name.
    """
    if model_type in FORCED_CLASSES:
        return FORCED_CLASSES[model_type]
    if named is None:
        return "a class that no file names"
    return None if named in _PLAIN_CLASSES or model_type in PLAIN_MODEL_TYPES else named.removesuffix("Fast")


def changes_nothing(rebuilt: RebuiltClass, tokenizer: Tokenizer) -> bool:
    """True when ``tokenizer`` already has all that the class would bring."""
    model = tokenizer.model
    chosen = ("unk_token", "fuse_unk", "byte_fallback")
    unused = ("ignore_merges", "continuing_subword_prefix", "end_of_word_suffix")
    return (
        type(model).__name__ == "BPE"
        and all(getattr(model, name) == getattr(rebuilt, name) for name in chosen)
        and not any(getattr(model, name) for name in unused)
        and _state(tokenizer.normalizer) == rebuilt.normalizer
        and _state(tokenizer.pre_tokenizer) == rebuilt.pre_tokenizer
    )


def _state(part: Any) -> Any:
    return None if part is None else _without_offsets(json.loads(part.__getstate__()))


def _without_offsets(state: Any) -> Any:
    """``trim_offsets`` has no say in which tokens there are."""
    if isinstance(state, list):
        return [_without_offsets(item) for item in state]
    if isinstance(state, dict):
        return {name: _without_offsets(value) for name, value in state.items() if name != "trim_offsets"}
    return state
