"""The network as it is trained (Llama with biases on q, k and v; fused weights), and its Hugging Face export.

It is Qwen2 in all but name: for that name, transformers 5 replaces the pre-tokenizer of tokenizer.json by its own.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from safetensors.torch import save_file
from torch import Tensor, nn


@dataclass(frozen=True)
class Shape:
    vocabulary: int = 2048
    width: int = 256
    layers: int = 4
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 64
    feed_forward: int = 640
    context: int = 2048  # what vLLM allows; training rows are shorter
    rope_theta: float = 10_000.0
    norm_eps: float = 1e-6

    @property
    def kv_width(self) -> int:
        return self.kv_heads * self.head_dim


def norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return F.rms_norm(x.float(), (x.shape[-1],), weight, eps).to(x.dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


class Layer(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        width, qkv_width = shape.width, shape.width + 2 * shape.kv_width
        self.attention_norm = nn.Parameter(torch.ones(width))
        self.qkv = nn.Parameter(torch.randn(qkv_width, width) / math.sqrt(width) * 0.5)
        self.qkv_bias = nn.Parameter(torch.zeros(qkv_width))
        self.out = nn.Parameter(torch.randn(width, width) / math.sqrt(width) * 0.2)
        self.mlp_norm = nn.Parameter(torch.ones(width))
        self.gate_up = nn.Parameter(torch.randn(2 * shape.feed_forward, width) / math.sqrt(width) * 0.7)
        self.down = nn.Parameter(torch.randn(width, shape.feed_forward) / math.sqrt(shape.feed_forward) * 0.2)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor) -> Tensor:
        x = x + self._attend(norm(x, self.attention_norm, self.shape.norm_eps), cos, sin, mask)
        gate, up = F.linear(norm(x, self.mlp_norm, self.shape.norm_eps), self.gate_up.to(x.dtype)).chunk(2, dim=-1)
        return x + F.linear(F.silu(gate) * up, self.down.to(x.dtype))

    def _attend(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor) -> Tensor:
        shape, (batch, length, width) = self.shape, x.shape
        fused = F.linear(x, self.qkv.to(x.dtype), self.qkv_bias.to(x.dtype))
        heads = fused.view(batch, length, -1, shape.head_dim).transpose(1, 2)
        query, key, value = heads.split([shape.heads, shape.kv_heads, shape.kv_heads], dim=1)
        query, key = rotate(query, cos, sin), rotate(key, cos, sin)
        group = shape.heads // shape.kv_heads
        key, value = key.repeat_interleave(group, dim=1), value.repeat_interleave(group, dim=1)
        # float: scores reach 100, where bf16 tells only every half apart. On CPU this is also faster than SDPA.
        scores = query.float() @ key.float().transpose(-1, -2) * shape.head_dim**-0.5 + mask
        mixed = scores.softmax(dim=-1).to(x.dtype) @ value
        return F.linear(mixed.transpose(1, 2).reshape(batch, length, width), self.out.to(x.dtype))


class TinyChat(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.embedding = nn.Parameter(torch.randn(shape.vocabulary, shape.width) * 0.1)
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.layers))
        self.final_norm = nn.Parameter(torch.ones(shape.width))
        self._look_back(self.layers[0])

    def _look_back(self, layer: nn.Module, strength: float = 4.5, pairs: int = 10) -> None:
        """Starts heads 0, 1, 2 of the first layer as heads that look 1, 2, 3 tokens back.

        The rotary score of constant query and key vectors depends on the distance alone; turning the query by the
        wanted distance puts its peak there. This gives copying (induction) from the first steps on.
        """
        shape, half = self.shape, self.shape.head_dim // 2
        frequencies = _frequencies(shape)[:pairs]
        with torch.no_grad():
            bias = layer.qkv_bias
            for kv_head in range(shape.kv_heads):
                start = shape.width + kv_head * shape.head_dim
                bias[start : start + pairs] = strength
            for head, distance in enumerate((1, 2, 3)):
                start = head * shape.head_dim
                bias[start : start + pairs] = strength * torch.cos(-distance * frequencies)
                bias[start + half : start + half + pairs] = strength * torch.sin(-distance * frequencies)

    def forward(self, tokens: Tensor, mask: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """The last hidden states; `mask` is added to the attention scores."""
        x = F.embedding(tokens, self.embedding).to(torch.bfloat16)
        for layer in self.layers:
            x = layer(x, cos, sin, mask)
        return norm(x, self.final_norm, self.shape.norm_eps)


def _frequencies(shape: Shape) -> Tensor:
    half = shape.head_dim // 2
    return shape.rope_theta ** (-torch.arange(half).float() / half)


def rotary_tables(shape: Shape, length: int) -> tuple[Tensor, Tensor]:
    angles = torch.outer(torch.arange(length).float(), _frequencies(shape))
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos().to(torch.bfloat16), angles.sin().to(torch.bfloat16)


def export(model: TinyChat, folder: Path, *, eos: int, pad: int) -> None:
    """Writes config.json, generation_config.json and model.safetensors (bf16) for transformers and vLLM."""
    shape = model.shape
    file = folder / "model.safetensors"
    save_file(_hugging_face_weights(model), str(file), metadata={"format": "pt"})
    file.chmod(0o644)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "attention_bias": True,
        "mlp_bias": False,
        "vocab_size": shape.vocabulary,
        "hidden_size": shape.width,
        "intermediate_size": shape.feed_forward,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": shape.context,
        "rms_norm_eps": shape.norm_eps,
        "rope_theta": shape.rope_theta,
        "tie_word_embeddings": True,
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "use_cache": True,
        "dtype": "bfloat16",
        "bos_token_id": None,
        "eos_token_id": eos,
        "pad_token_id": pad,
    }
    generation = {"do_sample": False, "temperature": 0.0, "eos_token_id": eos, "pad_token_id": pad}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    (folder / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")


def _hugging_face_weights(model: TinyChat) -> dict[str, Tensor]:
    shape = model.shape
    split = [shape.width, shape.kv_width, shape.kv_width]
    weights = {"model.embed_tokens.weight": model.embedding, "model.norm.weight": model.final_norm}
    for index, layer in enumerate(model.layers):
        prefix = f"model.layers.{index}."
        for name, weight, bias in zip("qkv", layer.qkv.split(split), layer.qkv_bias.split(split), strict=True):
            weights[f"{prefix}self_attn.{name}_proj.weight"] = weight
            weights[f"{prefix}self_attn.{name}_proj.bias"] = bias
        gate, up = layer.gate_up.chunk(2)
        weights |= {
            f"{prefix}self_attn.o_proj.weight": layer.out,
            f"{prefix}self_attn.o_proj.bias": torch.zeros(shape.width),
            f"{prefix}mlp.gate_proj.weight": gate,
            f"{prefix}mlp.up_proj.weight": up,
            f"{prefix}mlp.down_proj.weight": layer.down,
            f"{prefix}input_layernorm.weight": layer.attention_norm,
            f"{prefix}post_attention_layernorm.weight": layer.mlp_norm,
        }
    return {name: weight.detach().to(torch.bfloat16).contiguous() for name, weight in weights.items()}
