"""Whether a failed request is tried again, and when. One rule for whole and streamed answers.

Safe means: nothing of an answer has reached the caller, which the caller of ``wait_s`` knows, and the failure can pass.
"""

from __future__ import annotations

import math
import random
import time

from shared_engine.errors import (
    EngineBusyError,
    EngineDiedError,
    EngineStoppedError,
    RequestError,
    RequestTimeoutError,
    ServerConnectionError,
    VLLMError,
)
from shared_engine.request.endpoint import AnotherModelError

# What passes: a server or a proxy before it is too busy, is restarted, or timed out (520 to 529: proxies' own numbers).
PASSING = frozenset((408, 409, 429, 500, 502, 503, 504, *range(520, 525), 529))
OF_ONE_SERVER = (RequestTimeoutError, EngineStoppedError)
"""Not tried again there, but on another one."""
MAX_DEATHS = 1
MAX_FAULTS = 2
FIRST_WAIT_S = 0.1
FIRST_WAIT_WHERE_REFUSED_S = 0.5
MAX_WAIT_S = 8.0
MAX_ASKED_S = 120.0


class Retry:
    """The tries of one request.

    Args:
        max_retries: how often it is tried again.
        patience_s: how long, whatever the number, while it is somebody else who ends the engine; None for ever. Of a
            request that found out only when that was over, one more try is made all the same.
    """

    def __init__(self, max_retries: int, patience_s: float | None) -> None:
        self._max_retries = max_retries
        self._patience_s = math.inf if patience_s is None else patience_s
        self._began = time.monotonic()
        self._retries = 0

    def wait_s(self, error: VLLMError, left_s: float | None = None, *, can_move: bool = False) -> float | None:
        """Seconds until the next try after ``error``; None where there is none, and the error is the caller's.

        Doubled each time, and never the same for two requests: many that were refused together must not come back
        together. A server that says when to come (Retry-After) is not asked before; where that is more than
        MAX_ASKED_S, or than the ``left_s`` seconds that the caller still has, it is not asked at all. With ``can_move``
        another server is next, which needs no wait, and is not counted; silence is a reason then, too, and an engine
        that somebody has stopped. Counted is the death of an engine, which may be this request's doing.
        """
        is_own_death = isinstance(error, EngineDiedError) and not error.is_from_outside
        if can_move and self._max_retries and is_retryable_elsewhere(error):
            if is_own_death and self._retries >= self._limit(error):
                return None
            self._retries += is_own_death
            return 0.0 if left_s is None or left_s > 0 else None
        if isinstance(error, EngineDiedError) and error.is_from_outside and self._max_retries:
            wait_s = FIRST_WAIT_S * random.uniform(0.5, 1)
            limit_s = math.inf if left_s is None else left_s
            if wait_s < min(limit_s, self._began + self._patience_s - time.monotonic()):
                return wait_s
        if self._retries >= self._limit(error):
            return None
        refused = isinstance(error, RequestError) and error.status is not None
        first_s = FIRST_WAIT_WHERE_REFUSED_S if refused else FIRST_WAIT_S
        backoff = min(first_s * 2.0 ** min(self._retries, 10), MAX_WAIT_S)
        asked = (error.retry_after_s or 0.0) if isinstance(error, RequestError) else 0.0
        wait_s = asked + backoff * random.uniform(0.5, 1)
        if asked > MAX_ASKED_S or (left_s is not None and wait_s >= left_s):
            return None
        self._retries += 1
        return wait_s

    def _limit(self, error: VLLMError) -> int:
        if not is_retryable(error):
            return 0
        if isinstance(error, EngineDiedError):  # a request that kills the engine must not do so again and again
            return min(MAX_DEATHS, self._max_retries)
        if isinstance(error, RequestError) and error.status == 500:  # a fault of the server's, which may be for good
            return min(MAX_FAULTS, self._max_retries)
        return self._max_retries


def is_retryable_elsewhere(error: VLLMError) -> bool:
    """True when another server may answer."""
    return is_retryable(error) or isinstance(error, OF_ONE_SERVER)


def is_retryable(error: VLLMError) -> bool:
    """True when trying again can help; where the server says so itself (x-should-retry), that holds."""
    if isinstance(error, RequestError) and error.should_retry is not None:
        return error.should_retry
    if isinstance(error, (ServerConnectionError, EngineDiedError, EngineBusyError, AnotherModelError)):
        return True
    return isinstance(error, RequestError) and error.status in PASSING
