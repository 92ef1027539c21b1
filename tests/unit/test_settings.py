"""EngineSettings: arguments, environment, ranges, and what an error says."""

from __future__ import annotations

import pickle
import sys
from pathlib import Path
from typing import Any

import pytest

from shared_engine import EngineSettings, SettingsError
from shared_engine.settings import ENVIRONMENT, SECRET

ENVIRONMENT_VALUES = {
    "VLLM_MODEL_PATH": ("model", "org/name", "org/name"),
    "VLLM_GPU_MEMORY_UTILIZATION": ("gpu_memory_utilization", "0.5", 0.5),
    "VLLM_MAX_MODEL_LEN": ("max_model_len", "4096", 4096),
    "VLLM_TENSOR_PARALLEL_SIZE": ("tensor_parallel_size", "2", 2),
    "VLLM_PIPELINE_PARALLEL_SIZE": ("pipeline_parallel_size", "3", 3),
    "VLLM_DATA_PARALLEL_SIZE": ("data_parallel_size", "2", 2),
    "VLLM_DTYPE": ("dtype", "bfloat16", "bfloat16"),
    "VLLM_IDLE_TTL_SECONDS": ("idle_ttl_s", "60", 60.0),
    "VLLM_TRUST_REMOTE_CODE": ("trust_remote_code", "true", True),
    "VLLM_DEFAULT_TEMPERATURE": ("temperature", "0.2", 0.2),
    "VLLM_DEFAULT_TOP_P": ("top_p", "0.9", 0.9),
    "VLLM_DEFAULT_TOP_K": ("top_k", "40", 40),
    "VLLM_DEFAULT_MAX_TOKENS": ("max_tokens", "128", 128),
    "VLLM_DEFAULT_REPETITION_PENALTY": ("repetition_penalty", "1.1", 1.1),
    "VLLM_MODE": ("mode", "local", "local"),
    "VLLM_FALLBACK": ("fallback", "local, direct", ("local", "direct")),
    "VLLM_QUANTIZATION": ("quantization", "awq", "awq"),
    "VLLM_REVISION": ("revision", "main", "main"),
    "VLLM_TOKENIZER": ("tokenizer", "org/other", "org/other"),
    "VLLM_DOWNLOAD_DIR": ("download_dir", "/data/models", "/data/models"),
    "VLLM_SEED": ("seed", "7", 7),
    "VLLM_ENFORCE_EAGER": ("enforce_eager", "1", True),
    "VLLM_VISIBLE_DEVICES": ("visible_devices", "0,1", "0,1"),
    "VLLM_CPU_OMP_THREADS_BIND": ("cpu_omp_threads_bind", "0-3", "0-3"),
    "VLLM_REPLICAS": ("replicas", "2", 2),
    "VLLM_GPU_IDS": ("gpu_ids", "0, 1", (("0",), ("1",))),
    "VLLM_REPLICAS_START": ("start", "all", "all"),
    "VLLM_SLEEP_AFTER_SECONDS": ("sleep_after_s", "60", 60.0),
    "VLLM_PINNED": ("pinned", "true", True),
    "VLLM_SERVE_TCP": ("serve_tcp", "8000", "127.0.0.1:8000"),
    "VLLM_MAX_LOADED_ENGINES": ("max_loaded_engines", "2", 2),
    "VLLM_STALL_TIMEOUT_SECONDS": ("stall_timeout_s", "20", 20.0),
    "VLLM_SHOW_PROGRESS": ("show_progress", "false", False),
    "VLLM_VERBOSE": ("verbose", "true", True),
    "VLLM_START_TIMEOUT_SECONDS": ("start_timeout_s", "30", 30.0),
    "VLLM_REQUEST_TIMEOUT_SECONDS": ("timeout", "5", 5.0),
    "VLLM_ENGINE_ARGS": ("engine_args", '{"max-num-seqs": 8}', {"max_num_seqs": 8}),
    "VLLM_REPRODUCIBLE": ("reproducible", "true", True),
    "VLLM_LORA_ADAPTERS": ("lora_adapters", '{"a": "org/adapter"}', {"a": "org/adapter"}),
    "VLLM_STANDBY": ("standby", "false", False),
    "VLLM_STANDBY_TTL_SECONDS": ("standby_ttl_s", "10", 10.0),
    "VLLM_MAX_RETRIES": ("max_retries", "0", 0),
    "VLLM_CHECK_CONTEXT": ("check_context", "true", True),
    "VLLM_TRUNCATE_COMPLETION": ("truncate_completion", "1", True),
    "VLLM_MERGE_MESSAGES": ("merge_messages", "never", "never"),
    "VLLM_MAX_TOOL_RESULT_CHARS": ("max_tool_result_chars", "5000", 5000),
    "VLLM_SHOW_SCHEMA": ("show_schema", "false", False),
    "VLLM_SCHEMA_MAX_LENGTH": ("schema_max_length", "500", 500),
    "VLLM_SCHEMA_MAX_ITEMS": ("schema_max_items", "50", 50),
    "VLLM_PYTHON": ("python", "/opt/vllm/bin/python", "/opt/vllm/bin/python"),
    "VLLM_API_URL": ("base_url", "http://host:8000/v1/", "http://host:8000"),
    "VLLM_MEMBER_WEIGHTS": ("member_weights", "1", (1.0,)),
    "VLLM_DEFAULT_QUERY": ("default_query", '{"a": 1}', {"a": "1"}),
    "VLLM_PROXY": ("proxy", "proxy:3128", "http://proxy:3128"),
    "VLLM_SSL_VERIFY": ("ssl_verify", "false", False),
}
FILES = ("VLLM_SSL_CA_CERTS", "VLLM_SSL_CERTFILE", "VLLM_SSL_KEYFILE")


@pytest.mark.parametrize("variable", sorted(ENVIRONMENT_VALUES))
def test_each_setting_is_read_from_its_variable(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    field, text, value = ENVIRONMENT_VALUES[variable]
    monkeypatch.setenv("VLLM_MODEL_PATH", "org/name")
    monkeypatch.setenv(variable, text)
    assert getattr(EngineSettings(), field) == value


def test_every_setting_has_a_variable() -> None:
    assert set(ENVIRONMENT) == set(EngineSettings.model_fields)
    assert set(ENVIRONMENT.values()) == {*ENVIRONMENT_VALUES, *(ENVIRONMENT[name] for name in SECRET), *FILES}


def test_an_argument_wins_over_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_MAX_MODEL_LEN", "4096")
    assert EngineSettings(model="org/name", max_model_len=512).max_model_len == 512


def test_an_empty_variable_counts_as_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_MAX_MODEL_LEN", "")
    assert EngineSettings(model="org/name").max_model_len is None
    own_words: tuple[Any, ...] = ("auto", -1, "-1")
    assert {EngineSettings(model="org/name", max_model_len=v).max_model_len for v in own_words} == {"auto"}


def test_an_explicit_local_mode_wins_over_a_url_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_API_URL", "http://host:8000")
    assert EngineSettings(model="org/name").is_remote
    assert not EngineSettings(model="org/name", mode="local").is_remote
    assert EngineSettings(model="org/name", mode="local").base_url is None
    assert EngineSettings(model="org/name", mode="local", fallback=["remote"]).modes == ("local", "remote")


def test_an_explicit_direct_mode_wins_over_a_url_and_a_python_from_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("VLLM_API_URL", "http://host:8000")
    monkeypatch.setenv("VLLM_PYTHON", "/opt/vllm/bin/python")
    settings = EngineSettings(model="org/name", mode="direct")
    assert (settings.modes, settings.base_url, settings.python) == (("direct",), None, None)


@pytest.mark.parametrize(
    ("values", "modes"),
    [
        ({}, ("local",)),
        ({"base_url": "http://x"}, ("remote",)),
        ({"mode": "local"}, ("local",)),
        ({"mode": "direct"}, ("direct",)),
        ({"mode": "auto"}, ("direct", "local")),
        ({"mode": "auto", "base_url": "http://x"}, ("direct", "local", "remote")),
        ({"mode": "auto", "fallback": ()}, ("direct",)),
        ({"mode": "auto", "fallback": ["remote"], "base_url": "http://x"}, ("direct", "remote")),
        ({"mode": "auto", "model": None, "base_url": "http://x"}, ("remote",)),
        ({"mode": "local", "fallback": "remote", "base_url": "http://x"}, ("local", "remote")),
        ({"fallback": ["local"], "base_url": "http://x"}, ("remote", "local")),
        ({"mode": "direct", "fallback": ("direct", "local", "local")}, ("direct", "local")),
    ],
)
def test_the_modes_are_tried_in_their_order(values: dict[str, Any], modes: tuple[str, ...]) -> None:
    settings = EngineSettings(**{"model": "org/name", **values})
    assert settings.modes == modes
    assert settings.is_remote == (modes == ("remote",))


def test_a_setting_without_its_name_is_refused_with_how_to_say_it() -> None:
    settings_class: Any = EngineSettings
    with pytest.raises(SettingsError, match=r"settings are keywords: EngineSettings\(model=\.\.\.\), got .*'org/name'"):
        settings_class("org/name")


@pytest.mark.parametrize(
    ("values", "parts"),
    [
        ({"gpu_memory_utilization": 1.5}, ["gpu_memory_utilization", "1.5", "less than or equal to 1"]),
        ({"gpu_memory_utilization": 0}, ["gpu_memory_utilization", "greater than 0"]),
        *(
            ({"max_model_len": wrong}, ["max_model_len", "greater than 0, or 'auto'"])
            for wrong in (0, -5, 1.5, "12k", True)
        ),
        ({"tensor_parallel_size": 0}, ["tensor_parallel_size", "greater than or equal to 1"]),
        ({"dtype": "int3"}, ["dtype", "int3", "bfloat16"]),
        ({"idle_ttl_s": -1}, ["idle_ttl_s", "-1", "greater than 0"]),
        ({"top_p": 1.1}, ["top_p", "1.1"]),
        ({"mode": "cloud"}, ["mode", "cloud", "local", "remote"]),
        ({"base_url": "gpu:8000"}, ["base_url", "gpu:8000", "http://"]),
        ({"mode": "remote"}, ["mode='remote'", "base_url"]),
        ({"base_url": "http://host:99x"}, ["base_url", "99x", "is not a valid URL"]),
        ({"base_url": "http://"}, ["base_url", "has no host"]),
        ({"mode": "local", "base_url": "http://x"}, ["mode='local'", "http://x"]),
        ({"mode": "direct", "base_url": "http://x"}, ["mode='direct'", "http://x"]),
        (
            {"mode": "direct", "python": "/opt/vllm/bin/python"},
            ["mode='direct'", "/opt/vllm/bin/python", sys.executable],
        ),
        ({"mode": "auto", "fallback": ["local"], "base_url": "http://x"}, ["mode='auto'", "http://x"]),
        ({"mode": "auto", "fallback": ["remote"]}, ["fallback", "base_url"]),
        ({"fallback": ["cloud"]}, ["fallback", "cloud", "local"]),
        ({"max_model_leng": 5}, ["max_model_leng", "did you mean 'max_model_len'"]),
        ({"api_base": "http://x"}, ["api_base", "did you mean 'base_url'"]),
        ({"openai_proxy": "http://x"}, ["openai_proxy", "did you mean 'proxy'"]),
        ({"vllm_kwargs": {}}, ["vllm_kwargs", "did you mean 'engine_args'"]),
        ({"response_format": {"type": "json_object"}}, ["'response_format' is a parameter of a call", "pass it to"]),
        ({"n": 2}, ["'n' is a parameter of a call"]),
        ({"min_tokens": 2}, ["'min_tokens' is a parameter of a call"]),
        ({"best_of": 1}, ["best_of", "known: api_key, base_url"]),
        ({"engine_args": {"--max-model-len": 5}}, ["engine_args", "setting of its own", "max_model_len="]),
        ({"engine_args": {"uds": "/tmp/x"}}, ["engine_args", "uds", "chosen by vllm-local"]),
        ({"seed": 1, "engine_args": {"seed": 2}}, ["seed", "twice"]),
    ],
)
def test_a_bad_value_is_refused_with_its_name_and_what_is_allowed(values: dict[str, Any], parts: list[str]) -> None:
    with pytest.raises(SettingsError) as caught:
        EngineSettings(**{"model": "org/name", **values})
    for part in parts:
        assert part in str(caught.value)


def test_a_bad_variable_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_MAX_MODEL_LEN", "many")
    with pytest.raises(SettingsError, match=r"max_model_len \(from VLLM_MAX_MODEL_LEN\) = 'many'"):
        EngineSettings(model="org/name")


def test_engine_args_that_are_no_json_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_ENGINE_ARGS", "max_num_seqs=8")
    with pytest.raises(SettingsError, match="VLLM_ENGINE_ARGS must be a JSON object"):
        EngineSettings(model="org/name")


def test_without_a_model_the_error_says_how_to_name_one() -> None:
    with pytest.raises(SettingsError, match=r"pass model=.*VLLM_MODEL_PATH.*base_url="):
        EngineSettings()


def test_a_path_that_is_no_model_is_refused_with_the_path(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"no such folder.*/nowhere/model"):
        EngineSettings(model="/nowhere/model")
    with pytest.raises(SettingsError, match=r"no config\.json"):
        EngineSettings(model=str(tmp_path))
    weights = tmp_path / "model.safetensors"
    weights.touch()
    with pytest.raises(SettingsError, match="is a file"):
        EngineSettings(model=str(weights))


def test_settings_can_not_be_changed() -> None:
    settings = EngineSettings(model="org/name")
    with pytest.raises(Exception, match="frozen"):
        settings.max_model_len = 5


def test_the_api_key_is_in_no_repr_error_or_pickle(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = EngineSettings(base_url="http://host", api_key="s3cret")
    assert "s3cret" not in repr(settings)
    data = pickle.dumps(settings)
    assert b"s3cret" not in data
    assert pickle.loads(data).base_url == "http://host"
    with pytest.raises(SettingsError) as caught:
        EngineSettings(api_key="s3cret", max_model_len=-1)
    assert "s3cret" not in str(caught.value)
    monkeypatch.setenv("VLLM_API_KEY", "s3cret")
    with pytest.raises(SettingsError) as caught:
        EngineSettings()
    assert "s3cret" not in str(caught.value)
