"""Model -> vLLM's tool-call and reasoning parser: from the model's own files, or from the hub id of its family.

Knows what models write and what vLLM calls the parsers for it. The hub's cache is not read: an engine must be the same
before and after its first download.

None is better than a wrong one. A tool parser whose token the tokenizer lacks keeps the server from starting. A
reasoning parser that waits for an end of thinking which never comes swallows the whole answer and leaves json_schema
unenforced; so it must agree with the template on thinking switched on, switched off, and not mentioned.
"""

# ruff: noqa: RUF001 - DeepSeek's and Hunyuan's tokens are written with such bars.

from __future__ import annotations

import json
import os
import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from shared_engine.machine.home import expanded
from shared_engine.model_files.changes import while_unchanged
from shared_engine.model_files.folder import chat_template, read_json


class _Format(NamedTuple):
    """A parser and how to know, by the chat template, the models it is for; None: no parser is."""

    parser: str | None
    marks: tuple[str, ...]  # all of these are in the template
    pattern: str = ""  # and it matches this regular expression
    tokens: tuple[str, ...] = ()  # and these are in the vocabulary, where the folder shows it


class _Family(NamedTuple):
    """The models whose name on the hub is this regular expression, and their parsers."""

    name: str
    tool_parser: str | None
    reasoning_parser: str | None = None


# In each of these tables the first match counts. Where vLLM has two names for one parser, the family's own is chosen.
_TOOL_FORMATS = (
    # DeepSeek: XML of its own (V4, V3.2), a block of json for each call (V3, R1), name and arguments (V3.1).
    _Format("deepseek_v4", ("｜DSML｜", "tool_calls>")),
    _Format("deepseek_v32", ("｜DSML｜", "function_calls>")),
    _Format("deepseek_v3", ("<｜tool▁sep｜>", "```json"), tokens=("<｜tool▁calls▁begin｜>",)),
    _Format("deepseek_v31", ("<｜tool▁sep｜>",), tokens=("<｜tool▁calls▁begin｜>",)),
    # One family's own tokens.
    _Format("mistral", ("[TOOL_CALLS]",), tokens=("[TOOL_CALLS]",)),
    _Format("kimi_k2", ("<|tool_calls_section_begin|>",)),
    _Format("minimax_m3", ("]<]minimax[>[", "<tool_call>")),
    _Format("minimax_m2", ("<minimax:tool_call>",)),
    _Format("seed_oss", ("<seed:tool_call>",)),
    _Format("gemma4", ("<|tool_call>call:",)),
    _Format("functiongemma", ("<start_function_call>",)),
    _Format("hy_v3", ("<｜hy_", "<tool_sep")),
    _Format("hunyuan_a13b", ("<|extra_0|>", "<tool_calls>[{")),
    _Format("apertus", ("<|tools_prefix|>",)),
    _Format("gigachat3", ("<|role_sep|>", "function call")),
    _Format("longcat", ("<longcat_tool_call>",)),
    _Format("lfm2", ("<|tool_call_start|>[",), tokens=("<|tool_call_start|>",)),
    _Format("lfm2", ("List of tools: ",), tokens=("<|tool_call_start|>",)),
    _Format("olmo3", ("<function_calls>", "<functions>")),
    _Format("minicpm5", ("<function name=", "<param name=")),
    # A tag for each argument: Step 3.5; Qwen3-Coder, Qwen3.5 and Nemotron 3.
    _Format("step3p5", ("<function=", "<parameter=", "<|im_start|>tool_response")),
    _Format("qwen3_coder", ("<function=", "<parameter=")),
    # A tag for each argument's name and one for its value: Laguna, Ling 3, GLM-4.5 and 4.6, later GLM.
    _Format("poolside_v1", ("<arg_key>", "<assistant>", "<available_tools>")),
    _Format("ling3", ("<arg_key>", "<role>ASSISTANT</role>")),
    _Format("glm45", ("<arg_key>", "\n<arg_value>", "[gMASK]")),
    _Format("glm47", ("<arg_key>",)),
    # Granite 4 has Hermes' tags, Granite 3 a list.
    _Format("granite4", ("<|start_of_role|>", "<tool_call>")),
    _Format("granite", ("<|start_of_role|>", "<|tool_call|>")),
    # Llama 3 is asked for {"name": ..., "parameters": ...}. So is Llama 4 by its own template, but vLLM's parser for
    # that wants a token it lacks: calls need a template that asks for [name(argument=...)].
    _Format("llama4_pythonic", ("<|header_start|>",)),
    _Format("llama3_json", ("<|start_header_id|>", '"parameters": '), tokens=("<|python_tag|>",)),
    _Format("pythonic", ("[func_name1(",)),
    # Hermes 2 and 3, Qwen2.5, QwQ, Qwen3 and most others with ChatML; but Apriel writes a list between other tags.
    _Format(None, ("<tool_call>", "<tool_calls>[{")),
    _Format("hermes", ("<tool_call>", "arguments")),
    # Not here: phi4_mini_json streams nothing at all, jamba streams broken arguments, cohere_command3 and 4 need a
    # package that vLLM does not bring.
)

_THINK = ("<think>", "</think>")
# How a template asks for the switch, by what it does when nobody touches it. Of "is true" and "is false" it may have
# both, and leave an untouched switch to the model: the parser that waits for nothing is right for that.
_SET_TO_TRUE = r"enable_thinking is true"
_ON_BY_DEFAULT = (
    r"enable_thinking is defined and (enable_thinking is false|not enable_thinking)"
    r"|enable_thinking ?\| ?default\(true\)|if enable_thinking is defined else true"
)
_OFF_BY_DEFAULT = r"not thinking is defined|enable_thinking is defined and enable_thinking|if (not )?enable_thinking\b"
# No switch: the generation prompt, which comes last, opens the thought and does not close it.
_ALWAYS_ON = r"add_generation_prompt((?!add_generation_prompt|</think>)[\s\S])*<think>((?!</think>)[\s\S])*$"

_REASONING_FORMATS = (
    # With thinking_budget 0 a request must also say enable_thinking false: the parser knows only that.
    _Format("seed_oss", ("<seed:think>",), tokens=("<seed:think>", "</seed:think>")),
    _Format("minimax_m2", ("<minimax:tool_call>", "<think>"), tokens=_THINK),
    _Format("gemma4", ("<|channel>", "enable_thinking"), tokens=("<|channel>", "<channel|>")),
    _Format("kimi_k2", ("<|tool_calls_section_begin|>", "<think>"), tokens=_THINK),
    _Format("hy_v3", ("<｜hy_", "reasoning_effort")),
    _Format(None, ("[THINK]", "reasoning_effort")),  # waits for a thought also where the effort is none
    _Format("mistral", ("[THINK]",), tokens=("[THINK]", "[/THINK]")),
    _Format("glm45", ("<arg_key>", "\n<arg_value>", "[gMASK]"), tokens=_THINK),
    _Format("glm47", ("<arg_key>", "[gMASK]"), tokens=_THINK),
    _Format("ling3", ("<arg_key>", "<role>ASSISTANT</role>"), tokens=_THINK),
    _Format("step3p5", ("<think>", "<|im_start|>tool_response"), tokens=_THINK),
    _Format("nemotron_v3", ("<think>", "truncate_history_thinking"), tokens=_THINK),
    _Format(None, ("｜DSML｜", "tool_calls>")),  # the parser of V4 thinks by default, its templates do not
    _Format(None, ("<|extra_0|>",)),  # json_schema never begins with hunyuan_a13b
    _Format(None, ("/no_think",)),  # switched within the messages, where no parser sees it
    # Whatever thinks between <think> and </think>: Qwen3 and 3.5, QwQ, DeepSeek and its distillates, and many others.
    _Format("deepseek_v3", ("<think>",), _SET_TO_TRUE, _THINK),
    _Format("qwen3", ("<think>",), _ON_BY_DEFAULT, _THINK),
    _Format("deepseek_v3", ("<think>",), _OFF_BY_DEFAULT, _THINK),
    _Format("deepseek_r1", ("<think>",), _ALWAYS_ON, _THINK),
    _Format("deepseek_r1", ("<｜Assistant｜>", "</think>"), tokens=_THINK),  # R1 opens its thought itself
)

# vLLM formats the conversations of these by itself, whatever template lies there, and goes by the architecture.
_ARCHITECTURES = {
    "GptOssForCausalLM": ("openai", "openai_gptoss"),
    "DeepseekV32ForCausalLM": ("deepseek_v32", "deepseek_v3"),
    "DeepseekV4ForCausalLM": ("deepseek_v4", "deepseek_v4"),
    "DeepseekV4ForConditionalGeneration": ("deepseek_v4", "deepseek_v4"),
    "DeepseekV41ForCausalLM": ("deepseek_v41", "deepseek_v41"),
    "KimiK3ForConditionalGeneration": ("kimi_k3", "kimi_k3"),
}

_SIZE = r"[\d.]+[bm](-a[\d.]+b)?"
# Names without the organisation and without what _QUANTIZED finds, in lower case. Whole names: a base model, an
# embedding model or somebody's finetune has a template of its own.
_FAMILIES = (
    _Family(rf"qwen2\.5-((coder|math)-)?{_SIZE}-instruct(-1m)?", "hermes"),  # not VL: its template has no tools
    _Family(r"qwq-32b", "hermes", "deepseek_r1"),
    _Family(rf"qwen3-{_SIZE}", "hermes", "qwen3"),
    _Family(rf"qwen3-((vl|next)-)?{_SIZE}-instruct(-2507)?", "hermes"),
    _Family(rf"qwen3-((vl|next)-)?{_SIZE}-thinking(-2507)?", "hermes", "deepseek_r1"),
    _Family(rf"qwen3-coder-(next|{_SIZE}-instruct)", "qwen3_coder"),
    _Family(r"qwen3\.5-(0\.8|2)b", "qwen3_coder", "deepseek_v3"),  # the small ones think only if told to
    _Family(rf"qwen3\.[56]-{_SIZE}", "qwen3_coder", "qwen3"),
    _Family(rf"(meta-)?llama-3\.[123]-{_SIZE}(-vision)?-instruct", "llama3_json"),
    _Family(r"llama-4-(scout|maverick)-.*-instruct", "llama4_pythonic"),
    # Mistral's older ones have no token for tool calls; those with a month in the name do.
    _Family(r"mistral-7b-instruct-v0\.3|mixtral-8x22b-instruct-v0\.1", "mistral"),
    _Family(r"(magistral|ministral-3-.*-reasoning)-(.*-)?2\d{3}", "mistral", "mistral"),
    _Family(r"(mistral-(nemo|small|medium|large)|ministral|devstral|pixtral)-(?!.*base)(.*-)?2\d{3}", "mistral"),
    _Family(r"deepseek-r1-(distill-.*|0528-qwen3-8b)", None, "deepseek_r1"),  # no tokens for tool calls
    _Family(r"deepseek-r1(-zero|-0528)?", "deepseek_v3", "deepseek_r1"),
    _Family(r"deepseek-v3(-0324)?", "deepseek_v3"),
    _Family(r"deepseek-v3\.1(-terminus)?", "deepseek_v31", "deepseek_v3"),
    _Family(r"deepseek-v3\.2(-exp)?", "deepseek_v32", "deepseek_v3"),
    _Family(r"deepseek-v4(-(flash|pro))?(-\d{4})?", "deepseek_v4", "deepseek_v4"),
    _Family(r"gpt-oss-(safeguard-)?\d+b", "openai", "openai_gptoss"),
    _Family(r"glm-4\.[56](-air|v|v-flash)?", "glm45", "glm45"),
    _Family(r"glm-(4\.7(-flash)?|5(\.[12])?)", "glm47", "glm47"),
    _Family(r"granite-3\.\d-.*-instruct", "granite"),
    _Family(rf"granite-4\.[01]-(h-)?(micro|tiny|small|{_SIZE})", "granite4"),
    _Family(r"gemma-4-.*-it", "gemma4", "gemma4"),
    _Family(r"functiongemma-.*-it", "functiongemma"),
    _Family(r"kimi-k2-instruct(-0905)?", "kimi_k2"),
    _Family(r"kimi-k2(-thinking|\.5)", "kimi_k2", "kimi_k2"),
    _Family(r"minimax-m2(\.\d)?", "minimax_m2", "minimax_m2"),
    _Family(r"seed-oss-36b-instruct", "seed_oss", "seed_oss"),
    _Family(r"hermes-(2-(pro|theta)|3)-.*", "hermes"),
    _Family(r"smollm3-3b", "hermes"),
    _Family(rf"nvidia-nemotron-3-(nano|super|ultra)-{_SIZE}", "qwen3_coder", "nemotron_v3"),
    _Family(r"step-3\.[57]-flash", "step3p5", "step3p5"),
    _Family(rf"lfm2(\.5)?-{_SIZE}(-instruct)?", "lfm2"),
    _Family(r"olmo-3(\.1)?-\d+b-instruct", "olmo3"),
    _Family(r"hunyuan-a13b-instruct", "hunyuan_a13b"),
    _Family(r"apertus-\d+b-instruct-2509", "apertus"),
    _Family(rf"gigachat3(\.1)?-{_SIZE}(-preview)?", "gigachat3"),
)
_QUANTIZED = r"[-_.](bf16|fp8|nvfp4|mxfp4|fp4|awq|gptq|int[48]|w[48]a(4|8|16)|[48]bit|bnb|unsloth|gguf|quantized)\b.*$"


def choose_parsers(model: str, engine_args: Mapping[str, Any], unknown: Collection[str] = ()) -> dict[str, Any]:
    """``engine_args`` with the parsers for what ``model`` writes.

    The user's choice wins, and None is a choice: no parser. An unknown model gets none.

    Args:
        model: a folder, or a hub id.
        engine_args: vLLM's options, by their names with underscores.
        unknown: parsers that this vLLM lacks; they are not chosen.
    """
    if engine_args.get("runner") == "pooling":
        return dict(engine_args)
    tool_parser, reasoning_parser = (
        None if parser in unknown else parser for parser in _known_parsers(model, engine_args.get("chat_template"))
    )
    tool_parser = engine_args.get("tool_call_parser", tool_parser)
    chosen: dict[str, Any] = {}
    if tool_parser is not None:
        chosen |= {"enable_auto_tool_choice": True, "tool_call_parser": tool_parser}
    if reasoning_parser is not None:
        chosen["reasoning_parser"] = reasoning_parser
    return {**chosen, **engine_args}


def known_tool_parsers() -> tuple[str, ...]:
    """The tool-call parsers that can be chosen for a model, sorted."""
    names = [each.parser for each in _TOOL_FORMATS] + [each.tool_parser for each in _FAMILIES]
    return tuple(sorted({name for name in (*names, *(pair[0] for pair in _ARCHITECTURES.values())) if name}))


def known_reasoning_parsers() -> tuple[str, ...]:
    """The reasoning parsers that can be chosen for a model, sorted."""
    names = [each.parser for each in _REASONING_FORMATS] + [each.reasoning_parser for each in _FAMILIES]
    return tuple(sorted({name for name in (*names, *(pair[1] for pair in _ARCHITECTURES.values())) if name}))


def _known_parsers(model: str, users_template: str | None) -> tuple[str | None, str | None]:
    """The tool-call and the reasoning parser; a template that the user names replaces the model's own."""
    folder = expanded(model)
    for architecture in read_json(folder / "config.json").get("architectures") or ():
        if architecture in _ARCHITECTURES:
            return _ARCHITECTURES[architecture]
    template = chat_template(folder) if users_template is None else _text_or_file(str(users_template))
    if template is not None:
        return _match(_TOOL_FORMATS, template, folder), _match(_REASONING_FORMATS, template, folder)
    if folder.is_dir():
        return ("mistral" if (folder / "tekken.json").exists() else None), None
    return _family_parsers(model)


def _text_or_file(template: str) -> str:
    """As vLLM takes its ``chat_template``: the path of a file, or the template itself."""
    return Path(template).read_text(errors="replace") if os.path.isfile(template) else template


def _match(formats: Iterable[_Format], template: str, folder: Path) -> str | None:
    for parser, marks, pattern, tokens in formats:
        if all(mark in template for mark in marks) and re.search(pattern, template, re.IGNORECASE):
            return parser if _has_tokens(folder, tokens) else None
    return None


@while_unchanged
def _has_tokens(folder: Path, tokens: tuple[str, ...]) -> bool:
    """False where the folder shows that the tokenizer lacks one of the tokens."""
    try:
        vocabulary = (folder / "tokenizer.json").read_bytes() if tokens else b""
    except OSError:
        return True
    return all(json.dumps(token, ensure_ascii=False).encode() in vocabulary for token in tokens)


def _family_parsers(hub_id: str) -> tuple[str | None, str | None]:
    name = re.sub(_QUANTIZED, "", hub_id.lower().rpartition("/")[2])
    family = next((each for each in _FAMILIES if re.fullmatch(each.name, name)), None)
    return (family.tool_parser, family.reasoning_parser) if family and "/" in hub_id else (None, None)
