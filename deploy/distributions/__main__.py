"""``python -m deploy.distributions FOLDER``: sdists of all that goes to PyPI, and wheels made of these."""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from deploy.distributions.projects import DISTRIBUTIONS, REPOSITORY, write_project


class BuildError(Exception):
    """A distribution could not be built; with what the build printed."""


def build_all(out: Path) -> None:
    """Sdists, and wheels made of these, of all distributions into ``out``, with the hatchling of this Python.

    Raises:
        BuildError: one could not be built.
    """
    with tempfile.TemporaryDirectory() as folder:
        projects = [REPOSITORY]
        for distribution in DISTRIBUTIONS:
            projects.append(Path(folder) / distribution.name)
            write_project(distribution, projects[-1])
        for project in projects:
            command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(project)]
            done = subprocess.run(command, check=False, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
            if done.returncode:
                raise BuildError(f"{project.name}: {done.stdout}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, help="gets the sdists and wheels; those in it are deleted first")
    out: Path = parser.parse_args().folder
    for old in [*out.glob("*.whl"), *out.glob("*.tar.gz")]:
        old.unlink()
    build_all(out)


if __name__ == "__main__":
    main()
