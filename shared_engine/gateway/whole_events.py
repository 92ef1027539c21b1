"""A stream of events on its way through: it goes on byte for byte, and is cut nowhere but between two events.

Whatever ends it early is told by an event of its own, which a client only understands after a whole one.
"""

from __future__ import annotations

import re

MOST_HELD = 1 << 20
"""A longer event goes on as it comes."""
_ENDS = (b"\n\n", b"\n\r\n", b"\r\r")
_LONGEST_END = 3
# Lines that end no event, and are part of none: they keep a connection open, and must not wait.
_COMMENTS = re.compile(rb"[\r\n]*(?::[^\r\n]*[\r\n]+)*")


class WholeEvents:
    """Holds back what has begun and not ended: nothing nearly always, as servers send an event in one piece."""

    def __init__(self) -> None:
        self._held = bytearray()

    def ended(self, piece: bytes) -> bytes:
        """What can go on now."""
        if not self._held and piece.endswith(_ENDS):
            return piece
        begin = max(0, len(self._held) - _LONGEST_END + 1)
        self._held += piece
        end = len(self._held)
        if not self._held.endswith(_ENDS) and end <= MOST_HELD:
            end = max(at + len(each) if (at := self._held.rfind(each, begin)) >= 0 else 0 for each in _ENDS)
            if _COMMENTS.fullmatch(self._held, end):
                end = len(self._held)
        found = bytes(self._held[:end])
        del self._held[:end]
        return found

    def rest(self) -> bytes:
        """Of a stream that has ended by itself, though not with the end of an event."""
        return bytes(self._held)
