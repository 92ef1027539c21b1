"""Which of many items a server refuses, where it refuses all of a request for one of them: found with few requests.

Knows neither texts nor vectors.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import nullcontext
from typing import NamedTuple

from shared_engine.errors import (
    AuthenticationError,
    ContextLengthError,
    ModelNotFoundError,
    PermissionDeniedError,
    RateLimitError,
    RequestError,
    RequestRejectedError,
    ServerError,
)
from shared_engine.request.retry import PASSING

MAX_DOUBTFUL = 3
"""So many items may be refused, and none be answered, before it is looked into whether any is."""
_OF_ALL = (AuthenticationError, PermissionDeniedError, ModelNotFoundError, RateLimitError)
_OF_THE_ROUTE = frozenset((405, 407, 411, 415))


def may_be_of_an_item(error: RequestError) -> bool:
    """True for a refusal that may be about one of the items of a request; also for a failure or an answer without
    sense, which one item can bring about.
    """
    if isinstance(error, ServerError):
        return error.status in (None, 500)
    if not isinstance(error, RequestRejectedError) or isinstance(error, _OF_ALL):
        return False
    return error.status not in PASSING | _OF_THE_ROUTE


class Dividing:
    """The items of one call, by their positions.

    A request that is refused is asked again in two parts, of which one may be known to be at fault without being asked
    as a whole, down to single items. What is refused for all items is no item's fault: it is raised, after few
    requests.

    Args:
        positions: of all items.
        ask: sends the items at some positions in one request, and keeps what is answered. Raises RequestError.
        failed: is told the position and the error of an item that is at fault.
        divides: whether a refusal is looked into; else it is raised.
        is_sure: whether the refusal of a single item says by itself that the item is at fault.
        size: of an item, by which those that are too long are found first.
        known: those among some positions that an error shows to be at fault, without asking.
    """

    def __init__(
        self,
        positions: Sequence[int],
        ask: Callable[[Sequence[int]], Awaitable[None]],
        failed: Callable[[int, RequestError], Awaitable[None]],
        *,
        divides: Callable[[RequestError], bool],
        is_sure: Callable[[RequestError], bool],
        size: Callable[[int], int],
        known: Callable[[RequestError, Sequence[int]], Sequence[int]] = lambda _error, _positions: (),
    ) -> None:
        self._positions = positions
        self._ask, self._failed, self._divides, self._is_sure = ask, failed, divides, is_sure
        self._size, self._known = size, known
        self._is_answered = False
        self._first = asyncio.Lock()
        self._doubtful: dict[int, RequestError] = {}

    async def answer(self, positions: Sequence[int]) -> None:
        """Ask for the items at these positions; return when each has been answered, or is known to be at fault."""
        error = await self._asked(positions)
        if error is not None:
            # Until something was answered, only one request is divided: each of the others may have the same fault.
            async with nullcontext() if self._is_answered else self._first:
                await self._find(positions, error)

    def end(self) -> None:
        """
        Raises:
            ServerError: that was the only answer there was.
        """
        failures = [error for error in self._doubtful.values() if isinstance(error, ServerError)]
        if failures and not self._is_answered:
            raise failures[0]

    async def _asked(self, positions: Sequence[int]) -> RequestError | None:
        try:
            await self._ask(positions)
        except RequestError as exc:
            if not self._divides(exc):
                raise
            return exc
        self._is_answered = True
        return None

    async def _find(self, positions: Sequence[int], error: RequestError) -> None:
        """Look into a request that was refused with ``error``."""
        left = [_Part(positions, error)]
        while left:
            part = left.pop()
            positions = part.positions
            refusal = part.error or await self._asked(positions)
            if refusal is None:
                continue
            if len(positions) == 1:
                await self._is_at_fault(positions[0], refusal)
                continue
            known = self._known(refusal, positions)
            if known:
                for position in known:
                    await self._failed(position, refusal)
                rest = _without(positions, known)
                left += [_Part(rest)] if rest else []
                continue
            ordered, size = list(positions), part.size or _first_size(positions, refusal)
            if isinstance(refusal, ContextLengthError):
                ordered.sort(key=lambda position: -self._size(position))
            head, rest = ordered[:size], ordered[size:]
            of_head = await self._asked(head)
            if of_head is None and len(rest) > 1:  # then it is about the others: they need not be asked as a whole
                next_size = 2 * size if isinstance(refusal, ContextLengthError) else len(rest) // 2
                left.append(_Part(rest, refusal, min(next_size, len(rest) - 1)))
                continue
            left.append(_Part(rest))
            if of_head is not None:
                left.append(_Part(head, of_head))

    async def _is_at_fault(self, position: int, error: RequestError) -> None:
        if not self._is_answered and not self._is_sure(error):
            self._doubtful[position] = error
            if len(self._doubtful) >= MAX_DOUBTFUL and not await self._is_any_answered():
                raise error
        await self._failed(position, error)

    async def _is_any_answered(self) -> bool:
        """Ask for the last item, and for the one in the middle."""
        for position in (self._positions[-1], self._positions[len(self._positions) // 2]):
            if position not in self._doubtful and await self._asked([position]) is None:
                return True
        return False


class _Part(NamedTuple):
    """Some of the items.

    Attributes:
        error: that they were refused with; None: they have not been asked for.
        size: of the part of them that is asked for first; 0: as the error says.
    """

    positions: Sequence[int]
    error: RequestError | None = None
    size: int = 0


def _first_size(positions: Sequence[int], error: RequestError) -> int:
    """How many to ask first: of a length, mostly the longest is at fault."""
    return 1 if isinstance(error, ContextLengthError) else len(positions) // 2


def _without(positions: Sequence[int], left_out: Sequence[int]) -> list[int]:
    out = set(left_out)
    return [position for position in positions if position not in out]
