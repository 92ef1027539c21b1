"""run_server: the start with its log lines, then the server. Lines as vLLM 0.32 writes them."""

from __future__ import annotations

import argparse
import asyncio
import importlib.metadata
import os
import signal
import socket
import time

from vllm.fake_faults import Faults, fork_core, say, spawn_core
from vllm.fake_memory import Memory
from vllm.fake_server import FakeServer

NO_GPU_MEMORY = (
    "ValueError: Free memory on device cuda:0 (1.0/139.8 GiB) on startup is less than desired GPU memory utilization "
    "(0.9, 125.82 GiB). Decrease GPU memory utilization or reduce GPU memory used by other processes."
)
NO_CPU_MEMORY = (
    "ValueError: Available memory on node 0 (0.1/15.59 GiB) on kv cache allocation is less than requested memory for "
    "kv (4.0 GiB). Decrease --kv-cache-memory-bytes, VLLM_CPU_KVCACHE_SPACE, or reduce CPU memory used by other "
    "processes."
)
ABORT_S = 0.5


async def run_server(args: argparse.Namespace) -> None:
    faults = Faults.read(args.fake)
    if faults.ignore_sigterm:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(args.uds)  # as early as vLLM does; it refuses connections until it listens
    memory = Memory(faults.memory)
    mapped = faults.leave_things()
    faults.note("begin", args.seed)
    load(args, faults, memory, spawn_core() if faults.spawn_core else fork_core())
    faults.note("ready", args.seed)
    await serve(FakeServer(args, faults, memory), faults, listener)
    del mapped


def load(args: argparse.Namespace, faults: Faults, memory: Memory, core: int) -> None:
    """All that comes before listening. Blocks, as the real start does."""
    if args.enable_sleep_mode and is_cpu_build():
        raise ValueError("Sleep mode is not supported on current platform.")
    log("model.py:733", "Resolved architecture: LlamaForCausalLM")
    log("model.py:2152", f"Using max model len {args.max_model_len}")
    log("core.py:133", f"Initializing a V1 LLM engine (v0.32.0) with config: model={args.model!r}", core)
    faults.reach("start")
    log("gpu_model_runner.py:5012", f"Starting to load model {args.model}...", core)
    for done in range(faults.weights + 1):
        share = f"{100 * done // faults.weights:3d}% Completed | {done}/{faults.weights}"
        say(f"\rLoading safetensors checkpoint shards: {share} [00:00<?, ?it/s]")
        if done == faults.weights // 2:
            take_memory(faults, memory, core)
            faults.reach("weights")
        time.sleep(faults.start_delay_s / (faults.weights + 1))
    while faults.held_by is not None and os.path.exists(faults.held_by):
        time.sleep(0.02)
    say("")
    log("default_loader.py:501", "Loading weights took 0.03 seconds", core)
    log("kv_cache_utils.py:2327", f"{'CPU' if is_cpu_build() else 'GPU'} KV cache size: 262,144 tokens", core)
    log("core.py:402", "init engine (profile, create kv cache, warmup model) took 1.41 s", core)
    log("entry.py:136", "Supported tasks: ['generate']")
    log("entry.py:140", f"Starting vLLM server on unix:{args.uds}")
    say(f"INFO:     Started server process [{os.getpid()}]\nINFO:     Waiting for application startup.")
    faults.reach("ready")


def take_memory(faults: Faults, memory: Memory, core: int) -> None:
    if not faults.lacks_memory() and memory.try_take():
        return
    error = faults.memory_error or (NO_CPU_MEMORY if is_cpu_build() else NO_GPU_MEMORY)
    log("core.py:1233", "EngineCore failed to start.", core, "ERROR")
    log("core.py:1233", error, core, "ERROR")
    raise RuntimeError("Engine core initialization failed. See root cause above. Failed core proc(s): {}")


async def serve(fake: FakeServer, faults: Faults, listener: socket.socket) -> None:
    """Until SIGTERM, which aborts the requests in flight."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    if not faults.ignore_sigterm:
        loop.add_signal_handler(signal.SIGTERM, stop.set)
    server = await asyncio.start_unix_server(fake.answer_connection, sock=listener, backlog=2048)
    say("INFO:     Application startup complete.")
    loop.add_signal_handler(signal.SIGUSR2, faults.reach, "idle")
    await stop.wait()
    fake.is_stopping = True
    server.close()
    deadline = time.monotonic() + ABORT_S
    while fake.running and time.monotonic() < deadline:
        await asyncio.sleep(0.005)


def log(where: str, text: str, core: int = 0, level: str = "INFO") -> None:
    who = f"EngineCore pid={core}" if core else f"APIServer pid={os.getpid()}"
    say(f"({who}) {level} {time.strftime('%m-%d %H:%M:%S')} [{where}] {text}")


def is_cpu_build() -> bool:
    return any(importlib.metadata.distributions(name="vllm-cpu"))
