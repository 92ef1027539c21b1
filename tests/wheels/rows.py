"""Which environments are made of our wheels, and what is tried in each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from deploy.distributions.projects import Distribution

ENGINES = ("cpu", "cuda")  # vLLM itself: gigabytes, and what is in them is tried by the tests on real vLLM
OF_DEVELOPERS = ("dev", "docs")
OLDEST = "oldest"


@dataclass(frozen=True)
class Row:
    """One environment.

    Attributes:
        packages: as one gives them to pip.
        parts: what is tried in it, by the names that ``inside.py`` has for it.
        options: of pip, with paths from the repository's folder.
        is_resolved_only: pip chooses and finds the files, and nothing is installed.
    """

    name: str
    packages: tuple[str, ...]
    parts: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    is_resolved_only: bool = False


def rows_of(project: dict[str, Any], distributions: Sequence[Distribution]) -> list[Row]:
    """Each extra alone, all of them, each distribution by itself, all of these; from sdists; the oldest dependencies.

    Args:
        project: of pyproject.toml.
        distributions: of deploy/distributions, beside the project's own.
    """
    main = project["name"]
    extras = [extra for extra in project["optional-dependencies"] if extra not in (*ENGINES, *OF_DEVELOPERS)]
    everything = f"{main}[{','.join(extras)}]"
    thin = {each.name: _parts_of(each) for each in distributions}
    of_extras = ("engine", *extras, f"readme:{main}")
    of_all = tuple(dict.fromkeys([*of_extras, *(part for parts in thin.values() for part in parts)]))
    without_pages = tuple(part for part in of_all if not part.startswith("readme:"))
    from_sdists = ("--no-binary", ",".join([main, *thin]))
    return [
        Row(main, (main,), ("engine",)),
        *(Row(f"[{extra}]", (f"{main}[{extra}]",), ("engine", extra)) for extra in extras),
        Row("all extras", (everything,), of_extras),
        *(Row(name, (name,), parts) for name, parts in thin.items()),
        Row("all distributions", (everything, *thin), of_all),
        Row("all distributions, from sdists", (everything, *thin), without_pages, from_sdists),
        Row("[openai], openai 2", (f"{main}[openai]", "openai<3"), ("engine", "openai")),
        Row(OLDEST, (everything, *thin), without_pages, ("--constraint", "tests/oldest.txt")),
        # torch's CPU builds, which [cpu] pins, are not on PyPI.
        Row(
            "[cpu], but for torch",
            tuple(project["optional-dependencies"]["cpu"]),
            (),
            ("--no-deps",),
            is_resolved_only=True,
        ),
        Row("[cuda]", (f"{main}[cuda]",), is_resolved_only=True),
    ]


def _parts_of(distribution: Distribution) -> tuple[str, ...]:
    module = (f"module:{distribution.module}",) if distribution.module else ()
    return ("engine", distribution.extra, *module, f"readme:{distribution.name}")
