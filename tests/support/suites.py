"""The adapters' own tests on vLLM, LangChain's standard suites among them, run again on what else serves the models."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterable, Sequence

from tests.conftest import CHAT_SERVER, EMBEDDING_SERVER, MODE
from tests.support.direct import in_vllms_python, variables_beside
from tests.support.paths import REPOSITORY
from tests.support.processes import APPS

NOT_REMOTE = {
    "image": "wants an engine of its own",
    "models_own_prompts": "the same",
    "matryoshka": "the same",
    "cross_encoder": "the same",
    "document_that_does_not_fit_with_the_query": "the same",
    "thought_goes_back_to_the_model_in_a_tool_loop": "the same",
    "equal_settings_share_one_engine": "no process of the server is known",
    "vectors_that_langchains_class_has_of_the_same_engine": "the same",
    "embedding_models_score_is_the_cosine": "the same",
    "evicted_engine": "a remote server is never stopped",
    "summarised_at_a_share_of_the_profiles_context": "a remote model's profile is not known",
    "text_that_fits_by_llama_indexs_count_only": "a remote model's length is not known before the first answer",
}
"""What only an engine of this machine can show, by a part of the test's name, and why."""

VLLM_AS_IT_IS = {
    "answer_of_every_type": "it lets a small model write blanks up to max_tokens, where an engine of ours allows one",
    "type_by_itself_gives_its_value": "the same",
}
"""The same, of a vLLM that was started without vllm-local: docs/structured.md."""

BEHIND_ONE_URL = {"counted_once_and_as_vllm_counts_it": "the counters are those of one server of several"}
"""The same, of what stands before several servers."""

NOT_DIRECT = {
    "another_process": "another process has another engine",
    "a_pipelines_processes_share_the_engines": "the same",
    "evicted_engine": "it is stopped then: no launcher stands by",
    "equal_settings_share_one_engine": "no process of a server is known, since there is none",
    "vectors_that_langchains_class_has_of_the_same_engine": "the same",
    "(test_llama_index_rerank and embedding_models_score_is_the_cosine)": "the same",
}
"""What an engine under the process of the tests can't show."""


def assert_suites_pass(tests: Iterable[str], chat_url: str, embedding_url: str, left_out: Iterable[str] = ()) -> None:
    """On servers that run already.

    Args:
        tests: folders, or files.
        left_out: tests that do not hold there, by a part of their names, beside NOT_REMOTE.
    """
    variables = {CHAT_SERVER: chat_url, EMBEDDING_SERVER: embedding_url}
    _assert_pass([sys.executable, "-m", "pytest"], tests, (*NOT_REMOTE, *left_out), variables)


def assert_suites_pass_in_direct_mode(tests: Iterable[str]) -> None:
    """With vLLM under the process of the tests, which the engine's Python runs."""
    # Warnings are no errors: vLLM and all it needs are imported there, and give many.
    command = in_vllms_python(APPS / "pytest_beside.py", "-W", "default")
    _assert_pass(command, tests, NOT_DIRECT, {MODE: "direct", **variables_beside()})


def _assert_pass(
    command: Sequence[str], tests: Iterable[str], left_out: Iterable[str], variables: dict[str, str]
) -> None:
    done = subprocess.run(
        [
            *command, "-n", "0", "-q", "-p", "no:cacheprovider", "--tb=short",
            "-m", "engine", "-k", f"not ({' or '.join(left_out)})", *tests,
        ],
        cwd=REPOSITORY,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
