"""Trains tiny_chat from scratch and writes the model folder: `python examples/tiny_chat/train.py`.

Seeded; two CPU cores, about 25 minutes. Everything that decides the result is in this folder.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from dialog import HERE
from model import Shape, TinyChat, export, rotary_tables
from optimizer import Optimizer
from packing import NO_LOSS, Batch, batches
from skills import examples
from tokenizer import SPECIAL_TOKENS, build_tokenizer, save_tokenizer
from torch import Tensor

SEED = 20
BATCH_TOKENS = 4480
ROW_LENGTHS = (224, 560)
# glibc gives large blocks back to the kernel and page-faults them in again every step otherwise.
ALLOCATOR = {
    "MALLOC_MMAP_THRESHOLD_": "33554432",
    "MALLOC_TRIM_THRESHOLD_": "17179869184",
    "MALLOC_TOP_PAD_": "268435456",
    "OMP_WAIT_POLICY": "PASSIVE",
}


def restart_with_allocator() -> None:
    """These variables are read at process start only."""
    if "MALLOC_TOP_PAD_" not in os.environ:
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **ALLOCATOR})


def rate_share(step: int, steps: int) -> float:
    """A short warm-up, a plateau, then straight down to nothing."""
    return min(1.0, (step + 1) / 40, (steps - step) / (0.85 * steps))


def loss_of(hidden: Tensor, embedding: Tensor, targets: Tensor) -> Tensor:
    """Cross entropy at the scored positions only, which saves most of the output layer's work."""
    wanted = targets != NO_LOSS
    logits = F.linear(hidden[wanted], embedding.to(hidden.dtype)).float()
    return F.cross_entropy(logits, targets[wanted])


def train(folder: Path, steps: int) -> None:
    torch.manual_seed(SEED)
    tokenizer = build_tokenizer(e.prompt() + e.answer for e in islice(examples(SEED), 12_000))
    shape = Shape(vocabulary=tokenizer.get_vocab_size())
    save_tokenizer(tokenizer, folder, context=shape.context)
    model = TinyChat(shape)
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters", flush=True)
    optimizer = Optimizer(model, muon_rate=0.02, adam_rate=0.005)
    stream = batches(tokenizer, examples(SEED + 1, warm_up=steps * 3), size=BATCH_TOKENS, lengths=ROW_LENGTHS)
    fit(model, optimizer, stream, steps, folder)


def fit(model: TinyChat, optimizer: Optimizer, stream: Iterator[Batch], steps: int, folder: Path) -> None:
    forward = torch.compile(model, dynamic=False)
    rotary = {length: rotary_tables(model.shape, length) for length in ROW_LENGTHS}
    began, running = time.monotonic(), 7.0
    for step, batch in enumerate(islice(stream, steps)):
        loss = loss_of(
            forward(batch.tokens, batch.mask, *rotary[batch.tokens.shape[1]]), model.embedding, batch.targets
        )
        loss.backward()
        optimizer.step(rate_share(step, steps))
        running += 0.02 * (loss.item() - running)
        if step % 50 == 49 or step < 3:
            took = time.monotonic() - began
            speed = (step + 1) * BATCH_TOKENS / took
            print(f"step {step + 1} loss {running:.3f} {took:.0f} s {speed:.0f} tok/s", flush=True)
        if step % 500 == 499 or step + 1 == steps:
            export(model, folder, eos=SPECIAL_TOKENS.index("<|im_end|>"), pad=0)


if __name__ == "__main__":
    restart_with_allocator()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=2100)
    parser.add_argument("--folder", type=Path, default=HERE)
    options = parser.parse_args()
    train(options.folder, options.steps)
