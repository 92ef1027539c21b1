"""``python -m tests.newest PYTHON``: the newest of all that we need into that environment, our tests there, what broke.

The upper bounds of pyproject.toml are left out, but for those of development tools; so are pre-releases. Where tests
fail, each package that is newer than when all passed (``tests/newest/passed.txt``) is put back by itself and they run
again, which tells what broke them. A run without a failure writes that file. Exits with 1 when something broke.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import tomllib
import xml.etree.ElementTree
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from tests.support.paths import REPOSITORY
from tests.wheels.rows import ENGINES, OF_DEVELOPERS

PROJECT: dict[str, Any] = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
PASSED = Path(__file__).with_name("passed.txt")
TESTS = ("tests/unit", "tests/langchain", "tests/llama_index")
WITHOUT_VLLM = "not (engine or fault) and (framework or not slow)"
FORM = "{:<26} {:<16} {:<10} {:<10} {}"
SHOWN = 30

Versions = dict[str, str]


def runtime_requirements() -> list[Requirement]:
    """Of the project and of its extras, those of vLLM and of developers left out."""
    extras: dict[str, list[str]] = PROJECT["optional-dependencies"]
    lists = [words for extra, words in extras.items() if extra not in (*ENGINES, *OF_DEVELOPERS)]
    texts = [*PROJECT["dependencies"], *(text for words in lists for text in words)]
    found = {canonicalize_name(each.name): each for each in map(Requirement, texts) if each.name != PROJECT["name"]}
    return list(found.values())


def unbounded(requirement: Requirement) -> str:
    """Without what it says against newer releases."""
    lower = [each for each in requirement.specifier if each.operator in (">=", ">", "!=")]
    return f"{requirement.name}{SpecifierSet(','.join(map(str, lower)))}"


def tools() -> list[str]:
    """Of tests, with their bounds: a new major release of a tool is tried on purpose."""
    texts = PROJECT["optional-dependencies"]["dev"]
    return [text for text in texts if Requirement(text).name != PROJECT["name"]]


@dataclass(frozen=True)
class Environment:
    """A virtual environment, used through its own pip."""

    python: Path

    def pip(self, *arguments: str) -> str:
        """What pip prints.

        Raises:
            SystemExit: it failed; with what it said.
        """
        command = [str(self.python), "-m", "pip", "--disable-pip-version-check", *arguments]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"pip {' '.join(arguments)}: {done.stdout}{done.stderr}")
        return str(done.stdout)

    def install(self, *packages: str) -> None:
        self.pip("install", "--quiet", "--no-compile", "--upgrade", "--upgrade-strategy", "eager", *packages)

    def installed(self) -> Versions:
        listed = json.loads(self.pip("list", "--format=json"))
        return {canonicalize_name(each["name"]): each["version"] for each in listed if each["name"] != PROJECT["name"]}

    def newest(self, name: str) -> str:
        """Of the index, pre-releases left out."""
        found = re.match(r"\S+ \((\S+)\)", self.pip("index", "versions", name))
        return found[1] if found else "?"

    def those_against(self, name: str, version: str) -> list[str]:
        """Installed packages that don't take this version of it."""
        code = (
            "import importlib.metadata, json; "
            "print(json.dumps([(d.name, r) for d in importlib.metadata.distributions() for r in d.requires or []]))"
        )
        pairs = json.loads(subprocess.run([self.python, "-c", code], check=True, capture_output=True, text=True).stdout)
        wanted = [(owner, Requirement(text)) for owner, text in pairs]
        return sorted(
            f"{owner} wants {requirement.specifier}"
            for owner, requirement in wanted
            if canonicalize_name(requirement.name) == canonicalize_name(name)
            and owner != PROJECT["name"]
            and (requirement.marker is None or requirement.marker.evaluate({"extra": ""}))
            and not requirement.specifier.contains(version)
        )

    def refusal(self, name: str, version: str) -> str:
        """Why pip would not install it, in pip's words."""
        command = [str(self.python), "-m", "pip", "install", "--dry-run", "--no-input", f"{name}=={version}"]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        errors = re.findall(r"^ERROR: (.*?)(?: \(from versions: .*)?$", done.stderr, re.MULTILINE)
        return errors[0] if errors else "not chosen by pip"

    def failures(self, *tests: str) -> dict[str, str] | None:
        """Test -> what went wrong; None: pytest itself did not come to an end."""
        with tempfile.TemporaryDirectory() as folder:
            report = Path(folder) / "report.xml"
            command = [str(self.python), "-m", "pytest", "-q", "-n", "2", "-m", WITHOUT_VLLM, *tests]
            variables = {name: value for name, value in os.environ.items() if not name.startswith("VLLM_")}
            options = ["-o", "junit_family=xunit1", f"--junit-xml={report}"]  # which tells the file of a test
            code = subprocess.run([*command, *options], cwd=REPOSITORY, env=variables, check=False).returncode
            found = failed_in(report) if report.exists() else {}
            return found if found or code == 0 else None


def failed_in(report: Path) -> dict[str, str]:
    """Test, as pytest takes it -> the first line of what went wrong."""
    found = {}
    for case in xml.etree.ElementTree.parse(report).iter("testcase"):
        for problem in [*case.findall("failure"), *case.findall("error")]:
            file, place = case.get("file", ""), case.get("classname", "")
            classes = place.removeprefix(file.removesuffix(".py").replace("/", ".")).strip(".").split(".")
            test = "::".join([file, *filter(None, classes), case.get("name", "")])
            found[test] = next(iter((problem.get("message") or "").splitlines()), "")[:160]
    return found


def print_versions(environment: Environment, installed: Versions) -> None:
    """Each package that we name: our range, the newest, what is installed, and who holds it back."""
    print(FORM.format("package", "our range", "newest", "installed", ""))
    for requirement in sorted(runtime_requirements(), key=lambda each: each.name):
        newest, here = environment.newest(requirement.name), installed[canonicalize_name(requirement.name)]
        notes = [] if requirement.specifier.contains(here) else ["beyond our range"]
        if newest not in (here, "?"):
            notes += environment.those_against(requirement.name, newest) or [
                environment.refusal(requirement.name, newest)
            ]
        print(FORM.format(requirement.name, str(requirement.specifier), newest, here, "; ".join(notes)))


def passed_versions() -> Versions:
    lines = PASSED.read_text().splitlines() if PASSED.exists() else []
    pairs = [line.split("==") for line in lines if "==" in line]
    return dict(pairs)


def print_culprits(environment: Environment, failed: dict[str, str], installed: Versions) -> None:
    """Put back, one after the other, what is newer than when all passed, and run again what fails."""
    changed = {name: old for name, old in passed_versions().items() if installed.get(name, old) != old}
    print(f"\n{len(failed)} tests failed; newer than when all passed: {', '.join(changed) or 'nothing'}")
    left = dict(failed)
    for name, old in changed.items():
        environment.pip("install", "--quiet", "--no-compile", "--no-deps", f"{name}=={old}")
        still = environment.failures(*left)
        environment.pip("install", "--quiet", "--no-compile", "--no-deps", f"{name}=={installed[name]}")
        mended = {} if still is None else {test: words for test, words in left.items() if test not in still}
        if mended:
            print(f"\n{name} {installed[name]} broke {len(mended)} (they pass with {old}):")
            print_tests(mended)
        left = {test: words for test, words in left.items() if test not in mended}
        if not left:
            return
    print("\nno package alone explains:")
    print_tests(left)


def print_tests(tests: dict[str, str]) -> None:
    for test, words in list(tests.items())[:SHOWN]:
        print(f"  {test}\n    {words}")
    if len(tests) > SHOWN:
        print(f"  ... and {len(tests) - SHOWN} more")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.newest", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("python", type=Path, help="of a virtual environment, which gets the packages")
    environment = Environment(parser.parse_args().python.absolute())
    environment.install("pip", *map(unbounded, runtime_requirements()), *tools())
    environment.pip("install", "--quiet", "--no-deps", "--editable", str(REPOSITORY))
    installed = environment.installed()
    print_versions(environment, installed)
    failed = environment.failures(*TESTS)
    if failed is None:
        print("pytest did not come to an end")
        return 1
    if failed:
        print_culprits(environment, failed, installed)
        return 1
    lines = ["# What `make test-newest` last passed with; it writes this file."]
    PASSED.write_text(
        "\n".join([*lines, *(f"{name}=={version}" for name, version in sorted(installed.items()))]) + "\n"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
