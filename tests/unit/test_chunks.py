"""Cutting long texts by tokens: sizes hold, characters stay whole, pieces add up, and nonsense is refused in words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from shared_engine import ChunkPlan, Engine, InvalidInputError
from shared_engine.token_count.chunks import plan_by_tokens, plan_by_words, spans_of
from tests.support.interpreters import make_exporter
from tests.support.remote_server import running_server
from tests.support.small_tokenizers import make_folder, tokenizer_of

KINDS = ("llama3", "llama2", "gpt2", "qwen2", "gemma")
TEXT = "The engine's naïve 日本語 😀👍🏽 12345\n\n e\u0301 can't  stop. " * 20


def tokenizer(kind: str) -> Tokenizer:
    made = Tokenizer.from_str(tokenizer_of(kind).to_str())
    made.no_padding()
    made.no_truncation()
    return made


def plan(kind: str, text: str, size: int, overlap: int) -> ChunkPlan:
    of = tokenizer(kind)
    places = of.encode(text, add_special_tokens=False).offsets
    return plan_by_tokens(text, places, size, overlap, lambda piece: counted(of, piece))


def counted(of: Tokenizer, text: str) -> int:
    return len(of.encode(text, add_special_tokens=False).ids)


def pieces(of: ChunkPlan, text: str) -> list[str]:
    assert of.char_spans is not None
    return [text[begin:end] for begin, end in of.char_spans]


def see_that_it_holds(made: ChunkPlan, text: str, count: Any) -> None:
    """What is promised of every plan."""
    assert made.char_spans is not None
    assert len(made.char_spans) == made.count
    reached = 0
    for (begin, end), piece in zip(made.char_spans, pieces(made, text), strict=True):
        assert begin <= reached < end, "nothing is left out, and each piece has something new"
        assert count(piece) <= made.size
        assert count(text[begin:reached]) <= made.overlap
        reached = end
    assert reached == len(text)


# ---- of a number of tokens


@pytest.mark.parametrize(
    ("n_tokens", "size", "overlap", "spans"),
    [
        (0, 10, 0, ()),
        (1, 10, 9, ((0, 1),)),
        (10, 10, 3, ((0, 10),)),
        (11, 10, 0, ((0, 10), (10, 11))),
        (25, 10, 2, ((0, 10), (8, 18), (16, 25))),
        (4, 2, 1, ((0, 2), (1, 3), (2, 4))),
    ],
)
def test_spans_of_so_many_tokens(n_tokens: int, size: int, overlap: int, spans: tuple[Any, ...]) -> None:
    assert spans_of(n_tokens, size, overlap) == spans
    made = Engine(base_url="http://127.0.0.1:9").plan_chunks(n_tokens, size=size, overlap=overlap)
    assert made == ChunkPlan(size, overlap, n_tokens, spans)
    assert made.count == len(spans)


def test_a_plan_is_a_value() -> None:
    made = Engine(base_url="http://127.0.0.1:9").plan_chunks(100, size=30)
    assert (made.overlap, made.is_estimate, made.char_spans) == (3, False, None)
    assert hash(made) == hash(Engine(base_url="http://127.0.0.1:9").plan_chunks(100, size=30))
    with pytest.raises(AttributeError):
        made.size = 2  # type: ignore[misc]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"size": 10, "overlap": 10}, r"overlap = 10: must be below size = 10"),
        ({"size": 10, "overlap": 11}, r"overlap = 11: must be below size = 10"),
        ({"size": 10, "overlap": 1.5}, r"overlap = 1.5: must be a share from 0.0 up to 1.0, or a number of tokens"),
        ({"size": 10, "overlap": -1}, r"overlap = -1: must be a share"),
        ({"size": 10, "overlap": -0.1}, r"overlap = -0.1: must be a share"),
        ({"size": 10, "overlap": float("nan")}, r"overlap = nan: must be a share"),
        ({"size": 10, "overlap": True}, r"overlap = True: must be a share"),
        ({"size": 10, "overlap": "1"}, r"overlap = '1': must be a share"),
        ({"size": 0}, r"size = 0: must be a whole number, 1 or more"),
        ({"size": 2.5}, r"size = 2.5: must be a whole number"),
        ({"reserve": 2048}, r"size = 0: must be a whole number, 1 or more"),
        ({"reserve": -2}, r"reserve = -2: must be a share"),
    ],
)
def test_what_makes_no_sense_is_refused_in_words(options: dict[str, Any], words: str) -> None:
    with running_server() as server, pytest.raises(InvalidInputError, match=words):
        Engine(base_url=server.url, max_model_len=2048).plan_chunks(100, **options)


def test_a_text_is_a_text_or_a_number() -> None:
    engine = Engine(base_url="http://127.0.0.1:9")
    for wrong in (-1, True):
        with pytest.raises(InvalidInputError, match="text = "):
            engine.plan_chunks(wrong, size=10)
    with pytest.raises(InvalidInputError, match="text"):
        engine.plan_chunks(1.5, size=10)  # type: ignore[arg-type]


def test_the_size_is_what_the_window_has_beside_the_reserve() -> None:
    engine = Engine(model="org/name", max_model_len=2048)
    assert engine.plan_chunks(10, overlap=0).size == 1536
    assert engine.plan_chunks(10, overlap=0, reserve=48).size == 2000
    assert engine.plan_chunks(10, reserve=0.0).size == 2048
    with running_server() as server:
        assert Engine(base_url=server.url).plan_chunks(10, reserve=0).size == 2048
        assert Engine(base_url=server.url, model="served").plan_chunks(10, reserve=0).size == 2048
        server.models = [{"id": "served"}]
        with pytest.raises(InvalidInputError, match="does not report its max_model_len: pass size="):
            Engine(base_url=server.url).plan_chunks(10)


# ---- of a text, by tokens


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("size", "overlap"), [(16, 0), (16, 5), (50, 49), (1000, 100), (9, 8)])
def test_sizes_hold_and_nothing_is_lost(kind: str, size: int, overlap: int) -> None:
    made = plan(kind, TEXT, size, overlap)
    of = tokenizer(kind)
    see_that_it_holds(made, TEXT, lambda piece: counted(of, piece))
    assert not made.is_estimate
    assert made.n_tokens == counted(of, TEXT)
    assert made.spans[0][0] == 0
    assert made.spans[-1][1] == made.n_tokens
    if overlap == 0:
        assert "".join(pieces(made, TEXT)) == TEXT
        assert made.count <= 2 * made.n_tokens / size + 1, "pieces are about full"


@pytest.mark.parametrize("kind", KINDS)
def test_characters_stay_whole(kind: str) -> None:
    text = "😀👍🏽日本e\u0301👨\u200d👩\u200d👧" * 10
    for piece in pieces(plan(kind, text, 30, 0), text):
        assert not piece.startswith(("\u0301", "\u200d", "🏽"))
        assert not piece.endswith("\u200d")


@settings(max_examples=150, deadline=None)
@given(st.text(max_size=60), st.integers(30, 60), st.integers(0, 20), st.sampled_from(KINDS))
@pytest.mark.slow
def test_any_text(text: str, size: int, overlap: int, kind: str) -> None:
    of = tokenizer(kind)
    see_that_it_holds(plan(kind, text * 3, size, overlap), text * 3, lambda piece: counted(of, piece))


def test_a_size_that_no_character_fits_is_refused() -> None:
    with pytest.raises(InvalidInputError, match=r"size = 1: '日' alone has 3 tokens"):
        plan("llama3", "日本", 1, 0)


def test_an_empty_text_has_no_pieces() -> None:
    assert plan("llama3", "", 10, 0) == ChunkPlan(10, 0, 0, (), ())
    assert plan_by_words("", 10, 0, len) == ChunkPlan(10, 0, 0, (), ())


async def test_an_engine_plans_by_its_models_own_tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = make_folder(tmp_path / "model", "gemma", "gemma2", "GemmaTokenizer")
    engine = Engine(model=str(folder), python=make_exporter(tmp_path / "environment"), max_model_len=100)
    made = engine.plan_chunks(TEXT, overlap=0.2)
    assert (made.size, made.overlap, made.is_estimate) == (75, 15, False)
    see_that_it_holds(made, TEXT, lambda piece: len(engine.tokenize(piece)))
    assert await engine.aplan_chunks(TEXT, overlap=0.2) == made


# ---- of a text, by words


@pytest.mark.parametrize("text", ["one two  three\nfour " * 30, "x" * 100, "", " ", "日本語" * 30, "a " * 5 + "y" * 50])
@pytest.mark.parametrize(("size", "overlap"), [(7, 0), (7, 3), (20, 19)])
def test_where_only_the_server_counts_cuts_are_between_words(text: str, size: int, overlap: int) -> None:
    def count(piece: str) -> int:
        return len(piece) // 2 + 1 if piece else 0

    made = plan_by_words(text, size, overlap, count)
    see_that_it_holds(made, text, count)
    assert made.is_estimate == (made.count > 1)
    if " " in text.strip() and "y" not in text:
        assert all(piece.endswith((" ", "\n")) for piece in pieces(made, text))


def test_a_long_text_is_not_counted_at_once() -> None:
    asked: list[int] = []

    def count(piece: str) -> int:
        asked.append(len(piece))
        return len(piece.split())

    text = "word " * 40_000
    made = plan_by_words(text, 500, 0, count)
    assert made.count == 80
    assert made.n_tokens == 40_000
    assert max(asked) <= 50_000


def test_a_remote_server_counts() -> None:
    text = "one two three four five six seven eight nine ten"
    with running_server() as server:
        made = Engine(base_url=server.url).plan_chunks(text, size=4, overlap=1)
    assert pieces(made, text) == ["one two three four ", "four five six seven ", "seven eight nine ten"]
    assert made.is_estimate
