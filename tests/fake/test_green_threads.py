"""gevent and eventlet, as under gunicorn's and Celery's workers of these kinds: ours works, and so does all asyncio."""

from __future__ import annotations

import json

import pytest

from tests.fake.conftest import MakeEngine
from tests.support.callers import ANSWER
from tests.support.engines import settings_of
from tests.support.processes import end_of, run_app

EXPECTED = {
    "before": "done",
    "chat": ANSWER,
    "after": "done",
    "mark": True,
    "kernel thread": ANSWER,
    "achat": ANSWER,
    "coroutine": ANSWER * 2,
    "stream": ANSWER,
    "part of a stream": "Hello",
    "batch": [ANSWER],
    "LangChain": [ANSWER],
    "LlamaIndex": [ANSWER],
    "timeout": "left",
    "fork": [0, ANSWER],
    "others": True,
    "threads": ["done"] * 5,
    "beside": sorted([ANSWER, "done"]),
}


@pytest.mark.parametrize("kind", ["gevent", pytest.param("eventlet", marks=pytest.mark.long)])
def test_an_app_on_greenlets_asks_and_its_own_asyncio_goes_on(fake_engine: MakeEngine, kind: str) -> None:
    engine = fake_engine({"token_delay_s": 0.02})
    status, out, err = end_of(run_app("green_threads", kind, settings_of(engine)), 60)
    assert status == 0, err
    assert json.loads(out) == EXPECTED, err
