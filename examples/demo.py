"""Both examples, each an app of its own, on one engine; then what it took, and nothing is left. ``make demo``."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).parent


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="vld-", dir="/tmp") as root:
        # A runtime directory of its own: the demo starts from nothing and takes no engine of yours.
        os.environ["VLLM_LOCAL_RUNTIME_DIR"] = root
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
        from shared_engine import Engine

        engine = Engine(model=str(HERE / "tiny_chat"), gpu_memory_utilization=0.3)
        phases: list[tuple[str, float]] = []
        try:
            print("== starting vLLM on examples/tiny_chat (the first call would do it too)", flush=True)
            phases.append(timed("vLLM started", engine.warmup))
            print("== a LangChain chain", flush=True)
            phases.append(timed("LangChain example", lambda: run("langchain_chain.py")))
            print("== a LlamaIndex RAG pipeline, another process, the same engine", flush=True)
            phases.append(timed("LlamaIndex example", lambda: run("llama_index_rag.py")))
            print(f"== both are done; the engine was started {engine.status().starts} time(s) for them", flush=True)
            show_log(engine.status().log_file)
            print("== eviction: the model leaves memory, the next call brings it back", flush=True)
            phases.append(timed("evicted", engine.evict))
            phases.append(timed("back, with an answer", lambda: engine.generate("Hello", max_tokens=1)))
        finally:
            phases.append(timed("everything ended", lambda: engine.shutdown(force=True)))
        print("== what it took")
        for name, seconds in phases:
            print(f"   {seconds:6.1f} s  {name}")
    return 0


def timed(name: str, action: Callable[[], object]) -> tuple[str, float]:
    began = time.perf_counter()
    action()
    return name, time.perf_counter() - began


def show_log(path: str | None) -> None:
    lines = Path(path or "").read_text().splitlines()
    print("".join(f"   {line}\n" for line in lines if "vllm-local supervisor" in line), end="", flush=True)


def run(example: str) -> None:
    subprocess.run([sys.executable, str(HERE / example)], check=True)


if __name__ == "__main__":
    sys.exit(main())
