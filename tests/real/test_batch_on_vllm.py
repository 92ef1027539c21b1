"""``vllm-local batch`` on real vLLM: every format, killed again and again, and an engine that dies under it."""

from __future__ import annotations

import ast
import json
import logging
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from shared_engine import Engine
from shared_engine.cli.batch import lines as batch_lines
from shared_engine.cli.exit_codes import DONE, INTERRUPTED, SOME_FAILED
from shared_engine.launch.interpreter import find_interpreter
from tests.support.command import COMMAND
from tests.support.in_flight import wait_quiet
from tests.support.paths import REPOSITORY
from tests.support.processes import all_processes
from tests.support.screens import check_screen, frames_of, shown_by
from tests.support.terminal import CTRL_C, on_a_terminal
from tests.support.waiting import wait_until

logger = logging.getLogger(__name__)
KILLS = int(os.environ.get("BATCH_KILLS", "6"))
SEED = int(os.environ.get("BATCH_SEED", "17"))
TIMEOUT_S = 90
QUESTIONS = ("What is the capital of France?", "Count from 1 to 10.", "Hello", "Who are you?", "Say a word.")


def toml(settings: dict[str, Any]) -> str:
    def written(value: Any) -> str:
        if isinstance(value, dict):
            return "{" + ", ".join(f"{name} = {written(each)}" for name, each in value.items()) + "}"
        return json.dumps(value)

    return "".join(f"{name} = {written(value)}\n" for name, value in settings.items())


class Batch:
    """The command in a folder of its own, on an engine with these settings."""

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        self.folder = folder
        (folder / "engine.toml").write_text(toml(settings))

    def write(self, *rows: object) -> None:
        (self.folder / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def begin(self, *arguments: str, output: str = "out.jsonl") -> subprocess.Popen[str]:
        words = ["batch", "in.jsonl", output, "--config", "engine.toml", *arguments]
        return subprocess.Popen(
            [sys.executable, "-m", "shared_engine.cli", *words],
            env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *arguments: str, output: str = "out.jsonl") -> tuple[int, str]:
        process = self.begin(*arguments, output=output)
        _, said = process.communicate(timeout=TIMEOUT_S)
        return process.returncode, said

    def lines(self, output: str = "out.jsonl") -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.bytes(output).splitlines()]

    def bytes(self, output: str = "out.jsonl") -> bytes:
        path = self.folder / output
        return path.read_bytes() if path.exists() else b""


def openai(custom_id: str, url: str, **body: Any) -> dict[str, Any]:
    return {"custom_id": custom_id, "method": "POST", "url": url, "body": body}


def user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


# ---- formats


def test_every_kind_of_line_is_answered(tiny_chat: dict[str, Any], tmp_path: Path) -> None:
    batch = Batch(tmp_path, tiny_chat)
    chat, completions = "/v1/chat/completions", "/v1/completions"
    batch.write(
        openai("chat", chat, model="default", messages=user(QUESTIONS[0]), temperature=0),
        openai("text", completions, prompt="Hello", max_tokens=4, temperature=0),
        openai("input", "/v1/responses", input=QUESTIONS[0], temperature=0),
        openai("no model", chat, model="gpt-4o", messages=user("Hello")),
        openai("refused", chat, messages=user("Hello"), temperature=-1),
        openai("too long", completions, prompt="word " * 4000),
        openai("no score", "/v1/score", text_1="a", text_2="b"),
        {"prompt": QUESTIONS[0], "temperature": 0, "label": 7},
        {"messages": user(QUESTIONS[0]), "temperature": 0.7, "n": 2},
        {"messages": user("Hello"), "top_p": 7},
        {"prompt": "word " * 4000},
    )
    code, said = batch.run()
    assert code == SOME_FAILED, said
    assert "11 of 11 lines answered" in said
    lines = batch.lines()
    by_id = {line["custom_id"]: line for line in lines if "custom_id" in line}
    answer = by_id["chat"]["response"]
    assert answer["status_code"] == 200
    assert "Paris" in answer["body"]["choices"][0]["message"]["content"]
    assert answer["request_id"] == answer["body"]["id"]
    assert by_id["text"]["response"]["body"]["usage"]["completion_tokens"] == 4
    statuses = {name: line["response"]["status_code"] for name, line in by_id.items()}
    assert statuses == {
        "chat": 200,
        "text": 200,
        "input": 200,
        "no model": 404,
        "refused": 400,
        "too long": 400,
        "no score": 404,
    }
    assert by_id["refused"]["response"]["body"] is None
    assert "temperature" in by_id["refused"]["error"]["error"]["message"]
    prompt, several, invalid, too_long = lines[7:]
    assert (prompt["input"]["label"], prompt["text"]) == (7, answer["body"]["choices"][0]["message"]["content"])
    assert prompt["usage"]["prompt_tokens"] == answer["body"]["usage"]["prompt_tokens"]
    assert [choice["index"] for choice in several["choices"]] == [0, 1]
    assert several["text"] == several["choices"][0]["text"]
    assert invalid["error"]["type"] == "InvalidInputError"
    assert too_long["error"]["type"] == "ContextLengthError"


def test_a_dry_run_counts_the_tokens_that_vllm_counts(tiny_chat: dict[str, Any], tmp_path: Path) -> None:
    batch = Batch(tmp_path, tiny_chat)
    tool = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}
    batch.write(
        openai("a", "/v1/chat/completions", messages=user(QUESTIONS[0]), max_tokens=5, tools=[tool]),
        openai("b", "/v1/completions", prompt=["Hello", "Hello you"], max_tokens=3),
        {"prompt": QUESTIONS[1], "max_tokens": 7},
        {"messages": user(QUESTIONS[2]), "max_tokens": 7, "tools": [tool], "tool_choice": "auto"},
    )
    process = batch.begin("--dry-run", "--json")
    found = json.loads(process.communicate(timeout=TIMEOUT_S)[0])
    assert (found["sampled"], found["invalid"], found["max_completion_tokens"]) == (4, 0, 5 + 2 * 3 + 7 + 7)
    assert found["seconds"] > 0
    process = batch.begin("--json")
    counts = json.loads(process.communicate(timeout=TIMEOUT_S)[0])
    assert counts["prompt_tokens"] == found["prompt_tokens"]
    assert 0 < counts["completion_tokens"] <= found["max_completion_tokens"]


@pytest.mark.long
def test_vectors_and_scores_are_answered(minilm: dict[str, Any], tmp_path: Path) -> None:
    batch = Batch(tmp_path, minilm)
    batch.write(
        openai("vectors", "/v1/embeddings", input=["a cat", "a dog"]),
        openai("ranks", "/v1/rerank", query="pets", documents=["a cat", "a stone"]),
        openai("score", "/v1/score", text_1="pets", text_2=["a cat"]),
        openai("chat", "/v1/chat/completions", messages=user("Hello")),
    )
    code, said = batch.run()
    assert code == SOME_FAILED, said
    vectors, ranks, score, chat = (line["response"] for line in batch.lines())
    assert [len(each["embedding"]) for each in vectors["body"]["data"]] == [384, 384]
    assert ranks["body"]["results"][0]["index"] == 0
    assert 0 < score["body"]["data"][0]["score"] < 1
    assert chat["status_code"] == 404
    assert " 0 completion tokens" in said


def test_the_fields_are_those_of_vllms_own_batches() -> None:
    folder = Path(find_interpreter(None).path).parent.parent
    (source,) = folder.glob("lib/python3*/site-packages/vllm/entrypoints/launchers/run_batch.py")
    fields = {
        node.name: tuple(ast.unparse(each.target) for each in node.body if isinstance(each, ast.AnnAssign))
        for node in ast.parse(source.read_text()).body
        if isinstance(node, ast.ClassDef)
    }
    assert fields["BatchRequestOutput"] == batch_lines._OpenAIOutput.__struct_fields__
    assert fields["BatchResponseData"] == batch_lines._Response.__struct_fields__


# ---- interruptions


def rows_to_kill() -> list[dict[str, Any]]:
    plain = [{"prompt": f"{QUESTIONS[at % 5]} ({at})", "temperature": 0, "max_tokens": 24} for at in range(80)]
    chat = "/v1/chat/completions"
    same = [openai(str(at), chat, messages=user(f"Say {at}."), temperature=0, max_tokens=24) for at in range(40)]
    return [row for three in zip(plain[::2], plain[1::2], same, strict=True) for row in three]


def without_ids(written: bytes) -> list[bytes]:
    """Each line, without the ids and the time that vLLM gives to an answer again."""
    found = []
    for text in written.splitlines():
        line = json.loads(text)
        if "custom_id" in line:
            line["response"].pop("request_id")
            assert line["response"]["body"].pop("id")
            assert line["response"]["body"].pop("created")
            line["response"]["body"]["usage"].pop("prompt_tokens_details", None)  # what the prefix cache had
            text = msgspec.json.encode(line)
        found.append(text)
    return found


def wait_for_a_line(batch: Batch, process: subprocess.Popen[str]) -> None:
    """Or for the end."""
    before = len(batch.bytes())
    wait_until(lambda: process.poll() is not None or len(batch.bytes()) > before, TIMEOUT_S, "a line, or the end")


@pytest.mark.timeout(60 + 15 * KILLS)
@pytest.mark.long
def test_killed_at_random_moments_it_ends_with_the_same_bytes(tiny_chat: dict[str, Any], tmp_path: Path) -> None:
    batch = Batch(tmp_path, tiny_chat)
    batch.write(*rows_to_kill())
    Engine(**tiny_chat).warmup()
    few = ("--max-inflight", "6")  # so that it takes seconds
    began = time.monotonic()
    assert batch.run(*few, output="undisturbed.jsonl")[0] == DONE
    whole_s = time.monotonic() - began
    right = without_ids(batch.bytes("undisturbed.jsonl"))
    chance = random.Random(SEED)
    kills = whole = in_between = 0
    while kills < KILLS:
        before = len(batch.bytes())
        order = chance.choice(["input", "done"])
        process = batch.begin("--order", order, *few)
        if chance.random() < 0.7:  # else it may be killed while it starts, or reads what is there
            wait_for_a_line(batch, process)
        try:
            process.communicate(timeout=chance.uniform(0, whole_s))
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            kills += 1
        else:
            assert process.returncode == DONE
        written = batch.bytes()
        in_between += process.returncode != DONE and len(written) > before
        kept = without_ids(written[: written.rfind(b"\n") + 1])
        assert len({json.loads(line)["id"] for line in kept}) == len(kept)
        assert set(kept) <= set(right)
        if process.returncode == DONE:  # all is answered: again, from nothing
            whole += 1
            assert kept == right if order == "input" else sorted(kept) == sorted(right)
            (tmp_path / "out.jsonl").unlink()
    assert batch.run()[0] == DONE
    assert without_ids(batch.bytes()) == right
    wait_quiet(Engine(**tiny_chat))
    logger.info("%d kills, %d of them after new lines; %d times all was answered", kills, in_between, whole)
    assert in_between


def test_ctrl_c_ends_it_at_once_and_its_requests_in_vllm(tiny_chat: dict[str, Any], tmp_path: Path) -> None:
    batch = Batch(tmp_path, tiny_chat)
    long = [{"prompt": f"Hello {at}", "ignore_eos": True, "max_tokens": 1500} for at in range(4)]
    batch.write({"prompt": "Hello"}, *long)
    engine = Engine(**tiny_chat)
    engine.warmup()
    process = batch.begin()
    wait_until(lambda: len(batch.lines()) == 1, TIMEOUT_S, "the short answer")
    process.send_signal(signal.SIGINT)
    began = time.monotonic()
    _, said = process.communicate(timeout=TIMEOUT_S)
    assert time.monotonic() - began < 5
    assert process.returncode == INTERRUPTED
    assert "1 of 5 lines answered" in said
    wait_quiet(engine)


def test_the_page_shows_an_interrupted_batch_and_how_it_goes_on(tiny_chat: dict[str, Any], tmp_path: Path) -> None:
    batch = Batch(tmp_path, tiny_chat)
    batch.write(*({"prompt": f"Count to {at}", "ignore_eos": True, "max_tokens": 40} for at in range(60)))
    Engine(**tiny_chat).warmup()
    files = [str(tmp_path / name) for name in ("in.jsonl", "answers.jsonl")]
    words = ["batch", *files, "--config", str(tmp_path / "engine.toml"), "--max-inflight", "4"]
    with on_a_terminal([*COMMAND, *words]) as terminal:
        terminal.wait_for_match(r" tokens/s, \d+:\d\d left")
        terminal.type(CTRL_C)
        assert terminal.ended() == INTERRUPTED
        shown = [frames_of(terminal.output.decode()), frames_of(shown_by(words))]
    typed = "$ vllm-local batch requests.jsonl answers.jsonl --model examples/tiny_chat --max-inflight 4"
    screen = "\n".join(line for frames in shown for line in (typed, *frames))
    check_screen("batch.md", "batch", screen.replace(f"{tmp_path}/", ""))


@pytest.mark.long
def test_an_engine_that_dies_costs_no_row(breakable: Callable[..., Engine], tmp_path: Path) -> None:
    engine = breakable()
    engine.warmup()
    batch = Batch(tmp_path, engine.settings.model_dump(mode="json", exclude_unset=True, exclude_none=True))
    batch.write(*rows_to_kill())
    process = batch.begin()
    wait_until(lambda: len(batch.lines()) >= 3, TIMEOUT_S, "the first answers")
    server = engine.status().server_pid
    assert server is not None
    assert server in all_processes(engine)
    os.killpg(server, signal.SIGKILL)
    _, said = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == DONE, said
    assert [line["id"].partition("-")[0] for line in batch.lines()] == [str(at) for at in range(1, 121)]
