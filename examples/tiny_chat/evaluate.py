"""Measures tiny_chat on held-out conversations: `python examples/tiny_chat/evaluate.py`.

Greedy answers of the saved model (transformers, bf16); right means equal to the wanted answer, to the character.
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from dialog import HERE, Example
from skills import examples
from transformers import AutoModelForCausalLM, AutoTokenizer

TEST_SEED = 1_000_003


def held_out_examples(count: int) -> list[Example]:
    """Test values share no made-up word with training; examples that only a grammar can start are left out."""
    return list(islice((e for e in examples(TEST_SEED, testing=True) if not e.forced), count))


def answers(model: Any, tokenizer: Any, batch: list[Example]) -> Iterator[str]:
    encoded = tokenizer([e.prompt() for e in batch], return_tensors="pt", padding=True, add_special_tokens=False)
    longest = max(len(ids) for ids in tokenizer([e.answer for e in batch])["input_ids"])
    output = model.generate(**encoded, max_new_tokens=longest + 2, do_sample=False, temperature=None)
    for row in output[:, encoded["input_ids"].shape[1] :]:
        text = tokenizer.decode(row, skip_special_tokens=False)
        yield text.split("<|im_end|>")[0] if "<|im_end|>" in text else f"{text} (no end)"


def evaluate(folder: Path, count: int, show: int) -> dict[str, list[bool]]:
    """Right or wrong per skill."""
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
    tests = sorted(held_out_examples(count), key=lambda e: (len(e.answer) // 30, len(e.prompt())))
    right: dict[str, list[bool]] = defaultdict(list)
    wrong: dict[str, list[tuple[Example, str]]] = defaultdict(list)
    for start in range(0, len(tests), 64):
        batch = tests[start : start + 64]
        for example, answer in zip(batch, answers(model, tokenizer, batch), strict=True):
            right[example.skill].append(answer == example.answer)
            if answer != example.answer:
                wrong[example.skill].append((example, answer))
    for example, answer in (pair for pairs in wrong.values() for pair in pairs[:show]):
        print(f"--- {example.skill}\n{example.prompt()}\n  wanted: {example.answer}\n  got:    {answer}")
    return right


def table(right: dict[str, list[bool]]) -> str:
    total = [one for results in right.values() for one in results]
    rows = [(skill, results) for skill, results in sorted(right.items())] + [("**all**", total)]
    lines = ["| skill | accuracy | tests |", "| --- | --- | --- |"]
    lines += [f"| {skill} | {sum(results) / len(results):.2f} | {len(results)} |" for skill, results in rows]
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=HERE)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--show", type=int, default=0, help="wrong answers to print per skill")
    options = parser.parse_args()
    began = time.monotonic()
    print(table(evaluate(options.folder, options.count, options.show)))
    print(f"{time.monotonic() - began:.0f} s")
