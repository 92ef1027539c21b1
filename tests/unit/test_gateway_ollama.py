"""Ollama's protocol: what is asked in it becomes OpenAI's, and the answers become lines of Ollama's. Pure."""

from __future__ import annotations

import base64
import json
from typing import Any

import msgspec
import pytest

from shared_engine.errors import InvalidInputError, ServerConnectionError, ServerError
from shared_engine.gateway.ollama.answers import Embedded, EmbeddedOne, Generated, Loaded, said_in_chat, said_in_text
from shared_engine.gateway.ollama.conversations import conversation
from shared_engine.gateway.ollama.options import parameters_of
from shared_engine.gateway.ollama.requests import ChatRequest, EmbedRequest, GenerateRequest
from shared_engine.gateway.refusals import RefusedError

HELLO = [{"role": "user", "content": "Hello"}]
PNG, JPEG = b"\x89PNG\r\n\x1a\n" + bytes(8), b"\xff\xd8\xff\xe0" + bytes(8)
WEBP, WAV = b"RIFF\x00\x00\x00\x00WEBP" + bytes(4), b"RIFF\x00\x00\x00\x00WAVE" + bytes(4)


def encoded(data: bytes) -> str:
    return base64.b64encode(data).decode()


def asked(kind: type[Any], **fields: Any) -> Any:
    return msgspec.convert({"model": "m", **fields}, kind)


def chat_body(**fields: Any) -> dict[str, Any]:
    body: dict[str, Any] = asked(ChatRequest, **{"messages": HELLO, "stream": False, **fields}).body()
    return body


def beside_messages(**fields: Any) -> dict[str, Any]:
    return {name: value for name, value in chat_body(**fields).items() if name != "messages"}


# ---- options


@pytest.mark.parametrize(
    ("options", "parameters"),
    [
        ({}, {}),
        (
            {"temperature": 0, "top_p": 0.9, "min_p": 0.1, "presence_penalty": 1, "frequency_penalty": 0.5},
            {"temperature": 0, "top_p": 0.9, "min_p": 0.1, "presence_penalty": 1, "frequency_penalty": 0.5},
        ),
        ({"top_k": 40.0, "seed": 7, "num_predict": 9}, {"top_k": 40, "seed": 7, "max_tokens": 9}),
        ({"seed": -1, "num_predict": -1, "top_k": -5}, {"top_k": -1}),
        ({"num_predict": -2}, {}),
        ({"num_predict": 0}, {}),
        ({"repeat_penalty": 1.1}, {"repetition_penalty": 1.1}),
        ({"repeat_penalty": 1.1, "repeat_last_n": 0}, {}),
        ({"stop": ["a", "b"]}, {"stop": ["a", "b"]}),
        ({"stop": "a"}, {"stop": ["a"]}),
        ({"temperature": None, "stop": None, "seed": None}, {}),
        ({"num_ctx": 8192, "num_gpu": 99, "mirostat": 2, "typical_p": 0.7, "unheard_of": "x"}, {}),
    ],
)
def test_options_are_parameters_of_vllms(options: dict[str, Any], parameters: dict[str, Any]) -> None:
    assert parameters_of(options) == parameters


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": "hot"}, {"temperature": True}, {"top_k": [1]}, {"seed": {}}, {"stop": 3}, {"stop": ["a", 3]},
        {"num_predict": float("inf")}, {"top_p": float("nan")},
    ],
)  # fmt: skip
def test_an_option_of_another_type_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(RefusedError, match=f"option '{next(iter(options))}' must be") as caught:
        parameters_of(options)
    assert caught.value.status == 400


def test_what_vllm_would_refuse_names_the_parameter() -> None:
    with pytest.raises(InvalidInputError, match="temperature"):
        chat_body(options={"temperature": -1})


# ---- what is asked


@pytest.mark.parametrize(
    ("fields", "body"),
    [
        ({}, {}),
        ({"stream": None}, {"stream": True, "stream_options": {"include_usage": True}}),
        ({"think": True}, {"chat_template_kwargs": {"enable_thinking": True, "thinking": True}}),
        ({"think": False}, {"chat_template_kwargs": {"enable_thinking": False, "thinking": False}}),
        ({"format": ""}, {}),
        ({"format": None}, {}),
        ({"format": "json"}, {"response_format": {"type": "json_object"}}),
        (
            {"format": {"type": "object"}},
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "format", "schema": {"type": "object"}},
                }
            },
        ),
        ({"logprobs": True}, {"logprobs": True}),
        ({"logprobs": True, "top_logprobs": 3}, {"logprobs": True, "top_logprobs": 3}),
        ({"top_logprobs": 3}, {}),
        ({"options": {"temperature": 0}}, {"temperature": 0}),
        ({"tools": []}, {}),
        ({"tools": [{"type": "function"}]}, {"tools": [{"type": "function"}]}),
        ({"keep_alive": "5m", "truncate": True, "shift": False, "unheard_of": 1}, {}),
    ],
)
def test_fields_of_a_chat(fields: dict[str, Any], body: dict[str, Any]) -> None:
    assert beside_messages(**fields) == body


@pytest.mark.parametrize(("think", "effort"), [("low", "low"), ("high", "high"), ("max", "high")])
def test_how_hard_to_think(think: str, effort: str) -> None:
    assert beside_messages(think=think)["reasoning_effort"] == effort


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"think": "hard"}, "invalid think value"),
        ({"format": "yaml"}, "invalid format"),
        ({"format": ["json"]}, "invalid format"),
        ({"logprobs": True, "top_logprobs": 21}, "between 0 and 20"),
        ({"top_logprobs": -1}, "between 0 and 20"),
    ],
)
def test_what_ollama_refuses_is_refused(fields: dict[str, Any], says: str) -> None:
    for kind, more in ((ChatRequest, {"messages": HELLO}), (GenerateRequest, {"prompt": "Hello"})):
        with pytest.raises(RefusedError, match=says) as caught:
            asked(kind, **more, **fields).body()
        assert caught.value.status == 400


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"raw": True, "system": "s"}, "raw mode does not support"),
        ({"raw": True, "context": [1]}, "raw mode does not support"),
        ({"suffix": "}"}, "does not support insert"),
        ({"template": "{{ .Prompt }}"}, "template is not supported"),
        ({"context": [1, 2]}, "context is not supported"),
    ],
)
def test_what_generate_can_not_do_is_told(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(RefusedError, match=says):
        asked(GenerateRequest, prompt="Hello", **fields).check("m")


def test_a_text_with_a_system_prompt_is_a_conversation_and_raw_is_a_text() -> None:
    request = asked(GenerateRequest, prompt="Hello", system="Be brief.", stream=False, images=None)
    assert request.body() == {"messages": [{"role": "system", "content": "Be brief."}, *HELLO]}
    raw = asked(GenerateRequest, prompt="Hello", raw=True, stream=False)
    assert raw.text_body(2048) == {"prompt": "Hello", "max_tokens": 2048}  # else vLLM stops after 16
    with pytest.raises(RefusedError, match=r"give options\.num_predict"):
        raw.text_body(None)
    short = asked(GenerateRequest, prompt="Hello", raw=True, stream=False, options={"num_predict": 5}, logprobs=True)
    assert short.text_body(2048) == {"prompt": "Hello", "max_tokens": 5, "logprobs": 1}
    with pytest.raises(RefusedError, match="images need"):
        asked(GenerateRequest, prompt="Hello", raw=True, images=[encoded(PNG)]).text_body(None)


@pytest.mark.parametrize(
    ("fields", "texts"),
    [({}, []), ({"input": ""}, []), ({"input": []}, []), ({"input": "a"}, ["a"]), ({"input": ["a", ""]}, ["a", ""])],
)
def test_texts_to_embed(fields: dict[str, Any], texts: list[str]) -> None:
    request = asked(EmbedRequest, **fields)
    assert request.texts() == texts
    assert request.body()["truncate_prompt_tokens"] == -1
    assert "truncate_prompt_tokens" not in asked(EmbedRequest, truncate=False, **fields).body()


@pytest.mark.parametrize("given", [3, [1, 2], ["a", 1], {"a": 1}, True])
def test_what_is_no_text_is_not_embedded(given: Any) -> None:
    with pytest.raises(RefusedError, match="invalid input type"):
        asked(EmbedRequest, input=given).texts()


# ---- conversations


def told(*messages: dict[str, Any]) -> list[dict[str, Any]]:
    return asked(ChatRequest, messages=list(messages)).body()["messages"]  # type: ignore[no-any-return]


def called(name: str, id_: str | None = None) -> dict[str, Any]:
    call = {"function": {"name": name, "arguments": {"city": "Köln"}}}
    return call if id_ is None else {**call, "id": id_}


def test_roles_and_thoughts_are_passed_on() -> None:
    assert told({"role": "System", "content": "s"}, {"role": "assistant", "content": "a", "thinking": "t"}) == [
        {"role": "system", "content": "s"},
        {"role": "assistant", "content": "a", "reasoning": "t"},
    ]
    assert told({"role": "user", "content": None}) == [{"role": "user", "content": ""}]


def test_results_without_an_id_belong_to_calls_by_their_tool_or_else_in_order() -> None:
    messages = told(
        *HELLO,
        {"role": "assistant", "tool_calls": [called("rain"), called("wind"), called("rain")]},
        {"role": "tool", "tool_name": "wind", "content": "1"},
        {"role": "tool", "tool_name": "rain", "content": "2"},
        {"role": "tool", "content": "3"},
        {"role": "assistant", "tool_calls": [called("sun", "mine"), called("sun")]},
        {"role": "tool", "tool_call_id": "mine", "content": "4"},
        {"role": "tool", "tool_name": "sun", "content": "5"},
    )
    calls = [call["id"] for message in messages for call in message.get("tool_calls", ())]
    assert len(set(calls)) == 5
    results = [message["tool_call_id"] for message in messages if message["role"] == "tool"]
    assert results == [calls[1], calls[0], calls[2], "mine", calls[4]]
    assert messages[1]["tool_calls"][0] == {
        "id": calls[0],
        "type": "function",
        "function": {"name": "rain", "arguments": '{"city": "Köln"}'},
    }


def test_a_result_that_belongs_to_no_call_is_passed_on() -> None:
    (result,) = told({"role": "tool", "content": "1", "tool_call_id": "x"})
    assert result == {"role": "tool", "content": "1", "tool_call_id": "x"}
    assert told({"role": "tool", "content": "1"})[0]["tool_call_id"]


@pytest.mark.parametrize(
    ("data", "kind"),
    [(PNG, "image/png"), (JPEG, "image/jpeg"), (WEBP, "image/webp"), (b"GIF89a", "image/gif"), (b"BM12", "image/bmp")],
)
def test_a_picture_is_sent_as_what_it_is(data: bytes, kind: str) -> None:
    (message,) = told({"role": "user", "content": "What is it?", "images": [encoded(data)]})
    assert message["content"] == [
        {"type": "image_url", "image_url": {"url": f"data:{kind};base64,{encoded(data)}"}},
        {"type": "text", "text": "What is it?"},
    ]


def test_a_sound_is_sent_as_one() -> None:
    for data, kind in ((WAV, "wav"), (b"ID3\x04", "mp3"), (b"\xff\xfb\x90\x00", "mp3")):
        (message,) = told({"role": "user", "content": "?", "images": [encoded(data)]})
        assert message["content"][0] == {
            "type": "input_audio",
            "input_audio": {"data": encoded(data), "format": kind},
        }


@pytest.mark.parametrize(
    ("image", "says"),
    [
        ("http://169.254.169.254/", "not base64"), ("file:///etc/passwd", "not base64"), ("/etc/passwd", "not base64"),
        ("data:image/png;base64," + encoded(PNG), "not base64"), ("####", "not base64"),
        (encoded(b"<svg/>"), "a format that is not known"), ("", "a format that is not known"),
    ],
)  # fmt: skip
def test_nothing_else_is_an_image(image: str, says: str) -> None:
    for request in (
        asked(ChatRequest, messages=[{"role": "user", "content": "?", "images": [image]}]),
        asked(GenerateRequest, prompt="?", images=[image]),
    ):
        with pytest.raises(RefusedError, match=says):
            request.body()


# ---- answers


def events(*events: dict[str, Any] | str) -> bytes:
    return b"".join(
        b"data: " + (each if isinstance(each, str) else json.dumps(each)).encode() + b"\n\n" for each in events
    )


def delta(finish_reason: str | None = None, logprobs: Any = None, **said: Any) -> dict[str, Any]:
    choice = {"index": 0, "delta": said, "finish_reason": finish_reason, "logprobs": logprobs}
    return {"id": "c", "model": "served", "choices": [choice]}


USAGE = {"id": "c", "model": "served", "choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 2}}


def lines(answer: bytes) -> list[dict[str, Any]]:
    assert answer.endswith(b"\n")
    return [json.loads(line) for line in answer.decode().split("\n")[:-1]]


def streamed(stream: bytes, said: Any = said_in_chat, size: int = 7) -> list[dict[str, Any]]:
    """The lines of a stream that comes in pieces of so many bytes."""
    answer = Generated("m:latest", said)
    pieces = [answer.piece(stream[at : at + size]) for at in range(0, len(stream), size)]
    return lines(b"".join(pieces) + answer.end())


@pytest.mark.parametrize("size", [1, 7, 10_000])
def test_a_stream_is_lines_and_the_last_one_has_the_counts(size: int) -> None:
    stream = events(
        delta(role="assistant", content=""), delta(reasoning="Hm"), delta(content="Gr"), delta(content="üß"),
        delta("stop"), USAGE, "[DONE]",
    )  # fmt: skip
    found = streamed(stream, size=size)
    assert [each["message"] for each in found] == [
        {"role": "assistant", "content": "", "thinking": "Hm"},
        {"role": "assistant", "content": "Gr"},
        {"role": "assistant", "content": "üß"},
        {"role": "assistant", "content": ""},
    ]
    assert [each["done"] for each in found] == [False, False, False, True]
    assert {each["model"] for each in found} == {"m:latest"}
    last = found[-1]
    assert (last["done_reason"], last["prompt_eval_count"], last["eval_count"]) == ("stop", 3, 2)
    durations = ("total_duration", "load_duration", "prompt_eval_duration", "eval_duration")
    assert all(isinstance(last[name], int) and last[name] >= 0 for name in durations)
    assert last["total_duration"] >= last["prompt_eval_duration"] + last["eval_duration"]
    assert not any("eval_count" in each for each in found[:-1])


def test_a_stream_of_generate_has_its_own_fields() -> None:
    stream = events(delta(reasoning="Hm"), delta(content="Hi"), delta("length"), USAGE, "[DONE]")
    found = streamed(stream, said_in_text)
    assert [(each["response"], each.get("thinking")) for each in found] == [("", "Hm"), ("Hi", None), ("", None)]
    assert found[-1]["done_reason"] == "length"


CALL = {"index": 0, "id": "call_1", "type": "function", "function": {"name": "rain", "arguments": ""}}


def arguments(text: str, index: int = 0) -> dict[str, Any]:
    return delta(tool_calls=[{"index": index, "function": {"arguments": text}}])


def test_calls_of_a_stream_come_whole_before_its_end() -> None:
    other = {**CALL, "index": 1, "id": "call_2", "function": {"name": "wind", "arguments": "{}"}}
    stream = events(
        delta(content="Well"), delta(tool_calls=[CALL]), arguments('{"ci'), arguments('ty": "Köln"}'),
        delta(tool_calls=[other]), delta("tool_calls"), USAGE, "[DONE]",
    )  # fmt: skip
    found = streamed(stream)
    assert [each["message"].get("tool_calls") for each in found] == [
        None,
        [
            {"id": "call_1", "function": {"index": 0, "name": "rain", "arguments": {"city": "Köln"}}},
            {"id": "call_2", "function": {"index": 1, "name": "wind", "arguments": {}}},
        ],
        None,
    ]
    assert (found[-1]["done"], found[-1]["done_reason"]) == (True, "stop")


def test_a_call_that_the_limit_cuts_off_is_no_call() -> None:
    stream = events(delta(tool_calls=[CALL]), arguments('{"ci'), delta("length"), USAGE, "[DONE]")
    found = streamed(stream)
    assert [(each["done"], each.get("done_reason")) for each in found] == [(True, "length")]
    assert "tool_calls" not in found[0]["message"]


def test_arguments_that_are_no_object_are_an_error() -> None:
    stream = events(delta(tool_calls=[CALL]), arguments("[1]"), delta("tool_calls"), USAGE, "[DONE]")
    with pytest.raises(ServerError, match=r"'rain' with arguments that are not a JSON object: '\[1\]'"):
        streamed(stream)


def test_an_error_in_a_stream_and_one_that_is_cut_are_errors() -> None:
    answer = Generated("m", said_in_chat)
    with pytest.raises(ServerError, match="no luck"):
        answer.piece(events({"error": {"message": "no luck", "code": 500}}))
    answer = Generated("m", said_in_chat)
    answer.piece(events(delta(content="Hi")))
    with pytest.raises(ServerConnectionError, match="before it was whole"):
        answer.end()


def test_a_whole_answer_is_one_line() -> None:
    message = {
        "content": "Hi",
        "reasoning": "Hm",
        "tool_calls": [{"id": "call_1", "function": {"name": "rain", "arguments": '{"a": 1}'}}],
    }
    body = {
        "id": "c",
        "model": "served",
        "choices": [{"index": 0, "message": message, "finish_reason": "tool_calls"}],
        "usage": {"prompt_tokens": 3, "completion_tokens": 2},
    }
    (found,) = lines(Generated("m", said_in_chat).whole(json.dumps(body).encode()))
    assert found["message"] == {
        "role": "assistant",
        "content": "Hi",
        "thinking": "Hm",
        "tool_calls": [{"id": "call_1", "function": {"index": 0, "name": "rain", "arguments": {"a": 1}}}],
    }
    assert (found["done"], found["done_reason"], found["prompt_eval_count"], found["eval_count"]) == (
        True,
        "stop",
        3,
        2,
    )
    assert "prompt_eval_duration" not in found
    (found,) = lines(Generated("m", said_in_text).whole(json.dumps(body).encode()))
    assert (found["response"], found["thinking"]) == ("Hi", "Hm")


def test_log_probabilities_of_chat_and_of_text() -> None:
    token = {"token": "Hi", "logprob": -0.5, "bytes": [72, 105]}
    stream = events(
        delta(content="Hi", logprobs={"content": [{**token, "top_logprobs": [token]}]}),
        delta(content="!", logprobs={"content": [{**token, "top_logprobs": []}]}),
        delta("stop"), USAGE, "[DONE]",
    )  # fmt: skip
    found = streamed(stream)
    assert found[0]["logprobs"] == [{**token, "top_logprobs": [token]}]
    assert found[1]["logprobs"] == [token]
    choice = {
        "index": 0,
        "text": "Hi",
        "finish_reason": "stop",
        "logprobs": {"tokens": ["Hi"], "token_logprobs": [-0.5], "top_logprobs": [{"Ho": -1.0}]},
    }
    (whole,) = lines(Generated("m", said_in_text).whole(json.dumps({"choices": [choice]}).encode()))
    assert whole["logprobs"] == [{"token": "Hi", "logprob": -0.5, "top_logprobs": [{"token": "Ho", "logprob": -1.0}]}]


def test_vectors_have_length_one_also_when_they_are_cut() -> None:
    body = json.dumps(
        {"data": [{"index": 0, "embedding": [3.0, 4.0, 0.0]}], "model": "served", "usage": {"prompt_tokens": 2}}
    ).encode()
    whole = json.loads(Embedded("m", 1).whole(body))
    assert (whole["embeddings"], whole["model"], whole["prompt_eval_count"]) == ([[0.6, 0.8, 0.0]], "m", 2)
    assert json.loads(Embedded("m", 1, 1).whole(body))["embeddings"] == [[1.0]]
    assert json.loads(EmbeddedOne("m", 1).whole(body)) == {"embedding": [3.0, 4.0, 0.0]}
    assert json.loads(Embedded("m", 0).whole(b"{}"))["embeddings"] == []
    assert json.loads(EmbeddedOne("m", 0).whole(b"{}")) == {"embedding": []}


@pytest.mark.parametrize("answer", [Embedded("m", 2), EmbeddedOne("m", 1)])
def test_an_answer_without_as_many_vectors_as_texts_is_the_servers_failure(answer: Embedded | EmbeddedOne) -> None:
    with pytest.raises(ServerError, match="with 0 embeddings"):
        answer.whole(b'{"data": []}')


def test_what_only_loads_says_so() -> None:
    (line,) = lines(Loaded("m", said_in_chat).whole(b""))
    assert (line["message"], line["done"], line["done_reason"]) == ({"role": "assistant", "content": ""}, True, "load")
    (line,) = lines(Loaded("m", said_in_text, "unload").whole(b""))
    assert (line["response"], line["done_reason"]) == ("", "unload")


def test_conversation_of_nothing_is_empty() -> None:
    assert conversation([]) == []
