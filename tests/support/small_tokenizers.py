"""Model folders made by hand, for tests of tokenizing: a small tokenizer of each kind, and the files beside it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

CORPUS = (
    "The engine is shared by every app on the machine; it starts on the first call and leaves memory when idle. "
    "naïve façade, 日本語 東京, русский, emoji 😀, can't we'll they've 1234567 3.14  a   b\n\n"
    "\tdef main():\n    return 42\n"
) * 3
TEXT = "  The engine's naïve 日本語 12345\n\n<|im_end|> e\u0301 can't"
QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN3_5 = QWEN2.replace(r"?\p{L}+", r"?[\p{L}\p{M}]+").replace(r"[^\s\p{L}\p{N}]", r"[^\s\p{L}\p{M}\p{N}]")
LLAMA3 = QWEN2.replace(r"\p{N}| ", r"\p{N}{1,3}| ")


def _byte_level(pre_tokenizer: Any, normalizer: Any = None) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.normalizer, tokenizer.decoder = pre_tokenizer, normalizer, decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([CORPUS], trainer)
    tokenizer.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    tokenizer.add_tokens(["<think>", "</think>"])
    return tokenizer


def _words(pattern: str) -> Any:
    split = pre_tokenizers.Split(Regex(pattern), "isolated")
    return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def _with_bytes(bos: str, others: list[str], normalizer: Any, pre_tokenizer: Any) -> Tokenizer:
    """As SentencePiece tokenizers are converted: bytes for what is not in the vocabulary, and a token before all."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizer
    if pre_tokenizer is not None:
        tokenizer.pre_tokenizer = pre_tokenizer
    in_vocabulary = [*others, *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=in_vocabulary, show_progress=False)
    tokenizer.train_from_iterator([CORPUS], trainer)
    state = json.loads(tokenizer.to_str())
    state["added_tokens"] = [token for token in state["added_tokens"] if not token["content"].startswith("<0x")]
    tokenizer = Tokenizer.from_str(json.dumps(state))
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", special_tokens=[(bos, tokenizer.token_to_id(bos))]
    )
    return tokenizer


@cache
def tokenizer_of(kind: str) -> Tokenizer:
    if kind == "gemma":
        tokens = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
        split = pre_tokenizers.Split(" ", "merged_with_previous")
        return _with_bytes("<bos>", tokens, normalizers.Replace(" ", "▁"), split)
    if kind == "llama2":
        spaces = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        return _with_bytes("<s>", ["<unk>", "<s>", "</s>"], spaces, None)
    if kind == "gpt2":
        return _byte_level(pre_tokenizers.ByteLevel(add_prefix_space=False))
    if kind == "padded":
        tokenizer = _byte_level(_words(LLAMA3))
        tokenizer.enable_truncation(6)
        tokenizer.enable_padding(length=12, pad_token="<|im_end|>")
        return tokenizer
    patterns = {"qwen2": QWEN2, "qwen3_5": QWEN3_5, "llama3": LLAMA3}
    return _byte_level(_words(patterns[kind]), None if kind == "llama3" else normalizers.NFC())


_SPECIAL_TOKENS = {
    "gemma": {"bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>", "pad_token": "<pad>"},
    "llama2": {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"},
}
_BYTE_LEVEL_TOKENS = {"bos_token": None, "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "unk_token": None}


def declared(kind: str) -> dict[str, dict[str, Any]]:
    """``added_tokens_decoder``: the added tokens of the tokenizer, as tokenizer_config.json repeats them."""
    return {str(index): token.__getstate__() for index, token in tokenizer_of(kind).get_added_tokens_decoder().items()}


def make_folder(
    folder: Path,
    kind: str = "llama3",
    model_type: str = "llama",
    tokenizer_class: str | None = "PreTrainedTokenizerFast",
    *,
    config: Mapping[str, Any] | None = None,
    model: Mapping[str, Any] | None = None,
    files: Mapping[str, Any] | None = None,
) -> Path:
    """A model's folder, but for the weights.

    Args:
        config: on top of tokenizer_config.json.
        model: on top of config.json.
        files: others, by name: a template's text, or what is written as JSON.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer_of(kind).save(str(folder / "tokenizer.json"))
    tokens = _SPECIAL_TOKENS.get(kind, _BYTE_LEVEL_TOKENS)
    given = {"tokenizer_class": tokenizer_class, **tokens, **(config or {})}
    contents: dict[str, Any] = {
        "config.json": {"model_type": model_type, "architectures": ["LlamaForCausalLM"], **(model or {})},
        "tokenizer_config.json": {name: value for name, value in given.items() if name != "tokenizer_class" or value},
        **(files or {}),
    }
    for name, content in contents.items():
        file = folder / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return folder
