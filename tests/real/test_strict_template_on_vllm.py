"""A model whose chat template refuses what agents send, on real vLLM."""

from __future__ import annotations

from typing import Any

import pytest

from shared_engine import Engine, RequestRejectedError
from shared_engine.conversations.traits import NONE
from tests.support.conversations import WAYS, openais
from tests.support.paths import TINY_CHAT

pytestmark = pytest.mark.engine

STRICT = (
    "{% for m in messages %}{% if m.role == 'system' and not loop.first %}"
    "{{ raise_exception('System message must be at the beginning.') }}{% endif %}"
    "{% if not loop.first and m.role in ('user', 'assistant') and m.role == messages[loop.index0 - 1].role %}"
    "{{ raise_exception('Conversation roles must alternate') }}{% endif %}{% endfor %}"
    + (TINY_CHAT / "chat_template.jinja").read_text()
)
ROLES = [("user", "Hello"), ("user", "What is the capital"), ("system", "Be brief."), ("user", "of France?")]
MERGED = [("system", "Be brief."), ("user", "Hello\n\nWhat is the capital\n\nof France?")]


@pytest.fixture(scope="module")
def strict(tiny_chat: dict[str, Any]) -> dict[str, Any]:
    return {**tiny_chat, "engine_args": {**tiny_chat.get("engine_args", {}), "chat_template": STRICT}}


@pytest.mark.parametrize("way", WAYS)
def test_it_answers_in_every_way(strict: dict[str, Any], way: str) -> None:
    WAYS[way](ROLES, strict, {"max_tokens": 4})


def test_what_is_counted_is_what_is_sent(strict: dict[str, Any]) -> None:
    engine = Engine(**strict)
    asked = engine.chat(openais(ROLES), max_tokens=4).usage.prompt_tokens
    assert asked == engine.chat(openais(MERGED), max_tokens=4).usage.prompt_tokens
    assert asked == engine.count_tokens(openais(ROLES))


def test_what_is_not_known_before_vllm_says(strict: dict[str, Any]) -> None:
    engine = Engine(**strict)
    engine._refused = NONE  # as if the template were not here
    asked = engine.count_tokens(openais(ROLES))
    assert asked == engine.count_tokens(openais(MERGED))
    assert asked == engine.chat(openais(ROLES), max_tokens=4).usage.prompt_tokens


def test_never_is_vllms_refusal(strict: dict[str, Any]) -> None:
    with pytest.raises(RequestRejectedError, match=r"roles must alternate|must be at the beginning"):
        Engine(**strict, merge_messages="never").chat(openais(ROLES))
