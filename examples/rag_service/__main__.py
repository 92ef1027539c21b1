"""``python -m rag_service``, from the folder examples: the service on this machine. Ctrl-C ends it, and its engines."""

from __future__ import annotations

import argparse
import importlib

import uvicorn

from shared_engine import SettingsError

DRAIN_S = 3
"""Answers that are under way at Ctrl-C have so long to end."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="rag_service", description=__doc__)
    parser.add_argument("framework", nargs="?", choices=("langchain", "llama_index"), default="langchain")
    parser.add_argument("--port", type=int, default=8080)
    options = parser.parse_args()
    try:
        app = importlib.import_module(f"rag_service.{options.framework}_app").app()
    except (ValueError, SettingsError) as exc:
        parser.error(str(exc))
    uvicorn.run(app, port=options.port, timeout_graceful_shutdown=DRAIN_S, access_log=False)


if __name__ == "__main__":
    main()
