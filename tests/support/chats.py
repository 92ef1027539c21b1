"""Saved chats, loaded by the code that docs/chat.md shows."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from shared_engine.cli.chat.conversation import Conversation, save
from tests.support.paths import REPOSITORY


def saved(conversation: Conversation, folder: Path) -> Path:
    """The folder, in which the conversation is talk.json now."""
    save(conversation.to_json("org/name", {}), folder / "talk.json", may_replace=False)
    return folder


def loaded_as_the_page_says(package: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """``messages`` of the page's code that imports ``package``, where talk.json is in the folder."""
    blocks = re.findall(r"```python\n(.*?)```", (REPOSITORY / "docs" / "chat.md").read_text(), re.DOTALL)
    (code,) = [block for block in blocks if package in block]
    monkeypatch.chdir(folder)
    names: dict[str, Any] = {}
    exec(code, names)
    messages: list[Any] = names["messages"]
    return messages
