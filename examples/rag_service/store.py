"""Documents in SQLite: their chunks, a vector for each, and how many tokens the answers have taken.

All vectors are compared with a question's, which is quick up to some ten thousand chunks. Beyond that, put a vector
database here: the two apps use nothing but these methods.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

_TABLES = """
CREATE TABLE IF NOT EXISTS made_with (model TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS documents (name TEXT PRIMARY KEY, characters INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS chunks (
    document TEXT NOT NULL REFERENCES documents (name) ON DELETE CASCADE, text TEXT NOT NULL, vector BLOB NOT NULL
);
CREATE INDEX IF NOT EXISTS chunks_of_a_document ON chunks (document);
CREATE TABLE IF NOT EXISTS answers (prompt_tokens INTEGER NOT NULL, completion_tokens INTEGER NOT NULL);
"""


@dataclass(frozen=True)
class Document:
    """One that was added."""

    name: str
    characters: int
    chunks: int


@dataclass(frozen=True)
class Source:
    """A chunk of a document, and how near it is to a question: 1 is the same direction."""

    document: str
    text: str
    score: float


@dataclass(frozen=True)
class Totals:
    """Of all answers so far."""

    answers: int
    prompt_tokens: int
    completion_tokens: int


class Store:
    """May be used from any thread.

    Args:
        embedded_by: the model that the vectors are of.

    Raises:
        ValueError: the file has vectors of another model, with which nothing could be compared.
    """

    def __init__(self, path: Path, embedded_by: str) -> None:
        self._path = path
        with self._connection() as connection:
            connection.executescript(_TABLES)
            known = connection.execute("SELECT model FROM made_with").fetchone()
            if known is None:
                connection.execute("INSERT INTO made_with VALUES (?)", (embedded_by,))
            elif known[0] != embedded_by:
                raise ValueError(
                    f"the vectors in {path} are of {known[0]}, not of {embedded_by}: "
                    "give another file (RAG_DATABASE), or remove this one"
                )

    def put(self, name: str, text: str, chunks: Sequence[str], vectors: Sequence[Sequence[float]]) -> None:
        """Add a document, or put it in the place of the one with its name."""
        rows = [(name, chunk, _unit(vector).tobytes()) for chunk, vector in zip(chunks, vectors, strict=True)]
        with self._connection() as connection:
            connection.execute("DELETE FROM documents WHERE name = ?", (name,))
            connection.execute("INSERT INTO documents VALUES (?, ?)", (name, len(text)))
            connection.executemany("INSERT INTO chunks VALUES (?, ?, ?)", rows)

    def remove(self, name: str) -> bool:
        """Whether there was such a document."""
        with self._connection() as connection:
            return connection.execute("DELETE FROM documents WHERE name = ?", (name,)).rowcount > 0

    def documents(self) -> list[Document]:
        """By name."""
        query = """SELECT name, characters, count(chunks.text) FROM documents
            LEFT JOIN chunks ON document = name GROUP BY name ORDER BY name"""
        with self._connection() as connection:
            return [Document(*row) for row in connection.execute(query)]

    def nearest(self, vector: Sequence[float], count: int) -> list[Source]:
        """The chunks nearest to a question's vector, nearest first."""
        with self._connection() as connection:
            rows = connection.execute("SELECT document, text, vector FROM chunks").fetchall()
        if not rows:
            return []
        vectors = np.frombuffer(b"".join(row[2] for row in rows), dtype=np.float32).reshape(len(rows), -1)
        scores = vectors @ _unit(vector)
        return [Source(rows[at][0], rows[at][1], float(scores[at])) for at in np.argsort(-scores)[:count]]

    def count_answer(self, prompt_tokens: int, completion_tokens: int) -> None:
        with self._connection() as connection:
            connection.execute("INSERT INTO answers VALUES (?, ?)", (prompt_tokens, completion_tokens))

    def totals(self) -> Totals:
        query = "SELECT count(*), total(prompt_tokens), total(completion_tokens) FROM answers"
        with self._connection() as connection:
            return Totals(*map(int, connection.execute(query).fetchone()))

    @contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        """All that is done with it is done, or nothing."""
        with closing(sqlite3.connect(self._path)) as connection:
            connection.execute("PRAGMA foreign_keys = ON")
            with connection:
                yield connection


def _unit(vector: Sequence[float]) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    """As long as 1, so that a product of two is their cosine."""
    array = np.asarray(vector, dtype=np.float32)
    return array / max(float(np.linalg.norm(array)), 1e-12)
