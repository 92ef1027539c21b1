"""What gpu_check.py measures, step by step. Each runs in a process of its own and tells its rows as they are known.

On a CPU (``--cpu``) the same steps run at smaller sizes, RAM stands in for GPU memory, and what only a GPU can show
says so. That is a rehearsal: its figures mean nothing.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from bare import Streamed
from device_memory import MIB, how_read, memory, used_mib
from figures import Contender, Row, percentile, race, say
from questions import questions
from servers import HELLO, MODEL, plain_server
from stage import TOKENS, Plan, Stage, set_stage
from step_runner import Rows

from shared_engine import Engine, EngineSettings, EngineState, VLLMError
from shared_engine.cli.selftest import import_vllm
from shared_engine.launch.interpreter import find_interpreter
from shared_engine.launcher.start_method import START_VARIABLE
from shared_engine.machine.memory import GIB, total_memory
from shared_engine.runtime.launcher_messages import ImportFailed, Preloaded

GPU_ONLY = "GPU only"
GREEDY: dict[str, Any] = {"temperature": 0, "max_tokens": 16}
QUESTIONS = [f"How many legs have {count} spiders and {count + 1} birds?" for count in range(64)]
MEMORY_BACK_S = 3.0
WITHIN_S = 60.0
HEAD_DIM = 128
# As ``vllm-local status --tree`` names them -> in words. On one GPU EngineCore is the worker.
PROCESSES = {
    "server": "the API server",
    "EngineCore": "EngineCore",
    "Worker": "the worker",
    "launcher": "the launcher",
    "supervisor": "the supervisor",
}


@dataclass(frozen=True)
class Run:
    """What a step is given.

    Attributes:
        folder: of the whole run: caches, made-up models, and what steps leave for later ones.
    """

    is_cpu: bool
    folder: Path
    rows: Rows

    def say(self, measure: str, result: str) -> None:
        self.rows.add(measure, result)

    def seconds(self, measure: str, value: float) -> None:
        self.say(measure, f"{value:.2f} s")

    @property
    def memory_name(self) -> str:
        return "RAM in use (rehearsal)" if self.is_cpu else "GPU memory"

    def used(self) -> int:
        """MiB."""
        return used_mib(self.is_cpu)

    def grown(self, when: str, before: int) -> None:
        """How much more memory is in use than ``before``."""
        self.say(f"{self.memory_name}, {when}", f"{self.used() - before:+,} MiB")

    def back(self, when: str, before: int) -> None:
        """The same, where nothing should be left: looked at again for a moment if there is."""
        began = time.monotonic()
        left = at_once = self.used() - before
        while left > 0 and time.monotonic() - began < MEMORY_BACK_S:
            time.sleep(0.05)
            left = self.used() - before
        text = f"{at_once:+,} MiB"
        if left != at_once:
            text += f" at once, {left:+,} MiB after {time.monotonic() - began:.1f} s"
        self.say(f"{self.memory_name}, {when}", text)

    def settings(self, share: float, *, kv_gib: float | None = None, **more: Any) -> dict[str, Any]:
        """Of an engine on tiny_chat.

        Args:
            share: of the GPU's memory.
            kv_gib: size of the KV cache; None: what vLLM finds to be free of its share, on a GPU.
        """
        settings: dict[str, Any] = {"model": MODEL, "max_model_len": 2048, "gpu_memory_utilization": share, **more}
        if self.is_cpu:
            kv_gib = 0.25
        if kv_gib is not None:
            settings["engine_args"] = {"kv_cache_memory_bytes": int(kv_gib * GIB), **more.get("engine_args", {})}
        return settings

    @property
    def fork_works(self) -> Path:
        """There when the step of forked starts found that they work: later steps then start in less time."""
        return self.folder / "fork_works"

    def start_quickly(self) -> str:
        """Have the engines of this step fork if that works; in words."""
        if self.fork_works.exists():
            os.environ[START_VARIABLE] = "fork"
            return "forked"
        return "as by default"

    def use_caches(self, name: str) -> None:
        """Have vLLM keep what it compiles in a folder of this run."""
        folder = self.folder / "caches" / name
        for variable, place in (
            ("VLLM_CACHE_ROOT", "vllm"),
            ("TRITON_CACHE_DIR", "triton"),
            ("TORCHINDUCTOR_CACHE_DIR", "inductor"),
        ):
            os.environ[variable] = str(folder / place)


@contextmanager
def engine_of(settings: dict[str, Any]) -> Iterator[Engine]:
    """Not started yet; gone afterwards."""
    engine = Engine(**settings)
    try:
        yield engine
    finally:
        engine.shutdown(force=True)


def ask(engine: Engine) -> tuple[float, str]:
    """Seconds until the answer, and the answer."""
    began = time.monotonic()
    text = engine.chat(HELLO, temperature=0, max_tokens=32).text
    return time.monotonic() - began, text


def answers(engine: Engine) -> list[str]:
    """One after the other: how they are batched must not matter."""
    return [engine.chat([{"role": "user", "content": text}], **GREEDY).text for text in QUESTIONS]


def equal(ones: Sequence[str], others: Sequence[str]) -> int:
    return sum(one == other for one, other in zip(ones, others, strict=True))


def wait_until(condition: Callable[[], bool], what: str) -> None:
    ends = time.monotonic() + WITHIN_S
    while not condition():
        if time.monotonic() > ends:
            raise TimeoutError(f"waited {WITHIN_S:g} s for {what}")
        time.sleep(0.02)


def log_of(engine: Engine) -> str:
    file = engine.status().log_file
    return "" if file is None else Path(file).read_text(errors="replace")


def last_match(pattern: str, text: str) -> str:
    found = re.findall(pattern, text)
    return str(found[-1]) if found else "the log does not tell"


# ---- the steps


def machine(run: Run) -> None:
    """What this is; and whether importing vLLM touches the GPU."""
    interpreter = find_interpreter(EngineSettings(model=MODEL).python)
    run.say("machine", f"{os.cpu_count()} processors, {total_memory() / GIB:.0f} GiB RAM, {os.uname().release}")
    if not run.is_cpu:
        used, total = memory(is_cpu=False)
        run.say(
            f"GPU memory, by {how_read()}", f"{total // MIB:,} MiB, {used // MIB:,} MiB in use before anything starts"
        )
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


def batches(run: Run) -> None:
    """On tiny_chat: what clients, HTTP and processes cost."""
    _batches(run, run.settings(0.4, kv_gib=8, enforce_eager=run.is_cpu))


def batches_1b(run: Run) -> None:
    """On a model of about 1B parameters in bf16, with random weights: what is left of that when the model works."""
    hidden_size, layers = (512, 6) if run.is_cpu else (2048, 24)
    folder = run.folder / f"random_{hidden_size}x{layers}"
    run.say(
        "model", f"random weights in bf16, {write_scaled_model(folder, hidden_size, layers) / 1e9:.2f} B parameters"
    )
    more = {"model": str(folder), "engine_args": {"load_format": "dummy"}}
    _batches(run, run.settings(0.4, kv_gib=8, enforce_eager=run.is_cpu, **more))


def _batches(run: Run, settings: dict[str, Any]) -> None:
    run.use_caches("compiled")
    few, many, size, rounds = (64, 128, 0.25, 1) if run.is_cpu else (256, 1024, 2.0, 3)
    run.say("how it started", run.start_quickly())
    plan = Plan(settings, embedding=None, rounds=rounds, size=size, peers=None)
    with ThreadPoolExecutor(1) as pool, ExitStack() as stack:
        pool.submit(Engine(**settings).warmup)  # the engine starts while LLM does
        stage = set_stage(plan, run.folder, stack)
        engine = stage.engine
        for count in (few, many):
            conversations = [[{"role": "user", "content": text}] for text in questions(count)]
            contenders = {
                "ours": Contender(partial(_batch_rate, stage, conversations)),
                "LLM.chat": Contender(partial(stage.child_rate, stage.in_process, "chat", count)),
            }
            figures = race(contenders, rounds, "tok/s", rest_s=0.1)
            run.say(f"{count:,} x {TOKENS}: `Engine.chat_batch` against `LLM.chat`", _compared(figures, "LLM.chat"))
        peak = _most_running(stage, questions(many))
        run.say(f"most requests running at once, of {many:,} that bare aiohttp sends", f"{peak:,.0f}")
        _streams(run, stage, engine, few, rounds)


def _batch_rate(stage: Stage, conversations: list[list[dict[str, str]]]) -> float:
    began = time.perf_counter()
    results = stage.engine.chat_batch(conversations, temperature=0, max_tokens=TOKENS, ignore_eos=True)
    seconds = time.perf_counter() - began
    tokens = [result.usage.completion_tokens for result in results]
    assert tokens == [TOKENS] * len(conversations), f"{sum(tokens)} tokens of {TOKENS * len(conversations)} came"
    prompts = [result.usage.prompt_tokens for result in results]
    assert prompts == stage.counts[: len(prompts)], "answers are not those of the questions, in their order"
    return sum(tokens) / seconds


def _most_running(stage: Stage, texts: list[str]) -> float:
    async def measure() -> float:
        batch = asyncio.ensure_future(stage.bare.gathered(texts, TOKENS))
        peak = 0.0
        while not batch.done():
            peak = max(peak, (await stage.engine.astats()).get("num_requests_running", 0.0))
            await asyncio.sleep(0.02)
        await batch
        await stage.engine.aclose()
        return peak

    return stage.loop.run(measure())


def _streams(run: Run, stage: Stage, engine: Engine, count: int, rounds: int) -> None:
    """All at once on one event loop, ours and bare aiohttp on the same socket."""
    firsts: dict[str, list[float]] = {"ours": [], "bare aiohttp": []}

    async def ours(text: str) -> Streamed:
        streamed = Streamed()
        message = {"role": "user", "content": text}
        async for chunk in engine.astream_chat([message], temperature=0, max_tokens=TOKENS, ignore_eos=True):
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


def kills(run: Run) -> None:
    """SIGKILL of each process in turn, while a stream runs."""
    run.use_caches("eager")
    how = run.start_quickly()
    before = run.used()
    with engine_of(run.settings(0.3, enforce_eager=True)) as engine:
        run.seconds(f"cold start ({how}), to the first answer", ask(engine)[0])
        loaded = run.used()
        for name in PROCESSES:
            _kill(run, engine, name, loaded)
    run.back("after shutdown", before)


def _kill(run: Run, engine: Engine, name: str, loaded: int) -> None:
    pid = process_named(engine, name)
    what = f"SIGKILL of {PROCESSES[name]}"
    if pid is None:
        return run.say(what, "there is no such process")
    with ThreadPoolExecutor(1) as pool:
        has_begun = threading.Event()
        streamed = pool.submit(listen, engine, has_begun)
        wait_until(lambda: has_begun.is_set() or streamed.done(), "the first chunk")
        began = time.monotonic()
        os.kill(pid, signal.SIGKILL)
        heard, heard_at = streamed.result(WITHIN_S)
        ask(engine)
        answered_s = time.monotonic() - began
    run.say(f"{what}: the caller in the middle of a stream", f"{heard} after {heard_at - began:.2f} s")
    run.say(f"{what}: the next request", f"answered after {answered_s:.2f} s")
    run.back(f"{what}: ready again, against before the kill", loaded)


def listen(engine: Engine, has_begun: threading.Event) -> tuple[str, float]:
    """Read a long stream; what came of it, and when."""
    try:
        for _ in engine.stream_chat(HELLO, temperature=0, max_tokens=1900, ignore_eos=True):
            has_begun.set()
    except VLLMError as exc:
        return f"{type(exc).__name__}: {number_free(str(exc).splitlines()[0])}", time.monotonic()
    return "the whole answer (the stream had ended before)", time.monotonic()


def number_free(text: str) -> str:
    """Without what differs from run to run; short enough for a table."""
    return re.sub(r"\d{3,}", "N", text)[:120]


def process_named(engine: Engine, name: str) -> int | None:
    """Of PROCESSES."""
    tree = engine.status(processes=True).processes
    return None if tree is None else next((node.pid for node in tree.walk() if node.name.startswith(name)), None)
