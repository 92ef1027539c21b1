"""`vllm-local chat` and `run` on real vLLM, at a real pseudo-terminal."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from langchain_core.messages import HumanMessage
from llama_index.core.llms import ChatMessage

from langchain_vllm_local import ChatVLLM
from llama_index_vllm_local import VLLM
from shared_engine import Engine
from shared_engine.cli.chat.conversation import Conversation, load
from tests.support.chats import loaded_as_the_page_says
from tests.support.command import COMMAND, given_to, options_of, told, vllm_local
from tests.support.in_flight import LONG, is_cut_short, running
from tests.support.paths import REPOSITORY
from tests.support.screens import check_screen
from tests.support.terminal import CTRL_C, CTRL_D, ENTER, Terminal, on_a_terminal
from tests.support.vision_model import png
from tests.support.waiting import wait_until

QUIET = {"VLLM_LOCAL_CHAT_HISTORY": "off"}
GREETING = "Hello! How can I help you today?"


@pytest.fixture
def chat(quiet_engine: Engine) -> Iterator[Terminal]:
    with on_a_terminal([*COMMAND, "chat", *options_of(given_to(quiet_engine))], QUIET) as terminal:
        terminal.wait_for_prompt()
        yield terminal


def test_a_session_with_every_command(chat: Terminal, quiet_engine: Engine, tmp_path: Path) -> None:
    assert chat.say("Hello") == GREETING
    assert chat.say("/think on") == "thinking: on, shown"
    italy = "What is the capital of Italy?"
    assert chat.say(italy) == "Thinking ...\nI answer.\n\nThe capital of Italy is Rome."
    chat.wait_for(" of 2,048 tokens (")
    check_screen("chat.md", "talk", chat.picture)

    assert chat.say("/think hide") == "thinking: on, hidden"
    assert chat.say("/retry") == "Thinking ...\nThe capital of Italy is Rome."
    assert chat.say("/undo") == f"taken back: {italy}"
    assert chat.say("/think off") == "thinking: off, hidden"
    assert chat.say("/set temperature 0") == "temperature = 0"
    assert "did you mean 'temperature'?" in chat.say("/set temprature 1")
    assert chat.say("/system Be brief.") == "the system prompt is set"
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": GREETING},
    ]
    assert chat.say("/tokens").startswith(f"{quiet_engine.count_tokens(messages)} tokens of 2,048")
    assert chat.say("/stats").startswith("last answer: load ")
    shown = chat.say("/show")
    assert f"model: {quiet_engine.settings.model}"[:60] in shown.replace("\n", "")
    assert "system: Be brief." in shown
    assert "temperature = 0" in shown

    (tmp_path / "dot.png").write_bytes(png(1, 2, 3))
    assert chat.say(f"/image {tmp_path}/dot.png").endswith("image attached: it goes with your next message")
    refused = " ".join(chat.say("What is it?").split())
    assert "attachment 1 of message 4 is an image, and tiny_chat takes text only" in refused
    assert "Your message is kept: /retry sends it again." in refused

    saved = tmp_path / "talk.json"
    chat.say(f"/save {saved}")
    assert [message["role"] for message in json.loads(saved.read_text())["messages"]] == [
        "system",
        "user",
        "assistant",
        "user",
    ]
    assert "a new conversation; the system prompt stays" in chat.say("/clear")
    chat.say(f"/load {saved}")
    assert "messages: 2" in chat.say("/show")
    assert chat.say("What is the capital of France?") == "The capital of France is Paris."
    assert "2,048 tokens of context" in chat.say(f"/model {quiet_engine.settings.model}").replace("\n", " ")
    assert chat.say("/stats on") == "stats = on"
    assert "tokens/s" in chat.say("Hello")
    assert chat.say("/xyzzy") == "there is no /xyzzy (/? lists all)"
    chat.type(f"/help{ENTER}")
    chat.wait_for("goes with it.")
    chat.wait_for_prompt()
    chat.type(f"/exit{ENTER}")
    assert chat.ended() == 0


def test_ctrl_c_ends_the_request_in_vllm_and_not_the_chat(chat: Terminal, quiet_engine: Engine) -> None:
    chat.say(f"/set max_tokens {LONG['max_tokens']}")
    chat.say("/set ignore_eos true")

    def stop_an_answer() -> None:
        stopped = chat.text.count("stopped; what came is kept")
        chat.type(f"Hello{ENTER}")
        wait_until(lambda: chat.pump() and running(quiet_engine) > 0, 20, "the request to run")
        chat.wait_for("Hello! How", times=stopped + 1)
        chat.type(CTRL_C + CTRL_C)
        chat.wait_for("stopped; what came is kept", times=stopped + 1)
        chat.wait_for_prompt()

    assert any(is_cut_short(quiet_engine, stop_an_answer) for _ in range(5))
    chat.say("/set ignore_eos none")
    assert chat.say("What is the capital of France?") == "The capital of France is Paris."
    chat.type(CTRL_D)
    assert chat.ended() == 0


def test_a_full_context_warns_before_and_loses_nothing_then(chat: Terminal, quiet_engine: Engine) -> None:
    chat.say("/set max_tokens 8")
    long = "river " * (850 * 1000 // quiet_engine.count_tokens("river " * 1000))
    chat.say(long, pasted=True)
    assert "nearly full" not in chat.text
    chat.say(long, pasted=True)
    assert "the context is nearly full, 1," in " ".join(chat.text.split())
    chat.say(long, pasted=True)
    shown = " ".join(chat.text.split())
    assert "This does not fit: 2," in shown
    assert "Nothing is lost. /undo takes the last question and its answer back, /clear all of them" in shown
    chat.wait_for("| unanswered: /retry")
    assert chat.say("/undo").startswith("taken back: river river")
    assert "This does not fit" not in chat.say("/retry")
    assert "messages: 4" in chat.say("/show")


def test_run_on_real_vllm(quiet_engine: Engine, tmp_path: Path) -> None:
    def run(*words: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        command = [*COMMAND, "run", *options_of(given_to(quiet_engine)), *words]
        return subprocess.run(command, input=stdin, capture_output=True, cwd=REPOSITORY, check=False, timeout=90)

    asked = run("What is the capital of France?", "--think", "--stats")
    assert (asked.returncode, asked.stdout) == (0, b"The capital of France is Paris.\n"), asked.stderr
    assert asked.stderr.startswith(b"I answer.\nvllm-local: load ")
    chosen = run("--choice", "yes,no", "--output", "json", stdin=b"Is it blue?")
    assert json.loads(chosen.stdout)["choices"][0]["text"] in ("yes", "no")
    schema = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
    (tmp_path / "city.json").write_text(json.dumps(schema))
    held = run("Name a city", "--json", str(tmp_path / "city.json"), "--max-tokens", "60")
    assert list(json.loads(held.stdout)) == ["city"]
    raw = run("--raw", "--max-tokens", "4", stdin=b"The capital of France is")
    assert raw.stdout == (quiet_engine.generate("The capital of France is", max_tokens=4).text + "\n").encode()


@pytest.mark.long
def test_a_model_that_sees_gets_the_picture(vision: dict[str, Any], tmp_path: Path) -> None:
    engine = Engine(**vision)
    engine.warmup()
    (tmp_path / "red.png").write_bytes(png(255, 0, 0))
    words = ["-a", str(tmp_path / "red.png"), "What is it?", "--max-tokens", "4", "--output", "json"]
    seen = told(vllm_local("run", *options_of(given_to(engine)), *words, text=""))
    unseen = told(vllm_local("run", *options_of(given_to(engine)), *words[2:], text=""))
    assert seen["usage"]["prompt_tokens"] > unseen["usage"]["prompt_tokens"]


@pytest.mark.long
def test_a_saved_chat_with_pictures_goes_on_in_both_frameworks(
    vision: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, colour in (("red", (255, 0, 0)), ("blue", (0, 0, 255))):
        (tmp_path / f"{name}.png").write_bytes(png(*colour))
    given: dict[str, Any] = {"temperature": 0, "max_tokens": 4}
    engine = Engine(**vision)
    engine.warmup()
    words = options_of({**vision, **given})
    with on_a_terminal([*COMMAND, "chat", *words, "-a", str(tmp_path / "red.png")], QUIET) as chat:
        chat.say("What is it?")
        chat.say(f"/image {tmp_path}/blue.png")
        chat.say("Is it the same?")
        assert "saved 4 messages as" in chat.say(f"/save {tmp_path}/talk.json")
    talk = Conversation()
    talk.replace_by(load(tmp_path / "talk.json")["messages"])
    right = engine.chat(talk.to_send({"role": "user", "content": "And now?"}), **given)
    assert right.usage.prompt_tokens > 2 * 4, "of two pictures"

    messages = loaded_as_the_page_says("langchain_core", tmp_path, monkeypatch)
    answer = ChatVLLM(**vision, **given).invoke([*messages, HumanMessage("And now?")])
    assert answer.usage_metadata is not None
    assert (answer.text, answer.usage_metadata["input_tokens"]) == (right.text, right.usage.prompt_tokens)
    messages = loaded_as_the_page_says("llama_index", tmp_path, monkeypatch)
    response = VLLM(**vision, **given).chat([*messages, ChatMessage("And now?")])
    assert (response.message.content, response.additional_kwargs["prompt_tokens"]) == (
        right.text,
        right.usage.prompt_tokens,
    )
