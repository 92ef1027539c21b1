"""What a chat is made of, without a terminal: Markdown as it comes, the conversation and its file, lines, history."""

from __future__ import annotations

import io
import random
import re
import stat
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prompt_toolkit.application import create_app_session
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput
from rich.console import Console

from shared_engine.cli.asking.answer import Answer, figures
from shared_engine.cli.chat.commands import COMMANDS, find_command, suggestions
from shared_engine.cli.chat.conversation import Conversation, load, save
from shared_engine.cli.chat.history import MAX_ENTRIES, PrivateHistory, history_file
from shared_engine.cli.chat.line_editor import PATHS, LineEditor, is_unfinished, unquoted
from shared_engine.cli.chat.markdown import MarkdownWriter
from shared_engine.cli.chat.repl import Chat
from shared_engine.cli.chat.screen import Screen
from shared_engine.engine import Engine
from shared_engine.errors import InvalidInputError
from shared_engine.results import TokenUsage
from shared_engine.settings import EngineSettings
from tests.support.paths import REPOSITORY

# ---- Markdown


def shown(text: str, *, pieces: int = 0, width: int = 40, colours: bool = False) -> str:
    """What is on the screen after the text came whole, or in pieces of random lengths."""
    stream = io.StringIO()
    console = Console(file=stream, width=width, force_terminal=colours, highlight=False, no_color=not colours)
    writer = MarkdownWriter(console)
    chance = random.Random(pieces)
    rest = text
    while rest:
        length = chance.randint(1, 7) if pieces else len(rest)
        writer.write(rest[:length])
        rest = rest[length:]
    writer.end()
    return stream.getvalue()


DOCUMENT = """\
# Rivers **of** Europe

The *Rhine* flows through `Basel`, 2 * 3 * 4, **kwargs, snake_case and ``a ` b``; **bold `code` in it**.

- one item that is so long that it has to be wrapped to the next line
1. **two**

```python
def f(x):
    return "**x**"

```
| a | b |
|---|---|
| 1 | **2** |

| grep x
漢字漢字漢字漢字漢字漢字漢字漢字漢字漢字漢字漢字漢字漢字漢字漢字
https://example.org/a-word-that-is-longer-than-the-terminal-is-wide
The end"""


@pytest.mark.slow
def test_markdown_is_shown_as_it_is_meant() -> None:
    lines = [line.rstrip() for line in shown(DOCUMENT).splitlines()]
    table = lines[15 : lines.index("| grep x")]  # rich's own, with more or fewer empty lines around it
    assert lines == [
        "Rivers of Europe",
        "",
        "The Rhine flows through Basel, 2 * 3 *",
        "4, **kwargs, snake_case and a ` b; bold",
        "code in it.",
        "",
        "- one item that is so long that it has",
        "  to be wrapped to the next line",
        "1. two",
        "",
        "```python",
        "def f(x):",
        '    return "**x**"',
        "",
        "```",
        *table,
        "| grep x",
        "漢字" * 10,
        "漢字" * 6,
        "https://example.org/a-word-that-is-longer-than-the-terminal-is-wide",
        "The end",
    ]
    assert [line.split() for line in table if re.search(r"\w", line)] == [["a", "b"], ["1", "2"]]


@pytest.mark.parametrize("pieces", range(1, 30))
@pytest.mark.slow
def test_the_pieces_that_a_text_comes_in_make_no_difference(pieces: int) -> None:
    assert shown(DOCUMENT, pieces=pieces) == shown(DOCUMENT)


@pytest.mark.slow
@given(text=st.text("ab1`*#~-_\\\t \n漢", max_size=80), pieces=st.integers(1, 5))
@settings(max_examples=100, deadline=None)
def test_nothing_that_was_written_is_lost(text: str, pieces: int) -> None:
    whole = shown(text, width=10)
    assert re.findall(r"\w", whole.replace("_", "")) == re.findall(r"\w", text.replace("_", ""))
    assert shown(text, width=10, pieces=pieces) == whole


def test_styles() -> None:
    coloured = shown("**b** *i* `c`\n```python\nreturn 1\n```\n", colours=True)
    for wanted in ("\x1b[1mb\x1b[0m", "\x1b[3mi\x1b[0m", "\x1b[36mc\x1b[0m", "\x1b[2m```python\x1b[0m"):
        assert wanted in coloured
    assert re.search(r"\x1b\[94[;\d]*mreturn\x1b", coloured)


def test_a_word_is_shown_when_it_is_whole() -> None:
    stream = io.StringIO()
    writer = MarkdownWriter(Console(file=stream, width=40))
    writer.write("Once upon a ti")
    assert stream.getvalue() == "Once upon a"
    writer.write("me\n")
    assert stream.getvalue() == "Once upon a time\n"


def test_a_word_that_fits_no_line_is_shown_as_it_comes() -> None:
    stream = io.StringIO()
    writer = MarkdownWriter(Console(file=stream, width=10))
    writer.write("see https://")
    assert stream.getvalue() == "see"
    writer.write("example.org")
    assert stream.getvalue() == "see https://example.org"
    writer.write("/a b\n")
    assert stream.getvalue() == "see https://example.org/a b\n"


def test_what_a_model_writes_can_not_control_the_terminal() -> None:
    assert "\x1b" not in shown("a \x1b[2J b\x07\n```\n\x1b]0;title\x07\n```\n| \x1b |\n|---|\n| \x9b |\n")


def test_an_unclosed_code_block_ends_with_the_answer() -> None:
    writer = MarkdownWriter(Console(file=(stream := io.StringIO()), width=40))
    writer.write("```python\nx = 1")
    writer.end()
    writer.write("**text**\n")
    assert stream.getvalue() == "```python\nx = 1\ntext\n"


# ---- the conversation


def answer(text: str, *, prompt: int = 10, completion: int = 5, reasoning: str = "", thought: int = 0) -> Answer:
    usage = TokenUsage(prompt_tokens=prompt, completion_tokens=completion, reasoning_tokens=thought or None)
    return Answer(text=text, reasoning=reasoning, finish_reason="stop", usage=usage)


def question(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def test_what_the_model_thought_is_kept_but_not_sent_nor_counted() -> None:
    talk = Conversation("Be brief.")
    talk.add(question("a"), answer("b", reasoning="hm", completion=9, thought=4))
    assert talk.to_send(question("c")) == [
        {"role": "system", "content": "Be brief."},
        question("a"),
        {"role": "assistant", "content": "b"},
        question("c"),
    ]
    assert talk.messages[-1]["reasoning_content"] == "hm"
    assert talk.tokens == 15


def test_undo_takes_back_what_the_last_answer_added() -> None:
    talk = Conversation()
    assert talk.tokens == 0
    talk.add(question("a"), answer("b"))
    talk.add(question("c"), answer("d", prompt=30))
    assert talk.tokens == 35
    assert talk.take_back() == question("c")
    assert (talk.tokens, len(talk.messages)) == (15, 2)
    assert talk.take_back() == question("a")
    assert talk.take_back() is None
    assert talk.tokens == 0


def test_a_question_without_an_answer_outlasts_clear() -> None:
    talk = Conversation("s")
    talk.unanswered = question("long")
    talk.clear()
    assert (talk.unanswered, talk.system, talk.messages) == (question("long"), "s", [])


def test_a_saved_conversation_is_loaded_back(tmp_path: Path) -> None:
    talk = Conversation("s")
    url = "data:image/png;base64,aGk="
    parts = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "What?"}]
    talk.add({"role": "user", "content": parts}, answer("é", reasoning="hm"))
    file = tmp_path / "talk.json"
    save(talk.to_json("org/name", {"temperature": 0}), file, may_replace=False)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    session = load(file)
    assert (session["model"], session["parameters"]) == ("org/name", {"temperature": 0})
    again = Conversation()
    again.replace_by(session["messages"])
    assert (again.system, again.messages) == ("s", talk.messages)
    assert list(tmp_path.iterdir()) == [file]


def test_half_a_character_does_not_cost_the_conversation(tmp_path: Path) -> None:
    talk = Conversation()
    talk.add(question("caf\udce9"), answer("é"))
    file = tmp_path / "talk.json"
    save(talk.to_json(None, {}), file, may_replace=False)
    assert load(file)["messages"] == talk.messages
    with pytest.raises(InvalidInputError, match="can't be written: embedded null"):
        save({}, tmp_path / "a\0b", may_replace=False)
    file.write_text("[" * 100_000)
    with pytest.raises(InvalidInputError, match="is not JSON"):
        load(file)


def test_a_byte_that_is_not_utf_8_is_a_mark_in_what_is_typed(tmp_path: Path) -> None:
    history = PrivateHistory(tmp_path / "history")
    with create_pipe_input() as typed, create_app_session(input=typed, output=DummyOutput()):
        editor = LineEditor(history, suggestions, lambda: ("", False))
        typed.send_bytes(b"caf\xe9 au lait\r")
        assert editor.read(print) == "caf\ufffd au lait"
    assert history.problem is None
    assert list(PrivateHistory(tmp_path / "history").load_history_strings()) == ["caf\ufffd au lait"]


def test_a_bare_list_is_loaded_too_and_its_last_question_waits(tmp_path: Path) -> None:
    file = tmp_path / "list.json"
    file.write_text('[{"role": "user", "content": "a"}]')
    talk = Conversation("old")
    talk.replace_by(load(file)["messages"])
    assert (talk.system, talk.messages, talk.unanswered) == (None, [], question("a"))


def test_a_file_is_not_replaced_by_accident(tmp_path: Path) -> None:
    file = tmp_path / "talk.json"
    file.write_text("mine")
    with pytest.raises(InvalidInputError, match="exists already"):
        save({}, file, may_replace=False)
    assert file.read_text() == "mine"
    save({}, file, may_replace=True)
    assert file.read_text() == "{}\n"
    with pytest.raises(InvalidInputError, match="can't be written: No such file"):
        save({}, tmp_path / "none" / "talk.json", may_replace=False)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{", "is not JSON"),
        ("{}", "has no list of messages"),
        ('{"messages": [{"role": "robot", "content": ""}]}', "unknown role 'robot'"),
        ('{"messages": [], "parameters": 5}', "parameters must be an object"),
    ],
)
def test_what_is_no_chat_is_refused(tmp_path: Path, text: str, told: str) -> None:
    file = tmp_path / "x.json"
    file.write_text(text)
    with pytest.raises(InvalidInputError, match=told):
        load(file)


# ---- lines and commands


@pytest.mark.parametrize(
    ("typed", "unfinished", "meant"),
    [
        ("one", False, "one"),
        ("one \\", True, "one \\"),
        ("one \\\ntwo", False, "one \ntwo"),
        ('"""', True, '"""'),
        ('"""one\ntwo', True, '"""one\ntwo'),
        ('"""\none\n\ntwo\n"""', False, "one\n\ntwo"),
        ('say """ twice', False, 'say """ twice'),
        ("  a  ", False, "a"),
    ],
)
def test_lines(typed: str, unfinished: bool, meant: str) -> None:
    assert (is_unfinished(typed), unquoted(typed)) == (unfinished, meant)


@pytest.mark.parametrize(
    ("line", "name", "argument"),
    [
        ("/help", "/help", ""),
        ("/?", "/help", ""),
        ("/BYE", "/exit", ""),
        ("/set temperature  0.5", "/set", "temperature  0.5"),
        ("/system one\ntwo", "/system", "one\ntwo"),
        ("/etc/passwd is what?", None, "/etc/passwd is what?"),
        ("what is /help", None, "what is /help"),
        ("/ 5", None, "/ 5"),
    ],
)
def test_commands_are_told_from_messages(line: str, name: str | None, argument: str) -> None:
    found, rest = find_command(line)
    assert (found and found.name, rest) == (name, argument)


def test_an_unknown_command_names_the_nearest() -> None:
    with pytest.raises(InvalidInputError, match=re.escape("there is no /retri; did you mean /retry?")):
        find_command("/retri")


def test_every_command_is_on_the_page() -> None:
    page = (REPOSITORY / "docs" / "chat.md").read_text()
    named = re.findall(r"^\| `(/\w+)(.*?)` \|", page, re.MULTILINE)
    assert [(name, rest.strip().replace("\\|", "|")) for name, rest in named] == [
        (each.name, each.takes) for each in COMMANDS
    ]


def test_tab_knows_what_may_follow() -> None:
    assert suggestions("", "") == sorted(each.name for each in COMMANDS)
    assert {"temperature", "history", "top_p"} <= set(suggestions("/set", "te"))  # type: ignore[call-overload]
    assert suggestions("/set", "markdown o") == ("on", "off")
    assert suggestions("/load", "x") is PATHS
    assert suggestions("/undo", "") == ()
    assert suggestions("/nothing", "") == ()


def test_another_model_has_no_adapter_of_the_one_before(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Screen()
    screen.console = Console(file=io.StringIO(), width=200)
    parameters = {"lora": "mine", "temperature": 0}
    before = EngineSettings(model="org/one", lora_adapters={"mine": "org/adapter"})
    chat = Chat(before, parameters, screen)

    def use(self: Chat, settings: EngineSettings) -> bool:
        assert settings.lora_adapters is None
        self.settings, self.engine = settings, Engine(settings)
        return settings.model != "org/none"

    monkeypatch.setattr(Chat, "use", use)
    chat.handle("/model org/none")
    assert chat.parameters == parameters
    chat.handle("/model org/two")
    assert chat.parameters == {"temperature": 0}
    assert "lora = mine is not set any more: an adapter is of one model" in screen.console.file.getvalue()  # type: ignore[attr-defined]


# ---- history


def test_the_history_is_private_and_can_be_switched_off(tmp_path: Path) -> None:
    file = tmp_path / "state" / "history"
    history = PrivateHistory(file)
    history.store_string("one\ntwo")
    history.switch(False)
    history.store_string("secret")
    history.switch(True)
    history.store_string("three")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    assert list(PrivateHistory(file).load_history_strings()) == ["three", "one\ntwo"]


def test_a_long_history_is_cut_to_its_last_entries(tmp_path: Path) -> None:
    file = tmp_path / "history"
    history = PrivateHistory(file)
    for number in range(MAX_ENTRIES + 50):
        history.store_string(f"{number} {'x' * 1000}")
    kept = PrivateHistory(file).load_history_strings()
    assert kept[0].startswith("1049 ")
    assert 900 < len(kept) <= MAX_ENTRIES
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_a_history_that_can_not_be_written_is_a_note_and_no_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    history = PrivateHistory(tmp_path / "file" / "history")
    history.store_string("one")
    assert history.problem is not None
    assert "is not kept" in history.problem
    assert list(history.load_history_strings()) == []


@pytest.mark.parametrize(
    ("environment", "file"),
    [
        ({"XDG_STATE_HOME": "/s"}, Path("/s/vllm-local/chat_history")),
        ({}, Path("~/.local/state/vllm-local/chat_history").expanduser()),
        ({"VLLM_LOCAL_CHAT_HISTORY": "off"}, None),
        ({"VLLM_LOCAL_CHAT_HISTORY": "/x/y"}, Path("/x/y")),
    ],
)
def test_where_the_history_is(environment: dict[str, str], file: Path | None) -> None:
    assert history_file(environment) == file


# ---- figures


@pytest.mark.parametrize(
    ("usage", "times", "told"),
    [
        (
            TokenUsage(prompt_tokens=23, completion_tokens=42, cached_tokens=16),
            (3.0, 3.5, 7.6),
            "load 3.00 s, first token 0.50 s, 42 tokens in 4.60 s (10.0 tokens/s), prompt 23 tokens (16 cached)",
        ),
        (
            TokenUsage(prompt_tokens=2, completion_tokens=3, reasoning_tokens=1),
            (0.0, None, 1.0),
            "load 0.00 s, 3 tokens in 1.00 s, prompt 2 tokens, 1 of reasoning",
        ),
        (
            TokenUsage(prompt_tokens=2, completion_tokens=1),
            (0.0, 1.0, 1.0),
            "load 0.00 s, first token 1.00 s, 1 tokens in 1.00 s, prompt 2 tokens",
        ),
        (None, (0.0, 0.5, 1.0), "load 0.00 s, first token 0.50 s, ended after 1.00 s, without a count of tokens"),
    ],
)
def test_figures(usage: TokenUsage | None, times: tuple[float, float | None, float], told: str) -> None:
    assert figures(usage, *times) == told
