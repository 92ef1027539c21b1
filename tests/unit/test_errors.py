"""Every error pickles with its fields, and is what it promises to be."""

from __future__ import annotations

import pickle

import pytest

from shared_engine import errors

MADE = [
    errors.SettingsError("no"),
    errors.InvalidInputError("no"),
    errors.InstallError("no"),
    errors.EngineNameError("no"),
    errors.FetchError("no"),
    errors.EngineStartError("no", ("line 1", "line 2")),
    errors.EngineNotInstalledError("no"),
    errors.EngineStartTimeoutError("no"),
    errors.EngineDiedError("no", ("line",)),
    errors.EngineStoppedError("no"),
    errors.LengthFinishReasonError("cut off", '{"name": "An'),
    errors.EngineBusyError("no"),
    errors.RequestTimeoutError("no"),
    errors.ServerConnectionError("no"),
    errors.ServerUnreachableError("no"),
    errors.ServerError("no", 500),
    errors.RequestRejectedError("no", 400),
    errors.ContextLengthError("no", 400, 2048, 3000),
    errors.AuthenticationError("no", 401),
    errors.PermissionDeniedError("no", 403),
    errors.ModelNotFoundError("no", 404),
    errors.RateLimitError("no", 429),
]


@pytest.mark.parametrize("error", MADE, ids=lambda error: type(error).__name__)
def test_it_survives_pickling(error: errors.VLLMError) -> None:
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert again.args == error.args
    assert str(again) == str(error)


def test_all_are_here_and_of_one_tree() -> None:
    every = {value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, Exception)}
    bases = {errors.VLLMError, errors.EngineError, errors.RequestError}
    assert {type(error) for error in MADE} | bases == every
    assert all(issubclass(kind, errors.VLLMError) for kind in every)


def test_pythons_own_kinds_catch_them_too() -> None:
    assert issubclass(errors.LengthFinishReasonError, ValueError)
    assert issubclass(errors.RequestTimeoutError, TimeoutError)
    assert issubclass(errors.ServerConnectionError, ConnectionError)


def test_the_engines_last_lines_are_shown() -> None:
    text = str(errors.EngineStartError("it did not start", ("first", "last")))
    assert text.splitlines() == ["it did not start", "The engine's last log lines:", "  | first", "  | last"]


def test_a_context_length_error_tells_both_numbers() -> None:
    error = errors.ContextLengthError("too long", 400, max_model_len=2048, prompt_tokens=3000)
    assert (error.max_model_len, error.prompt_tokens, error.status) == (2048, 3000, 400)
