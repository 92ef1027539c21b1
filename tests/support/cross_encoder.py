"""Writes a cross-encoder with random weights, and how well documents fit a query according to transformers.

Runs in the engine's Python, which has transformers: ``python tests/support/cross_encoder.py FOLDER``.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

WORDS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
QUERY = "one two"
DOCUMENTS = ["three", "four five six", "seven", "two one", "nine eight"]


def main(folder: Path) -> None:
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    tokens = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))
    tokens.pre_tokenizer = pre_tokenizers.Whitespace()
    tokens.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", words.index("[CLS]")), ("[SEP]", words.index("[SEP]"))],
    )
    names = {f"{name.lower()}_token": f"[{name}]" for name in ("UNK", "CLS", "SEP", "PAD", "MASK")}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokens, model_max_length=64, **names)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=64,  # two heads of 32, the least that vLLM's attention takes on the CPU
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
        num_labels=1,
        initializer_range=0.3,  # with the usual 0.02 all scores would be nearly the same
    )
    model = BertForSequenceClassification(config).eval()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    with torch.no_grad():
        pairs = tokenizer([QUERY] * len(DOCUMENTS), DOCUMENTS, padding=True, return_tensors="pt")
        scores = torch.sigmoid(model(**pairs).logits[:, 0])
    (folder / "scores.json").write_text(json.dumps(scores.tolist()))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
