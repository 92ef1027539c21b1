"""Runs inside the engine's own Python: loads a model's tokenizer as vLLM's server does, and prints it for the app.

Run by path, with the server's own flags; needs vLLM and the standard library only. Prints one JSON object on stdout:

    {"tokenizer": "...", "probes": [["text", [1, 15043], [15043]], ...], "chat": {...}}
    {"refusal": "why a text can't be tokenized without vLLM"}

``tokenizer`` is what ``tokenizers.Tokenizer.from_str`` takes. Probes are texts with the tokens that vLLM's tokenizer
gives them, with and without the special ones around them: who loads ``tokenizer`` can see that it gives the same.

``chat`` is what vLLM makes a prompt of a conversation with, without tools and with:

    {"plain": {"template": "...", "content_format": "string"}, "tools": {...}, "special_tokens": {"bos_token": "..."},
     "probes": [[messages, tools, variables, "the prompt, or null where the template refuses"], ...]}
    {"refusal": "why only vLLM can"}
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from types import ModuleType
from typing import Any

if __name__ == "__main__":  # run by path: see launcher.py
    here = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [entry for entry in sys.path if os.path.abspath(entry) != here]
    package = ModuleType("shared_engine")
    package.__path__ = [os.path.dirname(here)]
    sys.modules["shared_engine"] = package

from shared_engine.launcher.process import die_with_parent
from shared_engine.vllm_versions import release_of

# What tokenizers split by, normalize, or treat in ways of their own.
TEXTS = (
    "", " ", "  ", "\n", "\n\n \n", "\t", "\r\n", " a", "a ", "  a   b    c", "Hello", " hello", "HELLO, World!",
    "The engine's running; it can't stop, we'LL see.", "a\n\nb\n c\t\td", "x" * 300, "ha" * 150, " " * 100, "\n" * 50,
    "-" * 80, "1", "12", "123", "1234567890", "3.14159 -2e10 1,000,000", "2024-01-31T12:00:00Z", "v1.2.3 #4 $5 50%",
    "def f(x):\n    return x[1:] + {'a': \"b\"}  # c\n", "<html><b>x</b></html>", "http://a.example/b?c=d&e=f#g",
    "naïve façade", "nai\u0308ve fac\u0327ade", "ﬁne ½ Ⅷ ㎏ \uff46\uff55ll", "straße ẞ İstanbul ıŞ ǅ", "русский ЯЗЫК",
    "ελληνικά Σς", "עברית", "العربية ١٢٣", "हिन्दी में", "ไทย", "日本語の文章。カタカナ", "中文字符", "한국어 문장",
    "\u1112\u1161\u11ab", "😀👍🏽👨‍👩‍👧🇫🇷", "\U0001d4b3\U0001d504 𐍈 𓀀", "\u200b\u200d\u202e\ufeff\u00ad",
    "\u00a0\u2003\u3000\u2028", "\x00\x01\x07\x1b\x7f\x85", "\ue000\ufffd\U0010fffe", "\u2018a\u2019 “b” — …",
    "▁ ▁▁a ##b Ġc ĊĠ </w>", "<0x0A><0xE2>",
    "[CLS] [SEP] [UNK] <s> </s> <unk> <|endoftext|> <|im_end|> <bos>",
)  # fmt: skip
MOST_TOKENS = 1000

CALL = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": '{"a": "é", "b": [1]}'}}
NO_ARGUMENTS = {"id": "call_2", "type": "function", "function": {"name": "g", "arguments": ""}}
SCHEMA = {"type": "object", "properties": {"a": {"type": "string", "enum": ["é", "<"]}}, "required": ["a"]}
TOOLS = [
    {"type": "function", "function": {"name": "f", "description": 'The "f" & <g> «é»', "parameters": SCHEMA}},
    {"type": "function", "function": {"strict": True, "parameters": {}, "name": "strict"}},
    {"type": "function", "function": {"name": "g"}},
]
PARTS = [{"type": "text", "text": "two "}, {"type": "text", "text": " parts\n"}]
CONVERSATIONS: tuple[list[dict[str, Any]], ...] = (
    [{"role": "user", "content": "Hello"}],
    [{"role": "system", "content": " Be brief.\n"}, {"role": "user", "content": "naïve 日本語 😀 <|im_end|>"}],
    [{"role": "system", "content": PARTS}, {"role": "user", "content": PARTS}],
    [{"role": "user", "content": "1"}, {"role": "assistant", "content": "<think>\na\n</think>\n\n2"},
     {"role": "user", "content": "3", "name": "Ann"}],
    [{"role": "user", "content": "1"}, {"role": "assistant", "content": "2", "reasoning": "because"},
     {"role": "user", "content": ""}],
    [{"role": "user", "content": "1"}, {"role": "assistant", "content": "text", "tool_calls": [CALL]},
     {"role": "tool", "content": "rain", "tool_call_id": "call_1"}],
    [{"role": "user", "content": "1"}, {"role": "assistant", "content": None, "tool_calls": [CALL, NO_ARGUMENTS]},
     {"role": "tool", "content": PARTS, "tool_call_id": "call_1"},
     {"role": "tool", "content": "r", "tool_call_id": "call_2", "name": "g"},
     {"role": "assistant", "content": "3"}, {"role": "user", "content": "4"}],
)  # fmt: skip
VARIABLES: tuple[dict[str, Any], ...] = ({}, {"enable_thinking": True, "thinking": True}, {"enable_thinking": False})


def main() -> None:
    die_with_parent()
    answer = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # vLLM may print
    json.dump(export(sys.argv[1:]), answer)
    answer.close()


def export(argv: list[str]) -> dict[str, Any]:
    config = model_config(argv)
    tokenizer = load_tokenizer(config)
    refusal = refusal_of(config, tokenizer)
    if refusal is not None:
        return {"refusal": refusal}
    exported = tokenizer.backend_tokenizer.to_str()
    if json.loads(exported)["model"].get("dropout"):
        return {"refusal": "it tokenizes at random"}
    probes = [probe(tokenizer, text) for text in texts(tokenizer)]
    return {"tokenizer": exported, "probes": probes, "chat": export_chat(config, tokenizer)}


def model_config(argv: list[str]) -> Any:
    from vllm.engine.arg_utils import EngineArgs
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    class Parser(FlexibleArgumentParser):  # type: ignore[misc]  # vLLM is not here
        def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
            return super().parse_known_args(args, namespace)[0], []  # the API server's own flags do not matter here

    arguments = EngineArgs.add_cli_args(Parser(allow_abbrev=False)).parse_args(argv)
    return EngineArgs.from_cli_args(arguments).create_model_config()


def load_tokenizer(config: Any) -> Any:
    from vllm.tokenizers import cached_tokenizer_from_config

    return cached_tokenizer_from_config(config)


def refusal_of(config: Any, tokenizer: Any) -> str | None:
    """Why the tokenizer's Rust part alone is not, or may not be, all there is to a prompt's tokens."""
    if not getattr(tokenizer, "is_fast", False) or not hasattr(tokenizer, "backend_tokenizer"):
        return f"{type(tokenizer).__name__} is not a tokenizer of the Rust library"
    foreign = {kind.__module__.split(".")[0] for kind in type(tokenizer).__mro__} - {"vllm", "transformers", "builtins"}
    if foreign:
        return "the model brings a tokenizer's code"
    if config.is_encoder_decoder:
        return "it is an encoder-decoder"
    if (config.encoder_config or {}).get("do_lower_case"):
        return "vLLM writes its texts in lower case"
    # A repository of Mistral's may have a tekken.json, which vLLM would download and prefer.
    is_from_hub = "/snapshots/" in os.path.abspath(config.tokenizer) or not os.path.isdir(config.tokenizer)
    if is_from_hub and config.hf_config.model_type.rstrip("0123456789").endswith("tral"):
        return "vLLM may use a tokenizer of Mistral's own kind"
    return None


def texts(tokenizer: Any) -> list[str]:
    added = sorted(tokenizer.get_added_vocab(), key=tokenizer.get_added_vocab().get)[:MOST_TOKENS]
    return [*TEXTS, " \n".join(TEXTS), *(f"{token}a {token} {token}\n{token}{token} b{token}" for token in added)]


def probe(tokenizer: Any, text: str) -> tuple[str, list[int], list[int]]:
    """As vllm/renderers calls it."""
    with_special, without = (
        list(tokenizer(text, truncation=False, max_length=None, add_special_tokens=special)["input_ids"])
        for special in (True, False)
    )
    return text, with_special, without


# ---- conversations


def export_chat(config: Any, tokenizer: Any) -> dict[str, Any]:
    """Whatever is other than expected, in this vLLM or in this model, leaves conversations to the server."""
    try:
        from vllm.renderers.hf import resolve_chat_template, resolve_chat_template_content_format
        from vllm.tokenizers.registry import tokenizer_args_from_config

        mode = tokenizer_args_from_config(config)[0]
        if mode != "hf" or config.hf_config.model_type == "gpt_oss":
            return {"refusal": "vLLM writes this model's conversations by code of its own, not by a template"}
        exported: dict[str, Any] = {}
        for name, tools in (("plain", None), ("tools", TOOLS)):
            content_format = resolve_chat_template_content_format(None, tools, "auto", tokenizer, model_config=config)
            template = resolve_chat_template(tokenizer, None, tools, model_config=config)
            if template is None:
                return {"refusal": "the model has no chat template"}
            exported[name] = {"template": template, "content_format": content_format}
        exported["special_tokens"] = {
            name: str(token) for name, token in tokenizer.special_tokens_map.items() if not isinstance(token, list)
        }
        exported["probes"] = [
            (messages, tools, variables, prompt_of(config, tokenizer, messages, tools, variables))
            for messages in CONVERSATIONS
            for tools in (None, TOOLS)
            for variables in VARIABLES
        ]
        return exported
    except Exception as exc:
        return {
            "refusal": f"this vLLM writes conversations in a way that is not known here: {type(exc).__name__}: {exc}"
        }


def prompt_of(config: Any, tokenizer: Any, messages: Any, tools: Any, variables: dict[str, Any]) -> str | None:
    """As the server makes it of a request; None where the template refuses it."""
    import vllm
    from vllm.entrypoints.serve.tokenize.protocol import TokenizeChatRequest
    from vllm.renderers.hf import resolve_chat_template_content_format, safe_apply_chat_template

    parse_chat_messages = importlib.import_module(release_of(str(vllm.__version__)).chat_utils).parse_chat_messages
    request = TokenizeChatRequest.model_validate({"messages": messages, "tools": tools})
    dumped = None if request.tools is None else [tool.model_dump() for tool in request.tools]
    content_format = resolve_chat_template_content_format(None, dumped, "auto", tokenizer, model_config=config)
    conversation = parse_chat_messages(request.messages, config, content_format=content_format)[0]
    options = {"add_generation_prompt": True, "continue_final_message": False, **variables}
    try:
        prompt: str = safe_apply_chat_template(config, tokenizer, conversation, tools=dumped, tokenize=False, **options)
    except Exception as exc:
        if exc.__cause__ is None:
            raise
        return None  # what the template raised, in vLLM's own error
    return prompt


if __name__ == "__main__":
    main()
