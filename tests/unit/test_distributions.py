"""What is in the sdists and wheels that go to PyPI, and that they agree with the repository and with each other."""

from __future__ import annotations

import email
import email.message
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

import llama_index_vllm_local
from deploy.distributions.projects import DISTRIBUTIONS, MAIN, PROJECT, Distribution
from tests.support.paths import REPOSITORY
from tests.wheels.rows import ENGINES, OF_DEVELOPERS, rows_of

pytestmark = pytest.mark.slow
PACKAGES = ("shared_engine", "langchain_vllm_local", "llama_index_vllm_local")
BESIDE = ("pyproject.toml", "README.md", "CHANGELOG.md", "LICENSE", "deploy")
VERSION = PROJECT["version"]
LINK = re.compile(r"\]\(([^)]+)\)")
each_distribution = pytest.mark.parametrize("distribution", DISTRIBUTIONS, ids=lambda each: each.name)
each_name = pytest.mark.parametrize("name", [MAIN, *(each.name for each in DISTRIBUTIONS)])


def build(repository: Path, out: Path) -> Path:
    command = [sys.executable, "-m", "deploy.distributions", str(out)]
    done = subprocess.run(command, cwd=repository, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return out


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(REPOSITORY, tmp_path_factory.mktemp("dist"))


def tracked(*paths: str) -> set[str]:
    """Files of the repository, also new ones that are not ignored."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--", *paths]
    listed = subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True, text=True).stdout.splitlines()
    return {name for name in listed if (REPOSITORY / name).exists()}


def wheel_of(name: str, folder: Path) -> zipfile.ZipFile:
    return zipfile.ZipFile(folder / f"{name.replace('-', '_')}-{VERSION}-py3-none-any.whl")


def sdist_of(name: str, folder: Path) -> dict[str, bytes]:
    """Path in its folder -> content."""
    root = f"{name.replace('-', '_')}-{VERSION}"
    with tarfile.open(folder / f"{root}.tar.gz") as archive:
        files = {member.name: archive.extractfile(member) for member in archive.getmembers()}
        return {path.removeprefix(f"{root}/"): file.read() for path, file in files.items() if file}


def metadata_of(name: str, folder: Path) -> email.message.Message:
    content = wheel_of(name, folder).read(f"{name.replace('-', '_')}-{VERSION}.dist-info/METADATA")
    return email.message_from_bytes(content)


def page_of(name: str, folder: Path) -> str:
    """What PyPI shows."""
    content = metadata_of(name, folder).get_payload(decode=True)
    assert isinstance(content, bytes)
    return content.decode()


def outside_dist_info(names: list[str]) -> set[str]:
    return {name for name in names if ".dist-info/" not in name}


# ---- vllm-local


def test_the_wheel_has_the_files_of_the_three_packages_and_no_others(built: Path) -> None:
    names = wheel_of(MAIN, built).namelist()
    assert outside_dist_info(names) == tracked(*PACKAGES)
    assert {f"{package}/py.typed" for package in PACKAGES} <= set(names)
    assert "shared_engine/gateway/page/static/index.html" in names


def test_the_sdist_has_what_the_wheel_is_made_of(built: Path) -> None:
    made = {"PKG-INFO", ".gitignore"}
    beside = {"pyproject.toml", "README.md", "CHANGELOG.md", "LICENSE"}
    assert set(sdist_of(MAIN, built)) == tracked(*PACKAGES) | beside | made


def test_links_of_the_page_lead_to_files_of_this_version(built: Path) -> None:
    """On PyPI a relative link leads nowhere; and the pages of another version may say something else."""
    links = LINK.findall(page_of(MAIN, built))
    home = PROJECT["urls"]["Homepage"]
    raw = home.replace("github.com", "raw.githubusercontent.com")
    files = [
        match[1]
        for link in links
        if (match := re.fullmatch(rf"(?:{home}/blob|{raw})/v{VERSION}/([^#]+)(?:#.*)?", link))
    ]
    assert "docs/langchain.md" in files
    assert any(link.startswith(f"{raw}/") and link.endswith(".png") for link in links)
    assert [name for name in files if not (REPOSITORY / name).exists()] == []
    assert [link for link in links if not link.startswith(("https://", "#"))] == []
    assert len(links) == len(LINK.findall((REPOSITORY / "README.md").read_text()))


# ---- all of them


def test_builds_in_two_folders_are_the_same_bytes(built: Path, tmp_path: Path) -> None:
    """Also where the files are younger, and their modes others."""
    copy = tmp_path / "elsewhere"
    for name in tracked(*PACKAGES, *BESIDE):
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(REPOSITORY / name, copy / name)
        (copy / name).chmod(0o600)
    shutil.copyfile(REPOSITORY / ".gitignore", copy / ".gitignore")
    again = build(copy, tmp_path / "dist")
    assert {path.name: path.read_bytes() for path in again.iterdir()} == {
        path.name: path.read_bytes() for path in built.iterdir()
    }


def test_pypi_would_take_them(built: Path) -> None:
    command = [sys.executable, "-m", "twine", "check", "--strict", *map(str, built.iterdir())]
    done = subprocess.run(command, check=False, capture_output=True, text=True, env={**os.environ, "NO_COLOR": "1"})
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("PASSED") == 2 * (1 + len(DISTRIBUTIONS))


@each_name
def test_each_has_its_license_and_a_page_of_its_own(built: Path, name: str) -> None:
    license_text = (REPOSITORY / "LICENSE").read_bytes()
    dist_info = f"{name.replace('-', '_')}-{VERSION}.dist-info"
    assert wheel_of(name, built).read(f"{dist_info}/licenses/LICENSE") == license_text
    assert sdist_of(name, built)["LICENSE"] == license_text
    assert page_of(name, built).startswith(f"# {name}\n")
    metadata = metadata_of(name, built)
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert metadata["License-Expression"] == PROJECT["license"]
    assert metadata["Requires-Python"] == PROJECT["requires-python"]
    assert metadata.get_all("Classifier") == sorted(PROJECT["classifiers"])


# ---- those by whose names people search


@each_distribution
def test_it_brings_vllm_local_of_its_own_version_with_its_extra(built: Path, distribution: Distribution) -> None:
    metadata = metadata_of(distribution.name, built)
    assert metadata["Version"] == VERSION
    assert metadata.get_all("Requires-Dist") == [f"{MAIN}[{distribution.extra}]=={VERSION}"]
    assert distribution.extra in PROJECT["optional-dependencies"]


@each_distribution
def test_it_holds_its_module_or_nothing(built: Path, distribution: Distribution) -> None:
    found = outside_dist_info(wheel_of(distribution.name, built).namelist())
    if distribution.module is None:
        assert found == set()
        return
    folder = distribution.module.replace(".", "/")
    assert found == {
        f"{folder}/__init__.py",
        f"{folder}/py.typed",
    }  # llama_index itself is a namespace, of many packages
    hub = tomllib.loads(sdist_of(distribution.name, built)["pyproject.toml"].decode())["tool"]["llamahub"]
    assert hub["import_path"] == distribution.module
    assert set(hub["class_authors"]) == set(distribution.classes)


@each_distribution
def test_its_page_tells_its_own_name_and_import(built: Path, distribution: Distribution) -> None:
    page = page_of(distribution.name, built)
    assert f"pip install {distribution.name}\n" in page
    assert f"\nfrom {distribution.module or 'langchain_vllm_local'} import " in page
    assert all(link.startswith("https://") for link in LINK.findall(page))


@pytest.fixture(scope="module")
def unpacked(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All but vllm-local, as pip would put them into one folder."""
    site = tmp_path_factory.mktemp("site")
    for distribution in DISTRIBUTIONS:
        wheel_of(distribution.name, built).extractall(site)
    return site


def test_their_modules_give_the_adapters_own_classes(unpacked: Path) -> None:
    code = "\n".join(
        f"import {each.module}, llama_index_vllm_local, llama_index.core\n"
        f"assert {each.module}.__all__ == {list(each.classes)}\n"
        f"for name in {list(each.classes)}:\n"
        f"    assert getattr({each.module}, name) is getattr(llama_index_vllm_local, name)"
        for each in DISTRIBUTIONS
        if each.module
    )
    path = os.pathsep.join([str(unpacked), str(REPOSITORY)])
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONPATH": path})


def test_each_model_of_the_adapter_is_in_one_of_them() -> None:
    models = [name for each in DISTRIBUTIONS for name in each.classes]
    not_models = {"VLLMTextSplitter"}
    assert sorted(models) == sorted(set(llama_index_vllm_local.__all__) - not_models)


# ---- make test-wheels


def test_each_extra_and_distribution_has_a_row_there() -> None:
    rows = rows_of(PROJECT, DISTRIBUTIONS)
    extras = set(PROJECT["optional-dependencies"]) - {*OF_DEVELOPERS, *ENGINES}
    alone = {row.packages[0] for row in rows if len(row.packages) == 1}
    assert {f"{MAIN}[{extra}]" for extra in extras} | {MAIN, *(each.name for each in DISTRIBUTIONS)} <= alone
    inside = (REPOSITORY / "tests" / "wheels" / "inside.py").read_text()
    for extra in extras:
        assert f"def try_{extra.replace('-', '_')}(" in inside, f"nothing is tried of [{extra}]"


def test_a_row_tries_only_what_is_installed_in_it() -> None:
    for row in rows_of(PROJECT, DISTRIBUTIONS):
        named = {package.partition("[")[0] for package in row.packages}
        assert {part.removeprefix("readme:") for part in row.parts if part.startswith("readme:")} <= {MAIN, *named}
        modules = {each.module for each in DISTRIBUTIONS if each.name in named}
        assert {part.removeprefix("module:") for part in row.parts if part.startswith("module:")} <= modules
