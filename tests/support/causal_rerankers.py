"""Writes language models that rerank, with random weights, and how well documents fit a query according to transformers
and the prompt that the models' makers name.

Runs in the engine's Python, which has transformers: ``python tests/support/causal_rerankers.py FAMILY FOLDER``.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

QUERY = "one two"
DOCUMENTS = ["three", "four five six", "seven", "two one", "nine eight"]

PROMPTS = {
    "qwen3": (
        '<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct '
        'provided. Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n'
        "<Instruct>: Given a web search query, retrieve relevant passages that answer the query\n<Query>: {query}\n"
        "<Document>: {document}<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
    ),
    "mxbai": (
        "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n"
        "<|im_start|>user\nquery: {query}\ndocument: {document}\nYou are a search relevance expert who evaluates how "
        "well documents match search queries. For each query-document pair, carefully analyze the semantic "
        "relationship between them, then provide your binary relevance judgment (0 for not relevant, 1 for relevant).\n"
        "Relevance:<|im_end|>\n<|im_start|>assistant\n"
    ),
    "gemma": (
        "A: {query}\nB: {document}\nGiven a query A and a passage B, determine whether the passage contains an answer "
        "to the query by providing a prediction of either 'Yes' or 'No'."
    ),
}  # fmt: skip
NAMES = {"qwen3": "Qwen3-Reranker-tiny", "mxbai": "mxbai-rerank-tiny-v2", "gemma": "bge-reranker-v2-gemma"}


TINY_CHAT = Path(__file__).parents[2] / "examples" / "tiny_chat"
FITS = {"qwen3": ("yes", "no"), "mxbai": ("1", "0"), "gemma": ("Yes", None)}
"""The tokens that mean that a document fits, and that it does not."""


def main(family: str, folder: Path) -> None:
    import torch
    import transformers

    # transformers gives Qwen2 a tokenizer of its own kind, whatever the files say
    made = family != "mxbai"
    tokenizer = words_as_tokens() if made else transformers.AutoTokenizer.from_pretrained(TINY_CHAT)
    torch.manual_seed(0)
    shape: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 32,  # the least that vLLM's attention takes on the CPU
        "intermediate_size": 64,
        "max_position_embeddings": 1024,
        "initializer_range": 0.3,
        "tie_word_embeddings": True,
    }
    name = {"qwen3": "Qwen3", "mxbai": "Qwen2", "gemma": "Gemma"}[family]
    if name == "Qwen2":
        del shape["head_dim"]
    config = getattr(transformers, f"{name}Config")(**shape)
    model = getattr(transformers, f"{name}ForCausalLM")(config).eval()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)  # as vLLM loads it
    fits, fits_not = (each and tokenizer.convert_tokens_to_ids(each) for each in FITS[family])
    scores = []
    with torch.no_grad():
        for document in DOCUMENTS:
            ids = tokenizer(PROMPTS[family].format(query=QUERY, document=document), return_tensors="pt").input_ids
            logits = model(ids).logits[0, -1]
            score = logits[fits] - (logits[fits_not] if fits_not else 0)
            scores.append(torch.sigmoid(score).item())
    assert len({round(score, 4) for score in scores}) == len(scores), "the documents differ"
    (folder / "scores.json").write_text(json.dumps(scores))


def words_as_tokens() -> Any:
    """A tokenizer with a token for each word of the prompts and for each line end: a prompt that has one more or less
    gives other scores.
    """
    import transformers
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers

    pattern = r"\w+|\n|[^\w\s]+"
    parts = [re.findall(pattern, prompt) for prompt in (*PROMPTS.values(), QUERY, *DOCUMENTS)]
    words = dict.fromkeys(["[UNK]", "[PAD]", *(part for each in parts for part in each), "yes", "no", "Yes"])
    tokens = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))
    tokens.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), "removed", invert=True)
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokens, unk_token="[UNK]", pad_token="[PAD]")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
