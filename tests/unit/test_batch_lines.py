"""Rows of a batch: what each asks for, and how its answer or its error is written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from shared_engine.answer_file.identity import Identity, read_written
from shared_engine.cli.batch.asking import ends_batch
from shared_engine.cli.batch.lines import (
    Answer,
    InvalidLineError,
    OpenAILine,
    PlainLine,
    failed_answer,
    invalid_answer,
    openai_answer,
    parse_line,
    plain_answer,
)
from shared_engine.cli.batch.rows import Input, Row
from shared_engine.errors import (
    AuthenticationError,
    EngineBusyError,
    EngineDiedError,
    EngineNotInstalledError,
    EngineStartError,
    EngineStoppedError,
    InvalidInputError,
    RequestRejectedError,
    RequestTimeoutError,
    ServerError,
    ServerUnreachableError,
)
from shared_engine.results import Choice, GenerationResult, TokenUsage, ToolCall

MESSAGES = [{"role": "user", "content": "Hi"}]
ID = "7-0123456789abcdef-01234567"


def openai(url: str = "/v1/chat/completions", **fields: Any) -> dict[str, Any]:
    return {"custom_id": "a", "method": "POST", "url": url, "body": {"messages": MESSAGES}, **fields}


def parsed(row: object, *, is_table: bool = False, prompt_column: str = "prompt") -> OpenAILine | PlainLine:
    return parse_line(json.dumps(row).encode(), prompt_column, is_table=is_table)


def written(answer: Answer) -> dict[str, Any]:
    assert answer.line.endswith(b"\n")
    assert answer.line.count(b"\n") == 1
    assert answer.line.startswith(b'{"id":"')
    line: dict[str, Any] = json.loads(answer.line)
    assert answer.is_error == (line["error"] is not None)
    return line


# ---- what is asked for


@pytest.mark.parametrize(
    "url",
    [
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/responses",
        "/v1/embeddings",
        "/v1/rerank",
        "/rerank",
        "/v1/score",
        "/score",
    ],
)
def test_a_line_of_openais_has_its_body_sent_as_it_is(url: str) -> None:
    text = f'{{"custom_id": "a", "method": "POST", "url": "{url}", "body": {{"x" :  [1.0, "é"]}} }}'.encode()
    assert parse_line(text, "prompt", is_table=False) == OpenAILine("a", url, '{"x" :  [1.0, "é"]}'.encode())


def test_a_prompt_or_messages_are_asked_with_the_lines_own_parameters() -> None:
    assert parsed({"prompt": "Hi", "label": 3, "url": "x"}) == PlainLine(prompt="Hi")
    assert parsed({"prompt": "Hi", "seed": 3, "n": 2}) == PlainLine(prompt="Hi", parameters={"seed": 3, "n": 2})
    tools = [{"type": "function", "function": {"name": "f"}}]
    assert parsed({"messages": MESSAGES, "tools": tools, "model": "m", "timeout": 3}) == PlainLine(
        messages=MESSAGES, parameters={"tools": tools}
    )
    assert parsed({"q": "Hi", "prompt": 1}, prompt_column="q") == PlainLine(prompt="Hi")


def test_of_a_table_only_the_prompt_column_counts() -> None:
    row = {"prompt": "Hi", "seed": 3, "messages": "x", "body": "y", "url": "z", "custom_id": "1"}
    assert parsed(row, is_table=True) == PlainLine(prompt="Hi")


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ([1], "is not a JSON object"),
        ({"foo": 1}, "has neither 'prompt' nor 'messages', nor OpenAI's 'url' and 'body'"),
        ({"prompt": ""}, "'prompt' must be a text that is not empty"),
        ({"prompt": None}, "'prompt' must be a text that is not empty"),
        ({"prompt": ["a"]}, "'prompt' must be a text that is not empty"),
        ({"prompt": "a", "messages": MESSAGES}, "has both 'prompt' and 'messages'"),
        ({"messages": "Hi"}, "'messages' must be a list"),
        ({"custom_id": "a", "url": "/v1/completions"}, "has no 'body'"),
        ({"custom_id": "a", "body": {}}, "has no 'url'"),
        ({"url": "/v1/completions", "body": {}}, "has no 'custom_id'"),
        (openai(custom_id=3), "'custom_id' must be a string"),
        (openai(method="GET"), "'method' must be 'POST', not 'GET'"),
        (openai(url="/v1/audio/speech"), "'url' must be one of /v1/chat/completions,"),
        (openai(body=[1]), "'body' must be an object"),
        (openai(body={"stream": True}), "'stream' must not be set"),
        (b'{"prompt": "a", "temperature": 1e999}', "'temperature' can't be read: Number out of range"),
        (b'{"messages": [{"content": 1e999}]}', "'messages' can't be read: Number out of range"),
        (b'{"custom_id": 1e999, "url": "/score", "body": {}}', "'custom_id' can't be read: Number out of range"),
        (b'{"custom_id": "a", "url": "/score", "body": {"stream": 1e999}}', "'stream' can't be read: Number out of"),
        (b'{"prompt": "a", "x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "is nested too deeply"),
        (b'{"custom_id": "a", "url": "/score", "body": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested too deeply"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_a_row_that_cant_be_asked_says_why(row: object, words: str) -> None:
    with pytest.raises(InvalidLineError, match=words.replace("(", r"\(")) as raised:
        parse_line(row, "prompt", is_table=False) if isinstance(row, bytes) else parsed(row)
    text = row if isinstance(row, bytes) else json.dumps(row).encode()
    answer = invalid_answer(ID, 7, text, "line", raised.value)
    assert read_written(answer.line) == (Identity(7, 0x0123456789ABCDEF, "01234567"), True)


@pytest.mark.parametrize("text", [b"{", b'{"prompt": "a"', b"{}x", b'{"prompt": "\xff"}', b"prompt", b"\x00"])
def test_what_is_not_json_in_utf_8_is_told(text: bytes) -> None:
    with pytest.raises(InvalidLineError, match="is not valid JSON in UTF-8"):
        parse_line(text, "prompt", is_table=False)


# ---- what is written


def result(**fields: Any) -> GenerationResult:
    choice = Choice(text="Hello", finish_reason="stop", **fields)
    usage = TokenUsage(prompt_tokens=3, completion_tokens=2, cached_tokens=1)
    return GenerationResult(choices=(choice,), usage=usage, request_id="chatcmpl-1", model="m")


def test_an_answer_to_a_plain_row_stands_beside_the_whole_row() -> None:
    answer = plain_answer(ID, 7, b'{"prompt": "Hi",  "text": 1}', result(reasoning="hm"))
    assert (answer.prompt_tokens, answer.completion_tokens) == (3, 2)
    assert written(answer) == {
        "id": ID,
        "line": 7,
        "input": {"prompt": "Hi", "text": 1},
        "text": "Hello",
        "reasoning": "hm",
        "tool_calls": [],
        "finish_reason": "stop",
        "usage": {"prompt_tokens": 3, "completion_tokens": 2},
        "error": None,
    }


def test_tool_calls_several_choices_and_logprobs_are_written() -> None:
    called = result(tool_calls=(ToolCall(name="f", arguments="{}", id="1"),), logprobs={"content": []})
    line = written(plain_answer(ID, 7, b"{}", called))
    assert line["tool_calls"] == [{"name": "f", "arguments": "{}", "id": "1"}]
    assert [choice["logprobs"] for choice in line["choices"]] == [{"content": []}]


def test_an_answer_to_a_line_of_openais_has_the_servers_body_on_one_line() -> None:
    body = b'{\n"id": "chatcmpl-1", "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}}'
    answer = openai_answer(ID, OpenAILine("a", "/v1/chat/completions", b"{}"), 200, body)
    assert (answer.prompt_tokens, answer.completion_tokens) == (3, 2)
    assert written(answer) == {
        "id": ID,
        "custom_id": "a",
        "response": {"status_code": 200, "request_id": "chatcmpl-1", "body": json.loads(body)},
        "error": None,
    }


@pytest.mark.parametrize(
    ("usage", "counts"),
    [
        ({"prompt_tokens": 3, "total_tokens": 3, "completion_tokens": None}, (3, 0)),
        ({"total_tokens": 3}, (3, 0)),
        ({"input_tokens": 3, "output_tokens": 2, "total_tokens": 5}, (3, 2)),
        (None, (0, 0)),
    ],
    ids=["embeddings", "scores", "responses", "none"],
)
def test_every_routes_tokens_are_counted(usage: dict[str, Any] | None, counts: tuple[int, int]) -> None:
    body = json.dumps({"id": "e", "usage": usage}).encode()
    answer = openai_answer(ID, OpenAILine("a", "/v1/embeddings", b"{}"), 200, body)
    assert (answer.prompt_tokens, answer.completion_tokens) == counts


@pytest.mark.parametrize(
    ("status", "body", "error"),
    [
        (400, b'{"error": {"message": "no", "code": 400}}', {"message": "no", "code": 400}),
        (502, b"<html>", {"message": "<html>", "type": "ServerError", "param": None, "code": 502}),
        (503, b"", {"message": "HTTP 503", "type": "ServerError", "param": None, "code": 503}),
    ],
)
def test_a_refusal_is_an_error_with_the_servers_words(status: int, body: bytes, error: dict[str, Any]) -> None:
    line = written(openai_answer(ID, OpenAILine("a", "/v1/completions", b"{}"), status, body))
    assert line["error"] == {"error": error}
    assert line["response"] == {"status_code": status, "request_id": ID, "body": None}


@pytest.mark.parametrize("body", [b"data: x", b'{"id": "\xff"}', b"[1", b'{"id": null, "x": \xff}'])
def test_an_answer_that_is_not_json_is_an_error(body: bytes) -> None:
    line = written(openai_answer(ID, OpenAILine("a", "/v1/completions", b"{}"), 200, body))
    assert line["error"]["error"]["message"] == "the answer is not JSON"


@pytest.mark.parametrize(
    ("body", "counts"),
    [
        ({"id": None, "usage": {"prompt_tokens": 3, "total_tokens": 3}}, (3, 0)),
        ({"id": "a", "usage": {"prompt_tokens": None, "completion_tokens": None, "total_tokens": None}}, (0, 0)),
        ({"id": 5, "usage": {"prompt_tokens": 3}}, (0, 0)),
        ({"id": "a", "usage": {"prompt_tokens": "3"}}, (0, 0)),
        ([{"index": 0, "score": 0.5}], (0, 0)),
    ],
    ids=str,
)
def test_an_answer_in_another_form_is_kept(body: object, counts: tuple[int, int]) -> None:
    answer = openai_answer(ID, OpenAILine("a", "/rerank", b"{}"), 200, json.dumps(body, indent=1).encode())
    assert written(answer)["response"]["body"] == body
    assert (answer.prompt_tokens, answer.completion_tokens) == counts


def test_a_failed_request_is_written_in_the_format_of_its_row() -> None:
    error = RequestRejectedError("too long", 400)
    plain = written(failed_answer(ID, 7, b'{"prompt": "a"}', PlainLine(prompt="a"), error))
    assert plain["error"] == {"message": "too long", "type": "RequestRejectedError", "param": None, "code": 400}
    assert plain["input"] == {"prompt": "a"}
    died = EngineDiedError("it died", ("log line",))
    line = written(failed_answer(ID, 7, b"", OpenAILine("a", "/v1/completions", b"{}"), died))
    assert line["error"]["error"] == {"message": "it died", "type": "EngineDiedError", "param": None, "code": None}
    assert (line["custom_id"], line["response"]) == ("a", None)


@pytest.mark.parametrize(
    ("text", "is_openai"),
    [
        (b'{"custom_id": "a", "url": 3}', True),
        (b'{"custom_id": "a", "url', True),
        (b"{", False),
        (b'{"foo": 1}', False),
        (b'{"prompt": "\xff"}', False),
    ],
)
def test_an_invalid_row_is_answered_in_the_format_that_it_seems_to_have(text: bytes, is_openai: bool) -> None:
    line = written(invalid_answer(ID, 7, text, "line", InvalidLineError("is wrong")))
    error = line["error"]["error"] if is_openai else line["error"]
    assert error["message"] == "line 7 is wrong"
    assert ("custom_id" in line) == is_openai


@pytest.mark.parametrize(
    ("error", "ends"),
    [
        (EngineStartError("x"), True),
        (EngineNotInstalledError("x"), True),
        (EngineStoppedError("x"), True),
        (ServerUnreachableError("x"), True),
        (AuthenticationError("x", 401), True),
        (EngineDiedError("x"), False),
        (EngineBusyError("x"), False),
        (RequestTimeoutError("x"), False),
        (ServerError("x", 500), False),
        (RequestRejectedError("x", 400), False),
        (InvalidInputError("x"), False),
        (AttributeError("x"), False),
        (OSError(24, "Too many open files"), True),
        (MemoryError(), True),
    ],
)
def test_what_every_row_would_meet_ends_the_batch(error: Exception, ends: bool) -> None:
    assert ends_batch(error) is ends


# ---- files


def rows(path: Path, prompt_column: str = "prompt") -> list[Row]:
    return list(Input(str(path), prompt_column).rows())


def test_json_lines_are_read_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"prompt": "a"}\r\n\n  \n {"prompt":"b"} \n[')
    assert rows(path) == [Row(1, b'{"prompt": "a"}'), Row(4, b'{"prompt":"b"}'), Row(5, b"[")]


@pytest.mark.parametrize(("suffix", "mark"), [("csv", ","), ("CSV", ","), ("tsv", "\t")])
def test_rows_of_csv_become_json(tmp_path: Path, suffix: str, mark: str) -> None:
    path = tmp_path / f"in.{suffix}"
    lines = [["id", "prompt"], ["1", '"two\nlines ""é"""'], [], ["2"], ["3", '"b"']]
    path.write_text("\ufeff" + "\n".join(mark.join(cells) for cells in lines))
    read = rows(path)
    assert [row.number for row in read] == [1, 2, 3]
    assert json.loads(read[0].text) == {"id": "1", "prompt": 'two\nlines "é"'}
    with pytest.raises(InvalidLineError, match="another number of cells than the header"):
        parse_line(read[1].text, "prompt", is_table=True)
    assert parse_line(read[2].text, "prompt", is_table=True) == PlainLine(prompt="b")


def test_a_cell_may_be_long(tmp_path: Path) -> None:
    path = tmp_path / "in.csv"
    path.write_text(f"prompt\n{'x' * 200_000}\n")
    assert len(rows(path)[0].text) > 200_000


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"id,question\n1,a\n", "has no column 'prompt'; it has 'id', 'question': use --prompt-column"),
        (b"", "has no column 'prompt'; it has none"),
        (b"prompt,prompt\n", "has the column 'prompt' twice"),
        (b"prompt\n\xff\n", "is not valid CSV in UTF-8"),
    ],
)
def test_a_table_that_cant_be_used_is_told(tmp_path: Path, text: bytes, words: str) -> None:
    path = tmp_path / "in.csv"
    path.write_bytes(text)
    with pytest.raises(InvalidInputError, match=words):
        rows(path)


@pytest.mark.slow
def test_an_input_that_is_not_there_is_told(tmp_path: Path) -> None:
    for name in ("in.jsonl", "in.csv", "in.parquet"):
        with pytest.raises(InvalidInputError, match=r"in\.\w+ can't be read: No such file|needs the package pyarrow"):
            rows(tmp_path / name)


def test_rows_of_parquet_become_json(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="make .venv/dev installs it")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "in.parquet"
    table = {"prompt": [f"p{at}" for at in range(600)] + [None], "at": [*range(600), 600], "tags": [["x"]] * 601}
    parquet.write_table(pyarrow.table(table), path)
    read = rows(path)
    assert [row.number for row in read] == [*range(1, 602)]
    assert json.loads(read[599].text) == {"prompt": "p599", "at": 599, "tags": ["x"]}
    with pytest.raises(InvalidLineError, match="'prompt' must be a text that is not empty"):
        parse_line(read[600].text, "prompt", is_table=True)
    with pytest.raises(InvalidInputError, match="has no column 'question'; it has 'prompt', 'at', 'tags'"):
        rows(path, "question")
    path.write_bytes(b"no parquet")
    with pytest.raises(InvalidInputError, match="is not a valid Parquet file"):
        rows(path)
