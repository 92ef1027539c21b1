"""``vllm-local run`` in pipes: what goes to stdout, what to stderr, and what is sent."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from shared_engine.cli.asking.attachments import attachment, without_dropped_files
from shared_engine.cli.asking.forms import form_parameters
from shared_engine.cli.commands import chat as chat_command
from shared_engine.cli.commands import run as run_command
from shared_engine.cli.engine_arguments import settings_of
from shared_engine.cli.main import main, parser_of
from shared_engine.errors import InvalidInputError
from tests.support.adapters import ADAPTERS
from tests.support.paths import REPOSITORY, TINY_CHAT
from tests.support.remote_server import RemoteServer, chat_answer, running_server
from tests.support.scripted import answers
from tests.support.vision_model import png

Capture = pytest.CaptureFixture[str]
THOUGHTFUL = {"reasoning": "Blue is short.", "content": "It scatters."}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[RemoteServer]:
    with running_server() as server:
        monkeypatch.setenv("VLLM_API_URL", server.url)
        yield server


class Pipe:
    """stdin as a shell's pipe has it."""

    def __init__(self, content: bytes) -> None:
        self.buffer = self
        self._content = content

    def read(self) -> bytes:
        return self._content

    def isatty(self) -> bool:
        return False


def run(monkeypatch: pytest.MonkeyPatch, *words: str, stdin: bytes = b"") -> int:
    monkeypatch.setattr(sys, "stdin", Pipe(stdin))
    return main(["run", "-", *words])


def sent(server: RemoteServer) -> dict[str, Any]:
    return server.requests[-1][1]


def test_the_answer_alone_is_on_stdout(server: RemoteServer, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    answers(server, THOUGHTFUL)
    assert run(monkeypatch, "Why", "is it blue?", "--stats") == 0
    out, err = capsys.readouterr()
    assert out == "It scatters.\n"
    thought, told = err.splitlines()
    assert thought == "Blue is short."
    assert re.fullmatch(r"vllm-local: load \S+ s, first token \S+ s, 1 tokens in \S+ s, prompt 11 tokens", told)
    assert sent(server)["messages"] == [{"role": "user", "content": "Why is it blue?"}]
    assert sent(server)["stream"]


def test_thoughts_can_be_hidden(server: RemoteServer, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    answers(server, THOUGHTFUL)
    assert run(monkeypatch, "Why?", "--hide-thinking", "--no-think") == 0
    assert capsys.readouterr() == ("It scatters.\n", "")
    assert sent(server)["chat_template_kwargs"]["enable_thinking"] is False


@pytest.mark.parametrize(
    ("stdin", "words", "prompt"),
    [
        (b"a file\n", ["Explain"], "a file\n\nExplain"),
        (b"only stdin\n\n", [], "only stdin"),
        (b"", ["Explain"], "Explain"),
        ("é漢".encode(), [], "é漢"),
        (b"\xef\xbb\xbfa file with a mark", [], "a file with a mark"),
        (b"", ["--temperature", "0", "after", "--top-p=1", "options"], "after options"),
        (b"", ["before", "--temperature", "0", "after"], "before after"),
        (b"", ["--", "-dash"], "-dash"),
    ],
)
def test_stdin_and_words_are_joined(
    server: RemoteServer, monkeypatch: pytest.MonkeyPatch, stdin: bytes, words: list[str], prompt: str
) -> None:
    assert run(monkeypatch, "--no-stream", *words, stdin=stdin) == 0
    assert sent(server)["messages"] == [{"role": "user", "content": prompt}]


def test_generate_is_another_name_and_options_become_parameters(
    server: RemoteServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", Pipe(b""))
    words = ["--system", "Be brief.", "--temperature=0.5", "--max-tokens", "7", "--stop", "x", "--seed", "1"]
    assert main(["generate", "-", "Hi", "--no-stream", *words]) == 0
    assert sent(server)["messages"][0] == {"role": "system", "content": "Be brief."}
    assert {"temperature": 0.5, "max_tokens": 7, "stop": ["x"], "seed": 1}.items() <= sent(server).items()


def test_raw_leaves_the_template_out(server: RemoteServer, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    async def text(request: Any) -> Any:
        from aiohttp import web

        choice = {"index": 0, "text": " time", "finish_reason": "stop"}
        usage = {"prompt_tokens": 3, "completion_tokens": 1, "total_tokens": 4}
        return web.json_response({"id": "c", "model": "served", "choices": [choice], "usage": usage})

    server.handler = text
    assert run(monkeypatch, "--raw", "--no-stream", "Once upon a") == 0
    assert capsys.readouterr().out == " time\n"
    assert sent(server)["prompt"] == "Once upon a"
    assert run(monkeypatch, "--raw", "--system", "x", "Once") == 2
    assert "--system goes through the chat template" in capsys.readouterr().err


def test_all_of_an_answer_as_json(server: RemoteServer, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    answers(server, THOUGHTFUL)
    assert run(monkeypatch, "Why?", "--output", "json") == 0
    out, err = capsys.readouterr()
    answer = json.loads(out)
    assert err == ""
    assert answer["choices"][0]["text"] == "It scatters."
    assert answer["choices"][0]["reasoning"] == "Blue is short."
    assert (answer["model"], answer["usage"]["prompt_tokens"]) == ("served", 11)
    assert set(answer["timing"]) == {"load_s", "total_s"}


def test_several_answers_are_apart(server: RemoteServer, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    async def two(request: Any) -> Any:
        from aiohttp import web

        answer = chat_answer("one")
        answer["choices"].append({**chat_answer("two\n")["choices"][0], "index": 1})
        return web.json_response(answer)

    server.handler = two
    assert run(monkeypatch, "Hi", "--n", "2") == 0
    assert capsys.readouterr().out == "one\n\ntwo\n"
    assert (sent(server)["n"], sent(server).get("stream")) == (2, None)


def test_a_form_that_was_cut_off_is_a_failure(
    server: RemoteServer, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    answers(server, {"content": '{"a": ', "finish_reason": "length"})
    assert run(monkeypatch, "Hi", "--json") == 1
    out, err = capsys.readouterr()
    assert out == '{"a": \n'
    assert "the answer was cut off" in err
    assert sent(server)["response_format"] == {"type": "json_object"}
    answers(server, {"content": "and so", "finish_reason": "length"})
    assert run(monkeypatch, "Hi") == 0
    assert "the answer was cut off" in capsys.readouterr().err


def test_no_prompt_is_wrong_usage(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    with pytest.raises(SystemExit) as ended:
        run(monkeypatch)
    assert ended.value.code == 2
    assert "there is no prompt" in capsys.readouterr().err


def test_what_is_no_text_on_stdin_is_refused(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    assert run(monkeypatch, "Hi", stdin=b"\xff\xd8") == 2
    told = "vllm-local: the input is not UTF-8: byte 0 is 0xff; a picture or a sound goes with -a FILE\n"
    assert capsys.readouterr().err == told


def test_a_chat_needs_a_terminal(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.setattr(sys, "stdin", Pipe(b""))
    with pytest.raises(SystemExit) as ended:
        main(["chat", "-"])
    assert ended.value.code == 2
    assert "chat needs a terminal" in capsys.readouterr().err


def test_an_error_is_a_line_and_exit_code_1(
    server: RemoteServer, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    server.fails(400, message="no such thing")
    assert run(monkeypatch, "Hi") == 1
    assert capsys.readouterr() == ("", "vllm-local: HTTP 400: no such thing\n")


def test_a_chat_without_its_packages_says_what_to_install(
    server: RemoteServer, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "rich" else object())
    for module in (chat_command, run_command):
        monkeypatch.setattr(module, "is_at_a_terminal", lambda: True)
    for words in (["chat", "-"], ["run", "-"]):
        monkeypatch.setattr(sys, "stdin", Pipe(b""))
        assert main(words) == 1
        assert capsys.readouterr().err == "vllm-local: a chat needs rich: pip install 'vllm-local[cli]'\n"


# ---- as processes


@pytest.mark.slow
def test_only_a_chat_imports_what_only_it_needs(server: RemoteServer) -> None:
    answers(server, "Hi")
    code = (
        "import sys; from shared_engine.cli.main import main; "
        "main(['run', '-', 'Hi']); print(*sys.modules, file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "VLLM_API_URL": server.url},
        cwd=REPOSITORY,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "Hi\n"
    heavy = {"rich", "prompt_toolkit", "pygments", "openai", "tokenizers", "jinja2", "torch"}
    assert not heavy & set(done.stderr.split())


def start(server: RemoteServer, *words: str, **options: Any) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "shared_engine.cli", "run", "-", *words]
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    return subprocess.Popen(command, cwd=REPOSITORY, env={**os.environ, "VLLM_API_URL": server.url}, **pipes)


@pytest.mark.slow
def test_each_piece_is_written_at_once_and_ctrl_c_ends_the_request(server: RemoteServer) -> None:
    server.streams("Once ", "upon", then="hang")
    process = start(server, "Tell")
    assert process.stdout is not None
    assert process.stdout.read(9) == b"Once upon"
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=20)
    assert (process.returncode, out) == (130, b"\n")
    assert err == b"vllm-local: interrupted; the engine is asked for nothing more, and stays\n"
    assert server.aborted.wait(5)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this kernel has no /dev/full")
def test_what_cannot_be_told_on_stderr_costs_no_answer(server: RemoteServer) -> None:
    answers(server, THOUGHTFUL)
    with open("/dev/full", "w") as full:
        process = start(server, "Why?", "--stats", stderr=full)
        assert process.communicate(timeout=20)[0] == b"It scatters.\n"
    assert process.returncode == 0


@pytest.mark.slow
def test_a_reader_that_leaves_ends_it_silently(server: RemoteServer) -> None:
    server.streams(*["word "] * 20_000, then="hang")
    process = start(server, "Tell")
    assert process.stdout is not None
    process.stdout.read(4)
    process.stdout.close()
    assert process.wait(20) == 141
    assert process.stderr is not None
    with process.stderr:
        assert process.stderr.read() == b""


# ---- adapters


def parsed(*words: str) -> argparse.Namespace:
    return parser_of(["run"]).parse_args(["run", *words])


def test_an_adapters_folder_is_as_good_as_its_name() -> None:
    parameters = {"lora": f"{ADAPTERS['brief']}/"}
    settings = run_command.settings_with_adapter(parsed(str(TINY_CHAT), "Hi"), parameters)
    assert (parameters, settings.lora_adapters) == ({"lora": "brief"}, {"brief": ADAPTERS["brief"]})


def test_what_is_neither_an_adapter_nor_a_name_is_told() -> None:
    with pytest.raises(InvalidInputError, match="neither an adapter nor a name of --lora-adapters: there is no such"):
        run_command.settings_with_adapter(parsed("org/name"), {"lora": "brief"})


@pytest.mark.parametrize(
    "words", [["org/name", "--lora-adapters", json.dumps(ADAPTERS)], ["-", "--base-url", "http://h"]]
)
def test_a_name_of_an_adapter_stays_a_name(words: list[str]) -> None:
    parameters = {"lora": "brief"}
    given = parsed(*words)
    assert run_command.settings_with_adapter(given, parameters) == settings_of(given)
    assert parameters == {"lora": "brief"}


# ---- forms and attachments

SCHEMA = {"type": "object", "properties": {"a": {}}}


@pytest.mark.parametrize(
    ("form", "parameters"),
    [
        ((None, None, None), {}),
        (("", None, None), {"response_format": {"type": "json_object"}}),
        ((None, ["yes, no"], None), {"structured_outputs": {"choice": ["yes", "no"]}}),
        ((None, ["yes, please", "no"], None), {"structured_outputs": {"choice": ["yes, please", "no"]}}),
        ((None, None, "[a-z]+"), {"structured_outputs": {"regex": "[a-z]+"}}),
    ],
)
def test_forms(form: tuple[str | None, list[str] | None, str | None], parameters: dict[str, Any]) -> None:
    assert form_parameters(*form) == parameters


def test_a_schema_is_json_or_a_file_of_it(tmp_path: Path) -> None:
    file = tmp_path / "schema.json"
    file.write_text(json.dumps(SCHEMA))
    for given in (json.dumps(SCHEMA), str(file)):
        assert form_parameters(given, None, None)["response_format"]["json_schema"]["schema"] == SCHEMA


@pytest.mark.parametrize(
    ("schema", "told"),
    [
        ("List three cities", "is neither a JSON object nor a file; for JSON without a schema put --json last"),
        ("{", "--json is not JSON"),
        ("list.json", "must be a JSON schema, an object, got list"),
        (".", "can't be read"),
    ],
)
def test_what_is_no_schema_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, schema: str, told: str) -> None:
    monkeypatch.chdir(tmp_path)
    Path("list.json").write_text("[]")
    with pytest.raises(InvalidInputError, match=told):
        form_parameters(schema, None, None)


@pytest.mark.parametrize("choices", [[""], ["a,"], ["a", " "]])
def test_a_choice_of_nothing_is_refused(choices: list[str]) -> None:
    with pytest.raises(InvalidInputError, match="has an empty choice: --choice A,B,C"):
        form_parameters(None, choices, None)


def test_two_forms_are_refused() -> None:
    with pytest.raises(InvalidInputError, match="--json and --regex both hold the answer to a form"):
        form_parameters("", None, "a")


def test_a_file_becomes_the_part_of_its_kind(tmp_path: Path) -> None:
    picture, text, sound, other = (tmp_path / name for name in ("a.png", "notes.txt", "a.wav", "data.bin"))
    picture.write_bytes(png(1, 2, 3))
    text.write_text("Milk")
    sound.write_bytes(b"RIFF")
    other.write_bytes(b"\0\1")
    assert attachment(str(picture))["image_url"]["url"].startswith("data:image/png;base64,")
    assert attachment(picture.as_uri())["type"] == "image_url"
    assert attachment(str(sound))["type"] == "audio_url"
    assert attachment(str(text)) == {"type": "text", "text": "notes.txt:\n\nMilk"}
    assert attachment("https://h/a.mp4?x=1") == {"type": "video_url", "video_url": {"url": "https://h/a.mp4?x=1"}}
    assert attachment("https://h/picture")["type"] == "image_url"
    with pytest.raises(InvalidInputError, match="is neither text nor an image"):
        attachment(str(other))
    with pytest.raises(InvalidInputError, match="does not exist"):
        attachment("none.png")
    for place in ("ftp://h/a.png", "S3://bucket/a.png"):
        with pytest.raises(
            InvalidInputError, match=r"a URL of a kind that is not loaded: give a path, or http\(s\)://"
        ):
            attachment(place)


def test_a_file_that_was_dropped_on_the_terminal_is_found(tmp_path: Path) -> None:
    plain, spaced, text = tmp_path / "a.png", tmp_path / "my cat's.png", tmp_path / "notes.txt"
    for file in (plain, spaced, text):
        file.write_bytes(b"x")
    escaped = str(spaced).replace(" ", "\\ ").replace("'", "\\'")
    for dropped, file in (
        (str(plain), plain),
        (f"'{plain}'", plain),
        (f'"{spaced}"', spaced),
        (escaped, spaced),
        (plain.as_uri(), plain),
    ):
        assert without_dropped_files(f"What is {dropped} here?") == ("What is  here?", [str(file)]), dropped
    for text_alone in (f"Read {text}", "a.png", "/none.png is missing", "don't 'quote' me", f"x{plain}"):
        assert without_dropped_files(text_alone) == (text_alone, [])
