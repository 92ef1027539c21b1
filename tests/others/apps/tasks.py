"""Celery's tasks, over a folder in place of a broker."""

from __future__ import annotations

import os
from pathlib import Path

from celery import Celery


def celery_of(folder: Path) -> Celery:
    """For the worker, and for those who send it tasks."""
    queue = {name: str(folder / "queue") for name in ("data_folder_in", "data_folder_out")}
    celery = Celery("tasks", broker="filesystem://", backend=f"file://{folder / 'results'}")
    celery.conf.broker_transport_options = {**queue, "control_folder": str(folder / "control")}
    return celery


app = celery_of(Path(os.environ["FOLDER"]))


@app.task
def ask() -> tuple[str, int]:
    """The text, and the process."""
    from tests.others.apps.shared import answer

    return answer(), os.getpid()
