"""The lives of engines on a GPU: starts, returns, sleep, engines that take turns; and the memory of each stage."""

from __future__ import annotations

import http.client
import json
import os
import socket
import subprocess
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from device_memory import MIB, memory
from figures import say
from gpu_run import GPU_ONLY, Run, ask, engine_of, last_match, log_of, wait_until
from servers import MODEL

from shared_engine import Engine, EngineSettings, EngineState
from shared_engine.cli.selftest import import_vllm
from shared_engine.gpu import GPUMonitor
from shared_engine.launch.interpreter import find_interpreter
from shared_engine.launcher.start_method import START_VARIABLE
from shared_engine.machine.memory import GIB, total_memory
from shared_engine.runtime.launcher_messages import ImportFailed, Preloaded
from tests.support.plain_server import plain_server

GREEDY: dict[str, Any] = {"temperature": 0, "max_tokens": 16}
QUESTIONS = [f"How many legs have {count} spiders and {count + 1} birds?" for count in range(64)]


def machine(run: Run) -> None:
    """What this is; and whether importing vLLM touches the GPU."""
    interpreter = find_interpreter(EngineSettings(model=MODEL).python)
    run.say("machine", f"{os.cpu_count()} processors, {total_memory() / GIB:.0f} GiB RAM, {os.uname().release}")
    if not run.is_cpu:
        used, total = memory(is_cpu=False)
        run.say("GPU memory", f"{total // MIB:,} MiB, {used // MIB:,} MiB in use before anything starts")
        run.say("GPUMonitor", GPUMonitor().summary().replace("\n", "; "))
    os.environ[START_VARIABLE] = "fork"
    began = time.monotonic()
    done, events = import_vllm(interpreter)
    event = events[0] if events else None
    if not isinstance(event, Preloaded):
        why = event.error if isinstance(event, ImportFailed) else f"exit code {done.returncode}"
        say("\n".join(done.stdout.decode(errors="replace").splitlines()[-25:]))
        raise RuntimeError(f"vLLM can't be imported: {why}")
    run.say("vLLM", f"{event.version} ({interpreter.build} build)")
    run.say(
        "importing vLLM, the first time", f"{event.seconds:.1f} s, {time.monotonic() - began:.1f} s for the process"
    )
    run.say(
        "does importing vLLM touch the GPU", GPU_ONLY if run.is_cpu else event.fork_refusal or "no: it can be forked"
    )
    code = "import sys, torch; print(sys.version.split()[0], torch.__version__, torch.version.cuda)"
    told = subprocess.run([interpreter.path, "-c", code], capture_output=True, text=True, timeout=60, check=True).stdout
    python, torch, cuda = told.split()
    run.say("Python, torch, CUDA", f"{python}, {torch}, {GPU_ONLY if run.is_cpu else cuda}")


def plain_start(run: Run) -> None:
    """vLLM starts its own processes, as it does by default on CUDA."""
    _starts(run, "plain")


def forked_start(run: Run) -> None:
    """The launcher forks them, as it does on CPU builds."""
    _starts(run, "fork")


def _starts(run: Run, how: str) -> None:
    os.environ[START_VARIABLE] = how
    run.use_caches("eager")
    settings = run.settings(0.3, enforce_eager=True)
    kept = run.folder / "plain_answers.json"
    before = run.used()
    with engine_of(settings) as engine:
        seconds, first = ask(engine)
        run.seconds("cold start to the first answer", seconds)
        how_started = last_match(r"imported in [\d.]+ s; (.+)", log_of(engine))
        run.say("how it started", how_started)
        run.grown("loaded", before)
        told = answers(engine)
        engine.evict()
        run.back("after evict", before)
        seconds, again = ask(engine)
        run.seconds("return from standby to the first answer", seconds)
        run.grown("loaded again", before)
        same = equal(told, answers(engine)) + (first == again)
        run.say("greedy answers before and after the return", f"{same} of {len(QUESTIONS) + 1} equal")
        if how == "plain":
            kept.write_text(json.dumps([same, told]))
        else:
            _judge_fork(run, engine, settings, "forks" in how_started, told, kept)
    run.back("after shutdown", before)


def _judge_fork(run: Run, engine: Engine, settings: dict[str, Any], forked: bool, told: list[str], kept: Path) -> None:
    """Whether forked starts can be trusted: a second engine beside the first, and 64 chats at once."""
    if not forked:
        return run.say("is forking safe", "not known: it was not forked")
    with engine_of({**settings, "seed": 1}) as second:
        seconds, _ = ask(second)
        run.seconds("a second forked engine beside the first, to its first answer", seconds)
        beside = equal(told, answers(second))
        run.say("greedy answers of the second", f"{beside} of {len(QUESTIONS)} equal to the first's")
    conversations = [[{"role": "user", "content": text}] for text in QUESTIONS]
    done = sum(bool(result.text) for result in engine.chat_batch(conversations, **GREEDY))
    run.say(f"{len(QUESTIONS)} chats at once", f"{done} answered")
    if not kept.exists():
        return run.say("is forking safe", "not known: the plain start has left no answers to compare with")
    plain_same, plain = json.loads(kept.read_text())
    same = equal(told, plain)
    run.say("greedy answers, forked against plain", f"{same} of {len(QUESTIONS)} equal")
    expected = min(plain_same, len(QUESTIONS))  # a plain start's own answers may differ, too
    is_safe = min(same, beside) >= expected and done == len(QUESTIONS)
    run.say("is forking safe", "nothing speaks against it" if is_safe else "**no**")
    if is_safe:
        run.fork_works.touch()


def compiled(run: Run) -> None:
    """Default settings: compiled, with CUDA graphs; and what the engine chose by itself."""
    run.use_caches("compiled")
    os.environ["VLLM_SERVER_DEV_MODE"] = "1"  # has the route that tells what was chosen
    settings = run.settings(0.4)
    with engine_of(settings) as engine:
        run.seconds("cold start, nothing compiled yet, to the first answer", ask(engine)[0])
        run.say("how it started", last_match(r"imported in [\d.]+ s; (.+)", log_of(engine)))
        run.say("KV cache it chose", last_match(r"KV cache size: ([\d,]+ tokens)", log_of(engine)))
        engine.evict()
        run.seconds("return from standby to the first answer", ask(engine)[0])
        run.say("max_num_seqs, max_num_batched_tokens it chose", chosen_limits(engine))
    with engine_of(settings) as engine:
        run.seconds("cold start, compiled before, to the first answer", ask(engine)[0])
    _serve(run, settings, "`vllm serve`, same settings, compiled before, to the first answer")


def serve_uncompiled(run: Run) -> None:
    """What the first cold start of ``compiled`` is compared with."""
    run.use_caches("serve")
    os.environ["VLLM_SERVER_DEV_MODE"] = "1"
    _serve(run, run.settings(0.4), "`vllm serve`, same settings, nothing compiled yet, to the first answer")


def _serve(run: Run, settings: dict[str, Any], measure: str) -> None:
    began = time.monotonic()
    with plain_server(settings, run.folder):
        run.seconds(measure, time.monotonic() - began)


def chosen_limits(engine: Engine) -> str:
    """By /server_info, which servers in vLLM's development mode have."""
    connection = http.client.HTTPConnection("engine", timeout=30)
    connection.sock = socket.socket(socket.AF_UNIX)
    try:
        connection.sock.settimeout(30)
        connection.sock.connect(str(engine.status().socket))
        connection.request("GET", "/server_info?config_format=json")
        response = connection.getresponse()
        body = response.read()
        if response.status != 200:
            return f"not told: HTTP {response.status}"
        scheduler = json.loads(body)["vllm_config"]["scheduler_config"]
        return f"{scheduler['max_num_seqs']:,}, {scheduler['max_num_batched_tokens']:,}"
    except (OSError, ValueError, KeyError, TypeError) as exc:  # another release may tell it another way
        return f"not told: {type(exc).__name__}: {exc}"
    finally:
        connection.close()


def sleep(run: Run) -> None:
    """Weights to RAM when idle (vLLM's sleep mode, level 1), and back with the next request."""
    if run.is_cpu:
        for measure in ("GPU memory, asleep", "asleep to the next answer"):
            run.say(measure, GPU_ONLY)
        return
    run.use_caches("eager")
    how = run.start_quickly()
    before = run.used()
    with engine_of(run.settings(0.3, enforce_eager=True, sleep_after_s=1)) as engine:
        seconds, first = ask(engine)
        run.seconds(f"cold start with sleep mode ({how}), to the first answer", seconds)
        run.grown("awake", before)
        same = 0
        for _ in range(2):
            wait_until(lambda: engine.status().state is EngineState.ASLEEP, "the engine to sleep")
            run.grown("asleep", before)
            seconds, again = ask(engine)
            run.seconds("asleep to the next answer", seconds)
            same += first == again
        run.say("answers before and after sleep", f"{same} of 2 equal")
        wait_until(lambda: engine.status().state is EngineState.ASLEEP, "the engine to sleep")
        engine.evict()
        run.back("evicted while asleep", before)
    run.back("after shutdown", before)


def swap(run: Run) -> None:
    """Two engines of which one fits take turns: the idle one is evicted. On a CPU a setting says that one fits."""
    run.use_caches("eager")
    how = run.start_quickly()
    settings = run.settings(0.6, enforce_eager=True, **({"max_loaded_engines": 1} if run.is_cpu else {}))
    before = run.used()
    with engine_of(settings) as first, engine_of({**settings, "seed": 1}) as second:
        run.seconds(f"the first, cold ({how})", ask(first)[0])
        run.seconds("the second, cold, with the first evicted", ask(second)[0])
        run.say("the first meanwhile", first.status().state.value)
        for engine, other, name in ((first, second, "first"), (second, first, "second")):
            run.seconds(f"swap back to the {name}, to its answer", ask(engine)[0])
            run.say("the other meanwhile", other.status().state.value)
        began = time.monotonic()
        with ThreadPoolExecutor(16) as pool:
            asked = [pool.submit(ask, engine) for engine in (first, second) * 8]
            done = sum(bool(each.result()[1]) for each in asked)
        run.say("8 requests to each at once", f"{done} of 16 answered in {time.monotonic() - began:.1f} s")
    run.back("after shutdown", before)


def answers(engine: Engine) -> list[str]:
    """One after the other: how they are batched must not matter."""
    return [engine.chat([{"role": "user", "content": text}], **GREEDY).text for text in QUESTIONS]


def equal(ones: Sequence[str], others: Sequence[str]) -> int:
    return sum(one == other for one, other in zip(ones, others, strict=True))
