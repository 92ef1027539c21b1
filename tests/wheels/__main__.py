"""``python -m tests.wheels FOLDER``: the wheels in it, installed by pip into clean environments and used there.

Prints a row of the table as soon as it is known; exits with 1 when one failed. A Python that this machine lacks is
shown by what pip would install for it: `resolves`, not `passed`.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from deploy.distributions.projects import DISTRIBUTIONS, PROJECT
from tests.support.paths import REPOSITORY
from tests.wheels.rows import OLDEST, Row, rows_of

INSIDE = Path(__file__).with_name("inside.py")
LIMIT_S = 900.0
SHOWN_LINES = 25
HEAD = ("Python", "environment", "result", "seconds", "MB")
FORM = "{:<8} {:<46} {:<9} {:>7} {:>5}"
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check"]


class Failed(Exception):
    """A command of a row ended badly, with what it printed."""


def run(*command: str | Path, cwd: Path) -> str:
    """What it prints, on either output.

    Raises:
        Failed: it ended badly or took too long.
    """
    ours = [
        name for name in os.environ if name.startswith("VLLM_") or name in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
    ]
    environment = {name: value for name, value in os.environ.items() if name not in ours}
    try:
        done = subprocess.run(
            command,
            cwd=cwd,
            env=environment,
            timeout=LIMIT_S,
            check=False,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
    except subprocess.TimeoutExpired as exc:
        raise Failed(f"{command[0]} took more than {LIMIT_S:g} s") from exc
    if done.returncode:
        raise Failed("\n".join(done.stdout.splitlines()[-SHOWN_LINES:]))
    return done.stdout


def claimed_pythons() -> list[str]:
    names = PROJECT["classifiers"]
    return [name.rpartition(" ")[2] for name in names if re.search(r":: 3\.\d+$", name)]


def interpreter_of(version: str) -> Path | None:
    """A CPython of this minor version that can make environments: on the path, or of pyenv."""
    on_path = shutil.which(f"python{version}")
    of_pyenv = sorted(Path.home().glob(f".pyenv/versions/{version}.*/bin/python{version}"))
    for candidate in (*([Path(on_path)] if on_path else []), *reversed(of_pyenv)):
        code = "import sys, venv; print('%d.%d' % sys.version_info[:2])"
        done = subprocess.run([candidate, "-c", code], capture_output=True, text=True, check=False)
        if done.stdout.strip() == version:
            return candidate
    return None


def use(row: Row, interpreter: Path, wheels: Path, folder: Path) -> int:
    """Make the environment and try the row's parts in it; its size in MB.

    Raises:
        Failed: pip could not make it, or complains of it; or a part did not work.
    """
    environment = folder / "env"
    python = environment / "bin" / "python"
    run(interpreter, "-m", "venv", "--without-pip", environment, cwd=folder)
    install = ["install", "--quiet", "--no-compile", "--find-links", str(wheels), *row.options, *row.packages]
    run(*PIP, "--python", str(python), *install, cwd=REPOSITORY)
    run(*PIP, "--python", str(python), "check", cwd=folder)
    run(python, "-I", INSIDE, PROJECT["version"], *row.parts, cwd=folder)
    return sum(path.lstat().st_size for path in environment.rglob("*")) // 1_000_000


def resolve(row: Row, version: str, wheels: Path, folder: Path) -> None:
    """Have pip choose wheels for a Python. It reads conditions on the platform as of the Python that runs it.

    Raises:
        Failed: something has no wheel for it.
    """
    target = ["--python-version", version, "--only-binary=:all:", "--target", str(folder / "none")]
    install = ["install", "--quiet", "--dry-run", "--find-links", str(wheels), *target, *row.options, *row.packages]
    run(*PIP, *install, cwd=REPOSITORY)


def tried(row: Row, version: str, interpreter: Path | None, wheels: Path) -> Iterator[str]:
    """The row of the table, then what failed."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="wheels") as name:
        folder = Path(name)
        result, size, words = "resolves", 0, ""
        try:
            if interpreter is None or row.is_resolved_only:
                resolve(row, version, wheels, folder)
            else:
                result, size = "passed", use(row, interpreter, wheels, folder)
        except Failed as exc:
            result, words = "FAILED", str(exc)
    yield FORM.format(version, row.name, result, f"{time.monotonic() - started:.0f}", size or "")
    if words:
        yield words


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.wheels", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, help="with the wheels")
    parser.add_argument("--pythons", nargs="+", default=claimed_pythons(), metavar="3.X", help="default: those claimed")
    parser.add_argument("--rows", default="", metavar="TEXT", help="only rows with this in their name")
    arguments = parser.parse_args()
    wheels = arguments.folder.resolve()
    failed, done = 0, 0
    print(FORM.format(*HEAD), flush=True)
    for version in arguments.pythons:
        interpreter = interpreter_of(version)
        for row in rows_of(PROJECT, DISTRIBUTIONS):
            if arguments.rows not in row.name or (row.name == OLDEST and version != claimed_pythons()[0]):
                continue  # the oldest releases have wheels for the oldest Python alone
            lines = list(tried(row, version, interpreter, wheels))
            print("\n".join(lines), flush=True)
            done, failed = done + 1, failed + ("FAILED" in lines[0])
    print(f"{done - failed} passed, {failed} failed")
    return 1 if failed or not done else 0


if __name__ == "__main__":
    sys.exit(main())
