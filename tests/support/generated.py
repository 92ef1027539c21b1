"""What hypothesis makes for several tests."""

from __future__ import annotations

import json
import math
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

# The same ones in each run, and few: a run of all tests has to stay short.
settings.register_profile(
    "few", max_examples=60, derandomize=True, database=None, deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip
few = settings.get_profile("few")

NESTED = [b"[" * 100_000, b'{"a":' * 50_000]
"""Deeper than a decoder goes."""

texts = st.text(max_size=20)
numbers = st.one_of(st.integers(), st.floats(), st.sampled_from([0, -1, 2**63, 10**400, math.inf, -math.inf, math.nan]))
json_values: st.SearchStrategy[Any] = st.recursive(
    st.one_of(st.none(), st.booleans(), numbers, texts),
    lambda values: st.one_of(st.lists(values, max_size=4), st.dictionaries(texts, values, max_size=4)),
    max_leaves=12,
)


def objects(*names: str) -> st.SearchStrategy[dict[str, Any]]:
    """Some of these fields, with any values, and others."""
    return st.one_of(
        st.fixed_dictionaries({}, optional=dict.fromkeys(names, json_values)),
        st.fixed_dictionaries(dict.fromkeys(names, json_values)),
        st.dictionaries(texts, json_values, max_size=4),
    )


def garbage(*names: str) -> st.SearchStrategy[bytes]:
    """Bytes, JSON, and objects that almost are what has these fields."""
    return st.one_of(
        st.binary(max_size=80),
        json_values.map(lambda value: json.dumps(value).encode()),
        objects(*names).map(lambda value: json.dumps(value).encode()),
        st.sampled_from([b"\xef\xbb\xbf{}", b"\x00" * 100, b'{"state": "ready"']),
    )
