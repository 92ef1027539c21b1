"""Language models that rerank: what vLLM is told of them, by their files and names; which are refused. Nothing starts.
On real vLLM: tests/real/test_rerankers_on_vllm.py."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import jinja2
import pytest
from langchain_core.documents import Document
from llama_index.core.schema import NodeWithScore, TextNode

from langchain_vllm_local import VLLMEmbeddings
from langchain_vllm_local import VLLMRerank as LangChainRerank
from llama_index_vllm_local import VLLMRerank as LlamaIndexRerank
from shared_engine import Engine, SettingsError
from shared_engine.launch.interpreter import Interpreter
from shared_engine.launch.spec import engine_spec
from shared_engine.model_files.pooling_recipes import ranks_at_random, with_recipe
from shared_engine.vllm_versions import INSTALLED
from tests.support.causal_rerankers import NAMES, PROMPTS

POOLING = {"runner": "pooling"}
QWEN3 = {
    "architectures": ["Qwen3ForSequenceClassification"],
    "classifier_from_token": ["no", "yes"],
    "is_original_qwen3_reranker": True,
}
QWEN3_VL = {**QWEN3, "architectures": ["Qwen3VLForSequenceClassification"]}
MXBAI = {
    "architectures": ["Qwen2ForSequenceClassification"],
    "classifier_from_token": ["0", "1"],
    "method": "from_2_way_softmax",
}
GEMMA = {
    "architectures": ["GemmaForSequenceClassification"],
    "classifier_from_token": ["Yes"],
    "method": "no_post_processing",
}


def model_in(folder: Path, name: str, architecture: str, **files: Any) -> Path:
    """A model's folder; of its files, only what is looked at."""
    model = folder / name
    model.mkdir(parents=True)
    config = {"architectures": [architecture], **files.pop("config", {})}
    (model / "config.json").write_text(json.dumps(config))
    for file, content in files.items():
        (model / file.replace("__", ".")).write_text(content if isinstance(content, str) else json.dumps(content))
    return model


POOLED = [{"idx": 0, "type": "sentence_transformers.models.Transformer"},
          {"idx": 1, "type": "sentence_transformers.models.Pooling"}]  # fmt: skip
SCORED = [{"idx": 0, "type": "sentence_transformers.models.Transformer"},
          {"idx": 1, "type": "sentence_transformers.cross_encoder.modules.LogitScore"}]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "architecture", "overrides"),
    [
        ("Qwen3-Reranker-0.6B", "Qwen3ForCausalLM", QWEN3),
        ("qwen3_reranker_4b-awq", "Qwen3ForCausalLM", QWEN3),
        ("Qwen3-VL-Reranker-2B", "Qwen3VLForConditionalGeneration", QWEN3_VL),
        ("mxbai-rerank-base-v2", "Qwen2ForCausalLM", MXBAI),
        ("mxbai-rerank-large-v2", "Qwen2ForCausalLM", MXBAI),
        ("bge-reranker-v2-gemma", "GemmaForCausalLM", GEMMA),
        (
            "Qwen3-Reranker-0.6B-seq-cls",
            "Qwen3ForSequenceClassification",
            None,
        ),  # converted: only the prompt is missing
        ("anything", "LlamaBidirectionalForSequenceClassification", None),
    ],
)
@pytest.mark.parametrize("is_here", [True, False])
def test_vllm_is_told_what_it_needs_to_know(
    tmp_path: Path, name: str, architecture: str, overrides: Any, is_here: bool
) -> None:
    folder = model_in(tmp_path, name, architecture)
    if not is_here and name == "anything":
        return  # only its files say what it is
    args = with_recipe(str(folder) if is_here else f"org/{name}", folder if is_here else None, POOLING)
    assert args.get("hf_overrides") == overrides
    assert "document" in args["chat_template"]
    assert ranks_at_random(str(folder), folder, POOLING) is None


def rendered(template: str, **more: Any) -> str:
    messages = [{"role": "query", "content": "one two"}, {"role": "document", "content": "three {{ x }}"}]
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True)  # as transformers has it
    return environment.from_string(template).render(messages=messages, **more)


@pytest.mark.parametrize("family", NAMES)
def test_a_pair_is_put_as_the_makers_put_it(family: str) -> None:
    template = with_recipe(f"org/{NAMES[family]}", None, POOLING)["chat_template"]
    assert rendered(template) == PROMPTS[family].format(query="one two", document="three {{ x }}")
    if family != "gemma":
        assert "Find the colour." in rendered(template, instruction="Find the colour.")


def test_a_fine_tuned_one_is_known_by_what_it_was_made_from(tmp_path: Path) -> None:
    card = "---\nlicense: apache-2.0\nbase_model:\n- Qwen/Qwen3-Reranker-0.6B\ntags:\n- legal\n---\n# Legal\n"
    by_card = model_in(tmp_path, "legal", "Qwen3ForCausalLM", README__md=card)
    by_config = model_in(tmp_path, "tax", "Qwen3ForCausalLM", config={"_name_or_path": "Qwen/Qwen3-Reranker-4B"})
    other = "---\nbase_model: Qwen/Qwen3-0.6B\n---\n# Not as good as Qwen3-Reranker\n"
    by_neither = model_in(tmp_path, "chat", "Qwen3ForCausalLM", README__md=other)
    for folder in (by_card, by_config):
        assert with_recipe(str(folder), folder, POOLING)["hf_overrides"] == QWEN3
    assert with_recipe(str(by_neither), by_neither, POOLING) == POOLING


def test_the_user_s_choice_wins(tmp_path: Path) -> None:
    folder = model_in(tmp_path, "Qwen3-Reranker-0.6B", "Qwen3ForCausalLM")
    own = {"architectures": ["Other"], "classifier_from_token": ["a", "b"]}
    for given in ({"hf_overrides": own}, {"convert": "embed"}, {"hf_overrides.architectures": "x"}):
        args = with_recipe(str(folder), folder, {**POOLING, **given})
        assert {name: args[name] for name in given} == given
        assert args.get("hf_overrides") == given.get("hf_overrides")
    args = with_recipe(str(folder), folder, {**POOLING, "chat_template": "mine.jinja", "hf_overrides": {"x": 1}})
    assert args == {**POOLING, "chat_template": "mine.jinja", "hf_overrides": {**QWEN3, "x": 1}}
    unnamed = model_in(tmp_path, "mine", "Qwen3ForCausalLM")
    switch = {"hf_overrides": {"is_original_qwen3_reranker": True}}
    assert with_recipe(str(unnamed), unnamed, {**POOLING, **switch})["hf_overrides"] == QWEN3


@pytest.mark.parametrize(
    ("name", "architecture", "files"),
    [
        ("Qwen3-Embedding-0.6B", "Qwen3ForCausalLM", {"modules__json": POOLED}),
        ("bge-m3", "XLMRobertaModel", {}),
        ("bge-reranker-v2-m3", "XLMRobertaForSequenceClassification", {}),
        ("jina-reranker-v3", "JinaForRanking", {}),
        ("colbert", "HF_ColBERT", {}),
        ("splade", "BertForMaskedLM", {}),
    ],
)
def test_other_models_are_left_as_they_are(tmp_path: Path, name: str, architecture: str, files: Any) -> None:
    folder = model_in(tmp_path, name, architecture, **files)
    assert with_recipe(str(folder), folder, POOLING) == POOLING
    assert ranks_at_random(str(folder), folder, POOLING) is None


def test_gte_s_second_generation_is_called_as_vllm_calls_it(tmp_path: Path) -> None:
    for given, vllms in (
        ("NewForSequenceClassification", "GteNewForSequenceClassification"),
        ("NewModel", "GteNewModel"),
    ):
        folder = model_in(tmp_path, given, given, config={"model_type": "new"})
        assert with_recipe(str(folder), folder, POOLING)["hf_overrides"] == {"architectures": [vllms]}


# ---- never at random


Way = Callable[[dict[str, Any]], Awaitable[Any]]


async def engine_sync(given: dict[str, Any]) -> Any:
    return await asyncio.to_thread(Engine(**given, engine_args=POOLING).rerank, "q", ["a"])


async def engine_async(given: dict[str, Any]) -> Any:
    return await Engine(**given, engine_args=POOLING).arerank("q", ["a"], on_error="none")


async def langchain_sync(given: dict[str, Any]) -> Any:
    return await asyncio.to_thread(LangChainRerank(**given).compress_documents, [Document("a")], "q")


async def langchain_async(given: dict[str, Any]) -> Any:
    return await LangChainRerank(**given).acompress_documents([Document("a")], "q")


NODES = [NodeWithScore(node=TextNode(text="a"))]


async def llama_index_sync(given: dict[str, Any]) -> Any:
    return await asyncio.to_thread(LlamaIndexRerank(**given).postprocess_nodes, NODES, query_str="q")


async def llama_index_async(given: dict[str, Any]) -> Any:
    return await LlamaIndexRerank(**given).apostprocess_nodes(NODES, query_str="q")


@pytest.mark.parametrize(
    "way", [engine_sync, engine_async, langchain_sync, langchain_async, llama_index_sync, llama_index_async]
)
@pytest.mark.parametrize("mode", ["local", "direct"])
async def test_a_language_model_that_nobody_knows_to_rerank_is_refused_before_a_start(
    tmp_path: Path, runtime_root: Path, way: Way, mode: str
) -> None:
    folder = model_in(tmp_path, "chatty", "Qwen3ForCausalLM", modules__json=SCORED)
    before = sorted(runtime_root.iterdir())
    with pytest.raises(SettingsError, match=r"chatty is a language model \(Qwen3ForCausalLM\).*at random.*convert"):
        await way({"model": str(folder), "mode": mode})
    assert sorted(runtime_root.iterdir()) == before


@pytest.mark.parametrize("architecture", ["LlamaForCausalLM", "GPT2LMHeadModel", "Qwen2VLForConditionalGeneration"])
def test_of_any_architecture_that_writes(tmp_path: Path, architecture: str) -> None:
    folder = model_in(tmp_path, "chatty", architecture)
    assert ranks_at_random(str(folder), folder, POOLING) is not None
    for said in ({"convert": "classify"}, {"pooler_config": {"task": "embed"}}, {"hf_overrides": {"method": "x"}}):
        assert ranks_at_random(str(folder), folder, {**POOLING, **said}) is None


def test_one_engine_reranks_and_shows_no_difference_between_objects(tmp_path: Path) -> None:
    folder = model_in(tmp_path, "Qwen3-Reranker-0.6B", "Qwen3ForCausalLM")
    specs = [
        engine_spec(model.engine.settings, Interpreter(str(tmp_path / "python"), INSTALLED, "cpu"))
        for model in (LangChainRerank(model=str(folder)), VLLMEmbeddings(model=str(folder)))
    ]
    assert specs[0] == specs[1]
    argv = specs[0].argv
    assert json.loads(argv[argv.index("--hf-overrides") + 1]) == QWEN3
    assert "<Document>" in argv[argv.index("--chat-template") + 1]


CARD = "---\nbase_model: Qwen/Qwen3-Reranker-0.6B\n---\n"


@pytest.mark.parametrize(
    ("name", "files", "message"),
    [
        ("Qwen/Qwen3-Reranker-0.6B", {}, None),
        ("org/legal", {"README__md": CARD}, "was downloaded by this start, which did not know yet how it reranks"),
        ("org/chatty", {}, "at random"),
    ],
)
async def test_of_a_model_that_is_not_here_the_name_decides_before_the_start_and_its_files_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, files: dict[str, str], message: str | None
) -> None:
    engine = Engine(model=name, download_dir=str(tmp_path), engine_args=POOLING)
    cached = tmp_path / f"models--{name.replace('/', '--')}"

    async def downloading() -> None:
        (cached / "refs").mkdir(parents=True)
        (cached / "refs" / "main").write_text("abc")
        model_in(cached / "snapshots", "abc", "Qwen3ForCausalLM", **files)

    monkeypatch.setattr(engine, "awarmup", downloading)
    if message is None:
        await engine._check_reranker()
        return
    with pytest.raises(SettingsError, match=message):
        await engine.arerank("q", ["a"])
    with pytest.raises(SettingsError, match="at random") if files == {} else nullcontext():
        await Engine(model=name, download_dir=str(tmp_path), engine_args=POOLING)._check_reranker()
