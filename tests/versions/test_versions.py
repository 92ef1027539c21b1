"""Each supported release of vLLM's CPU build does all that vllm-local asks of it.

`make test-versions` runs all of them, `make test` the oldest.

VLLM_TEST_VERSIONS chooses: `VLLM_TEST_VERSIONS="0.28.0 0.31.0" pytest tests/versions`.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from signal import SIGKILL, SIGTERM
from typing import Any

import pytest

from langchain_vllm_local import ChatVLLM
from llama_index_vllm_local import VLLM
from shared_engine import ContextLengthError, Engine, EngineState, SettingsError
from shared_engine.model_files.parsers import known_reasoning_parsers, known_tool_parsers
from shared_engine.request.routes import CHAT, COMPLETIONS
from shared_engine.runtime.directory import runtime_root
from shared_engine.token_count.local_tokenizer import LocalTokenizer
from shared_engine.vllm_versions import RELEASES, release_of
from tests.support.engine_versions import environment
from tests.support.failure_matrix import ACTIVITIES, Fault
from tests.support.paths import REPOSITORY
from tests.support.same_answers import without_its_own
from tests.support.short_way import by_both_ways, socket_client
from tests.support.vllm_sources import registered
from tests.support.vllm_words import WAITED_FOR, Words

OLDEST = f"{RELEASES[0].minor}.0"
VERSIONS = os.environ.get("VLLM_TEST_VERSIONS", OLDEST).split()
# The first test makes the environment, and then imports vLLM from a disk that has not read it yet.
pytestmark = pytest.mark.timeout(1500)
another_start = pytest.mark.skipif(
    "VLLM_TEST_VERSIONS" not in os.environ, reason="starts another engine: `make test-versions` has time for it"
)
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
WEATHER = [{"role": "user", "content": "What is the weather in Paris?"}]
TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the current weather for a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
CALL: dict[str, Any] = {"tools": [TOOL], "temperature": 0, "max_tokens": 60}
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}


@pytest.fixture(scope="module", params=VERSIONS)
def version(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def settings(version: str, tiny_chat: dict[str, Any]) -> dict[str, Any]:
    return {**tiny_chat, "python": environment(version), "max_model_len": 1024}


@pytest.fixture(scope="module")
def engine(settings: dict[str, Any]) -> Iterator[Engine]:
    engine = Engine(**settings)
    yield engine
    engine.shutdown(force=True)


def test_it_starts_and_says_what_it_runs(engine: Engine, version: str) -> None:
    engine.warmup()
    status = engine.status()
    assert (status.state, status.vllm_version) == (EngineState.READY, version)
    assert imports(version) >= 1


def test_chat(engine: Engine) -> None:
    result = engine.chat(QUESTION, temperature=0)
    assert "Paris" in result.text
    assert result.finish_reason == "stop"
    assert result.usage.prompt_tokens == engine.count_tokens(QUESTION)


def test_stream(engine: Engine) -> None:
    chunks = list(engine.stream_chat(QUESTION, temperature=0))
    assert "".join(chunk.text for chunk in chunks) == engine.chat(QUESTION, temperature=0).text
    assert sum(1 for chunk in chunks if chunk.text) > 1
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens


@pytest.mark.parametrize(
    "choice", ["auto", "required", {"type": "function", "function": {"name": "get_weather"}}], ids=str
)
def test_tools(engine: Engine, choice: Any) -> None:
    (call,) = engine.chat(WEATHER, tool_choice=choice, **CALL).tool_calls
    assert (call.name, json.loads(call.arguments)) == ("get_weather", {"city": "Paris"})


@pytest.mark.parametrize("choice", ["auto", "required"])
def test_streamed_tools(engine: Engine, choice: str) -> None:
    deltas = [delta for chunk in engine.stream_chat(WEATHER, tool_choice=choice, **CALL) for delta in chunk.tool_calls]
    assert [delta.name for delta in deltas if delta.name] == ["get_weather"]
    assert json.loads("".join(delta.arguments or "" for delta in deltas)) == {"city": "Paris"}


@pytest.mark.parametrize(
    ("structure", "pattern"),
    [
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "city", "schema": SCHEMA}}}, None),
        ({"response_format": {"type": "json_object"}}, None),
        ({"extra_body": {"structured_outputs": {"choice": ["Paris", "Rome"]}}}, "Paris|Rome"),
        ({"extra_body": {"structured_outputs": {"regex": r"[A-Z][a-z]{2,8}"}}}, "[A-Z][a-z]{2,8}"),
    ],
    ids=["json_schema", "json_object", "choice", "regex"],
)
def test_structured_output(engine: Engine, structure: dict[str, Any], pattern: str | None) -> None:
    result = engine.chat(QUESTION, temperature=0, max_tokens=80, **structure)
    if pattern is not None:
        assert re.fullmatch(pattern, result.text)
    elif result.finish_reason == "stop":
        assert isinstance(json.loads(result.text), dict)
    else:
        assert result.text.lstrip().startswith("{")


def test_logprobs_and_several_answers(engine: Engine) -> None:
    result = engine.chat(QUESTION, temperature=0.8, n=2, logprobs=2, max_tokens=5, seed=1)
    assert len(result.choices) == 2
    assert result.logprobs


def test_text_and_batches(engine: Engine) -> None:
    assert engine.generate("one two three", max_tokens=5).usage.completion_tokens == 5
    assert engine.generate("word " * 1000, extra_body={"ignore_eos": True}).usage.total_tokens == 1024
    assert len({result.text for result in engine.chat_batch([QUESTION] * 8, temperature=0)}) == 1


def test_plain_requests_take_the_short_way(engine: Engine) -> None:
    with socket_client(engine) as client:
        for path, asked in ((CHAT, {"messages": QUESTION}), (COMPLETIONS, {"prompt": "Hello"})):
            first, second, is_short = by_both_ways(client, path, {"temperature": 0, "max_tokens": 8, **asked})
            assert is_short
            assert first.status_code == 200
            assert without_its_own(first.content) == without_its_own(second.content)


def test_counts(engine: Engine) -> None:
    text = "How many tokens are in this text?"
    here = LocalTokenizer(engine.settings).tokens(text, add_special_tokens=True)
    assert here is not None, "this release exports no tokenizer"
    assert len(here) == engine.count_tokens(text) == engine.generate(text, max_tokens=1).usage.prompt_tokens
    conversation = LocalTokenizer(engine.settings).chat_tokens(WEATHER, [TOOL], {})
    assert conversation is not None, "this release writes conversations in another way"
    assert conversation == engine.chat(WEATHER, **CALL).usage.prompt_tokens


def test_too_long_a_prompt_is_told_with_its_numbers(engine: Engine) -> None:
    with pytest.raises(ContextLengthError) as caught:
        engine.generate("word " * 2000, max_tokens=5)
    assert caught.value.max_model_len == 1024
    assert caught.value.prompt_tokens
    with pytest.raises(ContextLengthError) as caught:
        engine.generate(" ".join(["a"] * 1024))
    assert (caught.value.max_model_len, caught.value.prompt_tokens) == (1024, 1024)


def test_stats(engine: Engine) -> None:
    engine.chat(QUESTION, temperature=0)
    assert engine.metrics()["generation_tokens"] > 0


def test_the_adapters(settings: dict[str, Any]) -> None:
    assert "Paris" in ChatVLLM(**settings, temperature=0).invoke("What is the capital of France?").text
    assert "Paris" in str(VLLM(**settings, temperature=0).complete("What is the capital of France?"))


def test_it_returns_after_eviction_without_another_import(engine: Engine, version: str) -> None:
    before, imported = engine.chat(QUESTION, temperature=0).text, imports(version)
    engine.evict()
    assert engine.status().state is EngineState.STANDBY
    assert engine.chat(QUESTION, temperature=0).text == before
    assert imports(version) == imported


def test_an_option_it_lacks_is_refused_in_words(settings: dict[str, Any], version: str) -> None:
    for name in release_of(version).lacks_args:
        engine = Engine(**{**settings, "engine_args": {**settings["engine_args"], name: 5}})
        with pytest.raises(SettingsError, match=f"vLLM {release_of(version).minor} has no {name}"):
            engine.generate("Hello")


@another_start
@pytest.mark.parametrize(
    ("activity", "fault"),
    [("nothing shown yet", Fault(SIGTERM, "APIServer")), ("in mid-stream", Fault(SIGKILL, "EngineCore"))],
    ids=str,
)
def test_an_end_from_outside_is_made_good_or_told(settings: dict[str, Any], activity: str, fault: Fault) -> None:
    """Two cells of tests/real/test_failure_matrix.py: the words of an engine that goes are each release's own."""
    engine = Engine(**{**settings, "max_model_len": 2048, "stall_timeout_s": 10})
    try:
        outcome = ACTIVITIES[activity](engine, fault)
        assert (outcome.lost, outcome.left, outcome.files) == (0, 0, 0), outcome
        assert (outcome.told > 0) is (activity == "in mid-stream"), outcome
        assert outcome.heard_s < 10, outcome
    finally:
        engine.shutdown(force=True)


@another_start
def test_embeddings(settings: dict[str, Any], minilm: dict[str, Any]) -> None:
    engine = Engine(**{**minilm, "python": settings["python"]})
    try:
        near, same, far = engine.embed(["a cat", "a kitten", "the stock market"]).embeddings
        assert _dot(near, same) > _dot(near, far)
    finally:
        engine.shutdown(force=True)


@another_start
def test_doctor(settings: dict[str, Any], version: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "shared_engine.cli", "doctor", "--json"],
        env={**os.environ, "VLLM_PYTHON": settings["python"], "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert version in done.stdout


def test_the_words_and_parsers_that_are_waited_for_are_in_its_files(settings: dict[str, Any], version: str) -> None:
    (sources,) = Path(settings["python"]).parent.parent.glob("lib/python3*/site-packages/vllm")
    words, lacks = Words(version, sources), set(release_of(version).lacks_parsers)
    assert set().union(*(words.missing(*patterns) for patterns in WAITED_FOR.values())) == set()
    tools = registered(sources / "tool_parsers" / "__init__.py", "_TOOL_PARSERS_TO_REGISTER")
    reasoning = registered(sources / "reasoning" / "__init__.py", "_REASONING_PARSERS_TO_REGISTER")
    assert set(known_tool_parsers()) - tools <= lacks
    assert set(known_reasoning_parsers()) - reasoning <= lacks


def imports(version: str) -> int:
    """How often a launcher of this run has imported that vLLM, to fork its processes."""
    logs = "".join(path.read_text(errors="replace") for path in runtime_root().glob("*/engine.log"))
    return len(re.findall(rf"vLLM {version}\S* imported in .* forks its processes", logs))


def _dot(one: list[float], other: list[float]) -> float:
    return sum(a * b for a, b in zip(one, other, strict=True))
