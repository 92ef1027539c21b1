"""LoRA adapters on real vLLM: the two of tiny_chat, on one engine with the model itself."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from shared_engine import Engine, GenerationResult, RequestRejectedError
from shared_engine.launch.interpreter import find_interpreter
from tests.support.adapters import ADAPTERS, BRIEF, POLITE, make_adapter
from tests.support.paths import REPOSITORY, TINY_CHAT
from tests.support.processes import run_code

COUNTRIES = ("France", "Italy", "Spain", "Japan", "Germany", "Norway", "Egypt", "Peru")
CONVERSATIONS = [[{"role": "user", "content": f"What is the capital of {country}?"}] for country in COUNTRIES]
FRANCE = CONVERSATIONS[0]
NAMES = (None, "brief", "polite")
ANSWERS = {
    None: "The capital of France is Paris.",
    "brief": "Paris.",
    "polite": "Gladly. The capital of France is Paris.",
}
"""To the first conversation."""


@pytest.fixture(scope="module")
def engine(lora_chat: dict[str, Any]) -> Engine:
    return Engine(**lora_chat, temperature=0)


@pytest.fixture(scope="module")
def alone(engine: Engine) -> dict[str | None, list[GenerationResult]]:
    """The answers of the model and of each adapter, one request after the other."""
    return {name: [engine.chat(each, lora=name) for each in CONVERSATIONS] for name in NAMES}


@pytest.mark.long
def test_answers_are_those_of_the_merged_weights(alone: dict[str | None, list[GenerationResult]]) -> None:
    command = [find_interpreter(None).path, str(REPOSITORY / "tests" / "support" / "merged_answers.py")]
    given = json.dumps([str(TINY_CHAT), [BRIEF, POLITE], CONVERSATIONS])
    done = subprocess.run([*command, given], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [[result.text for result in alone[name]] for name in NAMES]
    assert [alone[name][0].text for name in NAMES] == list(ANSWERS.values())


async def test_a_mixed_batch_of_64_has_each_adapters_own_answers_and_usage(
    engine: Engine, alone: dict[str | None, list[GenerationResult]]
) -> None:
    asked = [(NAMES[n % 3], n % 8) for n in range(64)]
    results = await asyncio.gather(*(engine.achat(CONVERSATIONS[at], lora=name) for name, at in asked))
    for (name, at), result in zip(asked, results, strict=True):
        expected = alone[name][at]
        assert (result.text, result.model) == (expected.text, expected.model)
        assert result.usage.completion_tokens == expected.usage.completion_tokens
        assert result.usage.prompt_tokens == alone[None][at].usage.prompt_tokens
    assert {result.model for result in results} == {str(TINY_CHAT), "brief", "polite"}


def test_batches_streams_and_text_are_answered_by_the_adapter(
    engine: Engine, alone: dict[str | None, list[GenerationResult]]
) -> None:
    assert [each.text for each in engine.chat_batch(CONVERSATIONS, lora="brief")] == [
        each.text for each in alone["brief"]
    ]
    chunks = list(engine.stream_chat(FRANCE, model="polite"))
    assert "".join(chunk.text for chunk in chunks) == ANSWERS["polite"]
    assert {chunk.model for chunk in chunks} == {"polite"}
    assert chunks[-1].usage is not None
    prompt = "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n<think></think>"
    assert engine.generate(prompt, lora="brief").text == ANSWERS["brief"]
    assert [each.text for each in engine.generate_batch([prompt] * 2, extra_body={"model": "polite"})] == [
        ANSWERS["polite"]
    ] * 2
    assert engine.chat(FRANCE, model=str(TINY_CHAT)).text == ANSWERS[None]


def test_openai_clients_name_an_adapter_as_their_model(engine: Engine) -> None:
    pytest.importorskip("openai")
    client: Any = engine.openai_client()

    def ask(model: str) -> str:
        answer = client.chat.completions.create(model=model, messages=FRANCE, temperature=0)
        return str(answer.choices[0].message.content)

    assert [ask(model) for model in ("default", "brief", "polite")] == list(ANSWERS.values())
    engine.unload_adapter("polite")
    assert ask("polite") == ANSWERS["polite"]


def test_forms_and_tools_hold_with_an_adapter(engine: Engine) -> None:
    form = {"regex": r"Gladly\. [A-Z]{5}"}
    assert engine.chat(FRANCE, lora="brief", structured_outputs=form, max_tokens=20).text.startswith("Gladly. ")
    parameters = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
    tool = {"type": "function", "function": {"name": "get_weather", "parameters": parameters}}
    asked = [{"role": "user", "content": "What is the weather in Paris?"}]
    result = engine.chat(asked, lora="polite", tools=[tool], tool_choice="required", max_tokens=60)
    assert [call.name for call in result.tool_calls] == ["get_weather"]


def test_objects_that_mean_different_things_by_a_name_share_one_engine(
    engine: Engine, lora_chat: dict[str, Any]
) -> None:
    engines = [Engine(**{**lora_chat, "lora_adapters": {"mine": path}}, temperature=0) for path in (BRIEF, POLITE)]
    assert [each.chat(FRANCE, lora="mine").text for each in engines] == [ANSWERS["brief"], ANSWERS["polite"]]
    assert {each.status().server_pid for each in engines} == {engine.status().server_pid}


def test_what_another_process_has_unloaded_is_loaded_again(engine: Engine, lora_chat: dict[str, Any]) -> None:
    assert engine.chat(FRANCE, lora="brief").text == ANSWERS["brief"]
    code = (
        "import json, sys; from shared_engine import Engine; engine = Engine(**json.loads(sys.argv[1]));"
        "message = [{'role': 'user', 'content': 'What is the capital of France?'}];"
        "print(engine.chat(message, lora='brief', temperature=0).text); engine.unload_adapter('brief')"
    )
    app = run_code(code, json.dumps(lora_chat))
    assert app.communicate(timeout=60)[0] == ANSWERS["brief"] + "\n"
    assert not any(name.startswith("brief-") for name in asyncio.run(models_of(engine)))
    results = engine.chat_batch([FRANCE] * 16, lora="brief")
    assert {result.text for result in results} == {ANSWERS["brief"]}


async def models_of(engine: Engine) -> list[str]:
    connector = aiohttp.UnixConnector((await engine.astatus()).socket or "")
    async with aiohttp.ClientSession(connector=connector) as session, session.get("http://x/v1/models") as response:
        return [model["id"] for model in (await response.json())["data"]]


@pytest.mark.long
def test_an_adapter_that_was_loaded_at_run_time_survives_an_eviction_and_a_crash(
    lora_chat: dict[str, Any], tmp_path: Path
) -> None:
    engine = Engine(**lora_chat, temperature=0)
    path = tmp_path / "loaded"
    shutil.copytree(BRIEF, path)
    engine.load_adapter("loaded", path)
    assert engine.adapters == {**ADAPTERS, "loaded": str(path)}
    assert engine.chat(FRANCE, lora="loaded").text == ANSWERS["brief"]
    engine.evict()
    assert engine.chat(FRANCE, lora="loaded").text == ANSWERS["brief"]
    pid = engine.status().server_pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    assert Engine(**lora_chat).chat(FRANCE, lora="loaded", temperature=0).text == ANSWERS["brief"]
    shutil.copytree(POLITE, path, dirs_exist_ok=True)  # trained again
    engine.load_adapter("loaded", path)
    assert engine.chat(FRANCE, lora="loaded").text == ANSWERS["polite"]
    engine.unload_adapter("loaded")
    assert engine.adapters == ADAPTERS


def test_the_model_itself_answers_while_all_places_for_adapters_are_taken(engine: Engine, tmp_path: Path) -> None:
    """In one batch with them: the plain kernels of vLLM's CPU build would take the last adapter for it."""
    copies = [f"copy{number}" for number in range(4)]
    for name in copies:
        shutil.copytree(BRIEF, tmp_path / name)
        engine.load_adapter(name, tmp_path / name)
    asked: list[str | None] = [None, *copies, None] * 8

    async def ask() -> list[str]:
        return [each.text for each in await asyncio.gather(*(engine.achat(FRANCE, lora=name) for name in asked))]

    assert asyncio.run(ask()) == [ANSWERS["brief" if name else None] for name in asked]
    for name in copies:
        engine.unload_adapter(name)


@pytest.mark.parametrize(
    ("made", "words"),
    [
        ({"use_dora": True}, "vLLM does not yet support DoRA"),
        ({"modules": {"no_proj": (256, 256)}}, "no_proj"),
        ({"modules_to_save": ["embed_tokens"]}, "modules_to_save"),
    ],
)
def test_what_vllm_can_not_load_is_told_in_its_words_and_harms_nobody(
    engine: Engine, tmp_path: Path, made: dict[str, Any], words: str
) -> None:
    pid = engine.status().server_pid
    with pytest.raises(RequestRejectedError, match=rf"vLLM can't load the adapter 'x' \({tmp_path}.*{words}"):
        engine.load_adapter("x", make_adapter(tmp_path / "a", **made))
    assert "x" not in engine.adapters
    assert engine.chat(FRANCE).text == ANSWERS[None]
    assert pid in (None, engine.status().server_pid)
