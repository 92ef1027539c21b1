"""Every error this project raises.

    VLLMError
    ├── SettingsError                         a setting or parameter is wrong; found before anything starts
    ├── InvalidInputError                     a prompt, message or parameter can't be sent; names its position
    ├── LengthFinishReasonError (ValueError)  max_tokens or the model's limit cut a structured answer off; carries it
    ├── InstallError                          `vllm-local install` failed; shows the command to run
    ├── FetchError                            `vllm-local pull` failed: no such model, no way to the hub, no room
    ├── EngineNameError                       the command line was given a name that no engine has, or several have
    ├── EngineError
    │   ├── EngineStartError                  the engine did not come up; carries its last log lines
    │   │   ├── EngineNotInstalledError       no Python with vLLM was found
    │   │   └── EngineStartTimeoutError       not ready within start_timeout_s
    │   ├── EngineDiedError                   the engine ended while a request was running
    │   ├── EngineStoppedError                somebody stopped it meanwhile (shutdown(force=True)); not retried
    │   └── EngineBusyError                   its queue is full; or requests in flight forbid what was asked (evict)
    └── RequestError                          a request failed; carries the HTTP status, if there was one
        ├── RequestTimeoutError (TimeoutError)   silence for ``timeout`` seconds, or a call is over time
        ├── ServerConnectionError (ConnectionError)  the connection was cut before the answer was whole
        │   └── ServerUnreachableError        no connection was made
        ├── ServerError                       5xx
        └── RequestRejectedError              4xx, with the server's message
            ├── ContextLengthError            prompt and answer exceed the model's limit; carries the numbers
            ├── AuthenticationError           401
            ├── PermissionDeniedError         403
            ├── ModelNotFoundError            404
            └── RateLimitError                429

Only what is wrong with a model's answer is a ValueError: LlamaIndex takes any ValueError round a model call for that,
and goes on without the answer ("Empty Response", a chunk that is left out). A wrong set-up has to reach the user.

Fields go through ``args``, so every error survives pickling. Foreign errors are translated once; the steps by which an
error of a request is explained are listed in request/refusals.py.
"""

from __future__ import annotations

__all__ = [
    "AuthenticationError",
    "ContextLengthError",
    "EngineBusyError",
    "EngineDiedError",
    "EngineError",
    "EngineNotInstalledError",
    "EngineStartError",
    "EngineStartTimeoutError",
    "EngineStoppedError",
    "InvalidInputError",
    "LengthFinishReasonError",
    "ModelNotFoundError",
    "PermissionDeniedError",
    "RateLimitError",
    "RequestError",
    "RequestRejectedError",
    "RequestTimeoutError",
    "ServerConnectionError",
    "ServerError",
    "ServerUnreachableError",
    "SettingsError",
    "VLLMError",
]


class VLLMError(Exception):
    """Base of all errors raised by vllm-local."""


class SettingsError(VLLMError):
    """A setting is missing, unknown or out of range. The message names field, value and what is allowed."""


class InvalidInputError(VLLMError):
    """A prompt, message or parameter can't be sent. The message names its position and what is allowed."""


class LengthFinishReasonError(VLLMError, ValueError):
    """An answer that was to be parsed was cut off (finish_reason ``length``), so it is not whole.

    Attributes:
        message: what to do.
        text: the answer up to there.
    """

    def __init__(self, message: str, text: str = "") -> None:
        super().__init__(message, text)

    @property
    def message(self) -> str:
        return str(self.args[0])

    @property
    def text(self) -> str:
        return str(self.args[1])

    def __str__(self) -> str:
        return self.message


class EngineError(VLLMError):
    """Something about a local engine process.

    Attributes:
        message: what failed, and what to do.
        log_tail: the engine's last log lines, oldest first; empty where it never wrote any.
    """

    def __init__(self, message: str, log_tail: tuple[str, ...] = ()) -> None:
        super().__init__(message, tuple(log_tail))

    @property
    def message(self) -> str:
        return str(self.args[0])

    @property
    def log_tail(self) -> tuple[str, ...]:
        return tuple(self.args[1])

    def __str__(self) -> str:
        if not self.log_tail:
            return self.message
        return "\n".join([self.message, "The engine's last log lines:", *(f"  | {line}" for line in self.log_tail)])


class EngineStartError(EngineError):
    """The engine did not come up.

    Attributes:
        is_of_device: for lack of memory, or of a GPU: on another device it may come up.
    """

    def __init__(self, message: str, log_tail: tuple[str, ...] = (), is_of_device: bool = False) -> None:
        super().__init__(message, log_tail)
        self.args = (message, tuple(log_tail), is_of_device)

    @property
    def is_of_device(self) -> bool:
        return bool(self.args[2])


class EngineNotInstalledError(EngineStartError):
    """No Python with vLLM was found, or the one named has none."""


class EngineStartTimeoutError(EngineStartError):
    """The engine was not ready within ``start_timeout_s``."""


class EngineDiedError(EngineError):
    """The engine ended while a request was running. The next request starts a new one.

    Attributes:
        is_from_outside: somebody else has ended it, or a process of it: it is not this request's doing.
    """

    def __init__(self, message: str, log_tail: tuple[str, ...] = (), is_from_outside: bool = False) -> None:
        super().__init__(message, log_tail)
        self.args = (message, tuple(log_tail), is_from_outside)

    @property
    def is_from_outside(self) -> bool:
        return bool(self.args[2])


class EngineStoppedError(EngineError):
    """Somebody stopped the engine while a request waited or ran. Not tried again: it was meant."""


class EngineBusyError(EngineError):
    """There is no room for this now: vLLM's queue is full, or requests in flight forbid to evict. Try again later."""


class RequestError(VLLMError):
    """A request failed.

    Attributes:
        message: the server's own words where it gave any.
        status: the HTTP status, None when no response came.
        retry_after_s: seconds until which the server asked not to be asked again (Retry-After), None where it did not.
        should_retry: whether trying again can help, where that is known (the server's x-should-retry); else None.
    """

    retry_after_s: float | None = None
    should_retry: bool | None = None

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message, status)

    @property
    def message(self) -> str:
        return str(self.args[0])

    @property
    def status(self) -> int | None:
        return None if self.args[1] is None else int(self.args[1])

    def __str__(self) -> str:
        return self.message if self.status is None else f"HTTP {self.status}: {self.message}"


class RequestTimeoutError(RequestError, TimeoutError):
    """The server sent nothing for the setting ``timeout``, or all of a call took longer than its own ``timeout``."""


class ServerConnectionError(RequestError, ConnectionError):
    """The server closed the connection before it had answered."""


class ServerUnreachableError(ServerConnectionError):
    """No connection was made, so nothing was sent."""


class ServerError(RequestError):
    """The server failed (5xx)."""


class RequestRejectedError(RequestError):
    """The server refused the request (4xx)."""


class ContextLengthError(RequestRejectedError):
    """The prompt, or prompt and answer together, do not fit the model.

    Attributes:
        status: None where it was found here, and nothing was sent (``check_context``).
        max_model_len: the model's limit, in tokens.
        prompt_tokens: the prompt's length (at least), in tokens; None where the server did not say.
        completion_tokens: how many tokens of an answer were asked for (max_tokens); without max_tokens 1, as there is
            no answer without; None where none is generated, or it is not known.
    """

    def __init__(
        self,
        message: str,
        status: int | None = 400,
        max_model_len: int | None = None,
        prompt_tokens: int | None = None,
        completion_tokens: int | None = None,
    ) -> None:
        super().__init__(message, status)
        self.args = (message, status, max_model_len, prompt_tokens, completion_tokens)

    @property
    def max_model_len(self) -> int | None:
        return self.args[2]  # type: ignore[no-any-return]

    @property
    def prompt_tokens(self) -> int | None:
        return self.args[3]  # type: ignore[no-any-return]

    @property
    def completion_tokens(self) -> int | None:
        return self.args[4]  # type: ignore[no-any-return]

    @property
    def excess(self) -> int | None:
        """How many tokens are too many (at least), of prompt and answer together; None where that is not known."""
        if self.max_model_len is None or self.prompt_tokens is None:
            return None
        return max(0, self.prompt_tokens + (self.completion_tokens or 0) - self.max_model_len)


class AuthenticationError(RequestRejectedError):
    """The server wants another ``api_key`` (401)."""


class PermissionDeniedError(RequestRejectedError):
    """The key does not allow this (403)."""


class ModelNotFoundError(RequestRejectedError):
    """The server has no such model or route (404)."""


class RateLimitError(RequestRejectedError):
    """Too many requests (429)."""


class InstallError(VLLMError):
    """The environment could not be made. The message shows what failed and the command to run."""


class EngineNameError(VLLMError):
    """No engine, or more than one, goes by that name. The message lists those there are."""


class FetchError(VLLMError):
    """A model could not be fetched from the hub. The message says why, and what to do."""
