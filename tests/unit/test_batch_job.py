"""``vllm-local batch`` against a server over HTTP: orders, interruptions, errors, what it says and exits with."""

from __future__ import annotations

import asyncio
import io
import json
import os
import pty
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from shared_engine import Engine
from shared_engine.cli.batch.asking import MANY_FAULTS, Asked, Asking
from shared_engine.cli.batch.dry_run import Estimate, estimate
from shared_engine.cli.batch.job import HELD_PER_SLOT, Job
from shared_engine.cli.batch.report import Bar, Counts, duration
from shared_engine.cli.batch.rows import Input
from shared_engine.cli.commands.batch import MAX_RETRIES
from shared_engine.cli.exit_codes import DONE, FAILED, INTERRUPTED, READER_LEFT, SOME_FAILED, USAGE
from shared_engine.cli.main import main
from shared_engine.errors import EngineStartError
from shared_engine.params import GenerationParams
from shared_engine.request import retry
from shared_engine.results import Choice, GenerationResult, TokenUsage
from tests.support.hub import hub_model
from tests.support.paths import REPOSITORY
from tests.support.remote_server import RemoteServer, chat_answer, running_server
from tests.support.waiting import wait_until

Capture = pytest.CaptureFixture[str]
TIMEOUT_S = 30


class Echo:
    """Answers a prompt with itself; or not, as long as it is among ``held``; or by an error, if among ``refused``."""

    def __init__(self, server: RemoteServer) -> None:
        self.server, self.url = server, f"{server.url}/v1"
        self.held: set[str] = set()
        self.refused: set[str] = set()
        self.status = 400
        self.asked: list[str] = []
        self.in_flight = self.most_in_flight = 0
        server.handler = self._answer

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        prompt = body["prompt"] if "prompt" in body else body["messages"][-1]["content"]
        self.asked.append(prompt)
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            while prompt in self.held:
                await asyncio.sleep(0.005)
        finally:
            self.in_flight -= 1
        if prompt in self.refused:
            return web.json_response({"error": {"message": "no", "code": self.status}}, status=self.status)
        answer = chat_answer(f"re: {prompt}")
        if "prompt" in body:
            answer["choices"] = [{"index": 0, "text": f"re: {prompt}", "finish_reason": "stop"}]
        return web.json_response(answer)


@pytest.fixture
def echo() -> Iterator[Echo]:
    with running_server() as server:
        yield Echo(server)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the command runs, with ten prompts in in.jsonl."""
    monkeypatch.chdir(tmp_path)
    write(tmp_path, *range(1, 11))
    return tmp_path


def write(folder: Path, *prompts: object) -> None:
    (folder / "in.jsonl").write_text("".join(json.dumps({"prompt": str(prompt)}) + "\n" for prompt in prompts))


def batch(echo: Echo, *arguments: str) -> int:
    return main(["batch", "in.jsonl", "out.jsonl", "--base-url", echo.url, "--max-retries", "0", *arguments])


def started(echo: Echo, *arguments: str, **options: Any) -> subprocess.Popen[str]:
    """The command as a process of its own."""
    words = ["batch", *(arguments or ("in.jsonl", "out.jsonl")), "--base-url", echo.url, "--max-retries", "0"]
    return subprocess.Popen(
        [sys.executable, "-m", "shared_engine.cli", *words],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        text=True,
        **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options},
    )


def lines(folder: Path, name: str = "out.jsonl") -> list[dict[str, Any]]:
    text = (folder / name).read_text()
    assert not text or text.endswith("\n")
    return [json.loads(line) for line in text.splitlines()]


def numbers(folder: Path) -> list[int]:
    return [line["line"] for line in lines(folder)]


# ---- all is well


def test_every_row_has_its_answer_in_order(echo: Echo, folder: Path, capsys: Capture) -> None:
    assert batch(echo) == DONE
    assert [(line["line"], line["text"]) for line in lines(folder)] == [(at, f"re: {at}") for at in range(1, 11)]
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith(
        "10 of 10 lines answered: out.jsonl\nthis run: 0:00, 30 prompt and 10 completion tokens, "
    )


def test_the_second_time_nothing_is_asked(echo: Echo, folder: Path, capsys: Capture) -> None:
    assert batch(echo) == DONE
    before = (folder / "out.jsonl").read_bytes()
    echo.asked.clear()
    capsys.readouterr()
    assert batch(echo) == DONE
    assert (echo.asked, (folder / "out.jsonl").read_bytes()) == ([], before)
    assert capsys.readouterr().err == "10 of 10 lines answered (10 before): out.jsonl\n"


def test_no_more_than_max_inflight_are_asked_at_once(echo: Echo, folder: Path) -> None:
    assert batch(echo, "--max-inflight", "3") == DONE
    assert 1 <= echo.most_in_flight <= 3


def test_prompts_go_through_the_chat_template_unless_raw(echo: Echo, folder: Path) -> None:
    write(folder, "Hi")
    assert batch(echo, "--system", "Be brief.", "--temperature", "0") == DONE
    body = echo.server.requests[-1][1]
    system = {"role": "system", "content": "Be brief."}
    assert (body["messages"], body["temperature"]) == ([system, {"role": "user", "content": "Hi"}], 0)
    (folder / "out.jsonl").unlink()
    assert batch(echo, "--raw", "--max-tokens", "5") == DONE
    assert (echo.server.requests[-1][1]["prompt"], echo.server.requests[-1][1]["max_tokens"]) == ("Hi", 5)
    assert lines(folder)[0]["text"] == "re: Hi"
    assert batch(echo, "--raw", "--system", "Be brief.") == USAGE


@pytest.mark.slow
def test_a_line_of_openais_goes_through_and_takes_no_parameters(echo: Echo, folder: Path, capsys: Capture) -> None:
    body = {"messages": [{"role": "user", "content": "Hi"}], "seed": 3, "model": "default"}
    line = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": body}
    (folder / "in.jsonl").write_text(json.dumps(line))
    assert batch(echo, "--temperature", "0") == FAILED
    assert "line 1 is in OpenAI's format, whose body is sent as it is" in capsys.readouterr().err
    assert lines(folder) == []
    assert batch(echo) == DONE
    (written,) = lines(folder)
    assert written["response"]["body"] == chat_answer("re: Hi")
    assert (written["custom_id"], written["response"]["status_code"], written["error"]) == ("a", 200, None)
    assert echo.server.requests[-1][1] == {**body, "model": "served"}


def test_two_lines_of_one_custom_id_have_an_answer_each(echo: Echo, folder: Path) -> None:
    body = {"messages": [{"role": "user", "content": "Hi"}]}
    line = json.dumps({"custom_id": "a", "url": "/v1/chat/completions", "body": body})
    (folder / "in.jsonl").write_text(f"{line}\n{line}\n")
    assert batch(echo) == DONE
    assert [line["custom_id"] for line in lines(folder)] == ["a", "a"]


def test_rows_of_a_table_are_answered(echo: Echo, folder: Path) -> None:
    (folder / "in.csv").write_text("id,question,temperature\n7,Hi,hot\n8,,\n")
    assert main(["batch", "in.csv", "out.jsonl", "--base-url", echo.url, "--prompt-column", "question"]) == SOME_FAILED
    first, second = lines(folder)
    assert (first["input"], first["text"]) == ({"id": "7", "question": "Hi", "temperature": "hot"}, "re: Hi")
    assert second["error"]["message"] == "row 2 'question' must be a text that is not empty"


def test_an_empty_input_is_answered_without_an_engine(folder: Path) -> None:
    write(folder)
    assert main(["batch", "in.jsonl", "out.jsonl", "--model", "no/model"]) == DONE
    assert lines(folder) == []


def test_the_servers_of_a_fleet_share_the_rows(echo: Echo, folder: Path) -> None:
    with running_server() as server:
        other = Echo(server)
        urls = f"{echo.url},{other.url}"
        assert main(["batch", "in.jsonl", "out.jsonl", "--base-url", urls, "--max-inflight", "4"]) == DONE
        assert echo.asked
        assert other.asked
        assert len(echo.asked) + len(other.asked) == 10
    assert numbers(folder) == [*range(1, 11)]


# ---- orders


@pytest.mark.slow
@pytest.mark.parametrize("order", ["input", "done"])
def test_a_slow_answer_holds_others_back_only_in_the_order_of_the_input(echo: Echo, folder: Path, order: str) -> None:
    echo.held.add("1")
    with started(echo, "in.jsonl", "out.jsonl", "--order", order) as process:
        wait_until(lambda: len(echo.asked) == 10, TIMEOUT_S, "all to be asked")
        if order == "done":
            wait_until(lambda: len(lines(folder)) == 9, TIMEOUT_S, "the others' answers")
        else:
            assert lines(folder) == []
        echo.held.clear()
        assert process.wait(TIMEOUT_S) == DONE
    expected = [*range(1, 11)]
    assert sorted(numbers(folder)) == expected
    assert numbers(folder)[-1] == (10 if order == "input" else 1)


@pytest.mark.slow
def test_a_slow_answer_holds_back_a_bounded_number(echo: Echo, folder: Path) -> None:
    most = 2 * HELD_PER_SLOT
    write(folder, *range(1, 101))
    echo.held.add("1")
    with started(echo, "in.jsonl", "out.jsonl", "--max-inflight", "2") as process:
        wait_until(lambda: len(echo.asked) == most, TIMEOUT_S, "all that may be asked")
        assert lines(folder) == []
        echo.held.clear()
        assert process.wait(TIMEOUT_S) == DONE
    assert numbers(folder) == [*range(1, 101)]


def test_a_file_in_the_order_of_the_answers_is_sorted_by_the_next_run(echo: Echo, folder: Path) -> None:
    assert batch(echo) == DONE
    whole = (folder / "out.jsonl").read_bytes()
    (folder / "out.jsonl").write_bytes(b"".join(reversed(whole.splitlines(keepends=True))))
    assert batch(echo, "--order", "done") == DONE
    assert numbers(folder) == [*range(10, 0, -1)]
    assert batch(echo) == DONE
    assert (folder / "out.jsonl").read_bytes() == whole


# ---- interruptions


@pytest.mark.slow
@pytest.mark.parametrize("which", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_it_keeps_what_is_answered_and_goes_on(echo: Echo, folder: Path, which: signal.Signals) -> None:
    echo.held |= {"1", "10"}
    with started(echo, "in.jsonl", "out.jsonl", "--max-inflight", "2") as process:
        wait_until(lambda: len(echo.asked) == 10, TIMEOUT_S, "all but two answers, one after the other")
        process.send_signal(which)
        _, said = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == INTERRUPTED
    assert "8 of 10 lines answered: out.jsonl" in said
    assert said.endswith("stopped: interrupted\nwhat is answered is kept; the same command goes on from there\n")
    assert numbers(folder) == [*range(2, 10)]
    echo.held.clear()
    echo.asked.clear()
    assert batch(echo) == DONE
    assert sorted(echo.asked) == ["1", "10"]
    assert numbers(folder) == [*range(1, 11)]


@pytest.mark.slow
def test_killed_it_goes_on_to_the_same_bytes(echo: Echo, folder: Path) -> None:
    assert batch(echo) == DONE
    whole = (folder / "out.jsonl").read_bytes()
    (folder / "out.jsonl").unlink()
    echo.held.add("4")
    with started(echo) as process:
        wait_until(lambda: (folder / "out.jsonl").exists() and len(lines(folder)) == 3, TIMEOUT_S, "three answers")
        process.kill()
    echo.held.clear()
    assert batch(echo) == DONE
    assert (folder / "out.jsonl").read_bytes() == whole


@pytest.mark.slow
def test_two_at_once_are_one_too_many(echo: Echo, folder: Path, capsys: Capture) -> None:
    echo.held.add("1")
    with started(echo) as process:
        wait_until(lambda: echo.in_flight == 1, TIMEOUT_S, "the first one to ask")
        assert batch(echo) == FAILED
        assert "out.jsonl is being written by another process" in capsys.readouterr().err
        echo.held.clear()
        assert process.wait(TIMEOUT_S) == DONE


@pytest.mark.slow
def test_a_full_disk_stops_it_and_with_room_it_goes_on(echo: Echo, folder: Path) -> None:
    assert batch(echo) == DONE
    whole = (folder / "out.jsonl").read_bytes()
    (folder / "out.jsonl").unlink()
    limit = len(whole) // 2
    with started(echo, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))) as process:
        _, said = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == FAILED
    assert "stopped: out.jsonl can't be written: File too large\n" in said
    assert " 0 tokens/s" not in said
    assert 0 < len(lines(folder)) < 10
    assert batch(echo) == DONE
    assert (folder / "out.jsonl").read_bytes() == whole


def test_a_full_device_is_told(echo: Echo, folder: Path, capsys: Capture) -> None:
    assert main(["batch", "in.jsonl", "/dev/full", "--base-url", echo.url]) == FAILED
    assert "stopped: /dev/full can't be written: No space left on device" in capsys.readouterr().err


@pytest.mark.slow
def test_lines_that_are_added_meanwhile_are_the_next_runs(echo: Echo, folder: Path) -> None:
    echo.held.add("1")
    with started(echo, "in.jsonl", "out.jsonl", "--max-inflight", "1") as process:
        wait_until(lambda: echo.asked == ["1"], TIMEOUT_S, "the first one to be asked")
        with (folder / "in.jsonl").open("a") as file:
            file.write('{"prompt": "11"}\n')
        echo.held.clear()
        _, said = process.communicate(timeout=TIMEOUT_S)
    assert (process.returncode, numbers(folder)) == (DONE, [*range(1, 11)])
    assert said.startswith("10 of 10 lines answered: out.jsonl\n")
    assert batch(echo) == DONE
    assert numbers(folder) == [*range(1, 12)]


@pytest.mark.parametrize(
    "another",
    [
        ["--temperature", "0.5"],
        ["--system", "Be brief."],
        ["--raw", "--max-tokens", "3"],
        ["--model", "another"],
        ["--max-tokens", "3"],
        ["--dtype", "float16"],
        ["--revision", "v2"],
        ["--tokenizer", "another"],
        ["--engine-args", '{"chat_template": "{{ messages }}"}'],
    ],
    ids=" ".join,
)
def test_asked_otherwise_it_does_not_go_on(echo: Echo, folder: Path, capsys: Capture, another: list[str]) -> None:
    echo.server.models.append({"id": "another"})
    assert batch(echo) == DONE
    before = (folder / "out.jsonl").read_bytes()
    assert batch(echo, *another) == FAILED
    assert "out.jsonl was written with another model or other parameters" in capsys.readouterr().err
    assert (folder / "out.jsonl").read_bytes() == before
    of_speed = ["--engine-args", '{"max_num_seqs": 8}']
    assert batch(echo, "--max-inflight", "3", "--timeout", "60", "--order", "done", *of_speed) == DONE


def hows(folder: Path) -> list[str]:
    return [line["id"].rpartition("-")[2] for line in lines(folder)]


def test_another_adapter_of_the_same_name_is_noticed(echo: Echo, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    adapter = folder / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text('{"r": 8}')
    (adapter / "adapter_model.safetensors").write_bytes(b"1")
    job = Job(Input("in.jsonl", "prompt"), "out.jsonl", Asked(GenerationParams(lora="mine")))

    def how(path: Path) -> str:
        engine = Engine(model="org/name", lora_adapters={"mine": str(path)})
        return Asking(engine, job.rows, job.asked).hows[0]

    before = how(adapter)
    assert how(adapter) == before
    assert how(adapter.rename(folder / "other")) != before
    (folder / "other").rename(adapter)
    (adapter / "adapter_model.safetensors").write_bytes(b"22")
    assert how(adapter) != before


@pytest.mark.slow
def test_a_file_of_an_earlier_release_goes_on_as_it_was_compared_then(
    echo: Echo, folder: Path, capsys: Capture
) -> None:
    assert batch(echo) == DONE
    (how,) = set(hows(folder))
    older = Asking(Engine(base_url=echo.url), Input("in.jsonl", "prompt"), Asked()).hows[1]
    path = folder / "out.jsonl"
    path.write_text("".join(path.read_text().replace(how, older).splitlines(keepends=True)[:7]))
    assert batch(echo, "--temperature", "0.5") == FAILED
    assert batch(echo, "--dtype", "float16") == DONE, "that was not compared"
    assert (hows(folder)[:7], how in hows(folder)[7:]) == ([older] * 7, False)
    assert batch(echo) == FAILED, "the lines of this release are compared as they are now"
    assert batch(echo, "--dtype", "float16") == DONE


@pytest.mark.slow
def test_a_model_that_is_not_here_is_fetched_before_its_files_are_looked_at(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = hub_model(folder, monkeypatch)
    begun: list[bool] = []

    async def answers(*_: Any, **__: Any) -> GenerationResult:
        usage = TokenUsage(prompt_tokens=1, completion_tokens=1)
        return GenerationResult(choices=(Choice(text="a", finish_reason="stop"),), usage=usage, request_id="", model="")

    async def downloads(_: Engine) -> None:
        begun.append(snapshot.exists())
        if not snapshot.exists():
            snapshot.mkdir(parents=True)
            (snapshot / "model.safetensors").write_bytes(b"1")

    monkeypatch.setattr(Engine, "awarmup", downloads)
    monkeypatch.setattr(Engine, "achat", answers)
    command = ["batch", "in.jsonl", "out.jsonl", "--model", "org/name"]
    assert main(command) == DONE
    write(folder, *range(1, 12))
    assert main(command) == DONE
    assert (len(lines(folder)), len(set(hows(folder)))) == (11, 1)
    assert begun == [False, True]
    assert main([*command, "--temperature", "0.5"]) == FAILED
    assert main(command) == DONE
    assert main([*command, "--dry-run", "--sample", "0"]) == DONE
    assert len(begun) == 2, "what the output says is compared first, and a complete one needs no engine"


@pytest.mark.slow
def test_a_file_of_other_answers_is_refused_before_an_engine_starts(
    echo: Echo, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    assert batch(echo) == DONE
    hub_model(folder, monkeypatch)

    async def starts(_: Engine) -> None:
        raise AssertionError

    monkeypatch.setattr(Engine, "awarmup", starts)
    for more in ([], ["--dry-run", "--sample", "0"]):
        capsys.readouterr()
        assert main(["batch", "in.jsonl", "out.jsonl", "--model", "org/name", *more]) == FAILED
        assert "out.jsonl was written with another model" in capsys.readouterr().err


def test_a_start_that_fails_or_is_interrupted_is_told_as_the_rest_is(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    hub_model(folder, monkeypatch)
    command = ["batch", "in.jsonl", "out.jsonl", "--model", "org/name", "--json"]

    async def fails(_: Engine) -> None:
        raise EngineStartError("no vLLM")

    async def is_interrupted(_: Engine) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.sleep(TIMEOUT_S)

    for start, code, stopped in ((fails, FAILED, "no vLLM"), (is_interrupted, INTERRUPTED, "interrupted")):
        monkeypatch.setattr(Engine, "awarmup", start)
        assert main(command) == code
        assert json.loads(capsys.readouterr().out)["stopped"] == stopped


def test_the_environments_parameters_count_as_well(echo: Echo, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert batch(echo) == DONE
    monkeypatch.setenv("VLLM_DEFAULT_TEMPERATURE", "0.5")
    assert batch(echo) == FAILED


# ---- errors


@pytest.mark.slow
def test_an_error_takes_its_rows_place_and_is_asked_again_when_told(echo: Echo, folder: Path, capsys: Capture) -> None:
    echo.refused |= {"3", "8"}
    assert batch(echo) == SOME_FAILED
    failed = [line for line in lines(folder) if line["error"]]
    assert [line["line"] for line in failed] == [3, 8]
    assert failed[0]["error"] == {"message": "no", "type": "RequestRejectedError", "param": None, "code": 400}
    assert "2 lines with an error; to ask again: --retry-errors" in capsys.readouterr().err
    echo.refused.clear()
    echo.asked.clear()
    assert batch(echo) == SOME_FAILED
    assert echo.asked == []
    assert batch(echo, "--retry-errors") == DONE
    assert sorted(echo.asked) == ["3", "8"]
    assert [(line["line"], line["text"]) for line in lines(folder)] == [(at, f"re: {at}") for at in range(1, 11)]
    assert batch(echo, "--retry-errors") == DONE


SCHEMA = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"propertyNames": {"pattern": "(a"}}}}
MALFORMED = {
    '{"messages": [{"role": "user", "content": "a"}], "tools": {"type": "function"}}': "tools must be a list of tools",
    '{"messages": [{"role": "user", "content": "a"}], "tools": ["f"]}': "tools[0] must be a dict, got str",
    '{"messages": [{"role": "user", "content": "a"}], "tools": 5}': "tools must be a list of tools",
    '{"messages": [5]}': "messages[0] must be a dict",
    '{"prompt": "a", "temperature": 1e999}': "'temperature' can't be read",
    '{"prompt": "a", "chat_template_kwargs": 5}': "chat_template_kwargs = 5: must be a dict",
    '{"prompt": "a", "extra_body": {"a": ' + "[" * 100_000 + "]" * 100_000 + "}}": "is nested too deeply",
    json.dumps({"prompt": "a", "response_format": SCHEMA}): "propertyNames.pattern = '(a' is not",
}


def test_a_malformed_line_has_an_error_in_its_place(echo: Echo, folder: Path) -> None:
    (folder / "in.jsonl").write_text("\n".join([*MALFORMED, '{"prompt": "b"}']))
    assert batch(echo) == SOME_FAILED
    *failed, last = lines(folder)
    assert [
        words for line, words in zip(failed, MALFORMED.values(), strict=True) if words not in str(line["error"])
    ] == []
    assert last["text"] == "re: b"
    assert batch(echo) == SOME_FAILED, "the file goes on"
    with Engine(base_url=echo.url) as engine:
        found = estimate(engine, Job(Input("in.jsonl", "prompt"), "other.jsonl"), sample=0)
    assert (found.invalid, found.rows) == (len(MALFORMED), len(MALFORMED) + 1)


def test_an_error_of_ours_is_logged_and_the_lines_own(
    echo: Echo, folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    chat = Engine.achat

    async def fails(self: Engine, messages: Any, *arguments: Any, **options: Any) -> Any:
        if messages[-1]["content"] == "3":
            raise ZeroDivisionError("division by zero")
        return await chat(self, messages, *arguments, **options)

    monkeypatch.setattr(Engine, "achat", fails)
    assert batch(echo) == SOME_FAILED
    assert [(line["line"], line["error"]["type"]) for line in lines(folder) if line["error"]] == [
        (3, "ZeroDivisionError")
    ]
    assert len(lines(folder)) == 10
    (record,) = [record for record in caplog.records if record.exc_info]
    assert record.getMessage() == "line 3 can't be asked"


def test_an_error_of_ours_in_every_line_stops_it(
    echo: Echo, folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, capsys: Capture
) -> None:
    write(folder, *range(1, 101))
    asked: list[Any] = []

    async def fails(_: Engine, messages: Any, *__: Any, **___: Any) -> Any:
        asked.append(messages)
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr(Engine, "achat", fails)
    assert batch(echo, "--max-inflight", "1") == FAILED
    assert (
        "stopped: the first 16 lines all failed by an error in vllm-local: ZeroDivisionError" in capsys.readouterr().err
    )
    assert (len(asked), len(lines(folder))) == (MANY_FAULTS, MANY_FAULTS - 1)
    assert len([record for record in caplog.records if record.exc_info]) == 1, "one traceback says it all"


@pytest.mark.parametrize(
    "status", [404, 422, 429, 500, 503], ids=["not found", "refused", "too many", "failed", "not now"]
)
def test_a_refusal_of_any_status_is_the_rows_own(echo: Echo, folder: Path, status: int) -> None:
    write(folder, "a", "b")
    echo.refused, echo.status = {"a"}, status
    assert batch(echo) == SOME_FAILED
    assert [line["error"] and line["error"]["code"] for line in lines(folder)] == [status, None]


@pytest.mark.usefixtures("no_waiting")
@pytest.mark.parametrize("status", [429, 503])
def test_a_server_that_is_busy_is_waited_for(
    echo: Echo, folder: Path, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    monkeypatch.setattr(retry, "MAX_WAIT_S", 0.01)
    write(folder, "a")
    echo.server.fails(status, times=MAX_RETRIES)
    assert main(["batch", "in.jsonl", "out.jsonl", "--base-url", echo.url]) == DONE
    assert len(echo.server.requests) == MAX_RETRIES + 1


@pytest.mark.parametrize("is_openai", [True, False])
def test_a_wrong_key_stops_it_before_it_has_failed_every_row(echo: Echo, folder: Path, is_openai: bool) -> None:
    if is_openai:
        body = {"messages": [{"role": "user", "content": "1"}]}
        line = {"custom_id": "a", "url": "/v1/chat/completions", "body": body}
        (folder / "in.jsonl").write_text(json.dumps(line))
    echo.refused, echo.status = {"1"}, 401
    assert batch(echo, "--max-inflight", "1") == FAILED
    assert lines(folder) == []


@pytest.mark.parametrize("urls", ["http://127.0.0.1:9/v1", "http://127.0.0.1:9/v1,http://127.0.0.1:7/v1"])
def test_servers_that_are_gone_stop_it(folder: Path, capsys: Capture, urls: str) -> None:
    assert main(["batch", "in.jsonl", "out.jsonl", "--base-url", urls, "--max-retries", "0"]) == FAILED
    assert "0 of 10 lines answered" in capsys.readouterr().err
    assert lines(folder) == []


def test_an_input_that_is_missing_is_wrong_usage(echo: Echo, folder: Path, capsys: Capture) -> None:
    assert main(["batch", "no.jsonl", "out.jsonl", "--base-url", echo.url]) == USAGE
    assert "no.jsonl can't be read: No such file or directory" in capsys.readouterr().err
    assert not (folder / "out.jsonl").exists()


# ---- standard input and output


@pytest.mark.slow
def test_from_the_standard_input_to_the_standard_output(echo: Echo, folder: Path) -> None:
    with started(echo, "-", "-", "--json", stdin=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write('{"prompt": "a"}\n')
        process.stdin.flush()
        assert json.loads(process.stdout.readline())["text"] == "re: a"  # while there may be more to come
        out, said = process.communicate('{"prompt": "b"}\n', timeout=TIMEOUT_S)
    assert process.returncode == DONE
    assert json.loads(out)["text"] == "re: b"
    assert json.loads(said) | {"seconds": 0, "tokens_per_second": 0} == {
        "rows": None,
        "before": 0,
        "answered": 2,
        "failed": 0,
        "failed_before": 0,
        "prompt_tokens": 6,
        "completion_tokens": 2,
        "seconds": 0,
        "stopped": None,
        "is_interrupted": False,
        "is_resumable": False,
        "is_complete": True,
        "tokens_per_second": 0,
        "output": "-",
    }


@pytest.mark.slow
def test_ctrl_c_does_not_wait_for_the_standard_input(echo: Echo, folder: Path) -> None:
    with started(echo, "-", "out.jsonl", stdin=subprocess.PIPE) as process:
        assert process.stdin is not None
        process.stdin.write('{"prompt": "a"}\n')
        process.stdin.flush()
        wait_until(lambda: (folder / "out.jsonl").exists() and numbers(folder) == [1], TIMEOUT_S, "the first answer")
        process.send_signal(signal.SIGINT)
        assert process.wait(5) == INTERRUPTED
        assert process.stderr is not None
        process.stderr.read()
    with started(echo, "-", "out.jsonl", stdin=subprocess.DEVNULL) as process:
        assert "is not empty, and an input that is not a file can't be resumed" in process.communicate()[1]
    assert process.returncode == USAGE


@pytest.mark.slow
def test_a_reader_that_leaves_ends_it(echo: Echo, folder: Path) -> None:
    write(folder, *range(2000))
    with started(echo, "in.jsonl", "-", "--max-inflight", "4") as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.wait(TIMEOUT_S) == READER_LEFT
        assert process.stderr is not None
        assert "Traceback" not in process.stderr.read()


# ---- what it shows


@pytest.mark.slow
def test_on_a_terminal_a_bar_is_drawn_and_erased(echo: Echo, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    echo.held.add("9")
    parent, child = pty.openpty()
    shown = io.StringIO()

    def read() -> None:
        try:
            while data := os.read(parent, 4096):
                shown.write(data.decode(errors="replace"))
        except OSError:
            pass  # the terminal is closed

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    monkeypatch.setenv("TERM", "xterm")
    with started(echo, stderr=child) as process:
        os.close(child)
        wait_until(lambda: "8 of 10 lines |" in shown.getvalue(), TIMEOUT_S, "the bar")
        echo.held.clear()
        assert process.wait(TIMEOUT_S) == DONE
    reader.join(TIMEOUT_S)
    os.close(parent)
    assert " tokens/s, " in shown.getvalue()
    assert "\r10 of 10 lines answered: out.jsonl" in shown.getvalue()


def test_a_bar_tells_speed_and_time_left() -> None:
    counts = Counts(rows=100, before=10)
    bar = Bar(counts, "line")
    bar.tick(0.0)
    assert bar.text() == "10 of 100 lines |{bar}| 0 tokens/s, - left"
    counts.answered, counts.failed, counts.completion_tokens = 30, 2, 600
    bar.tick(60.0)
    assert bar.text() == "40 of 100 lines, 2 failed |{bar}| 10 tokens/s, 2:00 left"
    counts.answered, counts.completion_tokens = 60, 1800
    bar.tick(90.0)  # the first sample is more than a minute old
    assert bar.text() == "70 of 100 lines, 2 failed |{bar}| 40 tokens/s, 0:30 left"
    assert [duration(seconds) for seconds in (7, 754, 7384)] == ["0:07", "12:34", "2:03:04"]


def test_the_page_shows_what_is_said() -> None:
    page = (REPOSITORY / "docs" / "batch.md").read_text()
    found = Estimate(
        rows=100_000,
        answered=31_234,
        invalid=1,
        shown=["line 88 is not valid JSON in UTF-8: Input data was truncated"],
        prompt_tokens=2_833_190,
        max_completion_tokens=8_801_920,
        sampled=32,
        sample_s=0.68,
        seconds=0.68 / 32 * 68_766,
    )
    assert "\n".join(found.lines("line")) in page


# ---- the dry run


def test_a_dry_run_counts_estimates_and_writes_nothing(echo: Echo, folder: Path, capsys: Capture) -> None:
    rows = [
        {"prompt": "one two"},
        {"prompt": "one", "max_tokens": 5, "n": 2},
        {"custom_id": "a", "url": "/v1/completions", "body": {"prompt": ["one", "two"], "max_tokens": 3}},
        {"custom_id": "a", "url": "/v1/completions", "body": {"prompt": [1, 2, 3]}},
        {"custom_id": "a", "url": "/v1/embeddings", "body": {"input": "one two three"}},
        {"custom_id": "a", "url": "/v1/rerank", "body": {"query": "a", "documents": ["b"]}},
        {"foo": 1},
        {"prompt": " ".join(["long"] * 3000)},
    ]
    (folder / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    engine = Engine(base_url=echo.url, max_retries=0, max_model_len=2048)
    job = Job(Input("in.jsonl", "prompt"), "out.jsonl")
    found = estimate(engine, job, sample=0)
    assert echo.asked == []
    assert (found.rows, found.invalid, found.too_long, found.uncounted, found.unlimited) == (8, 1, 1, 1, 1)
    assert found.prompt_tokens == 4 + 3 + (3 + 3) + 3 + 5 + 3002
    assert found.max_completion_tokens == 2 * 5 + 2 * 3 + 16
    assert found.seconds is None
    assert batch(echo, "--dry-run", "--json", "--sample", "2") == DONE
    told = json.loads(capsys.readouterr().out)
    assert told["sampled"] == 2
    assert told["seconds"] == pytest.approx(told["sample_s"] / 2 * 8)
    assert not (folder / "out.jsonl").exists()
    assert batch(echo, "--dry-run", "--sample", "0") == DONE
    said = capsys.readouterr().out
    assert "8 of 8 lines to answer\n" in said
    assert "line 7 has neither 'prompt' nor 'messages'" in said
    assert said.endswith("time: not estimated, as no sample was asked\n")


def test_a_dry_run_takes_a_body_that_it_cant_read_for_one_that_is_refused(echo: Echo, folder: Path) -> None:
    bodies: list[tuple[str, dict[str, Any]]] = [
        ("/v1/completions", {"prompt": "one", "max_tokens": "10"}),
        ("/v1/completions", {"prompt": "one", "max_tokens": "ten"}),
        ("/v1/completions", {"prompt": "one", "n": [2]}),
        ("/v1/embeddings", {"input": [1, "a"]}),
        ("/v1/embeddings", {"input": 5}),
        ("/v1/chat/completions", {"messages": "Hi"}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "Hi"}], "chat_template_kwargs": 5}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "Hi"}], "tools": 5}),
    ]
    rows = [{"custom_id": "a", "url": url, "body": body} for url, body in bodies]
    (folder / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with Engine(base_url=echo.url) as engine:
        found = estimate(engine, Job(Input("in.jsonl", "prompt"), "out.jsonl"), sample=0)
    assert (found.rows, found.invalid, found.max_completion_tokens) == (8, 7, 10)


def test_a_dry_run_counts_what_is_to_be_asked_again(echo: Echo, folder: Path, capsys: Capture) -> None:
    echo.refused |= {"3", "8"}
    assert batch(echo) == SOME_FAILED
    before = (folder / "out.jsonl").read_bytes()
    capsys.readouterr()
    assert batch(echo, "--dry-run", "--sample", "0") == DONE
    assert capsys.readouterr().out.startswith("0 of 10 lines to answer\n")
    assert batch(echo, "--dry-run", "--sample", "0", "--retry-errors") == DONE
    assert capsys.readouterr().out.startswith("2 of 10 lines to answer\n")
    assert (folder / "out.jsonl").read_bytes() == before


@pytest.mark.slow
def test_a_dry_run_leaves_out_what_is_answered(echo: Echo, folder: Path, capsys: Capture) -> None:
    assert batch(echo) == DONE
    path = folder / "out.jsonl"
    kept = b"".join(path.read_bytes().splitlines(keepends=True)[:7]) + b'{"id":"8-'
    path.write_bytes(kept)
    assert batch(echo, "--dry-run") == DONE
    said = capsys.readouterr().out
    assert said.startswith("3 of 10 lines to answer\n")
    assert "3 lines from all over the input, asked together, took" in said
    assert path.read_bytes() == kept


# ---- large files


def _peak_kb(folder: Path, rows: int) -> int:
    with (folder / "in.jsonl").open("w") as file:
        file.writelines(f'{{"row": {at}, "filling": "{"x" * 200}"}}\n' for at in range(rows))
    (folder / "out.jsonl").unlink(missing_ok=True)
    code = (
        "import resource, sys; from shared_engine.cli.main import main; code = main(sys.argv[1:]); "
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss); sys.exit(code)"
    )
    with running_server() as server:
        words = ["batch", "in.jsonl", "out.jsonl", "--base-url", f"{server.url}/v1"]
        done = subprocess.run(
            [sys.executable, "-c", code, *words],
            env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == SOME_FAILED, done.stderr
    with (folder / "out.jsonl").open("rb") as file:
        assert sum(1 for _ in file) == rows
    return int(done.stdout)


@pytest.mark.slow
def test_memory_does_not_grow_with_the_file(folder: Path) -> None:
    few, many = _peak_kb(folder, 1000), _peak_kb(folder, 101_000)
    assert many - few < 4000  # 40 bytes for each row; each line of the two files has more than 200
