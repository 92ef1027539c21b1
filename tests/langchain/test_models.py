"""ChatVLLM and VLLM as objects: construction, names, copies, pickles, what traces and caches see. Nothing starts."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from typing import Any

import pytest
from langchain_core.caches import InMemoryCache
from langchain_core.load import dumpd, dumps, load
from langchain_core.messages import AIMessage
from langchain_core.outputs import ChatGeneration
from langchain_core.runnables import ConfigurableField

import langchain_vllm_local
from langchain_vllm_local import VLLM, ChatVLLM
from shared_engine import InvalidInputError, SettingsError
from shared_engine.settings import ENVIRONMENT, EngineFields
from tests.support.parameters import SAMPLES
from tests.support.paths import TINY_CHAT

Model = type[ChatVLLM] | type[VLLM]
both = pytest.mark.parametrize("model_class", [ChatVLLM, VLLM])


def test_public_names() -> None:
    assert langchain_vllm_local.__all__ == ["VLLM", "ChatVLLM", "VLLMEmbeddings", "VLLMRerank", "VLLMTextSplitter"]


@pytest.mark.slow
def test_importing_and_constructing_stay_light() -> None:
    code = """
import sys
from langchain_vllm_local import VLLM, ChatVLLM
ChatVLLM(model="org/name"); VLLM(base_url="http://127.0.0.1:1")
print([name for name in ("torch", "vllm", "openai", "aiohttp", "transformers") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"


# ---- construction


@both
@pytest.mark.parametrize(
    ("alias", "name", "value"),
    [
        ("model_name", "model", "org/name"),
        ("max_completion_tokens", "max_tokens", 5),
        ("stop_sequences", "stop", ["a"]),
        ("request_timeout", "timeout", 5.0),
        ("top_logprobs", "logprobs", 3),
    ],
)
def test_langchains_names_stand_for_ours(model_class: Model, alias: str, name: str, value: Any) -> None:
    model = model_class(**{"mode": "remote", "base_url": "http://127.0.0.1:1", alias: value})
    assert getattr(model, name) == value


@both
def test_the_lines_of_langchains_page_on_vllm_are_taken(model_class: Model) -> None:
    """Its names of server and key, and a switch that has nothing to do."""
    model = model_class(
        model="m", openai_api_base="http://127.0.0.1:1/v1", openai_api_key="sk-secret", stream_usage=True
    )
    assert model.base_url == "http://127.0.0.1:1"
    assert model.api_key.get_secret_value() == "sk-secret"
    assert "sk-secret" not in repr(model)


@both
@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"model": "org/name", "temprature": 1}, "unknown setting 'temprature'; did you mean 'temperature'"),
        ({"model": "org/name", "temperature": -1}, "temperature = -1"),
        ({"model": "org/name", "min_p": 2}, "min_p = 2"),
        ({"model": "org/name", "n": 0}, "n = 0"),
        ({"model": "org/name", "gpu_memory_utilization": 1.5}, "gpu_memory_utilization = 1.5"),
        ({"model": "org/name", "model_name": "org/other"}, "model_name and model are two names of model"),
        ({"model": "org/name", "mode": "remote"}, "needs base_url"),
        ({"model": "/no/such/folder"}, "/no/such/folder"),
        ({}, "pass model="),
    ],
)
def test_what_is_wrong_is_said_on_construction(model_class: Model, given: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        model_class(**given)


@both
def test_environment_is_read_once_on_construction(model_class: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENVIRONMENT["model"], "org/from-environment")
    monkeypatch.setenv(ENVIRONMENT["temperature"], "0.25")
    model = model_class(temperature=0.5)
    monkeypatch.delenv(ENVIRONMENT["model"])
    assert (model.model, model.temperature) == ("org/from-environment", 0.5)
    assert pickle.loads(pickle.dumps(model)).model == "org/from-environment"


@both
def test_every_setting_of_the_engine_reaches_it(model_class: Model) -> None:
    given: dict[str, Any] = {
        "model": str(TINY_CHAT),
        "max_model_len": 512,
        "enforce_eager": True,
        "engine_args": {"max-num-seqs": 8},
        "idle_ttl_s": 5,
        "temperature": 0.5,
    }
    settings = model_class(**given).engine.settings
    assert settings.engine_args == {"max_num_seqs": 8}
    del given["engine_args"]
    assert {name: getattr(settings, name) for name in given} == given


def test_both_classes_name_the_same_engine() -> None:
    assert ChatVLLM(model="org/name").engine.settings == VLLM(model="org/name").engine.settings


# ---- copies, assignments, other processes


@both
def test_pickles_without_the_secret_and_finds_it_in_the_environment(
    model_class: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = pickle.dumps(model_class(model="org/name", api_key="s3cret", temperature=0.5, stop=["x"]))
    assert b"s3cret" not in data
    monkeypatch.setenv(ENVIRONMENT["api_key"], "theirs")
    copied = pickle.loads(data)
    assert (copied.temperature, copied.stop) == (0.5, ["x"])
    assert copied.engine.settings.api_key.get_secret_value() == "theirs"


@both
@pytest.mark.parametrize("make", [copy.copy, copy.deepcopy, lambda model: model.model_copy()])
def test_copies_name_the_same_engine_and_keep_the_secret(model_class: Model, make: Any) -> None:
    model = model_class(model="org/name", api_key="s3cret", seed=1)
    copied = make(model)
    assert copied.engine.settings == model.engine.settings
    assert copied.engine.settings.api_key.get_secret_value() == "s3cret"
    assert copied.seed == 1


@both
def test_a_changed_copy_has_its_own_engine_and_cache_key(model_class: Model) -> None:
    model = model_class(model="org/name", temperature=0.5)
    before = dumps(model), model._serialized
    changed = model.model_copy(update={"temperature": 0.9})
    assert (changed.engine.settings.temperature, model.engine.settings.temperature) == (0.9, 0.5)
    assert changed._serialized["kwargs"]["temperature"] == 0.9
    assert (dumps(model), model._serialized) == before
    with pytest.raises(SettingsError, match="temperature = -1"):
        model.model_copy(update={"temperature": -1})


@both
def test_an_assignment_has_effect_or_is_refused(model_class: Model) -> None:
    model = model_class(model="org/name")
    model.temperature = 0.5
    assert model.engine.settings.temperature == 0.5
    with pytest.raises(SettingsError, match="temperature = -1"):
        model.temperature = -1
    assert model.temperature == 0.5


@both
def test_configurable_fields_make_a_checked_variant(model_class: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENVIRONMENT["model"], "org/name")
    runnable = model_class().configurable_fields(temperature=ConfigurableField(id="temperature"))
    variant, _ = runnable.with_config(configurable={"temperature": 0.75}).prepare()
    assert (variant.temperature, variant.model, variant.streaming) == (0.75, "org/name", None)
    with pytest.raises(SettingsError, match="temperature = -1"):
        runnable.with_config(configurable={"temperature": -1}).prepare()


@both
def test_configurable_fields_may_have_langchains_names(model_class: Model) -> None:
    runnable = model_class(base_url="http://127.0.0.1:1", model="one").configurable_fields(
        model_name=ConfigurableField(id="llm"), max_completion_tokens=ConfigurableField(id="length")
    )
    variant, _ = runnable.with_config(configurable={"llm": "two", "length": 5}).prepare()
    assert (variant.model, variant.max_tokens) == ("two", 5)
    with pytest.raises(InvalidInputError, match="two names of model"):
        model_class(model="one").configurable_fields(
            model=ConfigurableField(id="a"), model_name=ConfigurableField(id="b")
        )


# ---- what others see


@both
@pytest.mark.filterwarnings("ignore:The function `load` is in beta")
def test_serialised_form_loads_again_without_the_secret(model_class: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENVIRONMENT["api_key"], "theirs")
    model = model_class(model="org/name", api_key="s3cret", temperature=0.5, stop=["x"])
    assert "s3cret" not in dumps(model)
    loaded = load(
        dumpd(model),
        allowed_objects=[model_class],
        valid_namespaces=["langchain_vllm_local"],
        secrets_from_env=True,
    )
    assert isinstance(loaded, model_class)
    assert loaded.asdict() == model.asdict()
    assert loaded.api_key is not None
    assert loaded.api_key.get_secret_value() == "theirs"


@both
@pytest.mark.parametrize("name", SAMPLES)
def test_each_parameter_identifies_a_model_is_written_and_read_again(model_class: Model, name: str) -> None:
    default, other = SAMPLES[name]
    model = model_class(model="org/name", **{name: default})
    value = getattr(model, name)
    assert model._identifying_params == {"model": "org/name", name: value}
    assert model._identifying_params != model_class(model="org/name", **{name: other})._identifying_params
    loaded = load(dumpd(model), allowed_objects=[model_class], valid_namespaces=["langchain_vllm_local"])
    for copied in (loaded, pickle.loads(pickle.dumps(model)), model.model_copy()):
        assert getattr(copied, name) == value
        assert copied._identifying_params == model._identifying_params


@both
def test_identifying_params_tell_settings_apart_and_hold_no_secret(model_class: Model) -> None:
    model = model_class(model="org/name", api_key="s3cret", temperature=0.5, min_p=0.1)
    assert model._identifying_params == {"model": "org/name", "temperature": 0.5, "min_p": 0.1}
    assert "s3cret" not in repr(model) + str(model)


def test_type_names() -> None:
    assert ChatVLLM(model="org/name")._llm_type == "chat-vllm-local"
    assert VLLM(model="org/name")._llm_type == "vllm-local"


@both
def test_traces_show_what_holds_for_the_call(model_class: Model) -> None:
    model = model_class(model="org/name", temperature=0.5, stop="x")
    kind = "chat" if model_class is ChatVLLM else "llm"
    assert model._get_ls_params() == {
        "ls_provider": "vllm",
        "ls_model_type": kind,
        "ls_model_name": "org/name",
        "ls_temperature": 0.5,
        "ls_stop": ["x"],
    }
    given = model._get_ls_params(stop=["y"], model="org/other", temperature=0.0, max_completion_tokens=3)
    assert given == {
        "ls_provider": "vllm",
        "ls_model_type": kind,
        "ls_model_name": "org/other",
        "ls_temperature": 0.0,
        "ls_max_tokens": 3,
        "ls_stop": ["y"],
    }


def test_an_equal_call_is_answered_by_the_cache() -> None:
    cache = InMemoryCache()
    model = ChatVLLM(model="org/name", cache=cache)
    cached = ChatGeneration(message=AIMessage("from the cache"))
    prompt = dumps(model._convert_input("Hello").to_messages())
    cache.update(prompt, model._get_llm_string(stop=None, temperature=0.5), [cached])
    assert model.invoke("Hello", temperature=0.5).content == "from the cache"


def test_settings_are_defined_once() -> None:
    own = {name for name in ChatVLLM.__annotations__ if not name.startswith("_")}
    assert not own & set(EngineFields.model_fields)
