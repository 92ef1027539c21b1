"""What is too long, in every server's words: one error with the numbers. Too large a ``max_tokens`` is another one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator

import pytest
from aiohttp import web

from langchain_vllm_local import VLLM as LangChainVLLM
from llama_index_vllm_local import VLLM
from shared_engine import ContextLengthError, Engine, RequestRejectedError, VLLMError
from shared_engine.request.lengths import length_error, room_left
from shared_engine.request.refusals import error_from_response
from tests.support.calls import CALLS, ask
from tests.support.remote_server import RemoteServer, running_server

Numbers = tuple[int | None, int | None, int | None]
OVER = "This model's maximum context length is 64 tokens. However, "
WANTED = f"{OVER}you requested 10 output tokens and your prompt contains "
LONG = "The decoder prompt (length 65) is longer than the maximum model length of 64. Make sure that `max_model_len` "
FULL = (
    "The decoder prompt (length 64) plus the number of requested output tokens (at least 1) is longer than the maximum "
    "model length of 64. Make sure that `max_model_len` is no smaller than the number of text tokens (prompt + ..."
)
# The limit, the prompt's tokens (at least), and those of the answer, where the words say it.
WORDS: dict[str, Numbers] = {
    # vLLM 0.32 and 0.33; then 0.26 to 0.31
    f"{OVER}your prompt contains at least 65 input tokens, which exceeds this limit even without any": (64, 65, None),
    f"{OVER}your prompt contains 90 input tokens, which exceeds this limit even without any output": (64, 90, None),
    f"{OVER}your prompt contains 1000000 characters (more than 28864 characters, which is the upper bound for 64 input "
    "tokens). Please reduce the length of the input prompt. (parameter=input_text, value=1000000)": (64, 2218, None),
    f"{WANTED}at least 55 input tokens, for a total of at least 65 tokens. Please reduce the length": (64, 55, None),
    f"{WANTED}28865 characters (more than 24354 characters, which is the upper bound for 54 input tokens). Please": (
        64, 65, None,
    ),
    # Images and sound, whose tokens are known later; and a prompt of tokens
    f"{OVER}you requested 64 output tokens and your prompt contains 125 characters (more than 0 characters, "
    "which is the upper bound for 0 input tokens). Please": (64, 1, None),
    "Input length (101) exceeds model's maximum context length (100).": (100, 101, None),
    f"{LONG}is no smaller than the number of text tokens plus multimodal tokens. For image inputs, the": (64, 65, None),
    FULL: (64, 64, None),
    # an older vLLM
    "This model's maximum context length is 4096 tokens. However, you requested 5100 tokens (5000 in the messages, 100 "
    "in the completion). Please reduce the length of the messages or completion.": (4096, 5000, None),
    "This model's maximum context length is 512 tokens. However, you requested 600 tokens in the input for embedding "
    "generation. Please reduce the length of the input.": (512, 600, None),
    "This model's maximum context length is 512 tokens. However, you requested 600 tokens in the input for score. "
    "Please reduce the length of the input.": (512, 600, None),
    f"{OVER}your request has 65 input tokens. Please reduce the length of the input messages.": (64, 65, None),
    "'max_tokens' or 'max_completion_tokens' is too large: 60. This model's maximum context length is 64 tokens and "
    "your request has 12 input tokens (60 > 64 - 12).": (64, 12, 60),
    "Prompt length of 2048 is longer than the maximum model length of 2048.": (2048, 2048, None),
    # LM Studio
    "Trying to keep the first 15857 tokens when context the overflows. However, the model is loaded with context "
    "length of only 4096 tokens, which is not enough. Try to load the model with a larger": (4096, 15857, None),
    # OpenAI, Anthropic, Gemini, Mistral, OpenRouter; newer SGLang
    f"{OVER}your messages resulted in 80 tokens. Please reduce the length of the messages.": (64, 80, None),
    "input length and `max_tokens` exceed context limit: 188240 + 21333 > 200000, decrease input length or": (
        200000, 188240, 21333,
    ),
    "The input token count (1100) exceeds the maximum number of tokens allowed (1000).": (1000, 1100, None),
    "Input tokens exceed the configured limit of 272000 tokens. Your messages resulted in 300000 tokens.": (
        272000, 300000, None,
    ),
    "Prompt contains 5000 tokens and 0 draft tokens, too large for model with 4096 maximum context length": (
        4096, 5000, None,
    ),
    "This endpoint's maximum context length is 8192 tokens. However, you requested about 9100 tokens (9000 of text "
    "input, 100 in the output). Please reduce the length of either one.": (8192, 9000, None),
    "Input length (5000 tokens) exceeds the maximum allowed length (4090 tokens). Use a shorter input or enable": (
        4090, 5000, None,
    ),
    # SGLang, llama.cpp, TGI, LiteLLM, Ollama
    "The input (5000 tokens) is longer than the model's context length (4096 tokens).": (4096, 5000, None),
    "Requested token count exceeds the model's maximum context length of 4096 tokens. You requested a total of 5100 "
    "tokens: 5000 tokens from the input messages and 100 tokens for the completion.": (4096, 5000, None),
    "request (5000 tokens) exceeds the available context size (4096 tokens), try increasing it": (4096, 5000, None),
    "`inputs` tokens + `max_new_tokens` must be <= 4096. Given: 5000 `inputs` tokens and 20 ...": (4096, 5000, None),
    "`inputs` must have less than 4096 tokens. Given: 5000": (4096, 5000, None),
    "litellm.ContextWindowExceededError: prompt is too long: 5000 tokens > 4096 maximum": (4096, 5000, None),
    # Without numbers
    "the request exceeds the available context size, try increasing it": (None, None, None),
    "the input length exceeds the context length": (None, None, None),
    "Your input exceeds the context window of this model. Please adjust your input and try again.": (None, None, None),
    "Please reduce the length of the messages or completion. (context_length_exceeded)": (None, None, None),
    "This model's maximum context length is 4096 tokens.": (4096, None, None),
}  # fmt: skip
TOO_MUCH_WANTED = (
    "max_tokens=65 cannot be greater than max_model_len=64. Please request fewer output tokens. (parameter=max_tokens)",
    "max_completion_tokens=1000000000 cannot be greater than max_model_len=max_total_tokens=64. Please request fewer "
    "output tokens. (parameter=max_completion_tokens, value=1000000000)",
    "'max_tokens' or 'max_completion_tokens' is too large: 5000. This model's maximum context length is 2048 tokens "
    "and your request has 12 input tokens (5000 > 2048 - 12).",
)
OF_ANOTHER_KIND = (
    "truncate_prompt_tokens=100 cannot be greater than max_model_len = 64. Please request a smaller truncation size.",
    "The encoder prompt (length 3000) is longer than the maximum model length of 1500. Make sure that `max_model_len`",
    "The decoder prompt contains a(n) image item with 9000 embedding tokens, which exceeds the pre-allocated encoder "
    "cache size 2048. Please reduce the input size or increase the encoder cache size by setting --limit-mm-per-prompt",
    "max_tokens must be at least 1, got -5.",
    "no",
)


@pytest.fixture
def server() -> Iterator[RemoteServer]:
    with running_server() as server:
        yield server


def numbers_of(error: object) -> Numbers:
    assert type(error) is ContextLengthError
    return error.max_model_len, error.prompt_tokens, error.completion_tokens


@pytest.mark.parametrize("words", WORDS)
@pytest.mark.parametrize("status", [400, 413, 422])
def test_what_is_too_long_has_its_numbers(words: str, status: int) -> None:
    error = error_from_response(status, words.encode())
    assert numbers_of(error) == WORDS[words]
    assert (error.status, words in error.message) == (status, True)


@pytest.mark.parametrize("words", WORDS)
def test_a_gateway_may_pass_it_on_as_a_failure_of_its_own(words: str) -> None:
    """Then only with both numbers: what fails is tried again."""
    error = length_error(502, words)
    assert (None if error is None else numbers_of(error)) == (None if None in WORDS[words][:2] else WORDS[words])


@pytest.mark.parametrize("words", TOO_MUCH_WANTED)
def test_too_large_a_max_tokens_is_not_too_long_a_prompt(words: str) -> None:
    error = error_from_response(400, words.encode())
    assert type(error) is RequestRejectedError
    assert words in error.message


def test_too_large_a_max_tokens_is_told_with_its_remedy() -> None:
    words = "max_tokens=65 cannot be greater than max_model_len=64. Please request fewer output tokens."
    told = r"max_tokens = 65 is more than the model's limit of 64 tokens .* pass truncate_completion=True"
    with pytest.raises(RequestRejectedError, match=told):
        raise error_from_response(400, words.encode())


@pytest.mark.parametrize("words", OF_ANOTHER_KIND)
def test_other_limits_stay_what_they_are(words: str) -> None:
    assert type(error_from_response(400, words.encode())) is RequestRejectedError


@pytest.mark.parametrize("status", [401, 403, 404, 429])
def test_what_has_a_status_of_its_own_keeps_its_kind(status: int) -> None:
    assert not isinstance(error_from_response(status, next(iter(WORDS)).encode()), ContextLengthError)


@pytest.mark.parametrize(
    ("words", "left"),
    [
        ("max_tokens must be at least 1, got 0. (parameter=max_tokens, value=0)", (0, 1)),
        ("min_tokens must be less than or equal to max_tokens=44, got 60.", (44, 60)),
        ("max_tokens is 44", None),
    ],
)
def test_what_vllm_says_of_the_room_that_is_left(words: str, left: tuple[int, int] | None) -> None:
    assert room_left(words) == left


# ---- in every way to ask. The server's model has a token for each word, and two around them.

GENERATING = [way for way in CALLS if "embed" not in way and "rerank" not in way]


def refusal_of(way: str, server: RemoteServer) -> VLLMError:
    with pytest.raises(VLLMError) as caught:
        ask(way, server.url, {"max_retries": 0})
    return caught.value


@pytest.mark.parametrize("way", CALLS)
def test_every_way_has_both_numbers(server: RemoteServer, way: str) -> None:
    words = "This model's maximum context length is 2 tokens. However, your prompt contains at least 3 input tokens."
    server.fails(400, message=words)
    server.models = [{"id": "served", "max_model_len": 2}]
    error = refusal_of(way, server)
    assert isinstance(error, ContextLengthError)
    assert error.max_model_len == 2
    assert error.prompt_tokens == 3
    assert "the model's limit" in error.message


@pytest.mark.parametrize("way", GENERATING)
def test_a_prompt_of_just_the_limit_leaves_no_room(server: RemoteServer, way: str) -> None:
    """vLLM says only that zero tokens are too few to generate."""
    server.fails(400, message="max_tokens must be at least 1, got 0. (parameter=max_tokens, value=0)")
    server.models = [{"id": "served", "max_model_len": 3}]
    error = refusal_of(way, server)
    assert isinstance(error, ContextLengthError)
    assert (error.max_model_len, error.prompt_tokens) == (3, 3)
    wish = error.completion_tokens
    assert error.excess == wish
    assert ("there is no room for an answer" if wish == 1 else f"{wish} more were asked for") in error.message


def test_an_older_vllm_says_by_how_much_too_little_is_left(server: RemoteServer) -> None:
    """Of images, whose tokens it knows late."""
    server.fails(400, message="max_tokens must be at least 1, got -7584. (parameter=max_tokens, value=-7584)")
    server.models = [{"id": "served", "max_model_len": 4096}]
    assert numbers_of(refusal_of("chat", server)) == (4096, 11680, 1)


@pytest.mark.parametrize("way", GENERATING)
def test_an_answer_that_has_to_be_longer_than_what_is_left(server: RemoteServer, way: str) -> None:
    server.fails(400, message="min_tokens must be less than or equal to max_tokens=17, got 60.")
    server.models = [{"id": "served", "max_model_len": 20}]
    error = refusal_of(way, server)
    assert isinstance(error, ContextLengthError)
    assert (error.max_model_len, error.prompt_tokens, error.completion_tokens, error.excess) == (20, 3, 60, 43)


@pytest.mark.parametrize("way", GENERATING)
def test_no_way_takes_too_large_a_max_tokens_for_too_long_a_prompt(server: RemoteServer, way: str) -> None:
    words = "max_tokens=65 cannot be greater than max_model_len=64. Please request fewer output tokens."
    server.fails(400, message=words)
    error = refusal_of(way, server)
    assert isinstance(error, RequestRejectedError)
    assert not isinstance(error, ContextLengthError)


@pytest.mark.parametrize("body", [{"max_tokens": 0}, {"max_completion_tokens": 0}])
def test_who_asks_for_nothing_is_told_so(server: RemoteServer, body: dict[str, int]) -> None:
    server.fails(400, message="max_tokens must be at least 1, got 0. (parameter=max_tokens, value=0)")
    with pytest.raises(RequestRejectedError) as caught:
        ask("chat", server.url, {}, extra_body=body)
    assert type(caught.value) is RequestRejectedError


def test_a_server_that_does_not_say_its_limit_has_no_numbers(server: RemoteServer) -> None:
    server.fails(400, message="max_tokens must be at least 1, got 0.")
    server.models = [{"id": "served"}]
    error = refusal_of("chat", server)
    assert isinstance(error, ContextLengthError)
    assert (error.max_model_len, error.prompt_tokens) == (None, None)


def test_too_long_an_answer_is_said_as_such(server: RemoteServer) -> None:
    wish = "you requested 62 output tokens and your prompt contains at least 3 input tokens, for a total of at least 65"
    server.fails(400, message=OVER + wish)
    told = "the prompt has 3 tokens, 62 more were asked for, and the model's limit is 64: "
    with pytest.raises(ContextLengthError, match=told):
        ask("chat", server.url, {}, max_tokens=62)


# ---- a text without max_tokens, for which the limit itself is sent

TEXTS: dict[str, Callable[[str], object]] = {
    "generate": lambda url: Engine(base_url=url, model="served").generate("a b c"),
    "agenerate": lambda url: asyncio.run(Engine(base_url=url, model="served").agenerate("a b c")),
    "stream": lambda url: list(Engine(base_url=url, model="served").stream_generate("a b c")),
    "batch": lambda url: Engine(base_url=url, model="served").generate_batch(["a b c"]),
    "langchain": lambda url: LangChainVLLM(base_url=url, model="served").invoke("a b c"),
    "langchain stream": lambda url: list(LangChainVLLM(base_url=url, model="served").stream("a b c")),
    "llama_index": lambda url: VLLM(base_url=url, model="served").complete("a b c", formatted=True),
}


def refuses_as_before_0_32(server: RemoteServer, limit: int) -> None:
    """Prompt and ``max_tokens`` together have to fit."""

    async def handler(request: web.Request) -> web.StreamResponse:
        body = await request.json()
        count, asked = len(body["prompt"].split()) + 2, body["max_tokens"]
        if count + asked <= limit:
            return await well(request)
        message = (
            f"This model's maximum context length is {limit} tokens. However, you requested {asked} output tokens and "
            f"your prompt contains at least {count} input tokens, for a total of at least {count + asked} tokens."
        )
        return web.json_response({"error": {"message": message, "code": 400}}, status=400)

    server.models = [{"id": "served", "max_model_len": limit}]
    server.streams("Hi")
    streamed = server.handler

    async def well(request: web.Request) -> web.StreamResponse:
        if (await request.json()).get("stream"):
            return await streamed(request)
        choice = {"index": 0, "text": "Hi", "finish_reason": "stop"}
        return web.json_response({"id": "c", "model": "served", "choices": [choice], "usage": {}})

    server.handler = handler


@pytest.mark.parametrize("way", TEXTS)
def test_where_the_limit_is_not_cut_the_prompt_is_counted(server: RemoteServer, way: str) -> None:
    refuses_as_before_0_32(server, 20)
    TEXTS[way](server.url)
    assert [body["max_tokens"] for _, body in server.requests] == [20, 15]


@pytest.mark.parametrize(("kept", "left"), [(-1, 1), (6, 14), (3, 17)])
@pytest.mark.parametrize(
    "words",
    [
        "The decoder prompt cannot be empty",
        "truncate_prompt_tokens=6 cannot be greater than max_model_len - max_tokens = 0. Please request a smaller",
    ],
)
def test_a_prompt_that_is_cut_leaves_what_it_does(server: RemoteServer, words: str, kept: int, left: int) -> None:
    server.models = [{"id": "served", "max_model_len": 20}]
    server.fails(400, times=1, message=words)
    Engine(base_url=server.url, model="served").generate("a " * 30, truncate_prompt_tokens=kept)
    assert [body["max_tokens"] for _, body in server.requests] == [20, left]


def test_it_is_found_out_once(server: RemoteServer) -> None:
    refuses_as_before_0_32(server, 20)
    engine = Engine(base_url=server.url, model="served")
    assert [engine.generate("a b c").text for _ in range(3)] == ["Hi"] * 3
    assert [body["max_tokens"] for _, body in server.requests] == [20, 15, 15, 15]
    with pytest.raises(ContextLengthError) as caught:
        engine.generate("a " * 30)
    assert numbers_of(caught.value) == (20, 32, 1)
