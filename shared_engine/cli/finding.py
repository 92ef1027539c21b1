"""One check's result. Values of the environment that may be secret never get into one."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from enum import Enum


class Outcome(str, Enum):
    OK = "ok"
    WARN = "warn"  # works, or may work, but not well
    FAIL = "FAIL"  # no engine will start


@dataclass(frozen=True)
class Finding:
    """One check's result.

    Attributes:
        check: what was looked at.
        detail: what was found.
        remedy: what to do; empty when all is well.
    """

    check: str
    outcome: Outcome
    detail: str
    remedy: str = ""

    def to_json(self) -> dict[str, str]:
        return {**asdict(self), "outcome": self.outcome.value.lower()}


def ok(check: str, detail: str) -> Finding:
    return Finding(check, Outcome.OK, detail)


def warn(check: str, detail: str, remedy: str) -> Finding:
    return Finding(check, Outcome.WARN, detail, remedy)


def fail(check: str, detail: str, remedy: str) -> Finding:
    return Finding(check, Outcome.FAIL, detail, remedy)
