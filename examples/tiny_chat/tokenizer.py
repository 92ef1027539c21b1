# ruff: noqa: SIM905 - word lists read better as text
"""The tokenizer: byte-level BPE that splits a made-up word the same way wherever it stands, so that it can be copied.

Words carry no leading blank (the blank is a token of its own), except a closed list of function words that are never
values. Digits are single tokens. Whole sentences of well-known prompts are one token each.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path

from prompts import single_token_texts
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

VOCABULARY = 2048
SPECIAL_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
MARKUP_TOKENS = [
    "<think>",
    "</think>",
    "<tool_call>",
    "</tool_call>",
    "<tool_response>",
    "</tool_response>",
    "<tools>",
    "</tools>",
]
CLOSED_WORDS = """a about after all am an and any are as at be before below between by can could do does did down find
following for from get give given had has have how i if in information into is it its just know me my nothing of on
only or out please question return say tell than that the them then there these they this to up use was we were what
when where which who why will with would you your call called text word exactly else answer context""".split()
PATTERN = "|".join(
    [
        f" (?:{'|'.join(CLOSED_WORDS)})(?![A-Za-z_])",
        r"[A-Z]?[a-z]+|[A-Z]+",
        r"\p{L}\p{M}*",
        r"\d",
        r"\n+",
        r" ?[^\s\p{L}\d]+(?: [^\s\p{L}\d]+)*(?:\n+)?",
        r"\s",
    ]
)


def build_tokenizer(texts: Iterable[str]) -> Tokenizer:
    """Learns the merges from texts of which the single-token sentences are cut out first."""
    whole = sorted(single_token_texts(), key=len, reverse=True)
    added = [AddedToken(t, special=False, normalized=False) for t in [*MARKUP_TOKENS, *whole]]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PATTERN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - len(added),
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    kept_whole = re.compile("|".join(map(re.escape, [*whole, *MARKUP_TOKENS, *SPECIAL_TOKENS])))
    tokenizer.train_from_iterator((piece for text in texts for piece in kept_whole.split(text)), trainer)
    tokenizer.add_tokens(added)
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path, *, context: int) -> None:
    """tokenizer.json and tokenizer_config.json; the template lies beside them in chat_template.jinja."""
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": None,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "unk_token": None,
        "additional_special_tokens": ["<|im_start|>", "<|im_end|>"],
        "clean_up_tokenization_spaces": False,
        "model_max_length": context,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
