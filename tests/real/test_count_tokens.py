"""Tokens counted here against vLLM's own: /tokenize, the usage of real requests, and the tokenizers it loads."""

from __future__ import annotations

import http.client
import json
import os
import random
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shared_engine import Engine, EngineSettings, EngineState, InvalidInputError, RequestRejectedError
from shared_engine.launch.interpreter import find_interpreter
from shared_engine.request.bodies import Request, text_tokens_request
from shared_engine.token_count.tokenizer_classes import FORCED_CLASSES, PLAIN_MODEL_TYPES
from shared_engine.token_count.tokens import count_locally, tokenize_request
from tests.support.small_tokenizers import declared, make_folder

Messages = list[dict[str, Any]]


def user(content: Any, **fields: Any) -> dict[str, Any]:
    return {"role": "user", "content": content, **fields}


def assistant(content: Any = None, **fields: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **fields}


def system(content: Any) -> dict[str, Any]:
    return {"role": "system", "content": content}


def developer(content: Any) -> dict[str, Any]:
    return {"role": "developer", "content": content}


def tool(content: Any, call: str = "call_1", **fields: Any) -> dict[str, Any]:
    return {"role": "tool", "content": content, "tool_call_id": call, **fields}


def parts(*texts: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": text} for text in texts]


def call(arguments: str, name: str = "get_weather", identity: str = "call_1") -> dict[str, Any]:
    return {"id": identity, "type": "function", "function": {"name": name, "arguments": arguments}}


CONVERSATIONS: dict[str, Messages] = {
    "one": [user("What is the capital of France?")],
    "empty": [user("")],
    "no parts": [user([])],
    "spaces": [user("  a\n\n\tb   ")],
    "unicode": [user("naïve e\u0301 日本語 русский عربى 😀👍🏽 \u202e \x07 \u00a0")],
    "special tokens in the text": [user("<|im_start|>system\nx<|im_end|><think></think><|endoftext|>")],
    "system": [system("Be brief."), user("Hi")],
    "system in parts": [system(parts("Be", "brief.")), user(parts("one", "", "two"))],
    "system later": [user("Hi"), system("Be brief."), user("Hi again")],
    "developer": [developer("Be brief."), user("Hi")],
    "system and developer": [system("s"), developer(parts("d", "e")), user("Hi")],
    "names": [user("Hi", name="Ann"), assistant("Hello", name="bot"), user("I am Ann", name="Ann")],
    "turns": [user("1"), assistant("2"), user("3"), assistant("4"), user("5")],
    "assistant last": [user("1"), assistant("2")],
    "assistant in parts": [user("1"), assistant(parts("2", "3")), user("4")],
    "tool call": [user("1"), assistant(tool_calls=[call('{"city": "Zürich", "days": 2}')]), tool("rain, 3°")],
    "tool calls": [
        user("1"),
        assistant("", tool_calls=[call('{"city":"a"}'), call("{}", "noop", "call_2")]),
        tool("r1"),
        tool(parts("r", "2"), "call_2", name="noop"),
        assistant("done"),
        user("thanks"),
    ],
    "text and tool call": [user("1"), assistant("See:", tool_calls=[call('{"n": [1e3, -0.0, 1234567]}')]), tool("")],
    "arguments that are no object": [user("1"), assistant(tool_calls=[call("[1]"), call("x"), call("")]), tool("r")],
    "no tool calls": [user("1"), assistant("2", tool_calls=[]), user("3")],
    "reasoning": [user("1"), assistant("2", reasoning="because"), user("3")],
    "reasoning, older name": [user("1"), assistant("2", reasoning_content="because"), user("3")],
    "thinking in the text": [user("1"), assistant("<think>hm</think>\n\n2"), user("3")],
    "long": [user("The engine starts. " * 90)],
}  # fmt: skip
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": 'The weather "now" & <later> «é»',
            "parameters": {
                "type": "object",
                "properties": {
                    "city": {"type": "string", "description": "Die Stadt", "enum": ["Zürich", "東京"]},
                    "options": {"type": "object", "properties": {"x": {"type": ["number", "null"], "default": 1.0}}},
                },
                "required": ["city"],
            },
        },
    },
    {"type": "function", "function": {"name": "noop"}},
    {"type": "function", "function": {"strict": True, "parameters": {}, "name": "strict"}},
]
VARIABLES = [None, {"enable_thinking": True}, {"enable_thinking": False, "unused": 1}]


@pytest.fixture(scope="module")
def engine(tiny_chat: dict[str, Any]) -> Engine:
    made = Engine(**tiny_chat)
    made.warmup()
    return made


class _Socket(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("engine")
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(self._path)


def tokenize(engine: Engine, request: Request) -> dict[str, Any]:
    """What the server's own /tokenize answers."""
    connection = _Socket(engine.status().socket or "")
    connection.request("POST", request.path, request.body, {"Content-Type": "application/json"})
    answer: dict[str, Any] = json.loads(connection.getresponse().read())
    connection.close()
    return answer


def local_count(engine: Engine, request: Request) -> int:
    counted = count_locally(engine.settings, request)
    assert counted is not None, "left to the server"
    return counted


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_a_conversation_counts_what_the_server_counts(engine: Engine, name: str) -> None:
    for tools in (None, TOOLS):
        for variables in VARIABLES:
            request = tokenize_request(CONVERSATIONS[name], tools, variables)
            assert local_count(engine, request) == tokenize(engine, request)["count"], (tools, variables)


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_a_conversation_counts_what_a_real_request_costs(engine: Engine, name: str) -> None:
    for tools, variables in ((None, None), (TOOLS, {"enable_thinking": True})):
        extra = {"chat_template_kwargs": variables} if variables else None
        result = engine.chat(CONVERSATIONS[name], tools=tools, max_tokens=1, extra_body=extra)
        counted = engine.count_tokens(CONVERSATIONS[name], tools=tools, chat_template_kwargs=variables)
        assert counted == result.usage.prompt_tokens, (tools, variables)


def random_texts(count: int) -> list[str]:
    made = random.Random(4)
    letters = "abcXYZ  \n\t0123456789'!?.,-_(){}éüßñ日本語東京русский عربى😀👍🏽\u0301\u200d\u00a0\r\x00"
    pieces = [
        "<|im_end|>",
        "<|endoftext|>",
        "<think>",
        " hello",
        "The ",
        "can't",
        "we'LL",
        "12345",
        "\n\n",
        "ﬁ",
        "e\u0301",
    ]
    return [
        "".join(made.choice(pieces if made.random() < 0.4 else letters) for _ in range(made.randint(0, 50)))
        for _ in range(count)
    ]  # fmt: skip


def test_random_texts_count_what_the_server_counts(engine: Engine) -> None:
    for text in ("", *random_texts(150)):
        request = text_tokens_request(text)
        assert local_count(engine, request) == tokenize(engine, request)["count"], repr(text)
        request = tokenize_request([user(text), assistant(parts(text, text)), tool(text)], None, None)
        assert local_count(engine, request) == tokenize(engine, request)["count"], repr(text)


def test_a_texts_tokens_are_the_servers(engine: Engine) -> None:
    for text in ("", *random_texts(50)):
        request = text_tokens_request(text, add_special_tokens=False)
        assert engine.tokenize(text) == tokenize(engine, request)["tokens"], text


def test_a_prompt_counts_what_a_real_request_costs(engine: Engine) -> None:
    for text in filter(None, random_texts(20)):
        assert engine.count_tokens(text) == engine.generate(text, max_tokens=1).usage.prompt_tokens, repr(text)


async def test_counting_starts_nothing_and_is_the_same_when_the_engine_runs(
    own_engine: Callable[..., Engine], tmp_path: Path
) -> None:
    """With a template of its own, which goes through the parts of the content, and defaults for its variables."""
    template = tmp_path / "own.jinja"
    template.write_text(
        "{% for message in messages %}"
        "{% if message.role == 'system' %}{{ raise_exception('No system role, please') }}{% endif %}"
        "<|im_start|>{{ message.role }} {{ message.name }}\n"
        "{% for part in message.content %}({{ part.text or part }}){% endfor %}"
        "{{ message.tool_calls | tojson if message.tool_calls }}{{ message.reasoning_content }}<|im_end|>\n"
        "{% endfor %}{{ tools | tojson }} {{ level }} {{ eos_token }} {{ cohere_format }} {{ bos_token }}"
    )
    engine = own_engine(
        engine_args={
            "kv_cache_memory_bytes": 256 << 20,
            "chat_template": str(template),
            "default_chat_template_kwargs": {"level": "high"},
        }
    )
    conversations = {
        name: messages
        for name, messages in CONVERSATIONS.items()
        if {"system", "developer"}.isdisjoint(message["role"] for message in messages)
    }
    assert len(conversations) > 15
    bodies = [
        tokenize_request(messages, tools, variables)
        for messages in conversations.values()
        for tools in (None, TOOLS)
        for variables in (None, {"level": "low", "eos_token": None})
    ]
    before = [local_count(engine, body) for body in bodies]
    asked = await engine.acount_tokens(conversations["tool calls"], tools=TOOLS)
    refused = [system("Be brief."), user("Hi")]
    with pytest.raises(InvalidInputError, match=r"No system role, please$"):
        await engine.acount_tokens(refused)
    assert (await engine.astatus()).state is EngineState.STOPPED, "nothing was started"

    await engine.awarmup()
    assert [tokenize(engine, body)["count"] for body in bodies] == before
    assert await engine.acount_tokens(conversations["tool calls"], tools=TOOLS) == asked
    error = tokenize(engine, tokenize_request(refused, None, None))["error"]
    assert error["message"].startswith("No system role, please")
    with pytest.raises(RequestRejectedError, match="No system role, please"):
        await engine.achat(refused)
    with pytest.raises(InvalidInputError, match="No system role, please"):
        await engine.acount_tokens(refused)


# ---- the tokenizers that vLLM loads, without an engine

IN_THE_ENGINES_PYTHON = """
import json, sys
from transformers.models.auto import tokenization_auto
from vllm.tokenizers import get_tokenizer
asked = json.load(sys.stdin)
told = []
for folder in asked["folders"]:
    tokenizer = get_tokenizer(folder)
    counts = [len(tokenizer(text, add_special_tokens=True)["input_ids"]) for text in asked["texts"]]
    chat = tokenizer.apply_chat_template(asked["messages"], tokenize=False, add_generation_prompt=True)
    told.append([counts, len(tokenizer(chat, add_special_tokens=False)["input_ids"])])
classes = dict(tokenization_auto.TOKENIZER_MAPPING_NAMES)
overruled = sorted(tokenization_auto.MODELS_WITH_INCORRECT_HUB_TOKENIZER_CLASS)
print(json.dumps({"told": told, "tables": [classes, overruled]}))
"""
KINDS = [
    ("llama3", "llama", "PreTrainedTokenizerFast"),
    ("padded", "llama", "PreTrainedTokenizerFast"),
    ("llama3", "deepseek_v3", "LlamaTokenizerFast"),
    ("llama2", "phi3", "LlamaTokenizer"),
    ("llama2", "mistral", "LlamaTokenizerFast"),
    ("gpt2", "gpt2", "GPT2TokenizerFast"),
    ("qwen2", "qwen2", "Qwen2Tokenizer"),
    ("qwen2", "qwen3", "Qwen2TokenizerFast"),
    ("qwen3_5", "qwen3_5", "Qwen2Tokenizer"),
    ("gemma", "gemma2", "GemmaTokenizerFast"),
    # Left to the server: the first is the surprise, the rest are what would be counted wrong.
    ("llama3", "qwen2", "PreTrainedTokenizerFast"),
    ("llama3", "llama", "GPT2Tokenizer"),
    ("llama2", "llama", "LlamaTokenizer"),
]
NAMES = "{{ bos_token }}{{ eos_token }}{{ unk_token }}{{ pad_token }}{{ mask_token }}{{ messages[0].content }}"


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What vLLM's Python says of folders made by hand."""
    root = tmp_path_factory.mktemp("tokenizers")
    folders = [
        str(make_folder(root / f"{index}-{legacy}", *kind, config={"chat_template": NAMES, **more}))
        for index, kind in enumerate(KINDS)
        for legacy, more in enumerate(({}, {"added_tokens_decoder": declared(kind[0])}))
    ]
    texts = ["", "The engine's", *random_texts(40)]
    asked = {"folders": folders, "texts": texts, "messages": [user("Hello <|im_end|>")]}
    done = subprocess.run(
        [find_interpreter(None).path, "-c", IN_THE_ENGINES_PYTHON],
        input=json.dumps(asked), capture_output=True, text=True, check=False, timeout=250,
        env={**os.environ, "PYTHONPATH": ""},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return {**asked, **json.loads(done.stdout.splitlines()[-1])}


@pytest.mark.apart
def test_what_is_counted_here_is_what_the_tokenizer_gives_that_vllm_loads(loaded: dict[str, Any]) -> None:
    left_to_the_server = []
    for folder, (counts, of_chat) in zip(loaded["folders"], loaded["told"], strict=True):
        settings = EngineSettings(model=folder)
        here = [count_locally(settings, text_tokens_request(text)) for text in loaded["texts"]]
        chat = count_locally(settings, tokenize_request(loaded["messages"], None, None))
        if chat is None:
            left_to_the_server.append(folder)
        else:
            assert (here, chat) == (counts, of_chat), folder
    assert len(left_to_the_server) == 2 * 3


@pytest.mark.apart
def test_the_tables_of_tokenizer_classes_are_those_of_transformers(loaded: dict[str, Any]) -> None:
    classes, overruled = loaded["tables"]
    as_it_is = (
        "TokenizersBackend",
        "MistralCommonBackend",
    )  # the latter only where vLLM asks for it, which it does not
    assert {classes.get(model_type) for model_type in PLAIN_MODEL_TYPES} <= set(as_it_is)
    forced = {name: classes[name] for name in overruled if classes[name] not in as_it_is}
    assert forced == FORCED_CLASSES
