"""The sample application on real vLLM: two engines, answers from documents, on both frameworks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.support.rag_service import EXAMPLES, FRAMEWORKS, PASSWORD, asking, events_of, rag_app, text_of

pytest.importorskip("fastapi")
ANSWERS = {
    "What is the password of the archive?": PASSWORD,
    "Who is the director of the museum?": "The director of the museum is Mara Lindt.",
    "Who built Halden Station?": "Halden Station was built by Ada Norling in 1987.",
}


@pytest.mark.parametrize("framework", FRAMEWORKS)
async def test_the_samples_are_answered_from(
    tiny_chat: dict[str, Any], minilm: dict[str, Any], framework: str, tmp_path: Path
) -> None:
    chat = {**tiny_chat, "temperature": 0, "max_tokens": 64}
    app = rag_app(framework, tmp_path / "rag.sqlite", chat, minilm)
    found, tokens = {}, 0
    async with asking(app, ends=False) as client:  # the engines are the whole run's
        for file in (EXAMPLES / "rag_service" / "documents").iterdir():
            response = await client.put(f"/api/documents/{file.name}", content=file.read_bytes())
            assert response.status_code == 204, response.text
        for question, answer in ANSWERS.items():
            events = events_of((await client.post("/api/ask", json={"question": question})).text)
            found[question] = text_of(events)
            assert answer in events[0][1][0]["text"], "the nearest source has it"
            tokens += events[-1][1]["completion_tokens"]
        health = (await client.get("/health")).json()
    assert found == ANSWERS
    assert health["answers"] == len(ANSWERS)
    assert health["completion_tokens"] == tokens > 0
    assert {name: each["state"] for name, each in health["engines"].items()} == {
        "chat": "ready", "embeddings": "ready"
    }  # fmt: skip
