"""The engine's errors as members of LangChain's taxonomy too. Translated at one edge: ``langchain_errors``.

Each class here has the name of the one it stands for, so code that catches shared_engine's class, or
langchain_core's, keeps working:

    shared_engine.errors                        langchain_core.exceptions
    SettingsError                               ModelError
    InvalidInputError                           ModelInvalidRequestError
    LengthFinishReasonError                     OutputParserException
    EngineStartError, EngineNotInstalledError   ModelConnectionError
    EngineStartTimeoutError                     ModelTimeoutError
    EngineDiedError                             ModelAPIError
    EngineStoppedError                          ModelError
    EngineBusyError                             ModelRateLimitError
    RequestError                                ModelError
    RequestTimeoutError                         ModelTimeoutError
    ServerConnectionError                       ModelConnectionError
    ServerUnreachableError                      ModelConnectionError
    ServerError                                 ModelAPIError
    RequestRejectedError                        ModelInvalidRequestError
    ContextLengthError                          ContextOverflowError
    AuthenticationError                         ModelAuthenticationError
    PermissionDeniedError                       ModelPermissionDeniedError
    ModelNotFoundError                          ModelNotFoundError
    RateLimitError                              ModelRateLimitError

SettingsError and InvalidInputError are ValueErrors too: langgraph's RetryPolicy tries most other errors again. Nothing
in LangChain takes a ValueError round a model call for a bad answer; it has OutputParserException for that. A
SettingsError of a constructor stays as it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from langchain_core import exceptions as core

from shared_engine import errors as engine
from shared_engine.errors import VLLMError
from shared_engine.results import ItemFailure


class SettingsError(engine.SettingsError, core.ModelError, ValueError):
    """A setting is wrong, which only a call could find."""


class InvalidInputError(engine.InvalidInputError, core.ModelInvalidRequestError, ValueError):
    """A prompt, message or parameter can't be sent."""


class LengthFinishReasonError(engine.LengthFinishReasonError, core.OutputParserException):
    """A structured answer was cut off; ``text`` and ``llm_output`` hold the part that arrived."""

    def __init__(self, message: str, text: str = "") -> None:
        ValueError.__init__(self, message, text)  # core's own would make another message, and other args
        self.observation = None
        self.llm_output = text
        self.send_to_llm = False


class EngineStartError(engine.EngineStartError, core.ModelConnectionError):
    """The engine did not come up."""

    is_retryable = False  # what keeps an engine from starting is still there a moment later


class EngineNotInstalledError(engine.EngineNotInstalledError, core.ModelConnectionError):
    """No Python with vLLM was found, or the one named has none."""

    is_retryable = False


class EngineStartTimeoutError(engine.EngineStartTimeoutError, core.ModelTimeoutError):
    """The engine was not ready within ``start_timeout_s``."""


class EngineDiedError(engine.EngineDiedError, core.ModelAPIError):
    """The engine ended while a request was running."""


class EngineStoppedError(engine.EngineStoppedError, core.ModelError):
    """The engine was stopped while a request waited or ran."""


class EngineBusyError(engine.EngineBusyError, core.ModelRateLimitError):
    """vLLM's queue is full."""


class RequestError(engine.RequestError, core.ModelError):
    """A request failed."""


class RequestTimeoutError(engine.RequestTimeoutError, core.ModelTimeoutError):
    """The server sent nothing for ``timeout`` seconds."""


class ServerConnectionError(engine.ServerConnectionError, core.ModelConnectionError):
    """The server closed the connection before it had answered."""


class ServerUnreachableError(engine.ServerUnreachableError, core.ModelConnectionError):
    """No connection was made, so nothing was sent."""


class ServerError(engine.ServerError, core.ModelAPIError):
    """The server failed (5xx)."""


class RequestRejectedError(engine.RequestRejectedError, core.ModelInvalidRequestError):
    """The server refused the request (4xx)."""


class ContextLengthError(engine.ContextLengthError, core.ContextOverflowError):
    """The prompt does not fit the model."""


class AuthenticationError(engine.AuthenticationError, core.ModelAuthenticationError):
    """The server refuses the ``api_key`` (401)."""


class PermissionDeniedError(engine.PermissionDeniedError, core.ModelPermissionDeniedError):
    """The key does not allow this (403)."""


class ModelNotFoundError(engine.ModelNotFoundError, core.ModelNotFoundError):
    """The server has no such model or route (404)."""


class RateLimitError(engine.RateLimitError, core.ModelRateLimitError):
    """Too many requests (429)."""


TRANSLATED: dict[type[VLLMError], type[VLLMError]] = {
    ours.__bases__[0]: ours
    for ours in (
        SettingsError,
        InvalidInputError,
        LengthFinishReasonError,
        EngineStartError,
        EngineNotInstalledError,
        EngineStartTimeoutError,
        EngineDiedError,
        EngineStoppedError,
        EngineBusyError,
        RequestError,
        RequestTimeoutError,
        ServerConnectionError,
        ServerUnreachableError,
        ServerError,
        RequestRejectedError,
        ContextLengthError,
        AuthenticationError,
        PermissionDeniedError,
        ModelNotFoundError,
        RateLimitError,
    )
}


@contextmanager
def langchain_errors() -> Iterator[None]:
    """Errors of the engine that are raised inside leave as members of LangChain's taxonomy."""
    try:
        yield
    except VLLMError as exc:
        translated = as_langchains(exc)
        if translated is exc:
            raise
        raise translated from exc


def as_langchains(error: VLLMError) -> VLLMError:
    """An error of the engine as a member of LangChain's taxonomy; itself where it has no such class.

    It has what the original has beside its args; where a server said whether to try again, that holds.
    """
    translated = next((TRANSLATED[kind] for kind in type(error).__mro__ if kind in TRANSLATED), None)
    if translated is None or isinstance(error, translated):
        return error
    made = translated(*error.args)
    vars(made).update(vars(error))
    if isinstance(error, engine.RequestError) and error.should_retry is not None:
        vars(made)["is_retryable"] = error.should_retry
    return made


def as_langchains_failures(failures: Iterable[ItemFailure]) -> tuple[ItemFailure, ...]:
    """The failures of single items, with errors ``as_langchains``."""
    return tuple(ItemFailure(failure.index, as_langchains(failure.error)) for failure in failures)
