"""A start's progress, read off the lines that vLLM 0.32 writes."""

from __future__ import annotations

import random
import time
from itertools import pairwise

import pytest

from shared_engine.runtime.progress import Progress, ProgressReader, StartPhase
from shared_engine.runtime.typed_json import typed

API = "(APIServer pid=13332) INFO 11-21 11:36:37 "
CORE = "(EngineCore pid=13338) INFO 11-21 11:36:37 "
WORKER = "(Worker pid=13346) INFO 11-21 11:36:38 "
ORDER = list(StartPhase)


def bar(description: str, done: int, total: int) -> str:
    """What tqdm writes by default."""
    return f"\r{description}: {100 * done // total:3d}%|{'█' * done:10}| {done}/{total} [00:01<00:02,  9.31it/s]"


def shards(description: str, done: int, total: int) -> str:
    """vLLM's _BAR_FORMAT, with which every loader of weights shows itself."""
    return f"\r{description}: {100 * done // total:3d}% Completed | {done}/{total} [00:00<00:00, 35.47it/s]\n"


SAFETENSORS = "Loading safetensors checkpoint shards"
PIECEWISE = "Capturing CUDA graphs (mixed prefill-decode, PIECEWISE)"
FULL = "Capturing CUDA graphs (decode, FULL)"

CPU_EAGER = (
    "Triton is installed, but doesn't include CPU backend. Disabling Triton.\n"
    f"{API}[model.py:733] Resolved architecture: LlamaForCausalLM\n"
    f"{API}[model.py:2152] Using max model len 2048\n"
    "(APIServer pid=13332) WARNING 11-21 11:36:37 [vllm.py:1703] Enforce eager set, disabling torch.compile, "
    "CUDAGraphs, and JIT kernel warmup. This is equivalent to setting -cc.mode=none -cc.cudagraph_mode=none\n"
    f"{CORE}[core.py:133] Initializing a V1 LLM engine (v0.32.0) with config: model='/models/tiny_chat', dtype=bf16\n"
    f"{CORE}[ompmultiprocessing.py:185] OpenMP thread binding info: \r\n"
    f"{WORKER}[cpu_model_runner.py:68] Starting to load model /models/tiny_chat...\n"
    f"{WORKER}[weight_utils.py:1108] Filesystem type for checkpoints: EXT4. Checkpoint size: 0.01 GiB.\n"
    f"{shards(SAFETENSORS, 0, 1)}{shards(SAFETENSORS, 1, 1)}\n"
    f"{WORKER}[default_loader.py:501] Loading weights took 0.03 seconds\n"
    f"{WORKER}[cpu_worker.py:260] Explicitly set (0.5/15.59) GiB for KV cache on node 0.\n"
    f"{CORE}[kv_cache_utils.py:2327] CPU KV cache size: 262,144 tokens, Maximum concurrency for 2,048 tokens per "
    "request: 128.00x\n"
    f"{CORE}[core.py:402] init engine (profile, create kv cache, warmup model) took 1.41 s\n"
    f"{API}[entry.py:136] Supported tasks: ['generate']\n"
    f"{API}[entry.py:140] Starting vLLM server on unix:/tmp/vlb/1.sock\n"
    "INFO:     Application startup complete.\n"
)
CUDA = (
    f"{API}[api_utils.py:286] non-default args: {{'model': 'org/name'}}\n"
    f"{WORKER}[gpu_model_runner.py:5040] Starting to load model org/name...\n"
    f"{WORKER}[weight_utils.py:533] Time spent downloading weights for org/name: 93.500000 seconds\n"
    + "".join(shards(SAFETENSORS, done, 4) for done in range(5))
    + f"{WORKER}[monitor.py:40] Starting torch.compile\n"
    f"{WORKER}[backends.py:1167] Dynamo bytecode transform time: 4.10 s\n"
    f"{WORKER}[backends.py:399] Compiling a graph for compile range (1, 8192) takes 9.90 s\n"
    # Model runner V2 captures some graphs to learn what they take.
    + "".join(bar("Capturing CUDA graphs (FULL)", done, 2) for done in range(3))
    + f"\n{WORKER}[model_runner.py:1128] Graph capturing finished in 1 secs, took 0.10 GiB\n"
    f"{WORKER}[gpu_worker.py:760] Available KV cache memory: 60.5 GiB\n"
    f"{CORE}[kv_cache_utils.py:2327] GPU KV cache size: 262,144 tokens, Maximum concurrency for 2,048 tokens: 128x\n"
    + bar("DeepGEMM warmup", 3, 9)
    + "".join(bar(PIECEWISE, done, 25) for done in range(26))
    + "".join(bar(FULL, done, 9) for done in range(10))
    + f"\n{WORKER}[gpu_model_runner.py:6582] Graph capturing finished in 3 secs, took 0.55 GiB\n"
    f"{CORE}[core.py:396] init engine (profile, create kv cache, warmup model) took 41.10 s (compilation: 14.00 s)\n"
)


def steps(log: str, *, chunks: list[int] | None = None) -> list[str]:
    """Every progress in turn, as (phase, done/total, detail)."""
    reader = ProgressReader(StartPhase.IMPORT)
    told: list[str] = []
    cuts = [0, *(chunks or range(1, len(log))), len(log)]
    for start, end in pairwise(cuts):
        if reader.feed(log[start:end]):
            told.append(str(reader.progress))
    return told


def test_a_start_on_the_cpu() -> None:
    """enforce_eager: that torch.compile is disabled is no compiling."""
    assert steps(CPU_EAGER) == [
        "reading the model's config",
        "fetching the model's files",
        "loading weights",
        "loading weights 0/1",
        "loading weights 1/1",
        "making the KV cache and warming up",
        "starting the HTTP server",
    ]


def test_a_start_on_a_gpu() -> None:
    assert steps(CUDA) == [
        "reading the model's config",
        "fetching the model's files",
        "loading weights",
        *(f"loading weights {done}/4" for done in range(5)),
        "compiling",
        "making the KV cache and warming up",
        *(f"capturing CUDA graphs {done}/25 (mixed prefill-decode, PIECEWISE)" for done in range(26)),
        *(f"capturing CUDA graphs {done}/9 (decode, FULL)" for done in range(10)),
        "starting the HTTP server",
    ]


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("log", [CPU_EAGER, CUDA], ids=["cpu", "cuda"])
def test_chunks_may_end_anywhere(log: str, seed: int) -> None:
    cuts = sorted(random.Random(seed).sample(range(1, len(log)), 2 + seed * 5))
    told = steps(log, chunks=cuts)
    every = steps(log)
    assert told[-1] == every[-1]
    assert [step for step in every if step in told] == told  # some are skipped, none is new, none comes back


@pytest.mark.parametrize(
    "description",
    [
        "Loading safetensors checkpoint shards",
        "Loading safetensors checkpoint shards (eager)",
        "Loading pt checkpoint shards",
        "Loading np_cache checkpoint shards",
        "Multi-thread loading shards",
        "Multi-thread loading pt checkpoint shards",
        "Loading safetensors using Runai Model Streamer",
    ],
)
def test_every_loader_of_weights_is_counted(description: str) -> None:
    assert steps(shards(description, 3, 8))[-1] == "loading weights 3/8"


@pytest.mark.parametrize(
    ("line", "phase"),
    [
        ("Loading model from scratch...", StartPhase.DOWNLOAD),
        (bar("Fetching 12 files", 0, 12), StartPhase.DOWNLOAD),
        ("Directly load AOT compilation from path /cache/x", StartPhase.COMPILE),
        ("Directly load the compiled graph(s) for compile range (1, 2) from the cache, took 0.2 s", StartPhase.COMPILE),
        ("[eagle_head] Starting torch.compile", StartPhase.COMPILE),
        ("Warming up model for the compilation...", StartPhase.COMPILE),
        ("Initial free memory 1 GiB, reserved 2 GiB memory for KV Cache as specified by x", StartPhase.KV_CACHE),
    ],
)
def test_signs_of_a_phase(line: str, phase: StartPhase) -> None:
    reader = ProgressReader(StartPhase.CONFIG)
    assert reader.feed(f"{WORKER}[x.py:1] {line}\n") and reader.progress.phase is phase


@pytest.mark.parametrize(
    "line",
    [
        "`torch.compile` is turned on, but the model org/name does not support it",
        "Enforce eager set, disabling torch.compile and CUDAGraphs.",
        "Auto-prefetch is disabled because the filesystem (EXT4) is not a recognized network FS",
        "\rDownloading bytes:  45%|████▌     | 1.23GB / 2.71GB, 12.3MB/s",
        shards("Running batch", 3, 8),
        "\rLoading safetensors using InstantTensor loader:   8% Completed | 1.23G/15.2G [00:01<00:09, 1.3GB/s]",
    ],
)
def test_what_is_no_sign(line: str) -> None:
    assert not ProgressReader(StartPhase.CONFIG).feed(f"{line}\n")


def test_the_bar_that_is_being_written_counts() -> None:
    """tqdm ends a line when it begins the next, which may be a minute later."""
    assert steps(shards(SAFETENSORS, 3, 80).rstrip("\n"))[-1] == "loading weights 3/80"
    reader = ProgressReader(StartPhase.CONFIG)
    assert not reader.feed(f"\r{SAFETENSORS}:  12% Completed | 3/8")  # may be 3/80


def test_two_workers_write_into_one_line() -> None:
    line = bar(PIECEWISE, 3, 25) + f"(Worker_TP1 pid=9) INFO [x.py:1] Nothing{bar(PIECEWISE, 4, 25)}(EngineCore pid=3) "
    reader = ProgressReader(StartPhase.CONFIG)
    reader.feed("GPU KV cache size: 10 tokens\n")
    assert reader.feed(line) and str(reader.progress).startswith("capturing CUDA graphs 4/25")
    assert reader.feed("INFO [core.py:396] init engine (profile, create kv cache, warmup model) took 4 s\n")
    assert reader.progress.phase is StartPhase.SERVER


def test_it_never_goes_back() -> None:
    """As with data parallelism: several engines, each at another point, write to one log."""
    lines = (CUDA + shards(SAFETENSORS, 2, 4)).splitlines(keepends=True)
    for seed in range(20):
        dice = random.Random(seed)
        first, second = lines.copy(), lines.copy()
        reader = ProgressReader(StartPhase.IMPORT)
        before = reader.progress
        details: list[str] = []
        while first or second:
            source = dice.choice([each for each in (first, second) if each])
            reader.feed(source.pop(0))
            now = reader.progress
            assert ORDER.index(now.phase) >= ORDER.index(before.phase)
            if now.phase is before.phase and now.detail == before.detail:
                assert (now.total, now.done) >= (before.total, before.done) and now.since == before.since
            elif now.phase is before.phase:
                assert now.detail not in details
                details.append(before.detail)
            before = now


def test_a_phase_that_the_log_does_not_tell() -> None:
    reader = ProgressReader(StartPhase.IMPORT)
    reader.enter(StartPhase.QUEUED, "org/other starts")
    assert str(reader.progress) == "waiting for the device (org/other starts)"
    assert reader.feed("Resolved architecture: X\n") and reader.progress.phase is StartPhase.CONFIG
    reader.enter(StartPhase.WAKE)
    assert not reader.feed(CUDA) and str(reader.progress) == "waking up"


def test_what_the_start_before_wrote_last_is_nothing_of_the_next() -> None:
    bar = shards(SAFETENSORS, 3, 4).rstrip()
    reader = ProgressReader(StartPhase.CONFIG)
    for begin in (reader.begin, reader.enter):
        assert reader.feed(bar) and str(reader.progress) == "loading weights 3/4"
        begin(StartPhase.CONFIG)
        assert not reader.feed("INFO: vLLM comes up\n")
        assert str(reader.progress) == "reading the model's config"


def test_json_carries_all_of_it() -> None:
    progress = Progress(StartPhase.GRAPHS, 3, 25, "FULL", 12.5)
    assert typed(Progress, progress.to_json()) == progress


@pytest.mark.parametrize(
    "text",
    [
        "INFO: something quite ordinary happened here\n" * 100_000,
        "x" * 4_000_000,
        "Loading " * 500_000,
        "Capturing " * 400_000,
        shards(SAFETENSORS, 4, 8) * 40_000,
        "|" * 4_000_000,
    ],
    ids=["lines", "no line end", "loading", "capturing", "bars", "pipes"],
)
@pytest.mark.slow
def test_a_flood_is_read_fast(text: str) -> None:
    """The supervisor has one thread. 5 to 50 ms a megabyte were measured; quadratic patterns take minutes."""
    reader = ProgressReader(StartPhase.IMPORT)
    began = time.process_time()
    for start in range(0, len(text), 1 << 16):
        reader.feed(text[start : start + (1 << 16)])
    assert time.process_time() - began < 2.0


# ---- a download, which vLLM says nothing of


def test_a_download_is_told_in_bytes_and_of_how_many_where_that_is_known() -> None:
    reader = ProgressReader(StartPhase.CONFIG)
    reader.note_fetched(0, (0, 10**9))
    assert str(reader.progress) == "reading the model's config", "nothing comes: all was here"
    reader.note_fetched(1_500_000)
    assert str(reader.progress) == "fetching the model's files (1.5 MB so far)"
    reader.note_fetched(2_000_000, (2_500_000, 9_000_000))
    assert str(reader.progress) == "fetching the model's files (2.5 of 9.0 MB)"
    reader.note_fetched(3_000_000, (1_210_000_000, 3_400_000_000))
    assert str(reader.progress) == "fetching the model's files (1.21 of 3.40 GB)"
    assert (reader.progress.done, reader.progress.total, reader.progress.unit) == (1_210_000_000, 3_400_000_000, "B")
    before = reader.progress
    reader.note_fetched(4_000_000, None)
    reader.note_fetched(4_000_000, (5, 5))
    assert reader.progress == before, "it was not known for a moment"
    reader.feed("\nLoading safetensors checkpoint shards:  50% Completed | 1/2 [00:00<?, ?it/s]")
    assert (str(reader.progress), reader.progress.unit) == ("loading weights 1/2", "")
    reader.note_fetched(9_000_000, (9, 10))
    assert str(reader.progress) == "loading weights 1/2"


def test_a_count_of_files_is_no_count_of_bytes() -> None:
    reader = ProgressReader(StartPhase.CONFIG)
    reader.note_fetched(2_000_000, (2_500_000, 9_000_000))
    reader.feed("Fetching 4 files:  25%|##5       | 1/4 [00:00<00:01,  2.00it/s]")
    assert str(reader.progress) == "fetching the model's files (2.5 of 9.0 MB)"
    assert reader.progress.total == 9_000_000
