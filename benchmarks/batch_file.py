"""``vllm-local batch`` and ``vllm run-batch`` on the same file, and a file of a million lines.

    python benchmarks/batch_file.py        make bench-batch-file

Real vLLM on tiny_chat, in alternating order; every answer of one is compared with the other's. Then files that ask
no model: a million lines that can't be asked, and lines for a server that answers at once. Writes
benchmarks/results/batch_file.md. ROUNDS, LINES and MANY make it shorter.
"""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from aiohttp import web

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

from figures import say, spread
from servers import MODEL, SETTINGS, runtime_directory

from shared_engine import Engine, EngineSettings
from shared_engine.launch.interpreter import find_interpreter
from shared_engine.launch.spec import engine_spec
from tests.support.remote_server import chat_answer, running_app

ROUNDS = int(os.environ.get("ROUNDS", "3"))
LINES = int(os.environ.get("LINES", "2000"))
MANY = int(os.environ.get("MANY", "1000000"))
TOKENS = 32
URL = "/v1/chat/completions"
PEAK = (
    "import resource, sys; from shared_engine.cli.main import main; code = main(sys.argv[1:]); "
    "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss); sys.exit(code)"
)
_RATE = re.compile(r"100% Completed \| .*?, +([\d.]+)(req/s|s/req)\]")
_OF_ONE_ANSWER = ("id", "created")


def ours(*words: str, allowed: tuple[int, ...] = (0,)) -> tuple[float, str]:
    """Seconds that the command took, and what it printed."""
    began = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", PEAK, "batch", *words], capture_output=True, text=True, check=False)
    if done.returncode not in allowed:
        raise SystemExit(f"vllm-local batch ended with {done.returncode}:\n{done.stderr}")
    return time.perf_counter() - began, done.stdout


class Race:
    """Both commands on one file; figures by name: the whole command, and its requests alone."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.whole: dict[str, list[float]] = {}
        self.requests: dict[str, list[float]] = {}
        self.engine = Engine(**SETTINGS)
        config = [f"{name} = {json.dumps(value)}" for name, value in SETTINGS.items() if name != "engine_args"]
        flags = ", ".join(f"{name} = {json.dumps(value)}" for name, value in SETTINGS["engine_args"].items())
        (folder / "engine.toml").write_text("\n".join([*config, f"engine_args = {{{flags}}}", ""]))
        with (folder / "in.jsonl").open("w") as file:
            for at in range(LINES):
                messages = [{"role": "user", "content": f"Count from {at} to {at + 10}."}]
                body = {"messages": messages, "temperature": 0, "max_tokens": TOKENS, "ignore_eos": True}
                file.write(json.dumps({"custom_id": str(at), "method": "POST", "url": URL, "body": body}) + "\n")

    def run(self) -> None:
        contenders: dict[str, Callable[[str], tuple[float, float]]] = {
            "vllm run-batch": self._vllm,
            "vllm-local batch, nothing loaded": self._cold,
            "vllm-local batch, the engine loaded": self._warm,
        }
        for index in range(ROUNDS):
            for name in list(contenders)[:: 1 if index % 2 == 0 else -1]:
                whole, requests = contenders[name](name)
                self.whole.setdefault(name, []).append(whole)
                self.requests.setdefault(name, []).append(requests)
                say(f"  round {index + 1} of {ROUNDS}: {name}: {whole:.1f} s, of which the requests {requests:.1f} s")

    def _vllm(self, _: str) -> tuple[float, float]:
        self.engine.shutdown(force=True)  # two engines on two cores would measure each other
        spec = engine_spec(EngineSettings(**SETTINGS))
        flags = [flag for flag in spec.argv if "uvicorn" not in flag]
        # What the command vllm runs; the command itself does not start in the CPU build, a package of another name.
        module = ["-m", "vllm.entrypoints.launchers.run_batch"]
        command = [spec.python, *module, "-i", "in.jsonl", "-o", "theirs.jsonl", *flags]
        began = time.perf_counter()
        done = subprocess.run(command, cwd=self.folder, capture_output=True, text=True, check=False)
        whole = time.perf_counter() - began
        found = _RATE.search(done.stderr + done.stdout)
        if done.returncode or found is None:
            raise SystemExit(f"vllm run-batch ended with {done.returncode}:\n{done.stderr[-4000:]}")
        rate = float(found[1]) if found[2] == "req/s" else 1 / float(found[1])
        return whole, LINES / rate

    def _cold(self, name: str) -> tuple[float, float]:
        self.engine.shutdown(force=True)
        return self._ours(name)

    def _warm(self, name: str) -> tuple[float, float]:
        self.engine.warmup()
        return self._ours(name)

    def _ours(self, _: str) -> tuple[float, float]:
        with suppress(FileNotFoundError):
            (self.folder / "ours.jsonl").unlink()
        config = str(self.folder / "engine.toml")
        whole, said = ours(str(self.folder / "in.jsonl"), str(self.folder / "ours.jsonl"), "--config", config, "--json")
        return whole, json.loads(said.splitlines()[0])["seconds"]

    def same(self) -> tuple[int, list[str]]:
        """How many lines are the same but for ids and times; and the fields that differ in the others."""
        equal, fields = 0, set()
        with (self.folder / "ours.jsonl").open() as own, (self.folder / "theirs.jsonl").open() as other:
            for pair in zip(own, other, strict=True):
                one, two = (comparable(json.loads(line)) for line in pair)
                equal += one == two
                fields |= {name for name in one | two if one.get(name) != two.get(name)}
        return equal, sorted(fields)


def comparable(line: dict[str, Any]) -> dict[str, str]:
    """Path of each field -> its value, without what is new with every answer."""
    line["response"]["body"]["usage"].pop("prompt_tokens_details", None)  # what the prefix cache had
    found: dict[str, str] = {}

    def walk(value: Any, path: str) -> None:
        if isinstance(value, dict):
            for name, each in value.items():
                walk(each, f"{path}.{name}")
        elif isinstance(value, list):
            for at, each in enumerate(value):
                walk(each, f"{path}[{at}]")
        else:
            found[path] = json.dumps(value)

    walk(line, "")
    new = (".id", ".response.request_id", *(f".response.body.{name}" for name in _OF_ONE_ANSWER))
    return {path: value for path, value in found.items() if path not in new}


# ---- large files


def large(folder: Path) -> list[tuple[str, float, float]]:
    """What was done, seconds, and the most memory of the command in MiB."""
    rows: list[tuple[str, float, float]] = []
    answer = json.dumps(chat_answer()).encode()

    async def handler(request: web.Request) -> web.StreamResponse:
        await request.read()
        return web.Response(body=answer, content_type="application/json")

    async def models(request: web.Request) -> web.StreamResponse:  # noqa: ARG001
        return web.json_response({"data": [{"id": "served"}]})

    app = web.Application()
    app.router.add_post(URL, handler)
    app.router.add_get("/v1/models", models)
    with running_app(app) as url:

        def measure(title: str, name: str, *words: str) -> None:
            seconds, said = ours(
                str(folder / "large.jsonl"), str(folder / name), "--base-url", f"{url}/v1", *words, allowed=(0, 4)
            )
            rows.append((title, seconds, int(said.split()[-1]) / 1024))
            say(f"  {title}: {seconds:.1f} s, {rows[-1][2]:.0f} MiB")

        for count in (1000, MANY // 10):
            write(folder / "large.jsonl", count, '{{"prompt": "line {at}", "filling": "{filling}"}}')
            measure(f"{count:,} lines to a server that answers at once", f"answered{count}.jsonl")
        write(folder / "large.jsonl", MANY, '{{"line": {at}, "filling": "{filling}"}}')
        measure(f"{MANY:,} lines, each an error of its own", "out.jsonl")
        measure(f"{MANY:,} lines that are answered already", "out.jsonl")
        path = folder / "out.jsonl"
        os.truncate(path, path.stat().st_size // 2)
        measure(f"{MANY:,} lines, cut in the middle of the file", "out.jsonl")
        measure(f"{MANY:,} lines, a dry run without a sample", "none.jsonl", "--dry-run", "--sample", "0")
    return rows


def write(path: Path, count: int, form: str) -> None:
    with path.open("w") as file:
        file.writelines(form.format(at=at, filling="x" * 100) + "\n" for at in range(count))


# ---- the whole


def main() -> int:
    os.environ["PYTHONPATH"] = str(HERE.parent)
    with runtime_directory() as folder:
        race = Race(folder)
        say(f"== {LINES:,} chats of {TOKENS} tokens")
        try:
            race.run()
        finally:
            race.engine.shutdown(force=True)
        equal, fields = race.same()
        say(f"== the same but for ids and times: {equal:,} of {LINES:,}; fields that differ: {fields or 'none'}")
        say("== large files")
        text = report(race, equal, fields, large(folder))
    say(text)
    (Path(os.environ.get("RESULTS", HERE / "results")) / "batch_file.md").write_text(text)
    return 0


def report(race: Race, equal: int, fields: list[str], rows: list[tuple[str, float, float]]) -> str:
    interpreter = find_interpreter(None)
    theirs = "vllm run-batch"

    def ratio(figures: dict[str, list[float]], name: str) -> str:
        return spread([other / own for own, other in zip(figures[name], figures[theirs], strict=True)])

    table = [
        f"| {name} | {spread(race.whole[name])} | {ratio(race.whole, name)} "
        f"| {spread(race.requests[name])} | {ratio(race.requests, name)} |"
        for name in race.whole
    ]
    return "\n".join(
        [
            "# A file of requests",
            "",
            f"One run of `make bench-batch-file`: {platform.machine()}, {os.cpu_count()} cores, Python "
            f"{platform.python_version()}, vLLM {interpreter.version} ({interpreter.build} build), model "
            f"examples/{Path(MODEL).name}, `enforce_eager`, ROUNDS={ROUNDS}. Medians, with the smallest and the "
            "largest; in alternating order. Times faster is against `vllm run-batch` in the same round.",
            "",
            f"{LINES:,} chats of {TOKENS} tokens:",
            "",
            "| | whole command, s | times faster | requests alone, s | times faster |",
            "|---|---|---|---|---|",
            *table,
            "",
            f"The same but for ids and times: {equal:,} of {LINES:,} lines. Fields that differ: "
            f"{', '.join(f'`{name[1:]}`' for name in fields) or 'none'}.",
            "",
            "Files without a model:",
            "",
            "| | s | most memory, MiB |",
            "|---|---|---|",
            *(f"| {title} | {seconds:.1f} | {mib:.0f} |" for title, seconds, mib in rows),
            "",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
