"""Where things stand in the repository."""

from __future__ import annotations

from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent.parent
TINY_CHAT = REPOSITORY / "examples" / "tiny_chat"
