"""A tiny Idefics3 with random weights: it answers nonsense, but it sees. Made by the engine's own Python.

Run as a script, there: ``python tests/support/vision_model.py FOLDER TOKENIZER``.
"""

from __future__ import annotations

import struct
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

_IMAGE_SIZE = 56  # pixels, of the longest edge
# ChatML with Hermes tools. Images are shown wherever content is a list: of a user, and of a tool.
_CHAT_TEMPLATE = """\
{%- macro show(content) -%}
    {%- if content is string -%}{{- content -}}
    {%- else -%}
        {%- for part in content or [] -%}
            {%- if part.type == 'image' -%}{{- '<image>' -}}{%- else -%}{{- part.text -}}{%- endif -%}
        {%- endfor -%}
    {%- endif -%}
{%- endmacro -%}
{%- if tools -%}
    {{- '<|im_start|>system\\n' -}}
    {%- for tool in tools -%}{{- tool.function | tojson + '\\n' -}}{%- endfor -%}
    {{- 'To call one: <tool_call>{"name": ..., "arguments": ...}</tool_call><|im_end|>\\n' -}}
{%- endif -%}
{%- for message in messages -%}
    {{- '<|im_start|>' + message.role + '\\n' -}}
    {{- show(message.content) -}}
    {%- for call in message.tool_calls or [] -%}{{- call.function | tojson -}}{%- endfor -%}
    {{- '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}
"""


def make_vision_model(folder: Path) -> None:
    """Write the model into ``folder``; takes some 15 seconds, most of them to import transformers."""
    from shared_engine.launch.interpreter import find_interpreter
    from tests.support.paths import TINY_CHAT

    command = [find_interpreter(None).path, __file__, str(folder), str(TINY_CHAT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def vision_settings(folder: Path) -> dict[str, Any]:
    """Settings of an engine for it, for Engine and ChatVLLM: up to two images in a prompt."""
    return {
        "model": str(folder),
        "enforce_eager": True,
        "max_model_len": 1024,
        "engine_args": {"kv_cache_memory_bytes": 256 << 20, "limit_mm_per_prompt": {"image": 2}},
        "idle_ttl_s": 600,
    }


def png(red: int, green: int, blue: int) -> bytes:
    """An image of one colour, 8 pixels wide and high."""
    size = 8
    header = struct.pack(">IIBBBBB", size, size, 8, 2, 0, 0, 0)
    rows = (b"\0" + bytes((red, green, blue)) * size) * size
    chunks = (_chunk(b"IHDR", header), _chunk(b"IDAT", zlib.compress(rows)), _chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def _write(folder: str, tokenizer_folder: str) -> None:
    import torch
    from transformers import (
        Idefics3Config,
        Idefics3ForConditionalGeneration,
        Idefics3ImageProcessorPil,
        Idefics3Processor,
        LlamaConfig,
        PreTrainedTokenizerFast,
    )

    tokenizer = PreTrainedTokenizerFast.from_pretrained(tokenizer_folder)
    marks = ["<image>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>"]
    tokenizer.add_special_tokens({"additional_special_tokens": marks})
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,  # the least that attention on the CPU takes
        max_position_embeddings=2048,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        initializer_range=0.2,  # so that what it sees changes what it says
    )
    vision = {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": _IMAGE_SIZE,
        "patch_size": 14,
        "initializer_range": 0.2,
    }
    config = Idefics3Config(
        vision_config=vision,
        text_config=text,
        scale_factor=2,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=False,
        initializer_range=0.2,
    )
    torch.manual_seed(0)
    Idefics3ForConditionalGeneration(config).to(torch.bfloat16).save_pretrained(folder)
    size = {"longest_edge": _IMAGE_SIZE}
    images = Idefics3ImageProcessorPil(do_image_splitting=False, size=size, max_image_size=size)
    Idefics3Processor(images, tokenizer, image_seq_len=4, chat_template=_CHAT_TEMPLATE).save_pretrained(folder)


if __name__ == "__main__":
    _write(*sys.argv[1:])
