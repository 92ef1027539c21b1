"""One call on its way: how long it may still take, how often it is tried again, and the headers of its own."""

from __future__ import annotations

from dataclasses import dataclass, field
from hashlib import blake2b
from typing import TYPE_CHECKING

from pydantic import SecretStr

from shared_engine.request.deadline import Deadline
from shared_engine.request.http_options import HeaderPairs, header_pairs

if TYPE_CHECKING:
    from typing import Self

    from shared_engine.params import CallParams

SESSION_HEADER = "X-Session-ID"


@dataclass(frozen=True)
class Call:
    """What CallParams mean from the moment of the call on; shared by all of its requests.

    Attributes:
        max_retries: of each request; None: as the setting says.
        session: what its requests belong to.
        headers: also ``X-Session-ID``, by which routers keep a session at one server, as a fleet does itself.
    """

    deadline: Deadline
    max_retries: int | None = None
    session: str | None = None
    headers: HeaderPairs = field(default=(), repr=False)

    @classmethod
    def begin(cls, params: CallParams) -> Self:
        """The call begins now."""
        headers = header_pairs(_session_header(params.session), params.extra_headers)
        return cls(Deadline(params.timeout), params.max_retries, params.session, headers)


def _session_header(session: str | None) -> dict[str, SecretStr]:
    """What has no form in a header goes as its hash, which tells sessions apart as well."""
    if session is None:
        return {}
    is_as_it_is = session.isascii() and session.isprintable() and session == session.strip()
    value = session if is_as_it_is else blake2b(session.encode(errors="surrogatepass"), digest_size=16).hexdigest()
    return {SESSION_HEADER: SecretStr(value)}
