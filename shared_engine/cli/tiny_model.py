"""A model made up on the spot, for an engine that only has to show that it starts: nothing is downloaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

_WORDS = ["<unk>", "<s>", "</s>", "one", "two", "three", *(f"word{number}" for number in range(122))]
_CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "dtype": "bfloat16",
    "torch_dtype": "bfloat16",
    "vocab_size": len(_WORDS),
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-06,
    "tie_word_embeddings": True,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_TOKENIZER = {
    "version": "1.0",
    "truncation": None,
    "padding": None,
    "added_tokens": [
        {
            "id": number,
            "content": _WORDS[number],
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
        for number in range(3)
    ],
    "normalizer": None,
    "pre_tokenizer": {"type": "Whitespace"},
    "post_processor": None,
    "decoder": None,
    "model": {"type": "WordLevel", "vocab": {word: n for n, word in enumerate(_WORDS)}, "unk_token": "<unk>"},
}
_TOKENIZER_CONFIG = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "bos_token": "<s>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
    "model_max_length": 64,
}


def write_tiny_model(folder: Path) -> None:
    """A Llama of two layers, without weights (load_format="dummy" makes them up), and a tokenizer of whole words."""
    files = {"config.json": _CONFIG, "tokenizer.json": _TOKENIZER, "tokenizer_config.json": _TOKENIZER_CONFIG}
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content, indent=1))


def tiny_settings() -> dict[str, Any]:
    """How to run it: with next to nothing of any memory, and nothing from the environment."""
    return {
        **dict.fromkeys(("quantization", "revision", "tokenizer", "download_dir", "seed")),
        "dtype": "auto",
        "enforce_eager": True,
        "gpu_memory_utilization": 0.1,
        "max_model_len": 64,
        "start_timeout_s": 300,
        "tensor_parallel_size": 1,
        "trust_remote_code": False,
        "engine_args": {"load_format": "dummy", "kv_cache_memory_bytes": 32 << 20, "max_num_seqs": 4},
    }
