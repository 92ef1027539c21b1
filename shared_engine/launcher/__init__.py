"""The program that runs in vLLM's own Python, by path: it imports vLLM once and forks servers. ``launcher.py`` is its
first file. Standard library and vLLM only.
"""

from pathlib import Path

LAUNCHER = Path(__file__).resolve().with_name("launcher.py")
