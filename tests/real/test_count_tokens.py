"""Tokens counted here against vLLM's own: /tokenize, the usage of real requests, and the tokenizers that it loads."""

from __future__ import annotations

import http.client
import json
import os
import random
import socket
import subprocess
from typing import Any

import pytest

from shared_engine import ContextLengthError, Engine, EngineState, RequestRejectedError
from shared_engine.launch.interpreter import find_interpreter
from shared_engine.launcher import TOKENIZER_EXPORTER
from shared_engine.request.bodies import Request, text_tokens_request, tokenize_request
from shared_engine.token_count.chat_template import ChatTemplate
from shared_engine.token_count.exported import tokenizer_of
from shared_engine.token_count.source import ServerOnlyError
from tests.support.small_tokenizers import declared, make_folder
from tests.support.small_tokenizers import tokenizer_of as small_tokenizer

Messages = list[dict[str, Any]]


def call(arguments: str, identity: str = "call_1") -> dict[str, Any]:
    return {"id": identity, "type": "function", "function": {"name": "get_weather", "arguments": arguments}}


CONVERSATIONS: dict[str, Messages] = {
    "special tokens in the text": [{"role": "user", "content": "<|im_start|>system\nx<|im_end|><think></think>"}],
    "parts": [
        {"role": "system", "content": [{"type": "text", "text": "Be"}, {"type": "text", "text": "brief."}]},
        {"role": "user", "content": "naïve 日本語 русский 😀👍🏽 \x07"},
    ],
    "tool calls": [
        {"role": "user", "content": "1"},
        {"role": "assistant", "tool_calls": [call('{"city": "Zürich"}'), call("{}", "call_2")]},
        {"role": "tool", "content": "rain, 3°", "tool_call_id": "call_1"},
        {"role": "tool", "content": "r", "tool_call_id": "call_2"},
    ],
    "reasoning, older name": [
        {"role": "user", "content": "1"},
        {"role": "assistant", "content": "2", "reasoning_content": "because"},
        {"role": "user", "content": "3"},
    ],
}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": 'The weather "now" & <later> «é»',
            "parameters": {"type": "object", "properties": {"city": {"type": "string", "enum": ["Zürich", "東京"]}}},
        },
    },
    {"type": "function", "function": {"strict": True, "parameters": {}, "name": "strict"}},
]


@pytest.fixture(scope="module")
def engine(tiny_chat: dict[str, Any]) -> Engine:
    made = Engine(**tiny_chat)
    made.count_tokens("")  # vLLM has exported the tokenizer when it returns; with an engine that runs, only later
    made.warmup()
    return made


class _Socket(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("engine")
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(self._path)


def servers_tokens(engine: Engine, request: Request) -> list[int]:
    """What the server's own /tokenize answers."""
    connection = _Socket(engine.status().socket or "")
    connection.request("POST", request.path, request.body, {"Content-Type": "application/json"})
    answer: dict[str, Any] = json.loads(connection.getresponse().read())
    connection.close()
    found: list[int] = answer["tokens"]
    return found


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_a_conversation_counts_what_a_real_request_costs(
    engine: Engine, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for tools, variables in ((None, None), (TOOLS, {"enable_thinking": True})):
        extra = {"chat_template_kwargs": variables} if variables else None
        result = engine.chat(CONVERSATIONS[name], tools=tools, max_tokens=1, extra_body=extra)
        with monkeypatch.context() as patched:
            patched.setattr("shared_engine.engine.run_sync", None)  # the engine's server is not asked
            counted = engine.count_tokens(CONVERSATIONS[name], tools=tools, chat_template_kwargs=variables)
        assert counted == result.usage.prompt_tokens, (tools, variables)
        assert counted == len(servers_tokens(engine, tokenize_request(CONVERSATIONS[name], tools, variables)))


def random_texts(count: int) -> list[str]:
    made = random.Random(4)
    letters = "abcXYZ  \n\t0123456789'!?.,-_(){}éüßñ日本語東京русский عربى😀👍🏽\u0301\u200d\u00a0\r\x00"
    pieces = ("<|im_end|>", "<|endoftext|>", "<think>", " hello", "The ", "can't", "we'LL", "12345", "\n\n", "ﬁ")
    return [
        "".join(made.choice(pieces if made.random() < 0.4 else letters) for _ in range(made.randint(0, 50)))
        for _ in range(count)
    ]


def test_a_texts_tokens_are_the_servers(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shared_engine.engine.run_sync", None)  # the engine's server is not asked
    for text in ("", *random_texts(150)):
        assert engine.count_tokens(text) == len(servers_tokens(engine, text_tokens_request(text))), repr(text)
        request = text_tokens_request(text, add_special_tokens=False)
        assert engine.tokenize(text) == servers_tokens(engine, request), repr(text)


def test_a_prompt_counts_what_a_real_request_costs(engine: Engine) -> None:
    for text in filter(None, random_texts(20)):
        assert engine.count_tokens(text) == engine.generate(text, max_tokens=1).usage.prompt_tokens, repr(text)


def test_a_text_is_counted_without_a_start(tiny_chat: dict[str, Any]) -> None:
    engine = Engine(**tiny_chat, seed=4711)
    assert engine.count_tokens("Hello") == len(engine.tokenize("Hello")) == 1
    assert engine.count_tokens([{"role": "user", "content": "Hello"}], tools=TOOLS) > 50
    assert engine.status().state is EngineState.STOPPED


def test_what_does_not_fit_is_refused_before_a_start(tiny_chat: dict[str, Any]) -> None:
    engine = Engine(**tiny_chat, seed=4711, check_context=True)
    messages: Messages = [{"role": "user", "content": "Hello"}]
    prompt = engine.count_tokens(messages, tools=TOOLS)
    for refused, counted, asked in (
        (lambda: engine.generate("word " * 3000), engine.count_tokens("word " * 3000), 1),
        (lambda: engine.chat(messages, tools=TOOLS, max_tokens=2000), prompt, 2000),
        (lambda: next(engine.stream_chat(messages, tools=TOOLS, max_tokens=2000)), prompt, 2000),
    ):
        with pytest.raises(ContextLengthError, match="nothing was sent") as caught:
            refused()
        error = caught.value
        assert (error.prompt_tokens, error.max_model_len, error.completion_tokens) == (counted, 2048, asked)
        assert error.excess == counted + asked - 2048
    assert engine.status().state is EngineState.STOPPED


def test_max_tokens_is_lowered_to_what_the_prompt_leaves(engine: Engine, tiny_chat: dict[str, Any]) -> None:
    messages: Messages = [{"role": "user", "content": "word " * 1900}]
    left = 2048 - engine.count_tokens(messages)
    lowering = Engine(**tiny_chat, truncate_completion=True)
    wanted: dict[str, Any] = {"max_tokens": 1000, "extra_body": {"ignore_eos": True}}
    result = lowering.chat(messages, **wanted)
    assert (result.max_tokens_lowered_to, result.usage.completion_tokens) == (left, left)
    chunks = list(lowering.stream_chat(messages, **wanted))
    assert [chunk.max_tokens_lowered_to for chunk in chunks if chunk.max_tokens_lowered_to] == [left]
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == left
    assert lowering.chat(messages, max_tokens=5).max_tokens_lowered_to is None


async def test_a_conversation_that_the_template_refuses_is_an_error_in_its_words(engine: Engine) -> None:
    refused: Messages = [{"role": "user", "content": "Hi"}, {"role": "user", "content": [{"type": "text"}]}]
    with pytest.raises(RequestRejectedError, match="text"):
        await engine.acount_tokens(refused)


# ---- the tokenizers that vLLM loads, without an engine

IN_THE_ENGINES_PYTHON = """
import json, sys
sys.path.insert(0, sys.argv[1])
from export_tokenizer import export
del sys.path[0]
from vllm.tokenizers import get_tokenizer
asked = json.load(sys.stdin)
told = []
for argv in asked["argvs"]:
    exported = export(argv)
    tokens = None
    if "refusal" not in exported:
        tokenizer = get_tokenizer(argv[1])  # another one than was exported
        tokens = [tokenizer.encode(text) for text in asked["texts"]]
    told.append([exported, tokens])
print(json.dumps(told))
"""
KINDS = [
    ("llama3", "llama", "PreTrainedTokenizerFast"),
    ("padded", "llama", "PreTrainedTokenizerFast"),
    ("llama2", "phi3", "LlamaTokenizer"),
    ("gpt2", "gpt2", "GPT2TokenizerFast"),
    ("qwen2", "qwen3", "Qwen2TokenizerFast"),
    ("qwen3_5", "qwen3_5", "Qwen2Tokenizer"),
    ("gemma", "gemma2", "GemmaTokenizerFast"),
    # transformers 5 makes another tokenizer of the file.
    ("llama3", "qwen2", "PreTrainedTokenizerFast"),
    ("llama3", "llama", "GPT2Tokenizer"),
    ("llama2", "llama", "LlamaTokenizer"),
]
REMOTE_CODE = """
from transformers import PreTrainedTokenizerFast
class Own(PreTrainedTokenizerFast):
    def _encode_plus(self, text, **options):
        return super()._encode_plus(text.lower(), **options)
"""
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "slow": (
        {
            "tokenizer_class": "ByT5Tokenizer",
            "config": {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"},
        },
        "not a tokenizer of the Rust library",
    ),
    "remote code": (
        {
            "tokenizer_class": "Own",
            "config": {"auto_map": {"AutoTokenizer": [None, "own.Own"]}},
            "files": {"own.py": REMOTE_CODE},
        },
        "brings a tokenizer's code",
    ),
    "lower case": (
        {"files": {"sentence_bert_config.json": {"do_lower_case": True, "max_seq_length": 64}}},
        "lower case",
    ),
    "encoder-decoder": ({"model": {"is_encoder_decoder": True}}, "encoder-decoder"),
    "of Mistral's": ({"model_type": "mistral"}, "of Mistral's own kind"),
    "split special tokens": ({"config": {"split_special_tokens": True}}, "other tokens than vLLM does"),
    "at random": ({"files": {"tokenizer.json": None}}, "at random"),
}


SHOWS_ALL = """{{ bos_token }}{% if tools %}{{ tools | tojson(indent=2) }}{% endif %}{% for message in messages -%}
{% if message.role == 'system' and not loop.first %}{{ raise_exception('system first') }}{% endif %}
<|{{ message.role }}|>{{ message }}{{ message | tojson }}{% for call in message.tool_calls %}{{ call }}{% endfor %}
{% endfor %}{% if add_generation_prompt %}<|assistant|>{{ enable_thinking }}{{ strftime_now('%d %b %Y') }}{% endif %}"""
TEMPLATES = {
    "shows all": (SHOWS_ALL, "string"),
    "parts": (
        "{% for message in messages %}{% for part in message.content %}{{ part | tojson }}{% generation %}{{ message }}"
        "{% endgeneration %}{% endfor %}{% if message.role == 'tool' %}{% break %}{% endif %}{% endfor %}",
        "openai",
    ),
    "no system": (
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no') }}{% endif %}{{ m.content }}"
        "{% endfor %}",
        "string",
    ),
}


def with_dropout() -> str:
    state = json.loads(small_tokenizer("llama3").to_str())
    state["model"]["dropout"] = 0.1
    return json.dumps(state)


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What vLLM's Python says of folders made by hand: by name, what it exports and its own tokens of the texts."""
    root = tmp_path_factory.mktemp("tokenizers")
    hub = root / "snapshots" / "0123abc"  # as the hub's cache lies
    argvs: dict[str, list[str]] = {}
    for kind in KINDS:
        for is_declared, config in ((False, {}), (True, {"added_tokens_decoder": declared(kind[0])})):
            name = " ".join((*kind, "declared" * is_declared))
            argvs[name] = ["--model", str(make_folder(root / name, *kind, config=config))]
    for name, (options, _) in REFUSED.items():
        if name == "at random":
            options = {"files": {"tokenizer.json": with_dropout()}}
        folder = make_folder(hub if name == "of Mistral's" else root / name, **options)
        argvs[name] = ["--model", str(folder), *(["--trust-remote-code"] if name == "remote code" else [])]
    for name, (template, _) in TEMPLATES.items():
        folder = make_folder(root / name, files={"chat_template.jinja": template})
        argvs[name] = ["--model", str(folder)]
    texts = ["", "The engine's", *random_texts(40)]
    done = subprocess.run(
        [find_interpreter(None).path, "-c", IN_THE_ENGINES_PYTHON, str(TOKENIZER_EXPORTER.parent)],
        input=json.dumps({"argvs": list(argvs.values()), "texts": texts}),
        capture_output=True, text=True, check=False, timeout=250,
        env={**os.environ, "PYTHONPATH": "", "HF_MODULES_CACHE": str(root / "modules")},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return {"texts": texts, **dict(zip(argvs, json.loads(done.stdout.splitlines()[-1]), strict=True))}


@pytest.mark.apart
def test_what_vllm_exports_gives_the_tokens_of_the_tokenizer_it_loads(told: dict[str, Any]) -> None:
    for kind in KINDS:
        for name in (" ".join((*kind, "")), " ".join((*kind, "declared"))):
            exported, tokens = told[name]
            tokenizer = tokenizer_of(exported)
            assert [tokenizer.encode(text).ids for text in told["texts"]] == tokens, name
    as_it_is = small_tokenizer("llama3")
    assert tokenizer_of(told["llama3 qwen2 PreTrainedTokenizerFast "][0]).to_str() != as_it_is.to_str()


@pytest.mark.apart
@pytest.mark.parametrize("name", REFUSED)
def test_what_the_rust_tokenizer_alone_does_not_give_is_not_exported(told: dict[str, Any], name: str) -> None:
    with pytest.raises(ServerOnlyError, match=REFUSED[name][1]):
        tokenizer_of(told[name][0])


@pytest.mark.apart
@pytest.mark.parametrize("name", TEMPLATES)
def test_conversations_become_the_prompts_that_vllm_makes(told: dict[str, Any], name: str) -> None:
    chat = told[name][0]["chat"]
    assert chat["plain"]["content_format"] == TEMPLATES[name][1]
    made = ChatTemplate(chat)  # which sees to it that all probes are alike
    prompts = [made.prompt(*probe[:3]) for probe in chat["probes"]]
    assert prompts == [probe[3] for probe in chat["probes"]]
    assert len({prompt for prompt in prompts if prompt}) >= 5
    assert (None in prompts) == (name == "no system")


@pytest.mark.apart
def test_without_a_template_only_the_server_knows(told: dict[str, Any]) -> None:
    with pytest.raises(ServerOnlyError, match="no chat template"):
        ChatTemplate(told["llama3 llama PreTrainedTokenizerFast "][0]["chat"])
