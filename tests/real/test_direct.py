"""vLLM under the app itself (mode="direct"), in apps whose own Python has it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from shared_engine import Engine
from tests.support.direct import run_direct_app
from tests.support.processes import end_of
from tests.support.questions import answers_of

pytestmark = pytest.mark.timeout(180)


def test_answers_and_errors_are_those_of_a_local_engine_and_the_app_ends_well(tiny_chat: dict[str, Any]) -> None:
    app = run_direct_app("direct_answers", json.dumps(tiny_chat))
    local = json.loads(json.dumps(answers_of(Engine(**tiny_chat))))
    code, out, err = end_of(app, 120)
    assert (code, "Traceback" in err, "leaked" in err) == (0, False, False), err
    begun, answers = out.splitlines()  # vLLM writes nothing on the app's stdout, and nothing runs the script again
    assert begun == "begun"
    assert json.loads(answers) == local
