"""Counting without an engine: what is counted, when it is left to the server, and what the server is given then."""

from __future__ import annotations

import json
import logging
import os
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from shared_engine import Engine, EngineSettings, InvalidInputError
from shared_engine.token_count.tokens import count_locally, tokenize_request
from tests.support.paths import REPOSITORY, TINY_CHAT
from tests.support.remote_server import running_server
from tests.support.small_tokenizers import CHAT_TEMPLATE, HELLO, SHOUT, TEXT, TOOL, counted, make_folder, tokens_of


@pytest.fixture
def nowhere(tmp_path: Path) -> str:
    """An interpreter that does not exist: an engine that must start fails, and says so."""
    return str(tmp_path / "no" / "python")


def chat(*turns: tuple[str, str], bos: str = "") -> str:
    """What CHAT_TEMPLATE makes of a conversation."""
    return bos + "".join(f"<|im_start|>{role}\n{text}<|im_end|>\n" for role, text in turns) + "<|im_start|>assistant\n"


# ---- what is counted


def test_a_conversation_is_counted_with_the_template_around_it(nowhere: str) -> None:
    engine = Engine(model=str(TINY_CHAT), python=nowhere)
    prompt = "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n<think></think>"
    tokenizer = Tokenizer.from_file(str(TINY_CHAT / "tokenizer.json"))
    assert engine.count_tokens(HELLO) == len(tokenizer.encode(prompt))
    assert engine.count_tokens("Hello there") == len(tokenizer.encode("Hello there"))
    assert engine.count_tokens(HELLO, tools=[TOOL]) > engine.count_tokens(HELLO) + 5


async def test_the_same_is_counted_on_an_event_loop(nowhere: str) -> None:
    engine = Engine(model=str(TINY_CHAT), python=nowhere)
    assert await engine.acount_tokens(HELLO, tools=[TOOL]) == engine.count_tokens(HELLO, tools=[TOOL])
    assert await engine.acount_tokens("Hello") == engine.count_tokens("Hello")


def test_counting_starts_nothing(runtime_root: Path) -> None:
    before = set(runtime_root.iterdir())
    engine = Engine(model=str(TINY_CHAT), seed=987654)
    assert engine.count_tokens(HELLO) > 0
    assert set(runtime_root.iterdir()) == before


def test_a_text_gets_the_special_tokens_and_a_conversation_only_the_templates(tmp_path: Path) -> None:
    folder = make_folder(tmp_path, "gemma", "gemma2", "GemmaTokenizer")
    assert counted(folder, "Hello") == tokens_of("gemma", "Hello") + 1, "<bos> is added"
    assert counted(folder, HELLO) == tokens_of("gemma", chat(("user", "Hello"), bos="<bos>"))


def test_truncation_and_padding_in_the_file_do_not_count(tmp_path: Path) -> None:
    folder = make_folder(tmp_path, "padded")
    assert counted(folder, "a") == 1
    assert counted(folder, TEXT * 20) == tokens_of("padded", TEXT * 20)


def test_an_empty_text_is_no_token_of_its_own(tmp_path: Path) -> None:
    assert counted(make_folder(tmp_path), "") == 0


# ---- the tokens themselves


def test_a_texts_own_tokens_have_no_special_ones_around_them(tmp_path: Path) -> None:
    folder = make_folder(tmp_path, "gemma", "gemma2", "GemmaTokenizer")
    engine = Engine(model=str(folder), python=str(tmp_path / "no" / "python"))
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    for text in (TEXT, " Hello", "<bos>", ""):
        assert engine.tokenize(text) == tokenizer.encode(text, add_special_tokens=False).ids
    assert len(engine.tokenize(TEXT)) + 1 == counted(folder, TEXT)


def test_a_tokenizer_goes_to_other_processes(nowhere: str) -> None:
    tokenize = Engine(model=str(TINY_CHAT), python=nowhere).tokenize
    assert pickle.loads(pickle.dumps(tokenize))("Hello there") == tokenize("Hello there")


def test_a_remote_server_tokenizes_itself() -> None:
    with running_server() as server:
        assert Engine(base_url=server.url).tokenize("one two three") == [0, 1, 2]


# ---- what is left to the server


@pytest.mark.parametrize(
    "settings",
    [
        {"trust_remote_code": True},
        {"tokenizer": "some-org/some-tokenizer"},
        {"tokenizer": "tests"},
        {"engine_args": {"tokenizer_mode": "slow"}},
        {"engine_args": {"hf_overrides": {"model_type": "qwen2"}}},
        {"engine_args": {"enable_prompt_embeds": True}},
        {"engine_args": {"chat_template": "template_chatml.jinja"}},
        {"base_url": "http://127.0.0.1:1"},
    ],
)
def test_settings_that_change_the_tokenizer_are_left_to_the_server(tmp_path: Path, settings: dict[str, Any]) -> None:
    assert counted(make_folder(tmp_path), **settings) is None


def test_a_model_that_was_not_downloaded_yet_is_left_to_the_server() -> None:
    assert count_locally(EngineSettings(model="some-org/some-model"), tokenize_request("Hello", None, None)) is None


def test_another_release_of_vllm_is_left_to_count_itself(tmp_path: Path) -> None:
    environment = tmp_path / "environment"
    (environment / "lib" / "python3.11" / "site-packages" / "vllm-0.99.0.dist-info").mkdir(parents=True)
    python = environment / "bin" / "python"
    python.parent.mkdir()
    python.symlink_to(sys.executable)
    folder = make_folder(tmp_path / "model")
    assert counted(folder, python=str(python)) is None
    assert counted(folder) is not None


IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}
CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}


@pytest.mark.parametrize(
    ("messages", "tools", "kwargs"),
    [
        ([{"role": "user", "content": [IMAGE]}], None, None),
        ([{"role": "user", "content": ["text"]}], None, None),
        ([{"role": "user", "content": [{"type": "text", "text": "a", "cache_control": {}}]}], None, None),
        ([{"role": "user", "content": "a", "name": 5}], None, None),
        ([{"role": "user", "content": "a", "tool_calls": []}], None, None),
        ([{"role": "user", "content": "a", "task": "b"}], None, None),
        ([{"role": "assistant", "tool_calls": [{**CALL, "type": "custom"}]}], None, None),
        ([{"role": "assistant", "tool_calls": [{**CALL, "function": {"name": "f", "arguments": {}}}]}], None, None),
        ([{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}], None, None),
        ([{"role": "system", "content": "x-anthropic-billing-header: cch=1\nHi"}], None, None),
        (HELLO, [{"type": "web_search"}], None),
        (HELLO, [{"type": "function", "function": {"name": "f", "defer_loading": True}}], None),
        (HELLO, None, {"continue_final_message": True}),
    ],
)
def test_what_is_not_plainly_text_is_left_to_the_server(messages: Any, tools: Any, kwargs: Any) -> None:
    assert counted(TINY_CHAT, messages, tools=tools, kwargs=kwargs) is None


def test_the_log_says_once_why_the_server_counts(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = make_folder(tmp_path, tokenizer_class="CohereTokenizer")
    with caplog.at_level(logging.INFO, "shared_engine"):
        assert counted(folder) is None
        assert counted(folder, "another text") is None
    assert [record.getMessage() for record in caplog.records] == [
        f"tokens of {folder} are counted by the server: what CohereTokenizer makes of tokenizer.json is not known here"
    ]


@pytest.mark.parametrize(("package", "counts_text"), [("tokenizers", False), ("jinja2", True)])
def test_without_its_packages_the_server_counts(package: str, counts_text: bool) -> None:
    code = f"""
import sys
sys.modules[{package!r}] = None
from shared_engine import EngineSettings
from shared_engine.token_count.tokens import count_locally, tokenize_request
settings = EngineSettings(model={str(TINY_CHAT)!r})
conversation = count_locally(settings, tokenize_request({HELLO!r}, None, None))
print(conversation, count_locally(settings, tokenize_request("Hello", None, None)) is not None)
"""
    assert run(code).split() == ["None", str(counts_text)]


def run(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=REPOSITORY, timeout=60
    )
    assert not done.stderr
    return done.stdout


# ---- the template


def test_a_template_of_the_settings_wins(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "model")
    file = tmp_path / "own.jinja"
    file.write_text(SHOUT)
    for given in (str(file), SHOUT):
        assert counted(folder, HELLO, engine_args={"chat_template": given}) == tokens_of("llama3", "HELLO!")
    file.write_text("{{ messages[0].content }}")
    assert counted(folder, HELLO, engine_args={"chat_template": str(file)}) == tokens_of("llama3", "Hello")


def test_template_variables_come_from_the_request_then_from_the_settings(tmp_path: Path) -> None:
    template = "{{ enable_thinking }} {{ level | default('none') }} {{ eos_token }} {{ cohere_format }}"
    folder = make_folder(tmp_path, config={"chat_template": template})
    args = {"default_chat_template_kwargs": {"enable_thinking": True, "level": "high"}}
    cases: list[tuple[dict[str, Any], dict[str, Any] | None, str]] = [
        ({}, None, " none <|im_end|> cmd4"),
        ({}, {"enable_thinking": False, "unused": 1, "eos_token": "E"}, "False none E cmd4"),
        (args, {"enable_thinking": False}, "False high <|im_end|> cmd4"),
        (args, {"enable_thinking": None, "level": "auto"}, "True high <|im_end|> cmd4"),
    ]
    for engine_args, kwargs, prompt in cases:
        assert counted(folder, HELLO, kwargs=kwargs, engine_args=engine_args) == tokens_of("llama3", prompt), prompt


def test_what_the_template_refuses_is_told_in_its_words(tmp_path: Path, nowhere: str) -> None:
    template = "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    folder = make_folder(tmp_path, config={"chat_template": template + CHAT_TEMPLATE})
    engine = Engine(model=str(folder), python=nowhere)
    with pytest.raises(InvalidInputError, match=r"chat template.*: System role not supported$"):
        engine.count_tokens([{"role": "system", "content": "Be brief."}, *HELLO])
    assert engine.count_tokens(HELLO) == tokens_of("llama3", chat(("user", "Hello")))


def test_a_broken_template_is_told_so(tmp_path: Path) -> None:
    folder = make_folder(tmp_path, config={"chat_template": "{% for message in messages %}"})
    with pytest.raises(InvalidInputError, match="chat template"):
        counted(folder, HELLO)


# ---- what the server is given, if it counts


def test_the_older_name_of_reasoning_is_counted_as_chat_takes_it() -> None:
    def part(**fields: str) -> list[dict[str, Any]]:
        messages = [{"role": "assistant", "content": "a", **fields}]
        told: list[dict[str, Any]] = json.loads(tokenize_request(messages, None, None).body)["messages"]
        assert messages == [{"role": "assistant", "content": "a", **fields}], "the caller's stays as it is"
        return told

    assert part(reasoning_content="why") == part(reasoning="why")
    assert part(reasoning_content="older", reasoning="why") == part(reasoning="why")


def test_what_is_to_be_counted_is_what_the_server_would_be_sent() -> None:
    request = tokenize_request(HELLO, ({"type": "function", "function": {"name": "f"}},), {"level": 1})
    assert json.loads(request.body) == {
        "messages": HELLO,
        "tools": [{"type": "function", "function": {"name": "f"}}],
        "chat_template_kwargs": {"level": 1},
    }
    assert json.loads(tokenize_request(HELLO, [], {}).body) == {"messages": HELLO}


@pytest.mark.parametrize(
    ("what", "tools", "match"),
    [
        ([], None, "empty conversation"),
        ([{"role": "robot", "content": "a"}], None, "unknown role"),
        ("Hello", [TOOL], "go with messages"),
        (HELLO, [{"type": "function", "function": {"name": object()}}], "JSON"),
        ("a lone \ud800", None, "JSON"),
        ([{"role": "user", "content": "a lone \ud800"}], None, "JSON"),
    ],
)
def test_bad_input_is_refused_before_anything_starts(nowhere: str, what: Any, tools: Any, match: str) -> None:
    engine = Engine(model=str(TINY_CHAT), python=nowhere)
    with pytest.raises(InvalidInputError, match=match):
        engine.count_tokens(what, tools=tools)


# ---- loaded once


def test_a_file_that_changed_is_read_again(tmp_path: Path) -> None:
    folder = make_folder(tmp_path)
    before = counted(folder, HELLO)
    make_folder(tmp_path, config={"chat_template": SHOUT})
    assert counted(folder, HELLO) == tokens_of("llama3", "HELLO!") != before
    (folder / "chat_template.jinja").write_text("{{ messages[0].content }}")
    assert counted(folder, HELLO) == tokens_of("llama3", "Hello")
    (folder / "tokenizer.json").unlink()
    assert counted(folder, HELLO) is None


def test_threads_count_the_same(tmp_path: Path) -> None:
    folder = make_folder(tmp_path)
    texts = [TEXT * count for count in range(1, 33)]
    expected = [tokens_of("llama3", text) for text in texts]
    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(partial(counted, folder), texts)) == expected


def test_a_child_that_was_forked_while_a_thread_loaded_counts_too() -> None:
    code = f"""
import os
from shared_engine import Engine
from shared_engine.token_count import tokens
engine = Engine(model={str(TINY_CHAT)!r})
here = engine.count_tokens("Hello there")
with tokens._lock:  # as if a thread held it
    child = os.fork()
    if child == 0:
        os._exit(engine.count_tokens("Hello there"))
print(here == os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    assert run(code).strip() == "True"


def test_the_model_folder_may_be_a_link(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "model")
    link = tmp_path / "link"
    os.symlink(folder, link)
    assert counted(link, HELLO) == counted(folder, HELLO)
    assert json.loads((link / "config.json").read_text())["model_type"] == "llama"
