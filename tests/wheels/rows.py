"""Which environments are made of our wheels, and what is tried in each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from deploy.distributions.projects import Distribution

ENGINES = ("cpu", "cuda")  # vLLM itself: gigabytes, and what is in them is tried by the tests on real vLLM
OF_DEVELOPERS = ("dev",)
OLDEST = "oldest"


@dataclass(frozen=True)
class Row:
    """One environment.

    Attributes:
        packages: as one gives them to pip.
        parts: what is tried in it, by the names that ``inside.py`` has for it.
        is_oldest: with the releases of tests/oldest.txt.
        is_resolved_only: pip chooses and finds the files, and nothing is installed.
    """

    name: str
    packages: tuple[str, ...]
    parts: tuple[str, ...] = ()
    is_oldest: bool = False
    is_resolved_only: bool = False


def rows_of(project: dict[str, Any], distributions: Sequence[Distribution]) -> list[Row]:
    """Each extra alone, all of them, each distribution by itself, all of these, and the oldest dependencies.

    Args:
        project: of pyproject.toml.
        distributions: of deploy/distributions, beside the project's own.
    """
    main = project["name"]
    extras = [extra for extra in project["optional-dependencies"] if extra not in (*ENGINES, *OF_DEVELOPERS)]
    everything = f"{main}[{','.join(extras)}]"
    thin = {each.name: _parts_of(each) for each in distributions}
    all_parts = ("engine", *extras, f"readme:{main}")
    return [
        Row(main, (main,), ("engine",)),
        *(Row(f"[{extra}]", (f"{main}[{extra}]",), ("engine", extra)) for extra in extras),
        Row("all extras", (everything,), all_parts),
        *(Row(name, (name,), parts) for name, parts in thin.items()),
        Row(
            "all distributions", (everything, *thin), (*all_parts, *(part for parts in thin.values() for part in parts))
        ),
        Row(OLDEST, (everything, *thin), (*all_parts[:-1], *thin["langchain-vllm-local"]), is_oldest=True),
        *(Row(f"[{engine}]", (f"{main}[{engine}]",), is_resolved_only=True) for engine in ENGINES),
    ]


def _parts_of(distribution: Distribution) -> tuple[str, ...]:
    module = (f"module:{distribution.module}",) if distribution.module else ()
    return ("engine", distribution.extra, *module, f"readme:{distribution.name}")
