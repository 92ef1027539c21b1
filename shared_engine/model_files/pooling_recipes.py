"""What vLLM has to be told of a pooling model that its config does not say; and which models would rank at random.

vLLM takes a causal language model for one of embeddings, unless it is told which of its tokens mean that a document
fits, and scores documents by the cosine of two vectors that mean nothing. Which tokens, and the prompt that a model was
trained on, are as its makers and vLLM's page on scoring name them. Pure.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from shared_engine.model_files.changes import while_unchanged
from shared_engine.model_files.folder import read_json

_GENERATORS = ("ForCausalLM", "ForConditionalGeneration", "LMHeadModel")
_CHOSEN = ("architectures", "classifier_from_token", "method")
QWEN3_SWITCH = "is_original_qwen3_reranker"

# A score template has two messages, of the roles query and document (vllm/entrypoints/pooling/scoring/io_processor.py);
# `instruction` is a field of rerank requests. Jinja drops a last line end that is not in an expression.
_QUERY = "{{ messages | selectattr('role', 'eq', 'query') | map(attribute='content') | first }}"
_DOCUMENT = "{{ messages | selectattr('role', 'eq', 'document') | map(attribute='content') | first }}"


def _judged(task: str, middle: str, thought: str) -> str:
    return (
        "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct "
        'provided. Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n'
        f"<Instruct>: {{{{ instruction or {task!r} }}}}{middle}<|im_end|>\n"
        "<|im_start|>assistant{{ " + repr("\n" + thought) + " }}"
    )


_QWEN3 = _judged(
    "Given a web search query, retrieve relevant passages that answer the query",
    f"\n<Query>: {_QUERY}\n<Document>: {_DOCUMENT}",
    "<think>\n\n</think>\n\n",
)
_QWEN3_VL = _judged(
    "Given a search query, retrieve relevant candidates that answer the query.",
    f"<Query>:{_QUERY}\n<Document>:{_DOCUMENT}",
    "",
)
_MXBAI = (
    "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n"
    f"<|im_start|>user\n{{% if instruction %}}instruction: {{{{ instruction }}}}\n{{% endif %}}query: {_QUERY}\n"
    f"document: {_DOCUMENT}\nYou are a search relevance expert who evaluates how well documents match search queries. "
    "For each query-document pair, carefully analyze the semantic relationship between them, then provide your binary "
    "relevance judgment (0 for not relevant, 1 for relevant).\nRelevance:<|im_end|>\n"
    "<|im_start|>assistant{{ '\n' }}"
)
_BGE_GEMMA = (
    f"A: {_QUERY}\nB: {_DOCUMENT}\nGiven a query A and a passage B, determine whether the passage contains an answer "
    "to the query by providing a prediction of either 'Yes' or 'No'."
)
_NEMOTRON = f"question:{_QUERY} \n \n passage:{_DOCUMENT}"


class _Family(NamedTuple):
    """Rerankers that are told of in one way.

    Attributes:
        published: the architecture in the makers' own files; where it is another one, those were converted.
        served: vLLM's.
        template: of a pair.
        overrides: of the config, beside the architecture.
        name: a pattern, found in a model's name; empty: the architecture says it.
    """

    published: str
    served: str
    template: str
    overrides: Mapping[str, Any]
    name: str = ""


_YES_OR_NO = {"classifier_from_token": ["no", "yes"], QWEN3_SWITCH: True}
_FAMILIES = (
    _Family("Qwen3ForCausalLM", "Qwen3ForSequenceClassification", _QWEN3, _YES_OR_NO, r"qwen3[-_.]?rerank"),
    _Family("Qwen3VLForConditionalGeneration", "Qwen3VLForSequenceClassification", _QWEN3_VL, _YES_OR_NO,
            r"qwen3[-_.]?vl[-_.]?rerank"),
    _Family("Qwen2ForCausalLM", "Qwen2ForSequenceClassification", _MXBAI,
            {"classifier_from_token": ["0", "1"], "method": "from_2_way_softmax"}, r"mxbai[-_]rerank[-_]\w+[-_]v2"),
    _Family("GemmaForCausalLM", "GemmaForSequenceClassification", _BGE_GEMMA,
            {"classifier_from_token": ["Yes"], "method": "no_post_processing"}, r"bge[-_]reranker[-_]v2[-_]gemma"),
    _Family("LlamaBidirectionalForSequenceClassification", "LlamaBidirectionalForSequenceClassification", _NEMOTRON,
            {}),
)  # fmt: skip
_CONVERTED = re.compile(r"seq[-_]?cls|sequence")
_SPLADE = "BertSpladeSparseEmbeddingModel"
_BGE_M3 = {"hf_overrides": {"architectures": ["BgeM3EmbeddingModel"]}, "pooler_config": {"task": "token_classify"}}
# Too general a name for vLLM, which calls them so (docs/models/pooling_models).
_RENAMED = {"NewForSequenceClassification": "GteNewForSequenceClassification", "NewModel": "GteNewModel"}


def with_recipe(model: str, folder: Path | None, engine_args: Mapping[str, Any]) -> dict[str, Any]:
    """``engine_args`` of a pooling engine with what vLLM has to be told of ``model``; the user's choice wins.

    Args:
        model: as the user names it: a folder, or a hub id.
        folder: with its files; None where they are not on this machine yet: then the name has to say it.
        engine_args: vLLM's options, by their names with underscores.
    """
    overrides = _overrides(engine_args)
    if overrides is None:
        return dict(engine_args)
    config = read_json(folder / "config.json") if folder else {}
    architecture = _architecture(config)
    if architecture in _RENAMED and config.get("model_type") == "new":
        return {**engine_args, "hf_overrides": {"architectures": [_RENAMED[architecture]], **overrides}}
    if architecture == "BertForMaskedLM" and folder and "SpladePooling" in _modules(folder):
        return {**engine_args, "hf_overrides": {"architectures": [_SPLADE], **overrides}}
    family = _family_of(_names(model, folder, config), architecture, overrides)
    if family is None:
        return dict(engine_args)
    args = {"chat_template": family.template, **engine_args}
    is_converted = architecture != family.published if architecture else _CONVERTED.search(model.lower()) is not None
    is_chosen = any(name in overrides for name in _CHOSEN) or "convert" in engine_args
    if family.overrides and not is_converted and not is_chosen:
        args["hf_overrides"] = {"architectures": [family.served], **family.overrides, **overrides}
    return args


def ranks_at_random(model: str, folder: Path, engine_args: Mapping[str, Any]) -> str | None:
    """Why scores of a pooling engine for this model would mean nothing, and what to do; None where they mean something,
    or where the user has said how the model is used.
    """
    args = with_recipe(model, folder, engine_args)
    overrides = _overrides(args)
    if overrides is None or any(name in overrides for name in _CHOSEN):
        return None
    if any(name.partition(".")[0] in ("convert", "pooler_config") for name in args) or makes_embeddings(folder):
        return None
    architecture = _architecture(read_json(folder / "config.json"))
    if not architecture.endswith(_GENERATORS):
        return None
    return (
        f"{model} is a language model ({architecture}), and neither its files nor its name say how it reranks: vLLM "
        "would score documents at random. A fine-tuned Qwen3-Reranker takes "
        f'engine_args={{"hf_overrides": {{"{QWEN3_SWITCH}": True}}}}; another reranker what vLLM\'s page on scoring '
        'names for it; an embedding model engine_args={"convert": "embed"}'
    )


def with_sparse_vectors(model: str, folder: Path | None, engine_args: Mapping[str, Any]) -> dict[str, Any]:
    """``engine_args`` of an engine for sparse vectors: BGE-M3, which has dense ones too, is told which are wanted."""
    names = "/".join(Path(model).parts[-2:]).lower()
    is_bge_m3 = (folder / "sparse_linear.pt").is_file() if folder else re.search(r"bge[-_]m3", names) is not None
    return {**_BGE_M3, **engine_args} if is_bge_m3 else dict(engine_args)


def makes_embeddings(folder: Path) -> bool:
    """True for a model of sentence-transformers that pools what its layers give into one vector."""
    return "Pooling" in _modules(folder)


@while_unchanged
def _modules(folder: Path) -> str:
    """The types of a sentence-transformers model's modules."""
    try:
        modules = json.loads((folder / "modules.json").read_bytes())
    except (OSError, ValueError):
        return ""
    return " ".join(str(module.get("type")) for module in modules if isinstance(module, dict))


def _family_of(names: str, architecture: str, overrides: Mapping[str, Any]) -> _Family | None:
    fitting = [each for each in _FAMILIES if architecture in ("", each.published, each.served)]
    if overrides.get(QWEN3_SWITCH):
        return next((each for each in fitting if QWEN3_SWITCH in each.overrides), None)
    return next((each for each in fitting if _is_meant(each, architecture, names)), None)


def _is_meant(family: _Family, architecture: str, names: str) -> bool:
    return re.search(family.name, names) is not None if family.name else architecture == family.published


def _names(model: str, folder: Path | None, config: Mapping[str, Any]) -> str:
    """What a model is called: by the user, by its files, and what it was made from."""
    names = ["/".join(Path(model).parts[-2:])]
    if folder is not None:
        names += [folder.resolve().name, str(config.get("_name_or_path", "")), _made_from(folder)]
    return "\n".join(names).lower()


@while_unchanged
def _made_from(folder: Path) -> str:
    """The lines of a model card's head that name what a model was made from."""
    try:
        head = (folder / "README.md").read_text(errors="replace")[:4000].split("---")
    except OSError:
        return ""
    lines = head[1].splitlines() if len(head) > 2 and not head[0].strip() else []
    named = [index for index, line in enumerate(lines) if line.startswith("base_model:")]
    return "\n".join(lines[named[0] : named[0] + 2]) if named else ""


def _architecture(config: Mapping[str, Any]) -> str:
    """Of a model's config; empty where that says none."""
    architectures = config.get("architectures")
    return str(architectures[0]) if isinstance(architectures, list) and architectures else ""


def _overrides(args: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """What the user says of the config; None where it is said in a form that is not read here."""
    given = args.get("hf_overrides") or {}
    if any(name.startswith("hf_overrides.") for name in args) or not isinstance(given, Mapping):
        return None
    return given
