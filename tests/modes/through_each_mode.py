"""The adapters' own tests on vLLM, LangChain's standard suites among them, in direct mode. `make test-modes`.

Named so that pytest finds it only when it is asked: it takes minutes. In the default mode `make test` runs them.
"""

from __future__ import annotations

import pytest

from tests.support.suites import assert_suites_pass_in_direct_mode

pytestmark = pytest.mark.timeout(1800)
each_suite = pytest.mark.parametrize("suite", ["tests/langchain", "tests/llama_index"])


@each_suite
def test_direct(suite: str) -> None:
    assert_suites_pass_in_direct_mode([suite])
