"""What is asked, and what came: shared by all contenders, in whichever Python they run. Standard library only."""

from __future__ import annotations

from typing import NamedTuple


class Answer(NamedTuple):
    """An answer as every contender tells it, so that one check holds for all."""

    prompt_tokens: int
    completion_tokens: int
    text: str


def questions(count: int) -> list[str]:
    """Short ones, each of its own, of different lengths, so that an answer in the wrong place shows."""
    return [f"Hello number {index}" + " again" * (index % 7) for index in range(count)]


def passages(count: int) -> list[str]:
    """For embeddings: 6 to 16 words, each text of its own."""
    words = (
        "river", "bridge", "winter", "market", "garden", "teacher", "window", "letter", "mountain", "harbour", "music",
        "paper",
    )  # fmt: skip
    return [
        " ".join(f"{words[(index + 5 * place) % 12]} {words[(index // 12 + place) % 12]}" for place in range(length))
        + f" {index}"
        for index, length in ((index, 3 + index % 6) for index in range(count))
    ]


def sample(count: int) -> range:
    """The positions of ``count`` that are compared where comparing all would be too much."""
    return range(0, count, max(1, count // 64))
