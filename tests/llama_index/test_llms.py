"""VLLM before anything runs: construction, metadata, copies, and what a call refuses."""

from __future__ import annotations

import copy
import inspect
import json
import pickle
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Condition
from typing import Any

import pytest
from llama_index.core import Settings
from llama_index.core.callbacks import CallbackManager, TokenCountingHandler
from llama_index.core.constants import DEFAULT_CONTEXT_WINDOW, DEFAULT_NUM_OUTPUTS
from llama_index.core.llms import ChatMessage, ChatResponse, CustomLLM
from llama_index.core.llms.function_calling import FunctionCallingLLM
from llama_index.core.tools import FunctionTool
from llama_index.core.types import PydanticProgramMode

import llama_index_vllm_local
from llama_index_vllm_local import VLLM, VLLMEmbedding, VLLMRerank
from shared_engine import ContextLengthError, InvalidInputError, SettingsError
from shared_engine.settings import EngineFields
from tests.support.parameters import SAMPLES
from tests.support.paths import REPOSITORY, TINY_CHAT
from tests.support.remote_server import running_server

HUB_ID = "some-org/some-model"
SECRET = "sk-very-secret"


@pytest.fixture
def base_model(tmp_path: Path) -> str:
    """A folder with a model that has no chat template."""
    (tmp_path / "config.json").write_text(json.dumps({"max_position_embeddings": 512}))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "</s>"}))
    return str(tmp_path)


# ---- construction


def test_the_package_exports_its_models() -> None:
    assert llama_index_vllm_local.__all__ == [
        "VLLM", "VLLMEmbedding", "VLLMRerank", "VLLMSparseEmbedding", "VLLMTextSplitter",
    ]  # fmt: skip


def test_it_is_every_kind_of_llm_that_llama_index_asks_for() -> None:
    assert issubclass(VLLM, CustomLLM)
    assert issubclass(VLLM, FunctionCallingLLM)
    assert not inspect.isabstract(VLLM)


def test_every_setting_of_the_engine_is_an_argument() -> None:
    assert set(EngineFields.model_fields) <= set(VLLM.model_fields)


@pytest.mark.slow
def test_importing_and_constructing_stays_light() -> None:
    program = (
        "import sys; from llama_index_vllm_local import VLLM; VLLM(model='a/b').metadata; "
        "print([name for name in ('torch', 'vllm', 'openai', 'aiohttp', 'transformers') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_constructing_starts_nothing(runtime_root: Path) -> None:
    before = sorted(runtime_root.iterdir())
    llm = VLLM(model=str(TINY_CHAT), max_model_len=1024)
    assert llm.metadata.context_window == 1024
    assert sorted(runtime_root.iterdir()) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "no model: pass model="),
        ({"model": "/no/such/folder"}, "no such folder"),
        ({"model": HUB_ID, "max_modle_len": 5}, "unknown setting 'max_modle_len'; did you mean 'max_model_len'"),
        ({"model": HUB_ID, "temperature": -1}, "temperature = -1: Input should be greater than or equal to 0"),
        ({"model": HUB_ID, "presence_penalty": 7}, "presence_penalty = 7: Input should be less than or equal to 2"),
        ({"model": HUB_ID, "context_window": 0}, "context_window = 0: Input should be greater than 0"),
        ({"model": HUB_ID, "gpu_memory_utilization": 90}, "gpu_memory_utilization = 90"),
        ({"mode": "remote"}, "mode='remote' needs base_url"),
    ],
)
def test_bad_arguments_are_refused_at_construction(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError) as refused:
        VLLM(**arguments)
    assert message in str(refused.value)


def test_a_refused_key_is_not_shown() -> None:
    with pytest.raises(SettingsError) as refused:
        VLLM(base_url="gpu:8000", api_key=SECRET)
    assert SECRET not in str(refused.value)


def test_what_is_not_given_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_MODEL_PATH", HUB_ID)
    monkeypatch.setenv("VLLM_DEFAULT_MAX_TOKENS", "77")
    llm = VLLM()
    assert (llm.metadata.model_name, llm.metadata.num_output) == (HUB_ID, 77)


def test_it_can_be_the_llm_of_everything() -> None:
    llm = VLLM(model=HUB_ID)
    try:
        Settings.llm = llm
        assert Settings.llm is llm
    finally:
        Settings._llm = None


# ---- metadata


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"model": str(TINY_CHAT)}, 2048),
        ({"model": str(TINY_CHAT), "max_model_len": 1024}, 1024),
        ({"model": str(TINY_CHAT), "max_model_len": 1024, "context_window": 900}, 900),
        ({"model": HUB_ID}, DEFAULT_CONTEXT_WINDOW),
        ({"base_url": "http://127.0.0.1:9/v1"}, DEFAULT_CONTEXT_WINDOW),
    ],
)
def test_the_context_window_is_the_nearest_known_limit(arguments: dict[str, Any], expected: int) -> None:
    assert VLLM(**arguments).metadata.context_window == expected


def test_metadata_names_model_output_and_abilities() -> None:
    metadata = VLLM(model=HUB_ID).metadata
    assert metadata.model_name == HUB_ID
    assert metadata.num_output == DEFAULT_NUM_OUTPUTS
    assert metadata.is_chat_model
    assert not metadata.is_function_calling_model, "vLLM has no parser for what nobody knows"
    assert VLLM(model="Qwen/Qwen3-4B").metadata.is_function_calling_model
    assert VLLM(model=HUB_ID, max_tokens=99).metadata.num_output == 99
    assert not VLLM(model="Qwen/Qwen3-4B", is_function_calling_model=False).metadata.is_function_calling_model


def test_a_model_whose_calls_vllm_cannot_read_calls_no_functions() -> None:
    llm = VLLM(model="microsoft/Phi-4-mini-instruct")
    assert not llm.metadata.is_function_calling_model
    llm.is_function_calling_model = True
    assert llm.metadata.is_function_calling_model
    llm.engine_args = {"tool_call_parser": "hermes"}
    llm.is_function_calling_model = None
    assert llm.metadata.is_function_calling_model


def test_metadata_tells_the_limit_that_the_server_has_told_since() -> None:
    with running_server() as server:
        server.fails(
            400, times=1, message="This model's maximum context length is 512 tokens. However, you requested 600"
        )
        llm = VLLM(base_url=server.url, model="served")
        with pytest.raises(ContextLengthError):
            llm.complete("Hi")
        assert llm.metadata.context_window == 512


@pytest.mark.slow
def test_metadata_is_whole_whoever_assigns_meanwhile() -> None:
    llm = VLLM(model=str(TINY_CHAT))
    ends = time.monotonic() + 0.5
    seen: set[int] = set()

    def read() -> None:
        while time.monotonic() < ends:
            seen.add(llm.metadata.context_window)

    def assign() -> None:
        while time.monotonic() < ends:
            llm.callback_manager = CallbackManager()

    with ThreadPoolExecutor(4) as threads:
        for done in [threads.submit(each) for each in (read, assign, read, assign)]:
            done.result()
    assert seen == {2048}


def test_metadata_follows_what_is_assigned() -> None:
    llm = VLLM(model=str(TINY_CHAT), max_tokens=5)
    assert llm.metadata.is_chat_model
    llm.completion_to_prompt = lambda prompt: prompt.upper()
    assert not llm.metadata.is_chat_model
    llm.max_model_len = 100
    assert llm.metadata.context_window == 100
    assert llm.model_copy(update={"max_model_len": 200}).metadata.context_window == 200


def test_a_model_without_a_chat_template_is_no_chat_model(base_model: str) -> None:
    metadata = VLLM(model=base_model).metadata
    assert not metadata.is_chat_model
    assert not metadata.is_function_calling_model
    assert VLLM(model=base_model, is_chat_model=True).metadata.is_chat_model
    assert VLLM(model=base_model, engine_args={"chat_template": "./chatml.jinja"}).metadata.is_chat_model


def test_who_formats_prompts_himself_gets_no_chat_template() -> None:
    assert not VLLM(model=HUB_ID, messages_to_prompt=str).metadata.is_chat_model
    assert not VLLM(model=HUB_ID, completion_to_prompt=lambda completion: completion).metadata.is_chat_model


# ---- what becomes of a call (nothing is sent)


def test_complete_goes_through_the_chat_template_unless_formatted() -> None:
    llm = VLLM(model=HUB_ID)
    assert llm._completion_request("Hi", False, {}).messages == [{"role": "user", "content": "Hi"}]
    formatted = llm._completion_request("Hi", True, {})
    assert (formatted.messages, formatted.prompt) == (None, "Hi")


def test_without_a_chat_template_prompts_are_made_by_the_callers_functions(base_model: str) -> None:
    llm = VLLM(
        model=base_model,
        messages_to_prompt=lambda messages: "|".join(str(message.content) for message in messages),
        completion_to_prompt=lambda completion: f"Q: {completion}\nA:",
    )
    assert llm._completion_request("Hi", False, {}).prompt == "Q: Hi\nA:"
    assert llm._chat_request([ChatMessage(content="a"), ChatMessage(content="b")], {}).prompt == "a|b"
    plain = VLLM(model=base_model)
    assert plain._completion_request("Hi", False, {}).prompt == "Hi"
    assert plain._chat_request([ChatMessage(content="Hi")], {}).prompt == "user: Hi\nassistant: "


def test_a_calls_keywords_win_over_the_constructors() -> None:
    llm = VLLM(model=HUB_ID, min_p=0.1, stop=["a"], seed=1)
    params = llm._completion_request("Hi", False, {"stop": ["b"], "max_tokens": 3}).params
    assert (params.min_p, params.stop, params.seed, params.max_tokens) == (0.1, ["b"], 1, 3)


def test_keywords_and_messages_of_the_caller_stay_as_they_are() -> None:
    llm = VLLM(model=HUB_ID, is_function_calling_model=True, extra_body={"a": 1})
    kwargs = {"tools": [FunctionTool.from_defaults(fn=print, name="p")], "parallel_tool_calls": False}
    before = dict(kwargs)
    request = llm._chat_request([ChatMessage(content="Hi")], kwargs)
    assert kwargs == before
    assert request.params.extra_body == {"a": 1, "parallel_tool_calls": False}
    assert llm.extra_body == {"a": 1}


@pytest.mark.parametrize("endpoint", ["complete", "stream_complete", "chat", "stream_chat"])
def test_an_unknown_parameter_is_refused_with_the_nearest(endpoint: str) -> None:
    llm = VLLM(model=HUB_ID)
    given: Any = "Hi" if endpoint.endswith("complete") else [ChatMessage(content="Hi")]
    with pytest.raises(InvalidInputError, match="unknown parameter 'temprature'; did you mean 'temperature'"):
        getattr(llm, endpoint)(given, temprature=0.5)


@pytest.mark.parametrize("endpoint", ["acomplete", "astream_complete", "achat", "astream_chat"])
async def test_an_unknown_parameter_is_refused_with_the_nearest_when_async(endpoint: str) -> None:
    llm = VLLM(model=HUB_ID)
    given: Any = "Hi" if endpoint.endswith("complete") else [ChatMessage(content="Hi")]
    with pytest.raises(InvalidInputError, match="unknown parameter 'temprature'; did you mean 'temperature'"):
        await getattr(llm, endpoint)(given, temprature=0.5)


def test_bad_input_is_refused_before_anything_starts() -> None:
    llm = VLLM(model=HUB_ID)
    with pytest.raises(InvalidInputError, match="empty conversation"):
        llm.chat([])
    with pytest.raises(InvalidInputError, match="prompt is empty"):
        llm.complete("", formatted=True)
    with pytest.raises(InvalidInputError, match="top_p = 2"):
        llm.complete("Hi", top_p=2)
    with pytest.raises(InvalidInputError, match="LlamaIndex streams one answer"):
        llm.stream_complete("Hi", n=2)


# ---- tools


def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


def test_a_chat_with_tools_keeps_the_history_and_appends_the_message() -> None:
    llm = VLLM(model=HUB_ID, is_function_calling_model=True)
    history = [ChatMessage(content="Hi")]
    tool = FunctionTool.from_defaults(fn=add)
    sent = llm._prepare_chat_with_tools([tool], user_msg="What is 2 + 3?", chat_history=history, tool_required=True)
    assert [message.content for message in sent["messages"]] == ["Hi", "What is 2 + 3?"]
    assert len(history) == 1
    assert (sent["tool_choice"], sent["parallel_tool_calls"]) == ("required", False)
    request = llm._chat_request(sent.pop("messages"), sent)
    assert request.tool_choice == "required"
    assert request.params.extra_body == {"parallel_tool_calls": False}


def test_a_chat_without_any_tool_sends_none() -> None:
    llm = VLLM(model=HUB_ID)
    sent = llm._prepare_chat_with_tools([], user_msg="Hi")
    request = llm._chat_request(sent.pop("messages"), sent)
    assert (request.tools, request.tool_choice, request.params.extra_body) == (None, "auto", None)


def test_no_tool_call_is_an_error_only_when_asked_for() -> None:
    llm = VLLM(model=HUB_ID)
    response = ChatResponse(message=ChatMessage(role="assistant", content="Five."))
    assert llm.get_tool_calls_from_response(response, error_on_no_tool_call=False) == []
    with pytest.raises(ValueError, match=r"the model called no tool; it answered: 'Five.'"):
        llm.get_tool_calls_from_response(response)


# ---- copies, dicts, other processes


def secret_llm(**arguments: Any) -> VLLM:
    return VLLM(base_url="http://gpu:8000/v1", api_key=SECRET, temperature=0.5, **arguments)


def test_no_form_of_it_shows_the_key() -> None:
    llm = secret_llm()
    shown = [repr(llm), str(llm.to_dict()), llm.to_json(), str(llm.model_dump()), llm.model_dump_json()]
    assert not any(SECRET in text for text in shown)
    assert SECRET.encode() not in pickle.dumps(llm)
    assert "api_key" not in llm.to_dict()


def test_a_dict_brings_back_an_equal_llm() -> None:
    llm = VLLM(model=HUB_ID, temperature=0.5, stop=["x"], context_window=1000)
    back = VLLM.from_dict(llm.to_dict())
    assert back.engine.settings == llm.engine.settings
    assert (back.stop, back.context_window) == (["x"], 1000)
    assert llm.to_dict()["class_name"] == VLLM.class_name() == "VLLM"


@pytest.mark.parametrize("name", SAMPLES)
def test_each_parameter_is_written_and_read_again(name: str) -> None:
    llm = VLLM(model=HUB_ID, **{name: SAMPLES[name][0]})
    value = getattr(llm, name)
    assert value is not None
    for copied in (VLLM.from_dict(llm.to_dict()), pickle.loads(pickle.dumps(llm)), llm.model_copy()):
        assert getattr(copied, name) == value
    setattr(llm, name, SAMPLES[name][1])
    assert getattr(llm, name) != value


def test_a_pickled_llm_takes_its_key_from_the_other_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    handler = TokenCountingHandler(tokenizer=str.split)
    pickled = pickle.dumps(secret_llm(min_p=0.2, callback_manager=CallbackManager([handler])))
    monkeypatch.setenv("VLLM_API_KEY", "sk-other")
    back = pickle.loads(pickled)
    key = back.engine.settings.api_key
    assert key is not None
    assert key.get_secret_value() == "sk-other"
    assert (back.temperature, back.min_p) == (0.5, 0.2)


@pytest.mark.parametrize(
    "make",
    [copy.copy, copy.deepcopy, lambda llm: llm.model_copy(deep=True), lambda llm: pickle.loads(pickle.dumps(llm))],
)
def test_a_copy_is_the_same_llm(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_API_KEY", SECRET)  # which no pickle carries
    llm = secret_llm(seed=3)
    copied = make(llm)
    assert copied.metadata == llm.metadata
    assert copied.engine.settings == llm.engine.settings
    assert copied._completion_request("Hi", False, {}).params == llm._completion_request("Hi", False, {}).params


def test_a_copy_with_an_update_leaves_the_original_alone() -> None:
    llm = VLLM(model=HUB_ID, temperature=0.5)
    copied = llm.model_copy(update={"temperature": 0.1, "seed": 3})
    assert (copied.engine.settings.temperature, llm.engine.settings.temperature) == (0.1, 0.5)
    assert copied._completion_request("Hi", False, {}).params.seed == 3
    with pytest.raises(SettingsError, match="temperature = -1"):
        llm.model_copy(update={"temperature": -1})


@pytest.mark.parametrize(
    ("make", "name", "value", "message"),
    [
        (lambda: VLLM(model=HUB_ID), "temperatur", 1, "unknown setting 'temperatur'; did you mean 'temperature'"),
        (lambda: VLLM(model=HUB_ID), "context_window", -5, "context_window = -5: Input should be greater than 0"),
        (lambda: VLLM(model=HUB_ID), "strict", "maybe", "strict = 'maybe'"),
        (lambda: VLLM(model=HUB_ID), "pydantic_program_mode", "nope", "pydantic_program_mode = 'nope'"),
        (lambda: VLLMEmbedding(model=HUB_ID), "dimensions", -1, "dimensions = -1"),
        (lambda: VLLMEmbedding(model=HUB_ID), "embed_batch_size", 0, "embed_batch_size = 0"),
        (lambda: VLLMRerank(model=HUB_ID), "top_n", -3, "top_n = -3"),
    ],
)
def test_an_update_and_an_assignment_are_checked_as_construction_is(
    make: Callable[[], Any], name: str, value: Any, message: str
) -> None:
    made = make()
    with pytest.raises(SettingsError, match=message):
        made.model_copy(update={name: value})
    if name in type(made).model_fields:
        with pytest.raises(SettingsError, match=message):
            setattr(made, name, value)
    with pytest.raises(SettingsError, match=f"{name}"):
        type(made)(model=HUB_ID, **{name: value})


def test_an_assigned_mode_may_be_its_name() -> None:
    llm = VLLM(model=HUB_ID)
    llm.pydantic_program_mode = "function"  # type: ignore[assignment]
    assert llm.pydantic_program_mode is PydanticProgramMode.FUNCTION


def test_an_update_takes_other_names_too() -> None:
    copied = VLLM(base_url="http://a").model_copy(update={"api_base": "http://b/v1", "context_window": "100"})
    assert (copied.engine.settings.base_url, copied.metadata.context_window) == ("http://b", 100)


class WithMore(VLLM):
    """As a user's own class may be."""

    more: Any = None
    place: Condition | None = None


def test_a_users_own_fields_may_be_anything() -> None:
    llm = WithMore(model=HUB_ID)
    llm.place = Condition()
    assert llm.model_copy(update={"more": 1}).place is llm.place


def test_an_assigned_setting_has_effect_and_a_bad_one_none() -> None:
    llm = VLLM(model=HUB_ID, max_tokens=5)
    llm.max_tokens = 7
    llm.min_p = 0.5
    assert llm.metadata.num_output == 7
    assert llm._completion_request("Hi", False, {}).params.min_p == 0.5
    with pytest.raises(SettingsError, match="max_tokens = 0"):
        llm.max_tokens = 0
    with pytest.raises(InvalidInputError, match="min_p = 3"):
        llm.min_p = 3
    assert (llm.max_tokens, llm.min_p, llm.metadata.num_output) == (7, 0.5, 7)


# ---- coming from OpenAILike


def test_api_base_is_another_name_of_base_url() -> None:
    llm = VLLM(api_base="http://gpu:8000/v1", model="m", is_chat_model=True, is_function_calling_model=True)
    assert llm.engine.settings.base_url == "http://gpu:8000"
    assert VLLM.from_dict(llm.to_dict()).base_url == "http://gpu:8000"
    assert VLLMEmbedding(api_base="http://gpu:8000/v1").base_url == "http://gpu:8000"
    with pytest.raises(SettingsError, match="base_url and api_base are two names of base_url"):
        VLLM(api_base="http://gpu:8000/v1", base_url="http://gpu:8000/v1")
