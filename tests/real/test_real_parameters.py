"""vLLM's sampling parameters on real vLLM: each has its effect, in chat and in text."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from shared_engine import Engine, GenerationResult

HELLO = [{"role": "user", "content": "Hello"}]
PROMPT = "Once upon a time there was"
GREEDY: dict[str, Any] = {"temperature": 0, "max_tokens": 24}

Ask = Callable[..., GenerationResult]


@pytest.fixture(scope="module")
def engine(tiny_chat: dict[str, Any]) -> Engine:
    return Engine(**tiny_chat)


@pytest.fixture(params=["chat", "text"])
def ask(request: pytest.FixtureRequest, engine: Engine) -> Ask:
    def chat(**params: Any) -> GenerationResult:
        return engine.chat(HELLO, **{**GREEDY, **params})

    def text(**params: Any) -> GenerationResult:
        return engine.generate(PROMPT, **{**GREEDY, **params})

    return chat if request.param == "chat" else text


def test_ignore_eos_goes_on_to_max_tokens(ask: Ask) -> None:
    result = ask(ignore_eos=True, max_tokens=200)
    assert (result.usage.completion_tokens, result.finish_reason) == (200, "length")


def test_min_tokens_puts_the_end_off(engine: Engine) -> None:
    plain = engine.chat(HELLO, temperature=0, max_tokens=200)
    assert plain.finish_reason == "stop"
    at_least = plain.usage.completion_tokens + 5
    result = engine.chat(HELLO, temperature=0, max_tokens=200, min_tokens=at_least)
    assert result.usage.completion_tokens >= at_least


def test_stop_token_ids_end_the_answer_and_say_so(ask: Ask, engine: Engine) -> None:
    tokens = engine.tokenize(ask().text)
    result = ask(stop_token_ids=[tokens[2]])
    assert (result.finish_reason, result.choices[0].stop_reason) == ("stop", tokens[2])
    assert result.usage.completion_tokens == tokens.index(tokens[2]) + 1


def test_logit_bias_forces_and_forbids_a_token(ask: Ask, engine: Engine) -> None:
    first = engine.tokenize(ask().text)[0]
    assert engine.tokenize(ask(logit_bias={first: -100.0}).text)[0] != first
    (forced,) = engine.tokenize(" the")
    assert ask(logit_bias={forced: 100.0}, max_tokens=3).text == " the the the"


def test_bad_words_are_not_generated(ask: Ask) -> None:
    word = max(ask().text.split(), key=len)
    assert word in ask().text
    assert word not in ask(bad_words=[word]).text


def test_the_string_that_stopped_an_answer_can_be_kept(ask: Ask) -> None:
    word = ask().text.split()[2]
    assert word not in ask(stop=word).text
    assert ask(stop=word, include_stop_str_in_output=True).text.endswith(word)


def test_special_tokens_can_be_shown(engine: Engine) -> None:
    asked: dict[str, Any] = {"temperature": 0, "max_tokens": 200, "ignore_eos": True}
    assert "<|im_end|>" not in engine.chat(HELLO, **asked).text
    assert "<|im_end|>" in engine.chat(HELLO, **asked, skip_special_tokens=False).text


def test_a_prompt_can_be_truncated_to_its_last_tokens(engine: Engine) -> None:
    result = engine.generate(PROMPT, **GREEDY, truncate_prompt_tokens=3)
    assert result.usage.prompt_tokens == 3
    assert engine.generate(PROMPT + PROMPT, **GREEDY, truncate_prompt_tokens=3).text == result.text
    assert engine.chat(HELLO, **GREEDY, truncate_prompt_tokens=5).usage.prompt_tokens == 5


def test_a_priority_is_accepted_and_changes_no_answer(ask: Ask) -> None:
    """What it changes is the order in a full queue, of an engine with ``--scheduling-policy priority``."""
    assert ask(priority=-1).text == ask(priority=1).text == ask().text
