"""A setting or a parameter stands once; all tables are read off its declaration."""

from __future__ import annotations

import dataclasses
import math
import subprocess
import sys
from typing import Any

import pytest
from pydantic import SecretStr

from shared_engine import EngineSettings, GenerationParams
from shared_engine.adapting.framework_model import ChatModel, GenerationModel
from shared_engine.declared import Decides
from shared_engine.launch.keeping import keep_policy
from shared_engine.params import (
    AnswerFields,
    CallParams,
    ChatFields,
    ContextFields,
    DefaultFields,
    SamplingFields,
    SchemaFields,
)
from shared_engine.request.bodies import CHAT_ONLY, chat_body
from shared_engine.runtime.keep_policy import KeepPolicy
from shared_engine.settings import FLAGS, SETTINGS
from tests.support.parameters import SAMPLES
from tests.support.paths import REPOSITORY

HELLO = [{"role": "user", "content": "Hello"}]
OF_THE_CALL = {name for kind in (AnswerFields, CallParams, ContextFields, SchemaFields) for name in kind.model_fields}


@pytest.mark.slow
def test_the_page_of_settings_is_what_the_declarations_say() -> None:
    """``python docs/settings_page.py > docs/settings.md`` writes it."""
    command = [sys.executable, "docs/settings_page.py"]
    made = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, check=True).stdout
    assert (REPOSITORY / "docs" / "settings.md").read_text() == made


def test_what_decides_how_an_engine_is_kept_is_told_to_its_supervisor_under_the_same_name() -> None:
    keeping = {name for name, setting in SETTINGS.items() if setting.decides is Decides.KEEPING}
    assert keeping == {field.name for field in dataclasses.fields(KeepPolicy)} | {"standby"}


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({}, {"sleep_after_s": math.inf, "standby_ttl_s": 1800, "max_loaded_engines": 0, "idle_ttl_s": 1800}),
        ({"standby": False}, {"standby_ttl_s": 0}),
        ({"standby": False, "standby_ttl_s": 5}, {"standby_ttl_s": 0}),
        ({"sleep_after_s": 7, "max_loaded_engines": 2, "pinned": True}, {"sleep_after_s": 7, "max_loaded_engines": 2}),
    ],
)
def test_none_and_off_are_numbers_for_the_supervisor(given: dict[str, Any], told: dict[str, Any]) -> None:
    policy = keep_policy(EngineSettings(model="org/name", **given))
    assert {name: getattr(policy, name) for name in told} == told


def test_what_has_a_flag_decides_the_engine() -> None:
    assert all(SETTINGS[name].decides is Decides.ENGINE for name in FLAGS)
    assert {name for name, setting in SETTINGS.items() if setting.decides is Decides.REQUESTS} == set(
        DefaultFields.model_fields
    )


def test_each_parameter_of_adapters_has_its_samples() -> None:
    fields = {*DefaultFields.model_fields, *SamplingFields.model_fields}
    assert set(SAMPLES) == fields - {"logprobs", "extra_body"}


def test_adapters_have_the_fields_of_requests_with_the_same_types_and_ranges() -> None:
    for kind, fields in ((GenerationModel, SamplingFields), (ChatModel, ChatFields), (GenerationModel, DefaultFields)):
        for name in fields.model_fields:
            own, declared = kind.model_fields[name], GenerationParams.model_fields[name]
            assert (own.annotation, own.metadata) == (declared.annotation, declared.metadata), name
    assert (*ChatFields.model_fields, "continue_final_message") == CHAT_ONLY


@pytest.mark.parametrize(
    "name",
    sorted(set(GenerationParams.model_fields) - set(CHAT_ONLY) - {"logprobs", "extra_body", "stop", "lora", "model"}),
)
def test_a_parameter_is_sent_under_its_own_name(name: str) -> None:
    values: dict[str, Any] = {
        "response_format": {"type": "json_object"},
        "structured_outputs": {"regex": "a"},
        "stop_token_ids": [3],
        "bad_words": ["x"],
        "session": "a",
        "logit_bias": {7: -100.0},
        "extra_headers": {"X-A": SecretStr("b")},
    }
    value = values.get(name, 1)
    params = GenerationParams(**{name: value})
    sent = {} if name in OF_THE_CALL else {name: getattr(params, name)}  # those say how it is sent
    assert chat_body(HELLO, params) == {"messages": HELLO, **sent}
    assert getattr(params, name) == value
