"""The program that runs in vLLM's own Python, by path: it imports vLLM once and forks servers. Alone in its folder,
which Python puts first on its search path. Standard library and vLLM only.
"""

from pathlib import Path

LAUNCHER = Path(__file__).resolve().with_name("launcher.py")
