"""serve_tcp where the server can't do it: told to those who wish it, and nobody else."""

from __future__ import annotations

import pytest

from shared_engine import Engine, EngineStartError
from tests.fake.conftest import MakeEngine
from tests.support.callers import ANSWER, hello

pytestmark = pytest.mark.timeout(60)


def test_a_server_that_opens_no_port_serves_those_who_wish_none(fake_engine: MakeEngine) -> None:
    """The fake knows no such route."""
    engine = fake_engine()
    wishing = Engine(**{**engine.settings.model_dump(exclude_unset=True), "serve_tcp": 8000})
    for _ in range(2):
        with pytest.raises(EngineStartError, match=r"serve_tcp = '127\.0\.0\.1:8000' can't be opened: HTTP 404"):
            hello(wishing)
    assert hello(engine) == ANSWER
    assert (engine.status().starts, engine.status().urls) == (1, ())
