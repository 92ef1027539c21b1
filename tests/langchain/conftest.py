"""Which files need more than langchain-core."""

from __future__ import annotations

from importlib.util import find_spec

# Agents are in langchain and langgraph, which the environment of the oldest releases does not have.
collect_ignore = [] if find_spec("langchain") else ["test_langchain_agents.py", "test_agent_threads.py"]
