"""``verbose=True`` on real vLLM."""

from __future__ import annotations

import json
import logging
import re
import threading

import pytest

from shared_engine.logs import JsonFormatter
from tests.real.conftest import MakeEngine

HELLO = [{"role": "user", "content": "Hello"}]


@pytest.mark.long
def test_a_start_is_in_the_apps_log_with_its_levels(breakable: MakeEngine, caplog: pytest.LogCaptureFixture) -> None:
    engines = [breakable(verbose=True) for _ in range(3)]
    engines[0].evict()  # another test may have left it loaded
    for engine in engines:
        engine.chat(HELLO, max_tokens=2)
    for engine in engines:
        engine.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "vllm-local-log"]
    lines = [record for record in caplog.records if record.name == "shared_engine.vllm"]
    messages = [record.getMessage() for record in lines]
    assert sum("Starting vLLM server" in text for text in messages) == 1
    assert {vars(record).get("engine_process", "").split(" ")[0] for record in lines} >= {"APIServer", "EngineCore"}
    assert {record.levelno for record in lines} >= {logging.INFO}
    assert not [text for text in messages if re.match(r"(\(.*?\) )?(DEBUG|INFO|WARNING|ERROR) ", text)]
    assert all(json.loads(JsonFormatter().format(record))["engine"] == "tiny_chat" for record in lines)
    (ready,) = [record for record in caplog.records if "starting -> ready" in record.getMessage()]
    assert ready.name == "shared_engine.supervisor"
