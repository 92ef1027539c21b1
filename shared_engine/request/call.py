"""One call on its way: how long it may still take, how often it is tried again, and the headers of its own."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from shared_engine.request.deadline import Deadline
from shared_engine.request.http_options import HeaderPairs, header_pairs

if TYPE_CHECKING:
    from typing import Self

    from shared_engine.params import CallParams


@dataclass(frozen=True)
class Call:
    """What CallParams mean from the moment of the call on; shared by all of its requests.

    Attributes:
        max_retries: of each request; None: as the setting says.
        session: what its requests belong to.
    """

    deadline: Deadline
    max_retries: int | None = None
    session: str | None = None
    headers: HeaderPairs = field(default=(), repr=False)

    @classmethod
    def begin(cls, params: CallParams) -> Self:
        """The call begins now."""
        return cls(Deadline(params.timeout), params.max_retries, params.session, header_pairs(params.extra_headers))
