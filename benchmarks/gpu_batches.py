"""Batches and streams on a GPU, against vLLM in process and bare aiohttp on the same server."""

from __future__ import annotations

import asyncio
import json
import shutil
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from bare import Bare, Streamed
from figures import Contender, Row, percentile, race
from gpu_run import Run, wait_until
from latency import AGAIN, BARE, measure_calls, middle_and_slowest
from questions import questions
from servers import MODEL, model_name
from stage import TOKENS, Plan, Stage, set_stage

from shared_engine import Engine, EngineState

HEAD_DIM = 128


def batches(run: Run) -> None:
    """On tiny_chat: what clients, HTTP and processes cost."""
    _batches(run, run.settings(0.4, kv_gib=8, enforce_eager=run.is_cpu), rounds=3)


def batches_1b(run: Run) -> None:
    """On a model of about 1B parameters in bf16, with random weights: what is left of that when the model works."""
    hidden_size, layers = (512, 6) if run.is_cpu else (2048, 24)
    folder = run.folder / f"random_{hidden_size}x{layers}"
    run.say(
        "model", f"random weights in bf16, {write_scaled_model(folder, hidden_size, layers) / 1e9:.2f} B parameters"
    )
    more = {"model": str(folder), "engine_args": {"load_format": "dummy"}}
    _batches(run, run.settings(0.4, kv_gib=8, enforce_eager=run.is_cpu, **more), rounds=2)


def calls(run: Run) -> None:
    """One call after the other: what ours adds to bare aiohttp on the same socket."""
    run.use_caches("compiled")
    settings = run.settings(0.4, kv_gib=8, enforce_eager=run.is_cpu)
    with ExitStack() as stack:
        engine = Engine(**settings)
        stack.callback(engine.shutdown, force=True)
        engine.warmup()
        loop = stack.enter_context(asyncio.Runner())
        bare = Bare(model_name(settings), socket=engine.status().socket)
        stack.callback(lambda: loop.run(bare.close()))
        hello = [{"role": "user", "content": "Hello"}]
        ways: dict[str, Callable[[], Any]] = {
            BARE: lambda: loop.run(bare.chat("Hello", 1)),
            "chat": lambda: engine.chat(hello, temperature=0, max_tokens=1),
            "achat": lambda: loop.run(engine.achat(hello, temperature=0, max_tokens=1)),
            AGAIN: lambda: loop.run(bare.chat("Hello", 1)),
        }
        taken = measure_calls(ways, 20 if run.is_cpu else 200, 1 if run.is_cpu else 3)
        for row in middle_and_slowest(taken, "one call of 1 token", 1.0):
            measure, ours, _, theirs, added, *_ = row.cells()
            run.say(measure, f"{ours}; {BARE} {theirs}; {added}")


def _batches(run: Run, settings: dict[str, Any], rounds: int) -> None:
    run.use_caches("compiled")
    few, many, size = (64, 128, 0.25) if run.is_cpu else (256, 1024, 2.0)
    rounds = 1 if run.is_cpu else rounds
    run.say("how it started", run.start_quickly())
    plan = Plan(settings, embedding=None, rounds=rounds, size=size, peers=None)
    with ThreadPoolExecutor(1) as pool, ExitStack() as stack:
        engine = Engine(**settings)
        pool.submit(engine.warmup)  # it starts while LLM does
        wait_until(lambda: engine.status().state is not EngineState.STOPPED, "the engine's start to begin")
        run.use_caches("LLM")  # both compile at the same time
        stage = set_stage(plan, run.folder, stack)
        for count in (few, many):
            conversations = [[{"role": "user", "content": text}] for text in questions(count)]
            contenders = {
                "ours": Contender(partial(_batch_rate, stage, conversations)),
                "LLM.chat": Contender(partial(stage.child_rate, stage.in_process, "chat", count)),
            }
            figures = race(contenders, rounds, "tok/s", rest_s=0.1)
            run.say(f"{count:,} x {TOKENS}: `Engine.chat_batch` against `LLM.chat`", _compared(figures, "LLM.chat"))
        texts = questions(2 * many)
        for who, batch in (
            ("our batch", _our_batch(stage, texts)),
            ("bare aiohttp", stage.bare.gathered(texts, TOKENS)),
        ):
            running, waiting = _most_at_once(stage, batch)
            run.say(f"most at once, of {len(texts):,} by {who}", f"{running:,.0f} running, {waiting:,.0f} waiting")
        _streams(run, stage, few, rounds)


def _batch_rate(stage: Stage, conversations: list[list[dict[str, str]]]) -> float:
    began = time.perf_counter()
    results = stage.engine.chat_batch(conversations, temperature=0, max_tokens=TOKENS, ignore_eos=True)
    seconds = time.perf_counter() - began
    tokens = [result.usage.completion_tokens for result in results]
    assert tokens == [TOKENS] * len(conversations), f"{sum(tokens)} tokens of {TOKENS * len(conversations)} came"
    prompts = [result.usage.prompt_tokens for result in results]
    assert prompts == stage.counts[: len(prompts)], "answers are not those of the questions, in their order"
    return sum(tokens) / seconds


async def _our_batch(stage: Stage, texts: list[str]) -> None:
    await stage.engine.achat_batch(
        [[{"role": "user", "content": text}] for text in texts], temperature=0, max_tokens=TOKENS, ignore_eos=True
    )


def _most_at_once(stage: Stage, asked: Coroutine[Any, Any, object]) -> tuple[float, float]:
    """Requests that the engine runs, and that wait there."""

    async def measure() -> tuple[float, float]:
        batch = asyncio.ensure_future(asked)
        running = waiting = 0.0
        while not batch.done():
            numbers = await stage.engine.ametrics()
            running = max(running, numbers.get("num_requests_running", 0.0))
            waiting = max(waiting, numbers.get("num_requests_waiting", 0.0))
            await asyncio.sleep(0.02)
        await batch
        await stage.engine.aclose()
        return running, waiting

    return stage.loop.run(measure())


def _streams(run: Run, stage: Stage, count: int, rounds: int) -> None:
    """All at once on one event loop, ours and bare aiohttp on the same socket."""
    firsts: dict[str, list[float]] = {"ours": [], "bare aiohttp": []}

    async def ours(text: str) -> Streamed:
        streamed = Streamed()
        message = {"role": "user", "content": text}
        async for chunk in stage.engine.astream_chat([message], temperature=0, max_tokens=TOKENS, ignore_eos=True):
            streamed.add(chunk.text)
            if chunk.usage is not None:
                streamed.prompt_tokens = chunk.usage.prompt_tokens
                streamed.completion_tokens = chunk.usage.completion_tokens
        return streamed

    def rate(name: str, stream: Callable[[str], Coroutine[Any, Any, Streamed]]) -> float:
        async def gathered() -> list[Streamed]:
            return await asyncio.gather(*(stream(text) for text in questions(count)))

        began = time.perf_counter()
        came = stage.loop.run(gathered())
        seconds = time.perf_counter() - began
        firsts[name] += [streamed.first_s * 1000 for streamed in came]
        return stage.check([streamed.answer() for streamed in came], TOKENS) / seconds

    contenders = {
        "ours": Contender(partial(rate, "ours", ours)),
        "bare aiohttp": Contender(partial(rate, "bare aiohttp", partial(stage.bare.stream, tokens=TOKENS))),
    }
    figures = race(contenders, rounds, "tok/s", rest_s=0.1)
    run.say(f"{count} streams at once, against bare aiohttp", _compared(figures, "bare aiohttp"))
    for percent in (50, 99):
        own, other = (percentile(firsts[name], percent) for name in firsts)
        run.say(f"{count} streams at once, first chunk, p{percent}", f"{own:,.0f} ms; bare aiohttp {other:,.0f} ms")


def _compared(figures: dict[str, list[float]], against: str) -> str:
    _, ours, _, theirs, ratio, *_ = Row("", figures["ours"], "tok/s", against, figures[against]).cells()
    return f"{ours}; {against} {theirs}; {ratio}"


def write_scaled_model(folder: Path, hidden_size: int, layers: int) -> int:
    """tiny_chat, wider and deeper, without weights (load_format="dummy" makes them up); how many there are."""
    folder.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json", "chat_template.jinja"):
        shutil.copy(Path(MODEL, name), folder)
    config = json.loads(Path(MODEL, "config.json").read_text())
    heads = hidden_size // HEAD_DIM
    inner = hidden_size * 5 // 2
    config |= {
        "hidden_size": hidden_size,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads // 2,
        "head_dim": HEAD_DIM,
        "dtype": "bfloat16",
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    return int(config["vocab_size"]) * hidden_size + layers * (3 * hidden_size**2 + 3 * hidden_size * inner)
