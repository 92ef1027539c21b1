"""Options made of declared fields: every setting and parameter can be given, and an error says by which word."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pytest

from shared_engine import EngineSettings, GenerationParams, InvalidInputError, SettingsError
from shared_engine.cli.engine_arguments import OPTIONS, add_engine_arguments, engine_of, given_settings, settings_of
from shared_engine.cli.field_options import first_sentence
from shared_engine.cli.sampling_arguments import PARAMETERS, add_sampling_arguments, given_parameters
from shared_engine.declared import Decides
from shared_engine.params import AnswerFields, CallParams, ContextFields, SchemaFields
from shared_engine.settings import SETTINGS
from tests.support.parameters import SAMPLES


@pytest.fixture(autouse=True)
def no_config_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))


def parsed(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_engine_arguments(parser)
    add_sampling_arguments(parser)
    return parser.parse_args(words)


def test_every_setting_has_an_option_or_is_a_parameter() -> None:
    of_requests = {name for name, each in SETTINGS.items() if each.decides is Decides.REQUESTS}
    assert set(SETTINGS) == {*OPTIONS, "model", "seed"} | of_requests
    assert of_requests | {"seed"} <= set(PARAMETERS)
    left = {"model", "continue_final_message", *CallParams.model_fields, *ContextFields.model_fields}
    left |= SchemaFields.model_fields.keys() | AnswerFields.model_fields.keys()
    assert set(PARAMETERS) == set(GenerationParams.model_fields) - left


def test_nothing_is_given_where_no_option_is() -> None:
    arguments = parsed("org/name")
    assert settings_of(arguments) == EngineSettings(model="org/name")
    assert settings_of(arguments).model_fields_set >= {"model"}
    assert set(given_settings(arguments)) == {"model"}
    assert given_parameters(arguments) == {}


@pytest.mark.parametrize(
    ("words", "value"),
    [
        (["--max-model-len", "512"], {"max_model_len": 512}),
        (["--max-model-len", "auto"], {"max_model_len": "auto"}),
        (["--gpu-memory-utilization", "0.5"], {"gpu_memory_utilization": 0.5}),
        (["--dtype", "float32"], {"dtype": "float32"}),
        (["--enforce-eager", "--no-standby"], {"enforce_eager": True, "standby": False}),
        (["--idle-ttl-s", "inf"], {"idle_ttl_s": float("inf")}),
        (["--timeout", "none"], {"timeout": None}),
        (["--engine-args", '{"max_num_seqs": 4}'], {"engine_args": {"max_num_seqs": 4}}),
        (["--fallback", "local, remote", "--base-url", "http://h"], {"fallback": ("local", "remote")}),
        (["--base-url", "http://a/v1,http://b"], {"base_url": ("http://a", "http://b")}),
        (["--lora-adapters", '{"a": "org/a"}'], {"lora_adapters": {"a": "org/a"}}),
    ],
)
def test_an_option_is_the_setting_of_its_name(words: list[str], value: dict[str, Any]) -> None:
    settings = settings_of(parsed("org/name", *words))
    assert {name: getattr(settings, name) for name in value} == value


def test_the_model_may_be_named_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_MODEL_PATH", "org/of-the-environment")
    assert settings_of(parsed("-")).model == "org/of-the-environment"
    assert settings_of(parsed("org/name")).model == "org/name"
    assert engine_of(parsed("-", "--base-url", "http://h")).settings.base_url == "http://h"


def test_no_model_is_told_in_the_words_of_the_command_line() -> None:
    with pytest.raises(SettingsError, match=r"no model: name a folder .* here, in VLLM_MODEL_PATH, .* --base-url"):
        settings_of(parsed("-"))


def test_a_command_has_defaults_of_its_own_below_all_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "my.toml"
    file.write_text("max_retries = 4\n")
    arguments = parsed("org/name", "--config", str(file))
    assert settings_of(arguments, max_retries=9, pinned=True).max_retries == 4
    assert settings_of(arguments, max_retries=9, pinned=True).pinned
    assert given_settings(arguments)["max_retries"].source == str(file)
    assert settings_of(parsed("org/name", "--config", "none")).max_retries == 2


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--max-model-len", "long"], "max_model_len (from --max-model-len) = 'long': must be a number of tokens"),
        (["--gpu-memory-utilization", "2"], "gpu_memory_utilization (from --gpu-memory-utilization) = '2': "),
        (["--config", "/no/such.toml"], "the config file /no/such.toml can't be read: No such file or directory"),
    ],
)
def test_a_wrong_value_is_told_with_its_option(words: list[str], told: str) -> None:
    with pytest.raises(SettingsError) as failed:
        settings_of(parsed("org/name", *words))
    assert told in str(failed.value)


def test_a_word_that_is_none_of_the_known_ones_is_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parsed("org/name", "--dtype", "int8")
    assert "argument --dtype: invalid choice: 'int8'" in capsys.readouterr().err


def test_json_that_is_none_is_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    for text in ("{", "[]"):
        with pytest.raises(SystemExit):
            parsed("org/name", "--engine-args", text)
        assert 'argument --engine-args: must be a JSON object such as {"name": "value"}' in capsys.readouterr().err


OF_REQUESTS_ALONE: dict[str, tuple[Any, ...]] = {
    "enable_thinking": (True, False),
    "reasoning_effort": ("low",),
    "chat_template_kwargs": ({"a": 1},),
    "logprobs": (True, 1, 5),
    "extra_body": ({"b": [None]},),
    "n": (2,),
    "response_format": ({"type": "json_object"},),
}


@pytest.mark.parametrize("name", PARAMETERS)
@pytest.mark.slow
def test_a_parameter_is_given_as_its_sample(name: str) -> None:
    for sample in (SAMPLES | OF_REQUESTS_ALONE)[name]:
        flag = "--think" if name == "enable_thinking" else f"--{name.replace('_', '-')}"
        if isinstance(sample, bool) and name != "logprobs":
            words = [flag if sample else flag.replace("--", "--no-", 1)]
        elif sample is True:
            words = [flag]
        elif isinstance(sample, list):
            words = [word for each in sample for word in (flag, str(each))]
        else:
            words = [flag, json.dumps(sample) if isinstance(sample, dict) else str(sample)]
        value = given_parameters(parsed("org/name", *words))[name]
        assert (type(value), value) == (type(sample), GenerationParams(**{name: sample}).given[name])


def test_a_parameter_out_of_range_names_itself() -> None:
    with pytest.raises(InvalidInputError, match="temperature = '-1'"):
        given_parameters(parsed("org/name", "--temperature=-1"))


def test_help_shows_the_usual_settings_and_help_all_shows_every_one(capsys: pytest.CaptureFixture[str]) -> None:
    shown = []
    for flag in ("--help", "--help-all"):
        with pytest.raises(SystemExit) as ended:
            parsed(flag)
        assert ended.value.code == 0
        shown.append(capsys.readouterr().out)
    flags = [f"--{name.replace('_', '-')}" for name in OPTIONS]
    assert [flag for flag in flags if flag not in shown[1]] == []
    assert "--max-model-len" in shown[0]
    assert "--ssl-ca-certs" not in shown[0]
    texts = " ".join(shown[1].split())
    assert "--max-model-len N|auto longest prompt and answer together" in texts
    assert "--lora-adapters JSON LoRA adapters by name" in texts
    assert "--base-url TEXT a remote vLLM server" in texts


@pytest.mark.parametrize(
    ("description", "sentence"),
    [
        ("One. Two.", "One"),
        ("A ``b``,\n   such as ``0.5``. More.", "A b, such as 0.5"),
        ("No end", "No end"),
        ("One of a, b, ... and more. Two.", "One of a, b, ... and more"),
        ("vLLM's e.g.this. And", "vLLM's e.g.this"),
    ],
)
def test_the_first_sentence_of_a_docstring(description: str, sentence: str) -> None:
    assert first_sentence(description) == sentence
