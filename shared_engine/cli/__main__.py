"""``python -m shared_engine.cli``: the ``vllm-local`` command."""

from shared_engine.cli.entry import run

run()
