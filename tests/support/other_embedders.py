"""Writes models of sparse vectors and of images, with random weights, and what transformers computes of the same input.

Runs in the engine's Python, which has transformers: ``python tests/support/other_embedders.py KIND FOLDER``.
"""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

WORDS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
TEXTS = ["one two two", "three", "nine eight seven six"]
COLOURS = [(255, 0, 0), (0, 0, 255)]
_SHAPE: dict[str, Any] = {
    "hidden_size": 64,  # two heads of 32, the least that vLLM's attention takes on the CPU
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
}


def words_as_tokens(first: str, last: str, *, words_first: bool = False) -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = [first, "[PAD]", last, "[UNK]", "[MASK]"]  # where XLM-RoBERTa has them
    words = [*WORDS, *special] if words_first else [*special, *WORDS]
    tokens = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))
    tokens.pre_tokenizer = pre_tokenizers.Whitespace()
    tokens.post_processor = processors.TemplateProcessing(
        single=f"{first} $A {last}", special_tokens=[(first, words.index(first)), (last, words.index(last))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokens, model_max_length=60, unk_token="[UNK]", pad_token="[PAD]", mask_token="[MASK]",
        cls_token=first, sep_token=last, bos_token=first, eos_token=last,
    )  # fmt: skip


def splade(folder: Path) -> Any:
    """The maximum over a text's tokens of log(1 + relu(logits)), without what is 0."""
    import torch
    from safetensors.torch import save_file
    from transformers import BertConfig, BertForMaskedLM

    tokenizer = words_as_tokens("[CLS]", "[SEP]")
    model = BertForMaskedLM(BertConfig(vocab_size=len(tokenizer), **_SHAPE)).eval()
    model.save_pretrained(folder)
    # With the decoder, which transformers leaves out as it is the embedding: published ones have it, and vLLM wants it.
    weights = {name: weight.clone().contiguous() for name, weight in model.state_dict().items()}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    tokenizer.save_pretrained(folder)
    parts = ("models.MLMTransformer", "models.SpladePooling")
    modules = [
        {"idx": index, "name": str(index), "path": f"{index}_{name[7:]}" * bool(index),
         "type": f"sentence_transformers.sparse_encoder.{name}"}
        for index, name in enumerate(parts)
    ]  # fmt: skip
    (folder / "modules.json").write_text(json.dumps(modules))
    found = []
    for text in TEXTS:
        logits = model(**tokenizer(text, return_tensors="pt", return_token_type_ids=True)).logits[0]
        weights = torch.log1p(torch.relu(logits)).max(dim=0).values
        found.append({str(token): weight for token, weight in enumerate(weights.tolist()) if weight})
    return found


def bge_m3(folder: Path) -> Any:
    """The highest weight of each token but the special ones, by a linear layer over what the model computes."""
    import torch
    from transformers import XLMRobertaConfig, XLMRobertaModel

    tokenizer = words_as_tokens("<s>", "</s>")
    shape = {**_SHAPE, "type_vocab_size": 1, "bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2}
    model = XLMRobertaModel(XLMRobertaConfig(vocab_size=len(tokenizer), **shape), add_pooling_layer=False).eval()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    size = _SHAPE["hidden_size"]
    for name, width in (("sparse_linear", 1), ("colbert_linear", size)):
        layer = torch.nn.Linear(size, width)
        torch.save(layer.state_dict(), folder / f"{name}.pt")
        if name == "sparse_linear":
            weigh = layer
    found = []
    for text in TEXTS:
        encoded = tokenizer(text, return_tensors="pt")
        weights = torch.relu(weigh(model(**encoded).last_hidden_state[0]))[1:-1, 0].tolist()
        highest: dict[str, float] = {}
        for token, weight in zip(encoded.input_ids[0, 1:-1].tolist(), weights, strict=True):
            highest[str(token)] = max(weight, highest.get(str(token), 0.0))
        found.append({token: weight for token, weight in highest.items() if weight})
    return found


def clip(folder: Path) -> Any:
    """The images' vectors, of length 1."""
    from PIL import Image
    from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPProcessor

    sys.path.insert(0, str(Path(__file__).parents[2]))
    from tests.support.vision_model import png

    tokenizer = words_as_tokens("[CLS]", "[SEP]", words_first=True)  # vLLM puts token 0 in an image's place
    layers = {name: value for name, value in _SHAPE.items() if name != "max_position_embeddings"}
    text = {**layers, "vocab_size": len(tokenizer), "max_position_embeddings": 32}
    text |= {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    text["projection_dim"] = 64  # which vLLM reads, of all three
    vision = {**layers, "image_size": 32, "patch_size": 8, "projection_dim": 64}
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=64)
    model = CLIPModel(config).eval()
    model.save_pretrained(folder)
    images = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    CLIPProcessor(images, tokenizer).save_pretrained(folder)
    found = []
    for colour in COLOURS:
        pixels = images(Image.open(io.BytesIO(png(*colour))).convert("RGB"), return_tensors="pt").pixel_values
        vector = model.get_image_features(pixel_values=pixels)
        vector = getattr(vector, "pooler_output", vector)[0]
        found.append((vector / vector.norm()).tolist())
    return found


def main(kind: str, folder: Path) -> None:
    import torch

    torch.manual_seed(0)
    with torch.no_grad():
        (folder / "expected.json").write_text(
            json.dumps({"splade": splade, "bge_m3": bge_m3, "clip": clip}[kind](folder))
        )


if __name__ == "__main__":
    folder = Path(sys.argv[2])
    folder.mkdir(exist_ok=True)
    main(sys.argv[1], folder)
