"""Whether a failed request is tried again, and when. One rule for whole and streamed answers.

Safe means: nothing of an answer has reached the caller, which the caller of ``wait_s`` knows, and the failure can pass.
"""

from __future__ import annotations

import random

from shared_engine.errors import EngineBusyError, EngineDiedError, RequestError, ServerConnectionError, VLLMError
from shared_engine.request.endpoint import AnotherModelError

MAX_DEATHS = 1
FIRST_WAIT_S = 0.1
MAX_WAIT_S = 8.0


class Retry:
    """The tries of one request.

    Args:
        max_retries: how often it is tried again.
    """

    def __init__(self, max_retries: int) -> None:
        self._max_retries = max_retries
        self._retries = 0

    def wait_s(self, error: VLLMError) -> float | None:
        """Seconds until the next try after ``error``; None where there is none, and the error is the caller's.

        Doubled each time, and never the same for two requests: many that were refused together must not come back
        together. A server that says when to come (Retry-After) is not asked before; but nobody waits longer than
        MAX_WAIT_S.
        """
        # A request that kills the engine must not do so again and again.
        limit = min(MAX_DEATHS, self._max_retries) if isinstance(error, EngineDiedError) else self._max_retries
        if not is_retryable(error) or self._retries >= limit:
            return None
        backoff = min(FIRST_WAIT_S * 2.0 ** min(self._retries, 10), MAX_WAIT_S)
        self._retries += 1
        asked = (error.retry_after_s or 0.0) if isinstance(error, RequestError) else 0.0
        return min(asked + backoff * random.uniform(0.5, 1), MAX_WAIT_S)


def is_retryable(error: VLLMError) -> bool:
    """True when trying again can help."""
    if isinstance(error, (ServerConnectionError, EngineDiedError, EngineBusyError, AnotherModelError)):
        return True
    return isinstance(error, RequestError) and error.status in (429, 503)
