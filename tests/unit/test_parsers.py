"""The model's own files decide the parsers, a hub id's family where there are none, and the user before both."""

# ruff: noqa: RUF001 - DeepSeek's and Hunyuan's tokens are written with such bars.

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from shared_engine import EngineSettings
from shared_engine.launch.spec import engine_spec
from shared_engine.model_files.parsers import choose_parsers, known_reasoning_parsers, known_tool_parsers
from tests.support.interpreters import make_interpreter
from tests.support.paths import TINY_CHAT

HERMES = "{{ '<tool_call>' }}{{ tool_call.arguments | tojson }}"
HERMES_FLAGS = {"enable_auto_tool_choice": True, "tool_call_parser": "hermes"}
ASSISTANT = "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}"
# As Qwen3's template ends.
QWEN3 = (
    HERMES + ASSISTANT + "{%- if enable_thinking is defined and enable_thinking is false %}"
    "{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}{%- endif %}"
)

# What a family's template has and others have not -> the parser for its tool calls.
TOOL_FORMATS = [
    ("'<｜DSML｜tool_calls>'", "deepseek_v4"),
    ("'<｜DSML｜function_calls>'", "deepseek_v32"),
    ("tool['type'] + '<｜tool▁sep｜>' + name + '\\n```json\\n'", "deepseek_v3"),
    ("name + '<｜tool▁sep｜>' + arguments", "deepseek_v31"),
    ("'[TOOL_CALLS]' + name + '[ARGS]'", "mistral"),
    ("<|tool_calls_section_begin|>", "kimi_k2"),
    ("set ns_token = ']<]minimax[>[' ; ns_token ~ '<tool_call>'", "minimax_m3"),
    ("<minimax:tool_call>", "minimax_m2"),
    ("<seed:tool_call><function=f><parameter=p>", "seed_oss"),
    ("<|tool_call>call:f{", "gemma4"),
    ("<start_function_call>call:f{", "functiongemma"),
    ("'<｜hy_User｜>' '<tool_sep{}>' '<arg_key{}>'", "hy_v3"),
    ('<tool_calls>[{"name": f <|extra_0|>', "hunyuan_a13b"),
    ("<|tools_prefix|>", "apertus"),
    ("'function call' + '<|role_sep|>\\n'", "gigachat3"),
    ("<longcat_tool_call>", "longcat"),
    ('"<|tool_call_start|>[" + calls', "lfm2"),
    ('"List of tools: <|tool_list_start|>["', "lfm2"),
    ("<functions></functions> <function_calls>", "olmo3"),
    ('<function name="f"><param name="p">', "minicpm5"),
    ("<tool_call>\n<function=f>\n<parameter=p> '<|im_start|>tool_response\\n'", "step3p5"),
    ("<tool_call>\n<function=f>\n<parameter=p>", "qwen3_coder"),
    ("<available_tools> <tool_call>f<arg_key>k</arg_key> <assistant>", "poolside_v1"),
    ("<role>ASSISTANT</role><tool_call>f\n<arg_key>k</arg_key>", "ling3"),
    ("[gMASK]<sop><tool_call>f\n<arg_key>k</arg_key>\n<arg_value>v</arg_value>", "glm45"),
    ("[gMASK]<sop><tool_call>f<arg_key>k</arg_key><arg_value>v</arg_value>", "glm47"),
    ("<|start_of_role|> <tool_call>\n{arguments}", "granite4"),
    ("<|start_of_role|> respond with <|tool_call|> followed by a JSON list", "granite"),
    ('<|header_start|> {"name": name, "parameters": arguments}', "llama4_pythonic"),
    ('<|start_header_id|> {"name": name, "parameters": arguments}', "llama3_json"),
    ("<|start_header_id|> [func_name1(params_name1=params_value1)]", "pythonic"),
    (HERMES, "hermes"),
]

GENERATION_PROMPTS = [
    (QWEN3, "qwen3"),
    # Qwen3.5, large and small.
    (
        ASSISTANT + "{% if enable_thinking is defined and enable_thinking is false %}'</think>'{% else %}'<think>'",
        "qwen3",
    ),
    (
        ASSISTANT + "{% if enable_thinking is defined and enable_thinking is true %}'<think>'{% else %}'</think>'",
        "deepseek_v3",
    ),
    # MiniCPM5: left to the model when it is not mentioned.
    (
        ASSISTANT + "{% if enable_thinking is false %}'</think>'{% elif enable_thinking is true %}'<think>'",
        "deepseek_v3",
    ),
    # Laguna, thinking by default and not.
    ("{% set enable_thinking = enable_thinking | default(true) %}{% if enable_thinking %}'<think>'", "qwen3"),
    (
        "{% set enable_thinking = enable_thinking | default(false) %}{% if not enable_thinking %}'<think>'",
        "deepseek_v3",
    ),
    # DeepSeek V3.1; tiny_chat.
    ("{% if not thinking is defined %}{% set thinking = false %}'<｜Assistant｜><think></think>'", "deepseek_v3"),
    ("{{ '<think>' if enable_thinking is defined and enable_thinking else '<think></think>' }}", "deepseek_v3"),
    # QwQ, Qwen3-Thinking-2507; R1, which opens its thought itself or not.
    (ASSISTANT + "{{- '<think>\\n' }}", "deepseek_r1"),
    ("content.split('</think>')[-1] {% if add_generation_prompt %}{{'<｜Assistant｜>'}}", "deepseek_r1"),
    ("<seed:think>", "seed_oss"),
    ("<minimax:tool_call> '<think>\\n'", "minimax_m2"),
    ("<|channel>thought\\n<channel|> {% if enable_thinking is defined and enable_thinking %}", "gemma4"),
    ("<|tool_calls_section_begin|> <think></think>", "kimi_k2"),
    ("<｜hy_Assistant｜> reasoning_effort", "hy_v3"),
    ("Your thinking process must follow the template below:[THINK]", "mistral"),
    ("[gMASK]<sop><arg_key>\n<arg_value>'<think></think>' if not enable_thinking", "glm45"),
    ("[gMASK]<sop><arg_key></arg_key>'</think>' if not enable_thinking else '<think>'", "glm47"),
    ("<role>ASSISTANT</role><arg_key>'<think>'", "ling3"),
    ("'<|im_start|>tool_response\\n' '<|im_start|>assistant\\n<think>\\n'", "step3p5"),
    ("truncate_history_thinking {% if enable_thinking %}'<think>'", "nemotron_v3"),
    # Nobody knows: no thinking at all; switched by a message; a thought that only history has; not by <think>.
    (HERMES, None),
    ("{% if '/no_think' in system_message %}" + QWEN3, None),
    ("'<think>' + message.thinking + '</think>'" + ASSISTANT, None),
    ("{% if enable_thinking is defined and enable_thinking %}Deliberation: enabled", None),
    ("[THINK] [MODEL_SETTINGS] reasoning_effort", None),
    ("<|extra_0|>" + QWEN3, None),
    ("'<｜DSML｜tool_calls>' {% if not thinking is defined %}'<think>'", None),
    ("content.split('</think>')[-1]" + ASSISTANT, None),
]


def folder_with(tmp_path: Path, template: str | None = None, **files: Any) -> str:
    if template is not None:
        (tmp_path / "chat_template.jinja").write_text(template)
    for name, content in files.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(content, ensure_ascii=False))
    return str(tmp_path)


def parsers(model: str, **engine_args: Any) -> tuple[str | None, str | None]:
    flags = choose_parsers(model, engine_args)
    return flags.get("tool_call_parser"), flags.get("reasoning_parser")


@pytest.mark.parametrize("place", ["chat_template.jinja", "tokenizer_config.json"])
@pytest.mark.parametrize(
    ("template", "flags"),
    [
        (HERMES, HERMES_FLAGS),
        (QWEN3, {**HERMES_FLAGS, "reasoning_parser": "qwen3"}),
        ("{{ messages }}", {}),
        ("", {}),
    ],
)
def test_the_template_decides(tmp_path: Path, place: str, template: str, flags: dict[str, Any]) -> None:
    text = template if place.endswith("jinja") else json.dumps({"chat_template": template})
    (tmp_path / place).write_text(text)
    assert choose_parsers(str(tmp_path), {}) == flags


@pytest.mark.parametrize("text", [None, "{", json.dumps({}), json.dumps({"chat_template": [{"name": "default"}]})])
def test_a_model_without_a_readable_template_gets_none(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "tokenizer_config.json").write_text(text)
    assert choose_parsers(str(tmp_path), {}) == {}
    assert choose_parsers("org/name", {}) == {}


@pytest.mark.parametrize(("template", "parser"), TOOL_FORMATS)
def test_a_familys_marks_choose_its_tool_parser(tmp_path: Path, template: str, parser: str) -> None:
    assert parsers(folder_with(tmp_path, template))[0] == parser


@pytest.mark.parametrize(
    "template",
    [
        "<start_of_turn>user",  # Gemma 2 and 3
        "<|user|>\n<|end|>",  # Phi 3.5
        "prefix function calls with functools marker functools[",  # its parser streams nothing
        '<tool_call></tool_call> <tool_calls>[{"name": f, "arguments": a}]',  # Apriel
        "<function=f>{parameters}</function>",  # Functionary
        "<TOOLCALL>[",  # Nemotron Nano 2
        "<|START_ACTION|>",  # Command
    ],
)
def test_a_format_without_a_parser_that_works_gets_none(tmp_path: Path, template: str) -> None:
    assert choose_parsers(folder_with(tmp_path, template), {}) == {}


@pytest.mark.parametrize(("template", "parser"), GENERATION_PROMPTS)
def test_the_reasoning_parser_agrees_with_the_generation_prompt(
    tmp_path: Path, template: str, parser: str | None
) -> None:
    assert parsers(folder_with(tmp_path, template))[1] == parser


@pytest.mark.parametrize(
    ("architecture", "chosen"),
    [
        ("GptOssForCausalLM", ("openai", "openai_gptoss")),
        ("DeepseekV32ForCausalLM", ("deepseek_v32", "deepseek_v3")),
        ("DeepseekV4ForCausalLM", ("deepseek_v4", "deepseek_v4")),
        ("DeepseekV4ForConditionalGeneration", ("deepseek_v4", "deepseek_v4")),
        ("DeepseekV41ForCausalLM", ("deepseek_v41", "deepseek_v41")),
        ("KimiK3ForConditionalGeneration", ("kimi_k3", "kimi_k3")),
        ("Qwen3ForCausalLM", ("hermes", "qwen3")),
    ],
)
def test_the_architecture_decides_where_vllm_formats_by_itself(
    tmp_path: Path, architecture: str, chosen: tuple[str, str]
) -> None:
    assert parsers(folder_with(tmp_path, QWEN3, config={"architectures": [architecture]})) == chosen


def test_a_mistral_folder_without_a_template_gets_mistrals_tool_parser(tmp_path: Path) -> None:
    assert parsers(folder_with(tmp_path, tekken={})) == ("mistral", None)


@pytest.mark.parametrize(
    ("template", "tokens", "chosen"),
    [
        (QWEN3, ["<think>", "</think>"], ("hermes", "qwen3")),
        (QWEN3, ["<thi", "nk>"], ("hermes", None)),  # without them json_schema would never begin
        ("'<｜Assistant｜><｜tool▁sep｜>```json</think>'", ["<｜tool▁calls▁begin｜>"], ("deepseek_v3", None)),
        # A distillate of R1; the server would not start.
        ("'<｜Assistant｜><｜tool▁sep｜>```json</think>'", ["<think>", "</think>"], (None, "deepseek_r1")),
        ('<|start_header_id|> "parameters": ', ["<|eot_id|>"], (None, None)),
        ("[TOOL_CALLS]", ["[INST]"], (None, None)),
    ],
)
def test_a_parser_whose_tokens_the_tokenizer_lacks_is_not_chosen(
    tmp_path: Path, template: str, tokens: list[str], chosen: tuple[str | None, str | None]
) -> None:
    tokenizer = {"added_tokens": [{"content": token} for token in tokens]}
    assert parsers(folder_with(tmp_path, template, tokenizer=tokenizer)) == chosen


@pytest.mark.parametrize(
    ("model", "tools", "reasoning"),
    [
        ("Qwen/Qwen2.5-7B-Instruct", "hermes", None),
        ("Qwen/Qwen2.5-Coder-32B-Instruct-GPTQ-Int4", "hermes", None),
        ("Qwen/Qwen2.5-VL-7B-Instruct", None, None),
        ("Qwen/Qwen2.5-7B", None, None),
        ("Qwen/QwQ-32B", "hermes", "deepseek_r1"),
        ("Qwen/Qwen3-4B", "hermes", "qwen3"),
        ("Qwen/Qwen3-30B-A3B-FP8", "hermes", "qwen3"),
        ("unsloth/Qwen3-4B-unsloth-bnb-4bit", "hermes", "qwen3"),
        ("Qwen/Qwen3-4B-Base", None, None),
        ("Qwen/Qwen3-Embedding-0.6B", None, None),
        ("Qwen/Qwen3-Reranker-0.6B", None, None),
        ("someone/Qwen3-4B-finetuned", None, None),
        ("Qwen/Qwen3-4B-Instruct-2507", "hermes", None),
        ("Qwen/Qwen3-30B-A3B-Thinking-2507-FP8", "hermes", "deepseek_r1"),
        ("Qwen/Qwen3-Coder-30B-A3B-Instruct", "qwen3_coder", None),
        ("Qwen/Qwen3-Coder-Next", "qwen3_coder", None),
        ("Qwen/Qwen3-Next-80B-A3B-Thinking", "hermes", "deepseek_r1"),
        ("Qwen/Qwen3-VL-8B-Instruct", "hermes", None),
        ("Qwen/Qwen3-Omni-30B-A3B-Instruct", None, None),
        ("Qwen/Qwen3.5-0.8B", "qwen3_coder", "deepseek_v3"),
        ("Qwen/Qwen3.5-397B-A17B", "qwen3_coder", "qwen3"),
        ("Qwen/Qwen3.6-35B-A3B", "qwen3_coder", "qwen3"),
        ("meta-llama/Llama-3.1-8B-Instruct", "llama3_json", None),
        ("unsloth/Meta-Llama-3.1-8B-Instruct-bnb-4bit", "llama3_json", None),
        ("meta-llama/Llama-3.2-11B-Vision-Instruct", "llama3_json", None),
        ("meta-llama/Llama-3.1-8B", None, None),
        ("meta-llama/Llama-Guard-3-8B", None, None),
        ("meta-llama/Meta-Llama-3-8B-Instruct", None, None),
        ("meta-llama/Llama-4-Scout-17B-16E-Instruct", "llama4_pythonic", None),
        ("mistralai/Mistral-7B-Instruct-v0.3", "mistral", None),
        ("mistralai/Mistral-7B-Instruct-v0.2", None, None),
        ("mistralai/Mixtral-8x7B-Instruct-v0.1", None, None),
        ("mistralai/Mistral-Small-3.2-24B-Instruct-2506", "mistral", None),
        ("mistralai/Mistral-Small-3.1-24B-Base-2503", None, None),
        ("mistralai/Ministral-3-8B-Instruct-2512", "mistral", None),
        ("mistralai/Ministral-3-14B-Reasoning-2512", "mistral", "mistral"),
        ("mistralai/Magistral-Small-2509", "mistral", "mistral"),
        ("mistralai/Devstral-Small-2507", "mistral", None),
        ("deepseek-ai/DeepSeek-R1-0528", "deepseek_v3", "deepseek_r1"),
        ("deepseek-ai/DeepSeek-R1-Distill-Llama-8B", None, "deepseek_r1"),
        ("deepseek-ai/DeepSeek-V3-0324", "deepseek_v3", None),
        ("deepseek-ai/DeepSeek-V3.1-Base", None, None),
        ("deepseek-ai/DeepSeek-V3.1-Terminus", "deepseek_v31", "deepseek_v3"),
        ("deepseek-ai/DeepSeek-V3.2", "deepseek_v32", "deepseek_v3"),
        ("deepseek-ai/DeepSeek-V4-Flash", "deepseek_v4", "deepseek_v4"),
        ("openai/gpt-oss-20b", "openai", "openai_gptoss"),
        ("zai-org/GLM-4.5-Air-FP8", "glm45", "glm45"),
        ("zai-org/GLM-4.5-Base", None, None),
        ("zai-org/GLM-4.7-Flash", "glm47", "glm47"),
        ("zai-org/GLM-5.1", "glm47", "glm47"),
        ("ibm-granite/granite-3.3-8b-instruct", "granite", None),
        ("ibm-granite/granite-4.0-h-small", "granite4", None),
        ("ibm-granite/granite-4.0-350m", "granite4", None),
        ("ibm-granite/granite-4.0-micro-base", None, None),
        ("ibm-granite/granite-embedding-english-r2", None, None),
        ("google/gemma-2-2b-it", None, None),
        ("google/gemma-3-4b-it", None, None),
        ("google/gemma-4-31B-it", "gemma4", "gemma4"),
        ("google/gemma-4-31B", None, None),
        ("google/functiongemma-270m-it", "functiongemma", None),
        ("microsoft/Phi-3.5-mini-instruct", None, None),
        ("microsoft/Phi-4-mini-instruct", None, None),
        ("moonshotai/Kimi-K2-Instruct-0905", "kimi_k2", None),
        ("moonshotai/Kimi-K2-Thinking", "kimi_k2", "kimi_k2"),
        ("moonshotai/Kimi-K2-Base", None, None),
        ("MiniMaxAI/MiniMax-M2.1", "minimax_m2", "minimax_m2"),
        ("ByteDance-Seed/Seed-OSS-36B-Instruct", "seed_oss", "seed_oss"),
        ("NousResearch/Hermes-3-Llama-3.1-8B", "hermes", None),
        ("NousResearch/Hermes-2-Pro-Mistral-7B", "hermes", None),
        ("nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16", "qwen3_coder", "nemotron_v3"),
        ("nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-Base-BF16", None, None),
        ("stepfun-ai/Step-3.5-Flash", "step3p5", "step3p5"),
        ("HuggingFaceTB/SmolLM3-3B", "hermes", None),
        ("LiquidAI/LFM2-8B-A1B", "lfm2", None),
        ("LiquidAI/LFM2-Audio-1.5B", None, None),
        ("tencent/Hunyuan-A13B-Instruct", "hunyuan_a13b", None),
        ("Qwen3-4B", None, None),  # no hub id of anybody's
        ("org/other", None, None),
    ],
)
def test_a_hub_id_gets_its_familys(model: str, tools: str | None, reasoning: str | None) -> None:
    assert parsers(model) == (tools, reasoning)


def test_what_the_hubs_cache_has_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    snapshot = tmp_path / "models--Qwen--Qwen3-4B" / "snapshots" / "main"
    snapshot.mkdir(parents=True)
    folder_with(snapshot, "[TOOL_CALLS]")
    assert parsers("Qwen/Qwen3-4B") == ("hermes", "qwen3")


def test_tiny_chat_gets_the_parsers_its_readme_names() -> None:
    assert choose_parsers(str(TINY_CHAT), {}) == {**HERMES_FLAGS, "reasoning_parser": "deepseek_v3"}


def test_the_users_choice_wins(tmp_path: Path) -> None:
    model = folder_with(tmp_path, QWEN3)
    assert choose_parsers(model, {"tool_call_parser": "mistral", "reasoning_parser": "kimi_k2", "seed": 1}) == {
        "enable_auto_tool_choice": True,
        "tool_call_parser": "mistral",
        "reasoning_parser": "kimi_k2",
        "seed": 1,
    }
    assert choose_parsers(model, {"enable_auto_tool_choice": False})["enable_auto_tool_choice"] is False


CALLS = ("--tool-call-parser", "hermes", "--tool-strict-level", "function")
XGRAMMAR = ["--structured-outputs-config.backend", "xgrammar"]


@pytest.mark.parametrize(
    ("switched_off", "left"),
    [
        (("tool_call_parser", "reasoning_parser"), []),
        (("tool_call_parser",), ["--reasoning-parser", "qwen3"]),
        (("reasoning_parser",), ["--enable-auto-tool-choice", *CALLS]),
        ((), ["--enable-auto-tool-choice", "--reasoning-parser", "qwen3", *CALLS]),
    ],
)
def test_none_switches_a_parser_off(tmp_path: Path, switched_off: tuple[str, ...], left: list[str]) -> None:
    python = make_interpreter(tmp_path / "env", "vllm-0.32.0")
    model = folder_with(tmp_path, QWEN3, config={"model_type": "qwen3"})
    without = EngineSettings(python=python, model=model, engine_args={"runner": "pooling"})
    settings = EngineSettings(python=python, model=model, engine_args=dict.fromkeys(switched_off))
    common = [*engine_spec(without).argv[:-2], *XGRAMMAR]  # all but the runner
    assert engine_spec(settings).argv == (*common, *left)


@pytest.mark.parametrize("given", ["as a file", "as text"])
@pytest.mark.parametrize("model", [None, "Qwen/Qwen3-4B"])
def test_the_users_template_replaces_the_models_own(tmp_path: Path, model: str | None, given: str) -> None:
    template = "[TOOL_CALLS]"
    if given == "as a file":
        template = str(tmp_path / "mine.jinja")
        Path(template).write_text("[TOOL_CALLS]")
    assert parsers(model or folder_with(tmp_path, QWEN3), chat_template=template) == ("mistral", None)


def test_an_embedding_engine_gets_none(tmp_path: Path) -> None:
    assert choose_parsers(folder_with(tmp_path, QWEN3), {"runner": "pooling"}) == {"runner": "pooling"}


def test_the_known_parsers_are_those_that_models_get() -> None:
    assert list(known_tool_parsers()) == sorted(
        {parser for _, parser in TOOL_FORMATS} | {"openai", "deepseek_v41", "kimi_k3"}
    )
    assert list(known_reasoning_parsers()) == sorted(
        {parser for _, parser in GENERATION_PROMPTS if parser}
        | {"openai_gptoss", "deepseek_v4", "deepseek_v41", "kimi_k3"}
    )
