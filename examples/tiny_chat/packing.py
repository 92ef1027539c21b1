"""Turns examples into fixed-size rows of tokens: several conversations a row, none of which sees another."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from dialog import END_OF_TURN, Example, scored_spans
from tokenizers import Tokenizer
from torch import Tensor

NO_LOSS = -100
POOL = 600  # examples that are put into rows together


@dataclass(frozen=True)
class Document:
    tokens: list[int]
    targets: list[int]  # the next token where the loss counts, else NO_LOSS


@dataclass(frozen=True)
class Batch:
    tokens: Tensor  # rows x length
    targets: Tensor
    mask: Tensor  # rows x 1 x length x length, added to attention scores


def encode(tokenizer: Tokenizer, examples: list[Example]) -> Iterator[Document]:
    prompts = [example.prompt() for example in examples]
    texts = [p + e.answer + END_OF_TURN for p, e in zip(prompts, examples, strict=True)]
    for example, prompt, encoding in zip(examples, prompts, tokenizer.encode_batch(texts), strict=True):
        spans = scored_spans(example, len(prompt))
        ids, starts = encoding.ids, [start for start, _ in encoding.offsets]
        scored = [any(low <= start < high for low, high in spans) for start in starts]
        targets = [i if counts else NO_LOSS for i, counts in zip(ids[1:], scored[1:], strict=True)]
        yield Document(ids[:-1], targets)


def batches(tokenizer: Tokenizer, examples: Iterator[Example], *, size: int, lengths: Sequence[int]) -> Iterator[Batch]:
    """An endless stream of batches of `size` tokens, each with rows of one of `lengths`.

    Short rows cost less attention; conversations longer than the longest row are left out.
    """
    waiting: dict[int, list[list[Document]]] = {length: [] for length in lengths}
    while True:
        documents = list(encode(tokenizer, list(islice(examples, POOL))))
        shorter = 0
        for length in lengths:
            fitting = [document for document in documents if shorter < len(document.tokens) <= length]
            waiting[length] += _first_fit(fitting, length)
            shorter, rows = length, size // length
            while len(waiting[length]) >= rows:
                yield _batch(waiting[length][:rows], length)
                waiting[length] = waiting[length][rows:]


def _first_fit(documents: list[Document], length: int) -> list[list[Document]]:
    """Rows of documents. In the order of the stream, so a curriculum stays one, within a short window of open rows."""
    rows: list[list[Document]] = []
    free: list[int] = []
    for document in documents:
        need = len(document.tokens)
        index = next((i for i in range(max(0, len(rows) - 24), len(rows)) if free[i] >= need), None)
        if index is None:
            rows.append([])
            free.append(length)
            index = len(rows) - 1
        rows[index].append(document)
        free[index] -= need
    return rows


def _batch(rows: list[list[Document]], length: int) -> Batch:
    tokens = torch.zeros(len(rows), length, dtype=torch.long)
    targets = torch.full((len(rows), length), NO_LOSS)
    owner = torch.zeros(len(rows), length, dtype=torch.long)
    for r, documents in enumerate(rows):
        position = 0
        for number, document in enumerate(documents, 1):
            end = position + len(document.tokens)
            tokens[r, position:end] = torch.tensor(document.tokens)
            targets[r, position:end] = torch.tensor(document.targets)
            owner[r, position:end] = number
            position = end
    same = owner[:, None, :, None] == owner[:, None, None, :]
    visible = same & torch.ones(length, length, dtype=torch.bool).tril()
    mask = torch.zeros(visible.shape, dtype=torch.bfloat16).masked_fill_(~visible, float("-inf"))
    return Batch(tokens, targets, mask)
