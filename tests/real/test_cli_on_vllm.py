"""Commands that use a model, on real vLLM: they share the engines of apps with equal settings."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from shared_engine import Engine
from shared_engine.launch.interpreter import find_interpreter
from shared_engine.setting_sources import misspelt
from shared_engine.settings import SETTINGS
from tests.real.conftest import BREAKABLE_SEED, MakeEngine
from tests.support.command import options_of, told, vllm_local
from tests.support.engines import settings_of
from tests.support.processes import run_app
from tests.support.screens import check_screen, frames_of, shown_by
from tests.support.waiting import wait_until

TEXTS = ["a river in the north", "a table of glass", "water that flows to the sea"]


@pytest.mark.timeout(120)
def test_a_pinned_model_stays_after_the_command_until_it_is_unloaded(
    breakable: MakeEngine, tiny_chat: dict[str, Any]
) -> None:
    engine, seed = breakable(), {"VLLM_SEED": str(BREAKABLE_SEED)}
    key = engine.status().key or ""
    frames = frames_of(shown_by(["load", *options_of(tiny_chat)], **seed))
    *bars, ready = frames
    assert any(f"{engine.status().name}: " in bar for bar in bars), frames
    assert ready.startswith(f"tiny_chat ({key[:8]}) is ready after "), frames
    check_screen("cli_page.py", "load", "\n".join(["$ vllm-local load examples/tiny_chat", *frames]))
    check_screen("cli_page.py", "ps", f"$ vllm-local ps\n{shown_by(['ps', key])}")
    loaded = told(vllm_local("load", *options_of(tiny_chat), "--pin", "--json", **seed))
    assert (loaded["key"], loaded["state"], loaded["pinned"], loaded["leases"]) == (key, "ready", True, 0)
    assert vllm_local("ps", key).stdout.splitlines()[1].endswith("2048  idle  unloaded by hand (pinned)")
    app = run_app("long_batch", settings_of(engine))
    try:
        wait_until(
            lambda: any(told(vllm_local("ps", key, "--json"))[0][name] for name in ("running", "waiting")), 30, "work"
        )
    finally:
        app.kill()
        app.communicate()
    assert vllm_local("unload", key).returncode == 0
    assert vllm_local("ps").stdout.count(key[:8]) == 0


def test_no_variable_of_vllms_own_is_taken_for_a_misspelt_one() -> None:
    (source,) = Path(find_interpreter(None).path).parent.parent.glob("lib/python3*/site-packages/vllm/envs.py")
    names = set(re.findall(r'"(VLLM_\w+)"', source.read_text()))
    assert len(names) > 200
    assert misspelt(SETTINGS, names) == {}


@pytest.mark.timeout(120)
def test_tokens_and_bench_are_of_the_engine_that_apps_share(quiet_engine: Engine, tiny_chat: dict[str, Any]) -> None:
    before = quiet_engine.status()
    text = "Hello there, how are you?"
    assert told(vllm_local("tokens", "count", *options_of(tiny_chat), text, "--json"))["count"] == (
        quiet_engine.count_tokens(text)
    )
    shown = told(vllm_local("tokens", "show", *options_of(tiny_chat), "--json", text=text))["tokens"]
    assert [each["id"] for each in shown] == quiet_engine.tokenize(text)
    assert [each["text"] for each in shown] == quiet_engine.token_strings(text)
    shape = ["--parallel", "1,4", "--rounds", "1", "--max-tokens", "8", "--prompt-words", "20", "--json"]
    levels = told(vllm_local("bench", *options_of(tiny_chat), *shape))["levels"]
    assert [(level["parallel"], level["requests"]) for level in levels] == [(1, 1), (4, 4)]
    assert all(min(level["tokens_per_s"], level["tokens_per_s_each"]) > 0 for level in levels)
    after = quiet_engine.status()
    assert (after.key, after.starts) == (before.key, before.starts)
    assert (after.leaves_at or 0) > (before.leaves_at or 0) > 0


@pytest.mark.timeout(120)
def test_vectors_and_scores_are_those_of_the_library(minilm: dict[str, Any]) -> None:
    engine_args = {"runner": "pooling", **minilm["engine_args"]}
    engine = Engine(**{**minilm, "engine_args": engine_args})
    expected = engine.embed(TEXTS).embeddings
    lines = vllm_local("embed", *options_of(minilm), text="\n".join(TEXTS)).stdout.splitlines()
    assert [json.loads(line) for line in lines] == [pytest.approx(vector, abs=1e-3) for vector in expected]
    ranked = told(vllm_local("rerank", *options_of(minilm), "a stream", *TEXTS, "--top", "2", "--json"))["results"]
    assert {each["document"] for each in ranked} == {TEXTS[0], TEXTS[2]}
    assert ranked[0]["relevance_score"] >= ranked[1]["relevance_score"]
    assert engine.status().starts == 1
