"""Answers of tiny_chat with adapters, by transformers alone; run in vLLM's own Python.

What an adapter does is added to the weights, W + B A alpha / r, as peft does it (``merge_and_unload``). Takes the
model's folder, the adapters' folders and the conversations as JSON; prints for each adapter, and first for none, its
answers.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

model_folder, adapters, conversations = json.loads(sys.argv[1])
tokenizer = AutoTokenizer.from_pretrained(model_folder)
end = tokenizer.convert_tokens_to_ids("<|im_end|>")


def answers(adapter: str | None) -> list[str]:
    model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)
    if adapter is not None:
        config = json.loads(Path(adapter, "adapter_config.json").read_text())
        tensors = load_file(Path(adapter, "adapter_model.safetensors"))
        for name in tensors:
            if ".lora_A." in name:
                module = model.get_submodule(name.removeprefix("base_model.model.").removesuffix(".lora_A.weight"))
                a, b = tensors[name].float(), tensors[name.replace(".lora_A.", ".lora_B.")].float()
                module.weight.data += b @ a * (config["lora_alpha"] / config["r"])
    return [answer(model, messages) for messages in conversations]


def answer(model: torch.nn.Module, messages: list[dict[str, str]]) -> str:
    tokens = list(tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False))
    begin = len(tokens)
    while tokens[-1] != end and len(tokens) < begin + 40:
        tokens.append(int(model(torch.tensor([tokens])).logits[0, -1].argmax()))
    return str(tokenizer.decode(tokens[begin:], skip_special_tokens=True))


with torch.inference_mode():
    json.dump([answers(adapter) for adapter in (None, *adapters)], sys.stdout)
