"""Two commits of this repository side by side: the same calls to both, round by round in alternating order.

    python benchmarks/compare.py BASE [OTHER]

OTHER is the working tree by default. Each has its own copy of the code, process, engine and runtime directory; the
measures and the environment are those of here, so both commits must have the adapters' present names. Prints a table
and writes nothing. ROUNDS and SIZE (a factor) change how long it takes.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

from child import Child
from figures import Contender, Row, race, say, table
from servers import HERE, SETTINGS, runtime_directory

ROUNDS = int(os.environ.get("ROUNDS", "5"))
SIZE = float(os.environ.get("SIZE", "1"))
HERE_NOW = "the working tree"
MEASURES: dict[str, tuple[str, str, int, int]] = {
    "LangChain ChatVLLM.batch": ("chain.batch", "tok/s", 256, 64),
    "LangChain ChatVLLM.abatch": ("chain.abatch", "tok/s", 256, 64),
    "LlamaIndex chat_batch": ("index.batch", "tok/s", 256, 64),
    "LangChain VLLM.batch": ("texts.batch", "tok/s", 2000, 16),
    "LangChain astream, all at once": ("chain.astream", "tok/s", 128, 64),
    "LangChain invoke, one after the other": ("chain.ask", "ms", 100, 1),
    "LangChain ainvoke, one after the other": ("chain.aask", "ms", 100, 1),
    "LlamaIndex chat, one after the other": ("index.ask", "ms", 100, 1),
    "LlamaIndex achat, one after the other": ("index.aask", "ms", 100, 1),
}
"""What is asked, in which unit it is told, how many times, and for how many tokens each."""


@contextmanager
def tree(commit: str | None, folder: Path) -> Iterator[Path]:
    """The code of a commit; None for what lies here."""
    if commit is None:
        yield HERE.parent
        return
    git = ["git", "-C", str(HERE.parent), "worktree"]
    added = subprocess.run([*git, "add", "--detach", str(folder), commit], capture_output=True, text=True, check=False)
    if added.returncode != 0:
        raise SystemExit(f"{commit} is not a commit of this repository: {added.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run([*git, "remove", "--force", str(folder)], check=True)


def measured(child: Child, what: str, unit: str, count: int, tokens: int) -> float:
    """Tokens a second; or the middle of what each call took, in ms."""
    came = child.ask(do=what, count=count, tokens=tokens)
    if came["tokens"] != count * tokens:
        raise SystemExit(f"{what}: {came['tokens']:,} tokens came, {count * tokens:,} were asked for")
    return float(came["middle_ms"] if unit == "ms" else came["tokens"] / came["seconds"])


def main() -> int:
    if len(sys.argv) not in (2, 3):
        print((__doc__ or "").partition("\n\n")[2].partition("\n")[0].strip())
        return 2
    base, other = sys.argv[1], sys.argv[2] if len(sys.argv) == 3 else None
    rows: list[Row] = []
    with runtime_directory() as root, tempfile.TemporaryDirectory() as place, ExitStack() as stack:
        children: dict[str, Child] = {}
        for name, commit, part in ((base, base, "a"), (other or HERE_NOW, other, "b")):
            code = stack.enter_context(tree(commit, Path(place) / part))
            (root / part).mkdir(mode=0o700)
            options = {"tree": str(code), "root": str(root / part), "settings": SETTINGS}
            log = Path(place) / f"{part}.log"
            children[name] = stack.enter_context(Child(sys.executable, HERE / "compare_child.py", options, log))
        if len(children) < 2:
            raise SystemExit(f"{base} is compared with itself")
        for measure, (what, unit, most, tokens) in MEASURES.items():
            count = max(8, round(most * SIZE))
            say(f"== {measure}, {count:,} x {tokens}")
            asked = partial(measured, what=what, unit=unit, count=count, tokens=tokens)
            contenders = {name: Contender(partial(asked, child)) for name, child in children.items()}
            figures = race(contenders, ROUNDS, unit)
            old, new = children
            rows.append(
                Row(
                    f"{measure}, {count:,} x {tokens}: {new}",
                    figures[new],
                    unit,
                    old,
                    figures[old],
                    "times at most" if unit == "ms" else "times at least",
                )
            )
    say("\n".join(table(rows)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
