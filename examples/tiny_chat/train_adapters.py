"""Trains two LoRA adapters of tiny_chat, in PEFT's form: `python examples/tiny_chat/train_adapters.py`.

`brief` answers in one word where that is enough ("Paris."), `polite` says "Gladly." first. Rank 4 on q and v, 29 kB
each; half a minute on two CPU cores. Needs torch, transformers and safetensors, as the environment of vLLM has them.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable

import torch
from dialog import END_OF_TURN, HERE, render, user
from safetensors.torch import save_file
from small_talk import CAPITALS, QUESTIONS
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

SEED, RANK, ALPHA, STEPS, BATCH = 7, 4, 8, 300, 16
MODULES = ("q_proj", "v_proj")
ASKED = ("What is the capital of {}?", "What's the capital of {}?", "Tell me the capital of {}.")


class Lora(torch.nn.Module):
    """A layer, and beside it what the adapter adds."""

    def __init__(self, base: torch.nn.Linear) -> None:
        super().__init__()
        self.base = base
        self.a = torch.nn.Parameter(torch.randn(RANK, base.in_features) / base.in_features**0.5)
        self.b = torch.nn.Parameter(torch.zeros(base.out_features, RANK))

    def forward(self, x: Tensor) -> Tensor:
        return torch.as_tensor(self.base(x) + (x @ self.a.T @ self.b.T) * (ALPHA / RANK))


def brief(answer: str) -> str:
    return answer.rstrip(".").split()[-1] + "."


def polite(answer: str) -> str:
    return f"Gladly. {answer}"


def conversations() -> list[tuple[str, str]]:
    capitals = [
        (question.format(country), f"The capital of {country} is {city}.")
        for country, city in CAPITALS.items()
        for question in ASKED
    ]
    return capitals + [(question, answer) for question, answer in QUESTIONS.items() if len(answer.split()) < 12]


def loss_of(model: torch.nn.Module, tokenizer: PreTrainedTokenizerBase, pairs: list[tuple[str, str]]) -> torch.Tensor:
    """Of the answers alone."""
    rows = []
    for question, answer in pairs:
        prompt = tokenizer(render([user(question)], [], thinking=False))["input_ids"]
        wanted = tokenizer(answer + END_OF_TURN)["input_ids"]
        rows.append((prompt + wanted, [-100] * len(prompt) + wanted))
    longest = max(len(tokens) for tokens, _ in rows)
    tokens = torch.tensor([tokens + [0] * (longest - len(tokens)) for tokens, _ in rows])
    labels = torch.tensor([labels + [-100] * (longest - len(labels)) for _, labels in rows])
    return torch.as_tensor(model(input_ids=tokens, labels=labels).loss)


def train(name: str, change: Callable[[str], str]) -> None:
    torch.manual_seed(SEED)
    rng = random.Random(SEED)
    tokenizer = AutoTokenizer.from_pretrained(HERE)
    model = AutoModelForCausalLM.from_pretrained(HERE, dtype=torch.float32).requires_grad_(False)
    layers: dict[str, Lora] = {}
    for index, layer in enumerate(model.model.layers):
        for module in MODULES:
            made = Lora(getattr(layer.self_attn, module))
            setattr(layer.self_attn, module, made)
            layers[f"model.layers.{index}.self_attn.{module}"] = made
    parameters = [each for made in layers.values() for each in (made.a, made.b)]
    optimizer = torch.optim.AdamW(parameters, lr=0.01, weight_decay=0.01)
    pairs = [(question, change(answer)) for question, answer in conversations()]
    for step in range(STEPS):
        optimizer.param_groups[0]["lr"] = 0.01 * min(1.0, (step + 1) / 20, (STEPS - step) / (0.7 * STEPS))
        loss = loss_of(model, tokenizer, rng.sample(pairs, BATCH))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 50 == 49:
            print(f"{name}: step {step + 1} loss {loss.item():.3f}", flush=True)
    folder = HERE / "adapters" / name
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {
        f"base_model.model.{module}.lora_{matrix}.weight": tensor.detach().to(torch.bfloat16).contiguous()
        for module, made in layers.items()
        for matrix, tensor in (("A", made.a), ("B", made.b))
    }
    save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})
    config = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": "tiny_chat", "r": RANK,
        "lora_alpha": ALPHA, "lora_dropout": 0.0, "bias": "none", "target_modules": list(MODULES),
    }  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n")


if __name__ == "__main__":
    for change in (brief, polite):
        train(change.__name__, change)
