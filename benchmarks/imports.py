"""What importing and constructing cost, beside LangChain's own. Writes benchmarks/results/imports.md.

Imports are timed in fresh processes, in turns, less what an empty one takes. ``make bench-imports`` runs it.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import timeit
from collections.abc import Mapping
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
ROUNDS = 15
CONSTRUCTIONS = 10

IMPORTS = {
    "nothing": "pass",
    "import langchain_core.language_models": "import langchain_core.language_models",
    "import langchain_vllm_local": "import langchain_vllm_local",
    "from langchain_core.language_models import BaseChatModel, BaseLLM": (
        "from langchain_core.language_models import BaseChatModel, BaseLLM"
    ),
    "from langchain_vllm_local import ChatVLLM": "from langchain_vllm_local import ChatVLLM",
    "from langchain_openai import ChatOpenAI": "from langchain_openai import ChatOpenAI",
}
# Each with what its cost is compared to.
BASES = {
    "import langchain_vllm_local": "import langchain_core.language_models",
    "from langchain_vllm_local import ChatVLLM": "from langchain_core.language_models import BaseChatModel, BaseLLM",
    "from langchain_openai import ChatOpenAI": "from langchain_core.language_models import BaseChatModel, BaseLLM",
}
CONSTRUCT = """
import sys, time
from {module} import {name}
make = lambda: {name}(**{arguments!r})
make()
began = time.perf_counter()
for _ in range({count}):
    make()
print((time.perf_counter() - began) * 1000)
"""
CLASSES = {
    "ChatVLLM": ("langchain_vllm_local", {"model": str(ROOT / "examples" / "tiny_chat")}),
    "VLLM": ("langchain_vllm_local", {"model": str(ROOT / "examples" / "tiny_chat")}),
    "VLLMEmbeddings": ("langchain_vllm_local", {"model": "org/name"}),
    "ChatOpenAI": ("langchain_openai", {"model": "m", "base_url": "http://localhost:1/v1", "api_key": "none"}),
}


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True).stdout


def import_times(imports: Mapping[str, str], rounds: int) -> dict[str, list[float]]:
    """Milliseconds of each, less what "nothing" takes; in turns, so that a noisy minute falls on all of them."""
    taken: dict[str, list[float]] = {what: [] for what in imports}
    for round_number in range(rounds + 1):
        for what, code in imports.items():
            seconds = timeit.timeit(lambda code=code: run(code), number=1)  # type: ignore[misc]
            if round_number > 0:  # the first fills the page cache
                taken[what].append(seconds * 1000)
    empty = statistics.median(taken.pop("nothing"))
    return {what: [value - empty for value in values] for what, values in taken.items()}


def construction_times() -> dict[str, float]:
    return {
        name: float(run(CONSTRUCT.format(module=module, name=name, arguments=arguments, count=CONSTRUCTIONS)))
        for name, (module, arguments) in CLASSES.items()
    }


def main() -> None:
    imports = {what: statistics.median(values) for what, values in import_times(IMPORTS, ROUNDS).items()}
    constructions = construction_times()
    lines = ["| import | ms | of core's |", "|---|---|---|"]
    for what, milliseconds in imports.items():
        ratio = f"{milliseconds / imports[BASES[what]]:.2f}" if what in BASES else "1.00"
        lines.append(f"| `{what}` | {milliseconds:.0f} | {ratio} |")
    lines += ["", f"| {CONSTRUCTIONS} constructions, after the first | ms |", "|---|---|"]
    lines += [f"| {name} | {milliseconds:.1f} |" for name, milliseconds in constructions.items()]
    text = "\n".join(lines) + "\n"
    (HERE / "results" / "imports.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
