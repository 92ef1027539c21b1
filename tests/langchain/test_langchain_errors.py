"""Errors belong to shared_engine's tree and to LangChain's, and survive pickling."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
from langchain_core import exceptions as core

from langchain_vllm_local._errors import TRANSLATED, as_langchains, langchain_errors
from shared_engine import errors as engine
from shared_engine.request.endpoint import AnotherModelError
from shared_engine.runtime.control import OtherReleaseError

ARGUMENTS: dict[type[engine.VLLMError], tuple[Any, ...]] = {
    engine.SettingsError: ("the runtime directory is open to other users",),
    engine.InvalidInputError: ("messages[0] is wrong",),
    engine.LengthFinishReasonError: ("cut off", '{"name": "An'),
    engine.EngineStartError: ("did not start", ("last line",)),
    engine.EngineNotInstalledError: ("no vLLM", ()),
    engine.EngineStartTimeoutError: ("took too long", ("last line",)),
    engine.EngineDiedError: ("died", ("last line",)),
    engine.EngineStoppedError: ("stopped", ()),
    engine.EngineBusyError: ("queue is full", ()),
    engine.RequestError: ("failed", None),
    engine.RequestTimeoutError: ("silence", None),
    engine.ServerConnectionError: ("cut", None),
    engine.ServerUnreachableError: ("refused", None),
    engine.ServerError: ("broken", 500),
    engine.RequestRejectedError: ("no", 400),
    engine.ContextLengthError: ("too long", 400, 2048, 3000),
    engine.AuthenticationError: ("key", 401),
    engine.PermissionDeniedError: ("forbidden", 403),
    engine.ModelNotFoundError: ("no such model", 404),
    engine.RateLimitError: ("busy", 429),
}


def test_every_error_of_a_request_is_translated() -> None:
    of_the_command_line = {engine.InstallError, engine.EngineNameError, engine.FetchError}
    untranslated = {engine.VLLMError, engine.EngineError, *of_the_command_line}
    every = {value for value in vars(engine).values() if isinstance(value, type) and issubclass(value, Exception)}
    assert set(TRANSLATED) == every - untranslated == set(ARGUMENTS)


@pytest.mark.parametrize("kind", list(ARGUMENTS), ids=lambda kind: kind.__name__)
def test_translated_error_is_both_and_says_the_same(kind: type[engine.VLLMError]) -> None:
    original = kind(*ARGUMENTS[kind])
    with pytest.raises(kind) as caught, langchain_errors():
        raise original
    error = caught.value
    assert isinstance(error, (core.ModelError, core.OutputParserException))
    assert type(error).__name__ == kind.__name__
    assert (str(error), error.args) == (str(original), original.args)
    assert error.__cause__ is original
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), again.args, str(again)) == (type(error), error.args, str(error))


@pytest.mark.parametrize(
    ("kind", "theirs"),
    [
        (engine.ContextLengthError, core.ContextOverflowError),
        (engine.RequestTimeoutError, core.ModelTimeoutError),
        (engine.ServerUnreachableError, core.ModelConnectionError),
        (engine.RateLimitError, core.ModelRateLimitError),
        (engine.InvalidInputError, core.ModelInvalidRequestError),
        (engine.EngineDiedError, core.ModelAPIError),
    ],
)
def test_langchains_class_catches_it(kind: type[engine.VLLMError], theirs: type[Exception]) -> None:
    with pytest.raises(theirs), langchain_errors():
        raise kind(*ARGUMENTS[kind])


def test_fields_are_kept() -> None:
    with pytest.raises(engine.ContextLengthError) as caught, langchain_errors():
        raise engine.ContextLengthError("too long", 400, 2048, 3000)
    assert (caught.value.max_model_len, caught.value.prompt_tokens) == (2048, 3000)


@pytest.mark.parametrize("should_retry", [True, False])
def test_what_a_server_says_about_trying_again_is_kept(should_retry: bool) -> None:
    original = engine.ServerError("busy", 503)
    original.retry_after_s, original.should_retry = 7.0, should_retry
    with pytest.raises(engine.ServerError) as caught, langchain_errors():
        raise original
    for error in (caught.value, pickle.loads(pickle.dumps(caught.value))):
        assert (error.retry_after_s, error.should_retry, error.is_retryable) == (7.0, should_retry, should_retry)


def test_only_what_may_pass_is_called_retryable() -> None:
    retryable = {kind for kind, ours in TRANSLATED.items() if getattr(ours, "is_retryable", False)}
    assert retryable == {
        engine.EngineStartTimeoutError,
        engine.EngineDiedError,
        engine.EngineBusyError,
        engine.RequestTimeoutError,
        engine.ServerConnectionError,
        engine.ServerUnreachableError,
        engine.ServerError,
        engine.RateLimitError,
    }


def test_a_kind_of_an_error_is_translated_as_that() -> None:
    original = AnotherModelError("no such model", 404)
    with pytest.raises(core.ModelNotFoundError) as caught, langchain_errors():
        raise original
    assert isinstance(caught.value, engine.ModelNotFoundError)
    assert (caught.value.args, caught.value.__cause__) == (original.args, original)


@pytest.mark.parametrize("kind", list(ARGUMENTS), ids=lambda kind: kind.__name__)
def test_an_error_is_translated_once(kind: type[engine.VLLMError]) -> None:
    once = as_langchains(kind(*ARGUMENTS[kind]))
    assert as_langchains(once) is once


def test_other_errors_pass_as_they_are() -> None:
    for error in (engine.InstallError("x"), OtherReleaseError("x"), KeyError("x")):
        with pytest.raises(type(error)) as caught, langchain_errors():
            raise error
        assert caught.value is error
