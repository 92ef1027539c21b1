"""A chat as it looks and feels at a terminal, with a server that says what the test wants said."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from aiohttp import web

from tests.support.remote_server import RemoteServer, running_server
from tests.support.scripted import answers
from tests.support.terminal import CTRL_C, CTRL_D, CTRL_R, ENTER, TAB, UP, Terminal, on_a_terminal
from tests.support.waiting import wait_until

pytestmark = pytest.mark.slow
OpenChat = Callable[..., Terminal]


@pytest.fixture
def server() -> Iterator[RemoteServer]:
    with running_server() as server:
        yield server


@pytest.fixture
def open_chat(server: RemoteServer, tmp_path: Path) -> Iterator[OpenChat]:
    """Begins a chat with the server, and waits for its first prompt; chats of one test have one history."""
    with ExitStack() as stack:

        def begin(*options: str, **environment: str) -> Terminal:
            command = [sys.executable, "-m", "shared_engine.cli", "chat", "-", "--base-url", server.url, *options]
            variables = {"VLLM_LOCAL_CHAT_HISTORY": str(tmp_path / "history"), **environment}
            terminal = stack.enter_context(on_a_terminal(command, variables))
            terminal.wait_for_prompt()
            return terminal

        yield begin


MARKDOWN = "Some **bold** words:\n\n```python\nreturn 1\n```\n"


def test_thinking_is_dimmed_and_markdown_highlighted(server: RemoteServer, open_chat: OpenChat) -> None:
    answers(server, {"reasoning": "\nI show it.\n", "content": f"\n\n{MARKDOWN}"})
    chat = open_chat()
    assert chat.say("Show me") == "Thinking ...\nI show it.\n\nSome bold words:\n\n```python\nreturn 1\n```"
    assert b"\x1b[2mThinking ...\x1b[0m" in chat.output
    assert b"\x1b[2mshow\x1b[0m" in chat.output
    assert chat.styles_of("bold") == {"bold"}
    assert chat.styles_of("words") == set()
    assert chat.styles_of("return") != set()
    chat.wait_for("served | 12 of 2,048 tokens (1%)")


@pytest.mark.parametrize("environment", [{"TERM": "dumb"}, {"NO_COLOR": "1"}, {"LC_ALL": "C", "LANG": "C"}])
def test_a_terminal_that_can_less_shows_the_same_words(
    server: RemoteServer, open_chat: OpenChat, environment: dict[str, str]
) -> None:
    answers(server, {"content": MARKDOWN})
    chat = open_chat(**environment)
    chat.say("Show me")
    shown = MARKDOWN.replace("**", "") if environment.get("TERM") != "dumb" else MARKDOWN
    assert shown in chat.text
    if "LC_ALL" not in environment:
        assert chat.styles_of("return") == set()
    chat.type(CTRL_D)
    assert chat.ended() == 0


def test_ctrl_c_stops_the_answer_and_never_the_program(server: RemoteServer, open_chat: OpenChat) -> None:
    server.streams("Once upon ", "a time, ", then="hang")
    chat = open_chat()
    chat.type(f"Tell{ENTER}")
    chat.wait_for("Once upon a time")
    chat.type(CTRL_C)
    chat.wait_for("stopped; what came is kept")
    assert server.aborted.wait(5)
    chat.wait_for_prompt()
    chat.type(CTRL_C)
    chat.wait_for("Ctrl-D or /exit leaves")
    chat.wait_for_prompt()
    chat.type("dropped")
    chat.wait_for(">>> dropped")
    chat.type(CTRL_C)
    chat.wait_for_prompt()
    answers(server, "Well.")
    assert chat.say("Go on") == "Well."
    assert server.requests[-1][1]["messages"][1] == {"role": "assistant", "content": "Once upon a time, "}
    chat.type(CTRL_D)
    assert chat.ended() == 0


@pytest.mark.parametrize("is_answering", [False, True])
def test_a_chat_that_is_ended_loses_nothing_and_leaves_the_terminal_as_it_was(
    server: RemoteServer, open_chat: OpenChat, tmp_path: Path, is_answering: bool
) -> None:
    answers(server, "Yes.")
    chat = open_chat()
    chat.say("First")
    if is_answering:
        server.streams("Once upon ", "a time, ", then="hang")
        chat.type(f"Tell{ENTER}")
        chat.wait_for("Once upon a time")
    assert not chat.echoes
    os.kill(chat.child.pid, signal.SIGTERM)
    assert chat.ended() == 128 + signal.SIGTERM
    assert chat.echoes
    rescued = tmp_path / "interrupted_chat.json"
    contents = [message["content"] for message in json.loads(rescued.read_text())["messages"]]
    assert contents == (["First", "Yes.", "Tell"] if is_answering else ["First", "Yes."])
    assert "the conversation is in" in chat.text


def test_what_is_typed_during_an_answer_is_for_the_next_prompt(server: RemoteServer, open_chat: OpenChat) -> None:
    goes_on = threading.Event()

    async def in_two_parts(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for text, reason in (("Once upon ", None), ("a time.", "stop")):
            choice = {"index": 0, "delta": {"content": text}, "finish_reason": reason}
            await response.write(b"data: " + json.dumps({"choices": [choice]}).encode() + b"\n\n")
            while reason is None and not goes_on.is_set():
                await asyncio.sleep(0.02)
        await response.write(b"data: [DONE]\n\n")
        return response

    server.handler = in_two_parts
    chat = open_chat()
    chat.type(f"Tell{ENTER}")
    chat.wait_for("Once")
    chat.type("and then?")
    chat.pump(0.2)
    goes_on.set()
    chat.wait_for(">>> and then?")
    assert "Once upon a time." in chat.lines


def test_ctrl_c_before_the_first_word_keeps_the_question(server: RemoteServer, open_chat: OpenChat) -> None:
    server.streams(then="hang")
    chat = open_chat()
    chat.type(f"Tell{ENTER}")
    wait_until(lambda: server.requests, 10, "the request")
    chat.type(CTRL_C)
    chat.wait_for("stopped before an answer came; /retry asks again")
    answers(server, "Here.")
    assert chat.say("/retry") == "Here."
    assert server.requests[-1][1]["messages"] == [{"role": "user", "content": "Tell"}]


def test_an_error_is_told_and_the_question_kept(server: RemoteServer, open_chat: OpenChat) -> None:
    server.streams("Once ", then="cut")
    chat = open_chat("--max-retries", "0")
    shown = chat.say("Tell")
    assert shown.startswith("Once\n")
    assert "before the answer was whole" in " ".join(shown.split())
    assert "Your message is kept: /retry sends it again." in shown
    chat.wait_for("| unanswered: /retry")
    answers(server, "Here.")
    assert chat.say("/retry") == "Here."


def test_lines_pastes_and_a_new_size(server: RemoteServer, open_chat: OpenChat) -> None:
    answers(server, "word " * 30)
    chat = open_chat()
    chat.paste("one\ntwo")
    chat.wait_for("... two")
    assert server.requests == []
    chat.type(ENTER)
    chat.wait_for("word word")
    chat.wait_for_prompt()
    assert server.requests[-1][1]["messages"] == [{"role": "user", "content": "one\ntwo"}]
    assert "word " * 15 + "word" in chat.lines
    chat.type(f'"""a{ENTER}{ENTER}b"""{ENTER}')
    wait_until(lambda: len(server.requests) == 2, 10, "the request")
    assert server.requests[-1][1]["messages"][-1]["content"] == "a\n\nb"
    chat.wait_for_prompt()
    chat.resize(40, 12)
    chat.say("three")
    assert "word " * 7 + "word" in chat.lines


def test_an_answer_adapts_to_a_terminal_that_is_resized_meanwhile(server: RemoteServer, open_chat: OpenChat) -> None:
    server.streams(*["word "] * 40, then="hang")
    chat = open_chat()
    chat.type(f"Tell{ENTER}")
    chat.wait_for("word " * 6)
    chat.resize(60, 20)
    chat.type(CTRL_C)
    chat.wait_for("stopped")
    chat.wait_for_prompt()
    assert chat.say("/think") == "thinking: as the model decides, shown"


def test_what_was_typed_is_found_in_a_later_chat(server: RemoteServer, open_chat: OpenChat, tmp_path: Path) -> None:
    answers(server, "Yes.")
    first = open_chat()
    first.say("an old question")
    first.say("/set history off")
    first.say("a secret")
    first.type(CTRL_D)
    assert first.ended() == 0
    second = open_chat()
    second.type(f"{CTRL_R}old")
    second.wait_for("an old question")
    second.type(ENTER)
    second.pump()
    second.type(ENTER)
    second.wait_for("Yes.")
    second.wait_for_prompt()
    second.type(UP)
    second.wait_for(">>> an old question", times=2)
    assert "a secret" not in (tmp_path / "history").read_text()
    third = open_chat("--no-history")
    third.say("another secret")
    assert "another secret" not in (tmp_path / "history").read_text()


def test_tab_completes_commands_parameters_and_paths(open_chat: OpenChat, tmp_path: Path) -> None:
    (tmp_path / "talk.json").write_text('[{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]')
    chat = open_chat()
    chat.type(f"/ret{TAB}")
    chat.wait_for("/retry")
    chat.type(CTRL_C)
    chat.wait_for_prompt()
    chat.type(f"/set temp{TAB}0{ENTER}")
    chat.wait_for("temperature = 0")
    chat.wait_for_prompt()
    chat.type(f"/load {tmp_path}/ta{TAB}{ENTER}")
    chat.wait_for("2 messages of")
    chat.wait_for_prompt()


def test_a_picture_that_is_dropped_on_the_terminal_goes_with_the_message(
    server: RemoteServer, open_chat: OpenChat, tmp_path: Path
) -> None:
    answers(server, "A dot.")
    (tmp_path / "a b.png").write_bytes(b"png")
    chat = open_chat()
    assert chat.say(f"'{tmp_path}/a b.png' What is it?", pasted=True).endswith("A dot.")
    content = server.requests[-1][1]["messages"][0]["content"]
    assert [part["type"] for part in content] == ["image_url", "text"]
    assert content[1]["text"] == "What is it?"


def test_another_model_goes_on_with_the_conversation(server: RemoteServer, open_chat: OpenChat) -> None:
    answers(server, "One.", "Two.")
    chat = open_chat()
    chat.say("First")
    assert chat.say("/model other/name").startswith(f"now other/name at {server.url}")
    chat.say("Second")
    assert server.requests[-1][1]["model"] == "other/name"
    assert [message["content"] for message in server.requests[-1][1]["messages"]] == ["First", "One.", "Second"]
    chat.wait_for("\nname")
    assert chat.say("/set model x") == "model can't be set in a chat; /model NAME changes it"


def test_a_message_that_does_not_fit_is_kept_and_told_what_to_do(server: RemoteServer, open_chat: OpenChat) -> None:
    answers(server, "One.")
    chat = open_chat()
    chat.say("First")
    words = (
        "This model's maximum context length is 2048 tokens. However, you requested 1 output tokens and your prompt "
        "contains {} input tokens, for a total of {} tokens. Please reduce the length of the input "
        "prompt or the number of requested output tokens."
    )
    server.counts_tokens = False
    server.fails(400, times=1, message=words.format(2050, 2051))
    shown = " ".join(chat.say("Second").split())
    assert shown.startswith("This does not fit: 2,050 tokens, and the model takes 2,048 (3 too many). Nothing is lost.")
    assert chat.say("/undo") == "taken back: First"
    assert chat.say("/retry") == "Hi"
    assert server.requests[-1][1]["messages"] == [{"role": "user", "content": "Second"}]
    server.fails(400, times=1, message=words.format(9000, 9001))
    assert "The message alone is too long: shorten it." in " ".join(chat.say("Third").split())


def test_the_chat_begins_with_what_is_given_on_the_command_line(
    server: RemoteServer, open_chat: OpenChat, tmp_path: Path
) -> None:
    answers(server, {"content": "**Yes**", "reasoning": "Hm."})
    (tmp_path / "notes.txt").write_text("Milk")
    options = ["--system", "Be brief.", "-a", str(tmp_path / "notes.txt"), "--temperature", "0", "--no-think"]
    chat = open_chat(*options, "--stats", "--no-markdown", "--hide-thinking")
    chat.wait_for("1 attached")
    shown = chat.say("What?")
    assert shown.startswith("Thinking ...\n**Yes**\nload ")
    body = server.requests[-1][1]
    assert body["messages"][0] == {"role": "system", "content": "Be brief."}
    assert [part["text"] for part in body["messages"][1]["content"]] == ["notes.txt:\n\nMilk", "What?"]
    assert (body["temperature"], body["chat_template_kwargs"]["enable_thinking"]) == (0, False)


def test_run_without_a_prompt_is_a_chat(server: RemoteServer) -> None:
    command = [sys.executable, "-m", "shared_engine.cli", "run", "-", "--base-url", server.url]
    with on_a_terminal(command, {"VLLM_LOCAL_CHAT_HISTORY": "off"}) as chat:
        chat.wait_for_prompt()
        chat.type(f"/exit{ENTER}")
        assert chat.ended() == 0
    with on_a_terminal([*command, "--json"], {}) as refused:
        assert refused.ended() == 2
        assert "--json needs a prompt" in refused.text


def test_run_shows_nothing_that_controls_the_terminal(server: RemoteServer) -> None:
    answers(server, "a \x1b[2J b")
    command = [sys.executable, "-m", "shared_engine.cli", "run", "-", "Hi", "--base-url", server.url]
    with on_a_terminal(command, {}) as terminal:
        assert terminal.ended() == 0
        assert terminal.lines[0] == "a ␛[2J b"
