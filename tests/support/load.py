"""Requests without a pause, from threads of this process."""

from __future__ import annotations

import threading
from collections.abc import Callable

from tests.support.waiting import wait_until


class Load:
    """A call again and again, by so many threads at once, until it ends.

    Attributes:
        answers: how many calls have returned.
        errors: what the others have raised.
    """

    def __init__(self, call: Callable[[], object], at_once: int) -> None:
        self._call = call
        self._is_over = threading.Event()
        self.answers = 0
        self.errors: list[BaseException] = []
        self._threads = [threading.Thread(target=self._ask) for _ in range(at_once)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        for thread in self._threads:
            thread.join()

    def _ask(self) -> None:
        while not self._is_over.is_set():
            try:
                self._call()
                self.answers += 1
            except BaseException as exc:
                self.errors.append(exc)

    def goes_on(self) -> None:
        """Return when ten more answers have come."""
        before = self.answers
        wait_until(lambda: self.answers > before + 10, 30, "more answers")
