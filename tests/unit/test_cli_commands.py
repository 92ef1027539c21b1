"""ps, load, embed, rerank, tokens, bench and config: what they print, against a server and directories made by hand."""

from __future__ import annotations

import io
import json
import math
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from shared_engine.cli.bench import Answer, prompt_of, summed
from shared_engine.cli.commands.bench import bench_table
from shared_engine.cli.commands.config import DEFAULT, HIDDEN
from shared_engine.cli.exit_codes import SOME_FAILED
from shared_engine.cli.input_texts import texts_of, whole_text
from shared_engine.cli.main import main
from shared_engine.cli.ps_table import device_share, doing, ps_table, until
from shared_engine.cli.table import as_json, table
from shared_engine.errors import InvalidInputError
from shared_engine.observe.activity import Activity
from shared_engine.observe.engine_info import EngineInfo
from shared_engine.observe.processes import ProcessNode
from shared_engine.runtime.progress import Progress, StartPhase
from shared_engine.runtime.record import EngineState
from shared_engine.settings import SETTINGS
from tests.support.choosy_server import LONG, is_choosy
from tests.support.fake_nvml import A, FakeNvml, gpu
from tests.support.hand_made import KEY, MakeEngine
from tests.support.pooling_server import bodies, embeds_and_reranks
from tests.support.remote_server import RemoteServer, running_server

Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def no_config_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))


@pytest.fixture
def server() -> Iterator[RemoteServer]:
    with running_server() as server:
        yield server


def piped(monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))


# ---- ps

GIB = 1 << 30


def engine(**fields: Any) -> EngineInfo:
    processes = ProcessNode(1, "server", 2 * GIB, fields.pop("gpu", None))
    usual: dict[str, Any] = {"state": EngineState.READY, "is_alive": True, "idle_ttl_s": 1800.0}
    usual["leaves_at"] = time.time() + 1439
    return EngineInfo(**{**usual, "key": KEY, "model": "org/small", "processes": processes, **fields})


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({}, "in 23m"),
        ({"pinned": True}, "in 23m (pinned)"),
        ({"leaves_at": None}, "30m after use"),
        ({"leaves_at": 0.0}, "in 0s"),
        ({"idle_ttl_s": math.inf}, "memory is short"),
        ({"idle_ttl_s": math.inf, "pinned": True}, "unloaded by hand (pinned)"),
        ({"idle_ttl_s": None}, "-"),
        ({"state": EngineState.STARTING}, "-"),
        ({"state": EngineState.ASLEEP}, "in 23m"),
    ],
)
def test_until_when_a_model_stays(fields: dict[str, Any], text: str) -> None:
    assert until(engine(**fields)) == text


@pytest.mark.parametrize(
    ("fields", "activity", "text"),
    [
        ({}, None, "idle"),
        ({"lease_holders": (1,)}, None, "busy"),
        ({"lease_holders": (1,)}, Activity(0, 0), "busy"),
        ({"lease_holders": (1,)}, Activity(3, 0), "3 running"),
        ({"lease_holders": (1,)}, Activity(256, 40), "256 running, 40 waiting"),
        ({"state": EngineState.STOPPING}, None, "stopping"),
        ({"state": EngineState.STARTING, "progress": Progress(StartPhase.WEIGHTS, 1, 3)}, None,
         "starting: loading weights 1/3"),
    ],
)  # fmt: skip
def test_what_a_model_does(fields: dict[str, Any], activity: Activity | None, text: str) -> None:
    assert doing(engine(**fields), activity) == text


@pytest.mark.parametrize(
    ("devices", "held", "text"),
    [
        (("cpu",), 2 * GIB, "cpu 13%"),
        (("cuda:0",), 40 * GIB, "cuda:0 50%"),
        (("cuda:0", "cuda:1"), 40 * GIB, "cuda:0,1 25%"),
        (("cuda:7",), 40 * GIB, "cuda:7"),
        (("cpu",), None, "cpu"),
        ((), 5, "-"),
    ],
)
def test_the_share_of_a_device(devices: tuple[str, ...], held: int | None, text: str) -> None:
    memory = {"cpu": 16 * GIB, "cuda:0": 80 * GIB, "cuda:1": 80 * GIB}
    assert device_share(devices, held, memory) == text


def test_ps_has_a_line_for_each_loaded_model() -> None:
    shown = [engine(devices=("cuda:0",), gpu=40 * GIB, max_model_len=8192), engine(model="org/" + 90 * "m")]
    head, first, second = ps_table(shown, {}, {"cuda:0": 80 * GIB})
    assert head.split() == ["NAME", "KEY", "SIZE", "DEVICE", "CONTEXT", "DOES", "UNTIL"]
    assert first.split() == ["small", KEY[:8], "40.0G", "cuda:0", "50%", "8192", "idle", "in", "23m"]
    assert "2.0G" in second
    assert len(second) <= 100


@pytest.mark.slow
def test_ps_leaves_out_what_is_not_loaded(hand_made: MakeEngine, capsys: Capture) -> None:
    assert main(["ps"]) == 0
    assert capsys.readouterr().out == "no model is loaded\n"
    hand_made(idle_ttl_s=600.0, devices=("cpu",), state_since=time.time() - 60)
    hand_made("f" * 16, supervisor=None)
    assert main(["ps"]) == 0
    _, line = capsys.readouterr().out.splitlines()
    assert line.endswith("idle  in 8m")
    assert main(["ps", "--json"]) == 0
    (told,) = json.loads(capsys.readouterr().out)
    assert (told["running"], told["waiting"], told["idle_ttl_s"]) == (0, 0, 600.0)
    assert 500 < told["leaves_at"] - time.time() < 600
    assert main(["ps", "f" * 16]) == 0
    assert "stopped" in capsys.readouterr().out


@pytest.mark.slow
def test_of_a_gpu_its_own_memory_counts(hand_made: MakeEngine, fake_gpus: FakeNvml, capsys: Capture) -> None:
    made = hand_made(devices=("cuda:0",), idle_ttl_s=600.0)
    fake_gpus.show(gpu(A, total=80 * GIB), f"process {made.child_pid} {20 * GIB}")
    assert main(["ps"]) == 0
    assert capsys.readouterr().out.splitlines()[1].split()[2:5] == ["20.0G", "cuda:0", "25%"]


def test_never_is_null_for_programs() -> None:
    assert engine(idle_ttl_s=math.inf).to_json()["idle_ttl_s"] is None
    assert json.loads(as_json({"a": [math.inf, 1.5]})) == {"a": [None, 1.5]}


# ---- embed, rerank


def test_embed_prints_a_vector_for_each_text(
    server: RemoteServer, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.handler = embeds_and_reranks
    assert main(["embed", "-", "--base-url", server.url, "a", "bcd"]) == 0
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == [[1.0, 8.0], [3.0, 8.0]]
    piped(monkeypatch, "ä line\n\nanother\n".encode())
    assert main(["embed", "-", "--base-url", server.url, "--dimensions", "2", "--truncate", "-1", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["embeddings"] == [[6.0, 8.0], [7.0, 8.0]]
    assert bodies(server)[-1] == {"input": ["ä line", "another"], "dimensions": 2, "truncate_prompt_tokens": -1}


def test_rerank_prints_the_best_first(server: RemoteServer, capsys: Capture, tmp_path: Path) -> None:
    server.handler = embeds_and_reranks
    (tmp_path / "documents").write_text("short\na longer one\n")
    command = ["rerank", "-", "--base-url", server.url, "question", "--file", str(tmp_path / "documents")]
    assert main(command) == 0
    assert capsys.readouterr().out == " 0.1200  a longer one\n 0.0500  short\n"
    assert main([*command, "--top", "1", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["results"] == [{"index": 1, "relevance_score": 0.12, "document": "a longer one"}]


@pytest.mark.parametrize(("on_error", "left"), [("skip", []), ("none", [None])])
def test_one_bad_text_or_document_costs_only_itself(
    server: RemoteServer, capsys: Capture, on_error: str, left: list[None]
) -> None:
    is_choosy(server)
    given = ["-", "--base-url", server.url, "--on-error", on_error]
    assert main(["embed", *given, "ab", LONG, "a"]) == SOME_FAILED
    said = capsys.readouterr()
    assert [json.loads(line) for line in said.out.splitlines()] == [[2.0, 0.5], *left, [1.0, 0.5]]
    assert said.err.count("text 2: HTTP 400: the text has 22 tokens") == 1
    assert main(["rerank", *given, "question", "a", LONG, "ab"]) == SOME_FAILED
    said = capsys.readouterr()
    rest = [f"      -  {LONG}"] * len(left)
    assert said.out.splitlines() == [" 2.0000  ab", " 1.0000  a", *rest]
    assert "document 2: HTTP 400: the document (22 tokens) with the query" in said.err
    assert main(["embed", *given, "ab"]) == 0


def test_what_a_server_refuses_is_a_line(server: RemoteServer, capsys: Capture) -> None:
    server.fails(400, message="not an embedding model")
    assert main(["embed", "-", "--base-url", server.url, "a"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("vllm-local: ")
    assert "not an embedding model" in error


# ---- texts


def test_texts_are_words_lines_of_a_file_or_of_a_pipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"\xef\xbb\xbfone\r\n\r\nt\xe2\x80\xa8wo")
    assert texts_of(["a b", "c"], None, "TEXT") == ["a b", "c"]
    assert texts_of([], str(file), "TEXT") == ["one", "t\u2028wo"]
    assert whole_text(["a b", "c"], None, "TEXT") == "a b c"
    assert whole_text([], str(file), "TEXT") == "one\r\n\r\nt\u2028wo"
    for given in ([], ["-"]):
        piped(monkeypatch, b"x\ny\n")
        assert texts_of(given, None, "TEXT") == ["x", "y"]


def test_texts_that_are_none_or_not_unicode_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"ab\xff")
    with pytest.raises(InvalidInputError, match=r"file is not UTF-8: byte 2 is 0xff"):
        texts_of([], str(file), "TEXT")
    with pytest.raises(InvalidInputError, match="in the command line or in a file"):
        texts_of(["a"], str(file), "TEXT")
    piped(monkeypatch, b"\n")
    with pytest.raises(InvalidInputError, match="TEXT: there is none in the input"):
        texts_of([], None, "TEXT")
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(InvalidInputError, match="name it, pipe it in, or pass --file"):
        whole_text([], None, "TEXT")


def test_a_file_that_is_missing_is_told(server: RemoteServer, capsys: Capture) -> None:
    assert main(["embed", "-", "--base-url", server.url, "--file", "/no/file"]) == 2
    assert capsys.readouterr().err == "vllm-local: /no/file can't be read: No such file or directory\n"


# ---- tokens


def test_tokens_are_counted_and_shown(server: RemoteServer, capsys: Capture, tmp_path: Path) -> None:
    command = ["-", "--base-url", server.url]
    assert main(["tokens", "count", *command, "one two", "three"]) == 0
    assert capsys.readouterr().out == "5\n"
    (tmp_path / "messages").write_text('[{"role": "user", "content": "one"}]')
    assert main(["tokens", "count", *command, "--messages", "--file", str(tmp_path / "messages"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["count"] == 3
    assert main(["tokens", "show", *command, "one two"]) == 0
    assert capsys.readouterr().out == "ID  TOKEN\n 0  t0\n 1  t1\n"
    assert main(["tokens", "show", *command, "one", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["tokens"] == [{"id": 0, "text": "t0"}]


@pytest.mark.parametrize(
    ("text", "told"), [("{", "the conversation is not JSON: "), ("{}", "the conversation must be a list of messages")]
)
def test_a_conversation_that_is_none_is_told(server: RemoteServer, capsys: Capture, text: str, told: str) -> None:
    assert main(["tokens", "count", "-", "--base-url", server.url, "--messages", text]) == 2
    assert told in capsys.readouterr().err


# ---- load


def test_load_of_a_remote_server_asks_for_its_health(server: RemoteServer, capsys: Capture) -> None:
    assert main(["load", "-", "--base-url", server.url]) == 0
    assert capsys.readouterr().out.startswith(f"{server.url} is ready after ")


def test_what_is_another_machines_cannot_be_pinned(server: RemoteServer, capsys: Capture) -> None:
    assert main(["load", "-", "--base-url", server.url, "--pin"]) == 2
    assert "--pin keeps an engine of this machine" in capsys.readouterr().err


def test_load_under_the_command_itself_is_refused(capsys: Capture) -> None:
    assert main(["load", "org/name", "--mode", "direct"]) == 2
    assert "mode='direct' loads a model into this command alone" in capsys.readouterr().err


# ---- bench


def test_the_numbers_of_a_level() -> None:
    answers = [Answer(0.0, 0.1, 1.1, 100, 11), Answer(0.0, 0.3, 0.8, 102, 11), Answer(0.0, 0.2, 2.2, 104, 11)]
    level = summed(3, answers, 3.0)
    assert (level.first_token_s, level.tokens_per_s, level.tokens_per_s_each) == (0.2, 11.0, 10.0)
    assert (level.parallel, level.requests, level.prompt_tokens) == (3, 3, 102)
    assert bench_table([level]) == ["PARALLEL  FIRST TOKEN  TOKENS/S  EACH", "       3       200 ms        11    10"]


def test_an_answer_in_one_piece_has_no_rate() -> None:
    level = summed(1, [Answer(0.0, 1.0, 1.0, 1, 1)], 1.0)
    assert (level.tokens_per_s, level.tokens_per_s_each) == (1.0, None)


def test_a_server_that_counts_no_tokens_has_no_speed(server: RemoteServer, capsys: Capture) -> None:
    server.streams("a", "b")
    command = ["bench", "-", "--base-url", server.url, "--parallel", "1", "--rounds", "1"]
    assert main([*command, "--json"]) == 0
    (level,) = json.loads(capsys.readouterr().out)["levels"]
    assert (level["tokens_per_s"], level["tokens_per_s_each"], level["prompt_tokens"]) == (None, None, None)
    assert level["first_token_s"] > 0
    assert main(command) == 0
    _, line, last = capsys.readouterr().out.splitlines()
    assert line.split()[-2:] == ["-", "-"]
    assert last == "answers of 64 tokens, which the server does not count"


def test_no_two_prompts_are_equal() -> None:
    assert len({prompt_of(50) for _ in range(100)}) == 100
    assert len(prompt_of(7).split()) == 7


def test_bench_sends_so_many_at_once(server: RemoteServer, capsys: Capture) -> None:
    async def stream(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        usage = {"prompt_tokens": 9, "completion_tokens": 2}
        for text, reason in (("a", None), ("b", "length")):
            event = {"id": "c", "model": "m", "choices": [{"index": 0, "text": text, "finish_reason": reason}]}
            await response.write(b"data: " + json.dumps(event).encode() + b"\n\n")
        await response.write(b"data: " + json.dumps({"id": "c", "model": "m", "choices": [], "usage": usage}).encode())
        await response.write(b"\n\ndata: [DONE]\n\n")
        return response

    server.handler = stream
    command = ["bench", "-", "--base-url", server.url, "--parallel", "1,3", "--rounds", "2", "--max-tokens", "2"]
    assert main([*command, "--json"]) == 0
    first, second = json.loads(capsys.readouterr().out)["levels"]
    assert (first["parallel"], first["requests"], first["prompt_tokens"]) == (1, 2, 9)
    assert (second["parallel"], second["requests"]) == (3, 6)
    sent = [body for _, body in server.requests]
    assert len(sent) == 1 + 2 + 6
    assert {(body["max_tokens"], body["ignore_eos"]) for body in sent} == {(2, True)}
    assert main(command) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "prompts of 9 tokens, answers of 2"


# ---- config


def test_config_tells_where_each_value_came_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    file = tmp_path / "config/vllm-local/config.toml"
    file.parent.mkdir(parents=True)
    file.write_text("idle_ttl_s = 60\napi_key = 'secret'\nbase_url = 'http://h'\n")
    monkeypatch.setenv("VLLM_DTYPE", "float32")
    assert main(["config", "--max-model-len", "512", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert set(told) == set(SETTINGS)
    assert told["max_model_len"] == {"value": 512, "source": "--max-model-len"}
    assert told["dtype"] == {"value": "float32", "source": "VLLM_DTYPE"}
    assert told["idle_ttl_s"] == {"value": 60.0, "source": str(file)}
    assert told["api_key"] == {"value": HIDDEN, "source": str(file)}
    assert told["pinned"] == {"value": False, "source": DEFAULT}
    assert told["model"] == {"value": None, "source": DEFAULT}
    assert main(["config", "--given"]) == 0
    shown = capsys.readouterr().out
    assert "secret" not in shown
    assert [line.split()[0] for line in shown.splitlines()] == ["SETTING", "base_url", "api_key", "dtype", "idle_ttl_s"]


def test_config_shows_values_as_a_file_has_them(capsys: Capture) -> None:
    words = ["--no-pinned", "--idle-ttl-s", "inf", "--timeout", "60", "--engine-args", '{"max_num_seqs": 8}']
    assert main(["config", "--given", *words]) == 0
    values = [
        line.split(maxsplit=1)[1].rpartition(" --")[0].strip() for line in capsys.readouterr().out.splitlines()[1:]
    ]
    assert values == ['{"max_num_seqs": 8}', "inf", "false", "60"]
    assert main(["config", "--given", "--config", "none"]) == 0
    assert capsys.readouterr().out == "every setting is at its default\n"


def test_config_tells_of_a_variable_that_nothing_reads(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_IDLE_TTL_S", "60")
    assert main(["config", "--given", "--json"]) == 0
    told = "vllm-local: VLLM_IDLE_TTL_S is set, and no setting reads it; did you mean VLLM_IDLE_TTL_SECONDS?\n"
    assert capsys.readouterr() == ("{}\n", told)


def test_config_refuses_what_an_engine_would(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_MAX_MODEL_LEN", "many")
    assert main(["config"]) == 2
    assert "max_model_len (from VLLM_MAX_MODEL_LEN) = 'many'" in capsys.readouterr().err
    assert main(["config", "max_modle_len"]) == 2
    assert "did you mean 'max_model_len'?" in capsys.readouterr().err


# ---- tables


@pytest.mark.parametrize(
    ("columns", "shown"), [("", 63 * "a" + "…  " + 30 * "b"), ("80", 49 * "a" + "…  " + 23 * "b" + "…")]
)
def test_a_table_is_cut_in_the_columns_that_may_be(monkeypatch: pytest.MonkeyPatch, columns: str, shown: str) -> None:
    """To 100 columns, or as many as the terminal has."""
    monkeypatch.setenv("COLUMNS", columns)
    rows = [("A", "B", "C"), (150 * "a", 30 * "b", "1"), ("a\x1b[2J", "b", "22")]
    first, second, third = table(rows, numbers=(2,), least=((0, 50), (1, 5)))
    assert len(second) == int(columns or 100)
    assert second.startswith(shown)
    assert third.startswith("a  ")
    assert first.endswith(" C")
