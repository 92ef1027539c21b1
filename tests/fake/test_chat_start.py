"""A chat whose engine starts, on the fake: its bar, and Ctrl-C while it does."""

from __future__ import annotations

import pytest

from tests.fake.conftest import MakeEngine
from tests.support.callers import ANSWER
from tests.support.command import COMMAND, given_to, options_of, seed_of
from tests.support.terminal import CTRL_C, CTRL_D, ENTER, on_a_terminal

pytestmark = pytest.mark.timeout(60)
QUIET = {"VLLM_LOCAL_CHAT_HISTORY": "off"}


def test_ctrl_c_ends_the_waiting_for_a_start_and_takes_its_bar_along(fake_engine: MakeEngine) -> None:
    engine = fake_engine({"start_delay_s": 4, "weights": 4})
    settings = given_to(engine)
    name = str(engine.settings.model).rpartition("/")[2]
    with on_a_terminal([*COMMAND, "chat", *options_of(settings)], {**QUIET, **seed_of(settings)}) as chat:
        chat.wait_for(f"{name}: loading weights 1/4 |")
        chat.type(CTRL_C)
        chat.wait_for_prompt()
        assert chat.lines[0] == "not waiting any longer; the engine goes on starting"
        assert chat.lines[1].startswith(f"{name}, ")
        chat.type(f"Hello{ENTER}")
        chat.wait_for(f"{name}: loading weights")
        chat.type(CTRL_C)
        chat.wait_for("stopped before an answer came; /retry asks again")
        chat.wait_for_prompt()
        assert "loading weights" not in chat.text
        assert chat.say("/retry") == ANSWER
        assert chat.say("/stats").startswith("last answer: load ")
        chat.type(CTRL_D)
        assert chat.ended() == 0
    assert engine.status().starts == 1


def test_a_start_that_fails_is_told_and_the_message_kept(fake_engine: MakeEngine) -> None:
    engine = fake_engine({"exit_at": "start"})
    settings = given_to(engine)
    with on_a_terminal([*COMMAND, "chat", *options_of(settings)], {**QUIET, **seed_of(settings)}) as chat:
        chat.wait_for("`vllm-local logs` shows more.")
        told = chat.say("Hello")
        assert "the engine did not start" in told
        assert told.endswith("Your message is kept: /retry sends it again.")
