"""Without a file left, what is asked of an engine is an error of ours, and all is well again when there is one."""

from __future__ import annotations

import pytest

import shared_engine
from shared_engine import VLLMError
from tests.fake.conftest import MakeEngine
from tests.support.callers import ANSWER
from tests.support.engines import settings_of
from tests.support.processes import end_of, run_app


@pytest.mark.parametrize("when", [pytest.param("after use", marks=pytest.mark.smoke), "before"])
def test_no_error_is_untyped_where_no_file_is_left(fake_engine: MakeEngine, when: str) -> None:
    engine = fake_engine()
    engine.warmup()
    status, out, err = end_of(run_app("no_files", settings_of(engine), when), 60)
    assert status == 0, err
    assert err == "" or when == "before", "asyncio complains of an event loop that could not be made"
    *refused, answer = out.splitlines()
    assert answer == ANSWER
    errors = dict(line.split() for line in refused)
    assert {"chat", "stream", "batch", "evict", "shutdown"} <= errors.keys()
    assert all(issubclass(getattr(shared_engine, name), VLLMError) for name in errors.values())
