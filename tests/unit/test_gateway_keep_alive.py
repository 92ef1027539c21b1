"""``keep_alive``: what Ollama's clients write, and what it means."""

from __future__ import annotations

import math
from typing import Any

import pytest

from shared_engine.gateway.keep_alive import keep_alive_of
from shared_engine.gateway.refusals import RefusedError


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, None), ("", None), (0, 0), (10, 10), (0.5, 0.5), (-1, math.inf), (-0.1, math.inf), ("0", 0), ("10", 10),
        ("-1", math.inf), ("5m", 300), ("1h30m", 5400), ("1.5h", 5400), ("300ms", 0.3), ("24h", 86400), ("0s", 0),
        ("-1m", math.inf), ("-1s", math.inf), ("1m0.5s", 60.5), ("100us", 1e-4), ("100µs", 1e-4),
        (" 5m ", 300), (".5s", 0.5), (10**400, math.inf), ("9" * 400, math.inf),
        (9e11, math.inf), ("900000000000", math.inf), ("200000000h", math.inf), ("9" * 400 + "h", math.inf),
        ("876000h", 100 * 365 * 86400),
    ],
)  # fmt: skip
def test_what_is_meant(value: Any, seconds: float | None) -> None:
    assert keep_alive_of(value) == (None if seconds is None else pytest.approx(seconds))


@pytest.mark.parametrize(
    "value", [True, "soon", "5 minutes", "m5", "5d", "s", [], {}, math.nan, "1e3", "\u0665m", "5m" * 99 + "x"]
)
def test_what_is_none_is_refused(value: Any) -> None:
    with pytest.raises(RefusedError) as caught:
        keep_alive_of(value)
    assert (caught.value.status, caught.value.code) == (400, "invalid_keep_alive")
