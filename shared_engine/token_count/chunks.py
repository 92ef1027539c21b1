"""How a long text is cut into pieces of so many tokens, by the model's own. Pure, but for the counting it is given."""

from __future__ import annotations

import math
import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from shared_engine.errors import InvalidInputError

Span = tuple[int, int]

AT_ONCE = 50_000
"""Characters that a server is asked to count at once: it answers nobody else meanwhile, and takes 10 s for 4 MB."""


@dataclass(frozen=True)
class ChunkPlan:
    """Pieces of one text, in order, each overlapping the one before.

    Attributes:
        size: the most tokens that a piece has.
        overlap: how many tokens a piece shares with the one before, at most.
        n_tokens: of the whole text.
        spans: of each piece, where it begins and ends among the text's tokens.
        char_spans: the same among its characters: ``text[begin:end]``. Without overlap the pieces add up to the text.
            None where only a number of tokens was given.
        is_estimate: ``n_tokens`` and some of ``spans`` are estimates: of a server's tokens nobody knows where they are,
            and some tokens end inside a character. Sizes are exact all the same.
    """

    size: int
    overlap: int
    n_tokens: int
    spans: tuple[Span, ...]
    char_spans: tuple[Span, ...] | None = None
    is_estimate: bool = False

    @property
    def count(self) -> int:
        """How many pieces there are."""
        return len(self.spans)


def share(name: str, value: float, whole: int) -> int:
    """Tokens that ``value`` means: below 1 a share of ``whole``, else their number.

    Raises:
        InvalidInputError: it is neither.
    """
    if isinstance(value, float) and 0 <= value < 1:
        return math.floor(value * whole)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise InvalidInputError(f"{name} = {value!r}: must be a share from 0.0 up to 1.0, or a number of tokens")
    return value


def check_sizes(size: int, overlap: int) -> None:
    """
    Raises:
        InvalidInputError: a piece would have nothing, or nothing new.
    """
    if size < 1:
        raise InvalidInputError(f"size = {size}: a piece must have at least one token")
    if overlap >= size:
        raise InvalidInputError(f"overlap = {overlap}: must be below size = {size}, or no piece would get further")


def spans_of(n_tokens: int, size: int, overlap: int) -> tuple[Span, ...]:
    """Of so many tokens, any of which may begin a piece; none for none."""
    spans: list[Span] = []
    begin = 0
    while begin < n_tokens:
        end = min(begin + size, n_tokens)
        spans.append((begin, end))
        if end == n_tokens:
            break
        begin = end - overlap
    return tuple(spans)


def plan_by_tokens(
    text: str, places: Sequence[Span], size: int, overlap: int, count: Callable[[str], int]
) -> ChunkPlan:
    """A plan that cuts between tokens.

    Args:
        places: of each token, its characters; tokens that are parts of one character have the same.
        count: tokens of a text by itself, which may be more than it has inside another.
    """
    tokens, chars, reached, is_estimate = [0], [0], 0, False
    for index, (begin, end) in enumerate([*places, (len(text), len(text))]):
        # After what the tokens before have of the text: some tokenizers leave the space before a word out of its place.
        reached = max(reached, len(text) if index == len(places) else 0)
        if begin >= reached > chars[-1] and (reached == len(text) or _may_cut(text, reached)):
            if index - tokens[-1] > size:  # tokens that each begin inside a character: between characters, then
                inside = [at for at in range(chars[-1] + 1, reached) if _may_cut(text, at)]
                per_char = (index - tokens[-1]) / (reached - chars[-1])
                tokens += [tokens[-1] + int(per_char * (at - chars[-1])) for at in inside]
                chars += inside
                is_estimate = is_estimate or bool(inside)
            tokens.append(index)
            chars.append(reached)
        reached = max(reached, end)
    return replace(_plan(text, tokens, chars, size, overlap, count), is_estimate=is_estimate)


def plan_by_words(text: str, size: int, overlap: int, count: Callable[[str], int]) -> ChunkPlan:
    """A plan that cuts between words, for where only ``count`` is known; inside those that are longer than a piece."""
    chars = [0]
    for word in re.finditer(r"\S+\s*|\s+", text):
        is_short = word.end() - word.start() <= size or count(word[0]) <= size
        inside = () if is_short else range(word.start() + 1, word.end())
        chars += [*(at for at in inside if _may_cut(text, at)), word.end()]
    n_tokens = sum(count(text[at : at + AT_ONCE]) for at in range(0, len(text), AT_ONCE))
    tokens = [round(n_tokens * at / max(1, len(text))) for at in chars]
    plan = _plan(text, tokens, chars, size, overlap, count)
    return replace(plan, is_estimate=plan.count > 1)


def _plan(
    text: str, tokens: list[int], chars: list[int], size: int, overlap: int, count: Callable[[str], int]
) -> ChunkPlan:
    """Of a text that may be cut at ``chars``, where it has so many ``tokens`` before."""
    pieces = _cut(text, tokens, chars, size, overlap, count)
    return ChunkPlan(
        size,
        overlap,
        tokens[-1],
        tuple((tokens[begin], tokens[end]) for begin, end in pieces),
        tuple((chars[begin], chars[end]) for begin, end in pieces),
    )


def _cut(
    text: str, tokens: list[int], chars: list[int], size: int, overlap: int, count: Callable[[str], int]
) -> list[Span]:
    """The pieces, as positions in ``tokens`` and ``chars``."""
    pieces: list[Span] = []
    begin, last = 0, len(chars) - 1
    while begin < last:
        end = _end_of(text, tokens, chars, begin, size, count)
        if pieces and end <= pieces[-1][1]:
            begin = pieces[-1][1]  # nothing new: beside what comes next there is no room for an overlap
            continue
        pieces.append((begin, end))
        if end == last:
            break
        begin = bisect_left(tokens, tokens[end] - overlap, begin + 1, end)
        while begin < end and count(text[chars[begin] : chars[end]]) > overlap:
            begin += 1
    return pieces


def _end_of(text: str, tokens: list[int], chars: list[int], begin: int, size: int, count: Callable[[str], int]) -> int:
    """Where the longest piece from ``begin`` ends that has at most ``size`` tokens by itself.

    Raises:
        InvalidInputError: the next character alone has more.
    """
    fits, too_far, step = begin, len(chars), 1
    # By itself a piece may have some tokens more or fewer than inside the text: mostly the first look is right.
    at = min(len(chars) - 1, max(begin + 1, bisect_right(tokens, tokens[begin] + size) - 1))
    while too_far - fits > 1:
        if count(text[chars[begin] : chars[at]]) <= size:
            fits, at = at, at + step
        else:
            too_far, at = at, at - step
        step *= 2
        if not fits < at < too_far:
            at = (fits + too_far) // 2
    if fits == begin:
        first = text[chars[begin] : chars[begin + 1]]
        raise InvalidInputError(f"size = {size}: {first!r:.40} alone has {count(first)} tokens")
    return fits


_JOINERS = re.compile("[\u0300-\u036f\u200d\ufe00-\ufe0f\U0001f3fb-\U0001f3ff\U000e0100-\U000e01ef]")


def _may_cut(text: str, at: int) -> bool:
    """False inside of what readers see as one character: before an accent, a joiner, a skin colour."""
    return not (_JOINERS.match(text[at]) or text[at - 1] == "\u200d")
