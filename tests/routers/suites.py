"""The adapters' own tests on vLLM, LangChain's standard suites among them, through whatever serves the same models."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterable

from tests.conftest import CHAT_SERVER, EMBEDDING_SERVER
from tests.support.paths import REPOSITORY

LOCAL = (
    "image",  # wants an engine of its own, as do these
    "models_own_prompts",
    "matryoshka",
    "cross_encoder",
    "document_that_does_not_fit_with_the_query",
    "thought_goes_back_to_the_model_in_a_tool_loop",
    "equal_settings_share_one_engine",  # no process of the server is known, as in these
    "vectors_that_langchains_class_has_of_the_same_engine",
    "embedding_models_score_is_the_cosine",
    "evicted_engine",  # a remote server is never stopped
    "summarised_at_a_share_of_the_profiles_context",  # a remote model's profile is not known
    "text_that_fits_by_llama_indexs_count_only",  # a remote model's length is not known before the first answer
    "counted_once_and_as_vllm_counts_it",  # the counters of one server of several
)
"""What only an engine of this machine can show, by a part of the test's name."""


def assert_suites_pass(tests: Iterable[str], chat_url: str, embedding_url: str, left_out: Iterable[str] = ()) -> None:
    """
    Args:
        tests: folders, or files.
        left_out: tests that do not hold there, by a part of their names, beside LOCAL.
    """
    names = " or ".join((*LOCAL, *left_out))
    done = subprocess.run(
        [
            sys.executable, "-m", "pytest", "-n", "0", "-q", "-p", "no:cacheprovider", "--tb=short",
            "-m", "engine", "-k", f"not ({names})", *tests,
        ],
        cwd=REPOSITORY,
        env={**os.environ, CHAT_SERVER: chat_url, EMBEDDING_SERVER: embedding_url},
        capture_output=True,
        text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-8000:]
