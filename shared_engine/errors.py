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

Each docstring has a paragraph ``Remedy:``; docs/errors.md is written from them.

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
    """Base of all errors raised by vllm-local.

    Remedy: catch this class for everything that vllm-local raises on purpose; the classes below say what to do.
    """


class SettingsError(VLLMError):
    """A setting is missing, unknown or out of range. The message names field, value and what is allowed.

    Remedy: correct the setting that the message names.
    """


class InvalidInputError(VLLMError):
    """A prompt, message or parameter can't be sent. The message names its position and what is allowed.

    Remedy: correct the input; nothing was sent.
    """


class LengthFinishReasonError(VLLMError, ValueError):
    """An answer that was to be parsed was cut off (finish_reason ``length``), so it is not whole.

    Remedy: raise ``max_tokens``, or ask for less.

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

    Remedy: read the message; raised itself where the engine can't do what was asked, such as ``evict`` on a server.

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

    Remedy: the message's first line is the cause; the table of causes has a remedy for each.

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
    """No Python with vLLM was found, or the one named has none.

    Remedy: run ``vllm-local install``, or name an interpreter that has vLLM (``python=``, ``VLLM_PYTHON``).
    """


class EngineStartTimeoutError(EngineStartError):
    """The engine was not ready within ``start_timeout_s``.

    Remedy: call again, as a start that makes progress goes on; raise ``start_timeout_s``, or fetch the model first.
    """


class EngineDiedError(EngineError):
    """The engine ended while a request was running. The next request starts a new one.

    Remedy: send the request again. If it happens again, ``log_tail`` has the reason, mostly too little memory.

    Attributes:
        is_from_outside: something else has ended it, or a process of it: this request is not the cause.
    """

    def __init__(self, message: str, log_tail: tuple[str, ...] = (), is_from_outside: bool = False) -> None:
        super().__init__(message, log_tail)
        self.args = (message, tuple(log_tail), is_from_outside)

    @property
    def is_from_outside(self) -> bool:
        return bool(self.args[2])


class EngineStoppedError(EngineError):
    """Somebody stopped the engine while a request waited or ran. Not tried again: it was meant.

    Remedy: send the request again, if it is still wanted.
    """


class EngineBusyError(EngineError):
    """There is no room for this now: vLLM's queue is full, or requests in flight forbid to evict. Try again later.

    Remedy: wait and try again; or raise ``max_num_queued_reqs``, or end the requests with ``shutdown(force=True)``.
    """


class RequestError(VLLMError):
    """A request failed.

    Remedy: read ``status`` and the message; the classes below say what to do.

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
    """The server sent nothing for the setting ``timeout``, or all of a call took longer than its own ``timeout``.

    Remedy: raise the limit that the message names, or send fewer requests at once.
    """


class ServerConnectionError(RequestError, ConnectionError):
    """The server closed the connection before it had answered.

    Remedy: look at the server and at what is between; retries did not help.
    """


class ServerUnreachableError(ServerConnectionError):
    """No connection was made, so nothing was sent.

    Remedy: check ``base_url``, the port, the proxy and that the server is up.
    """


class ServerError(RequestError):
    """The server failed (5xx).

    Remedy: look at the server's log (of a local engine: ``vllm-local logs``).
    """


class RequestRejectedError(RequestError):
    """The server refused the request (4xx).

    Remedy: correct the parameter that the server's message names.
    """


class ContextLengthError(RequestRejectedError):
    """The prompt, or prompt and answer together, do not fit the model.

    Remedy: shorten the prompt, or lower ``max_tokens`` (``truncate_completion=True`` does), or raise
    ``max_model_len``.

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
    """The server wants another ``api_key`` (401).

    Remedy: pass ``api_key``, or set ``VLLM_API_KEY``.
    """


class PermissionDeniedError(RequestRejectedError):
    """The key does not allow this (403).

    Remedy: ask for a key that may.
    """


class ModelNotFoundError(RequestRejectedError):
    """The server has no such model or route (404).

    Remedy: name a model that the server lists, or leave ``model`` out.
    """


class RateLimitError(RequestRejectedError):
    """Too many requests (429).

    Remedy: send fewer requests at once; ``retry_after_s`` is the pause that the server asked for.
    """


class InstallError(VLLMError):
    """The environment could not be made. The message shows what failed and the command to run.

    Remedy: correct what the message names (network, package index, disk), and run the command again.
    """


class EngineNameError(VLLMError):
    """No engine, or more than one, goes by that name. The message lists those there are.

    Remedy: use the first digits of a key.
    """


class FetchError(VLLMError):
    """A model could not be fetched from the hub. The message says why, and what to do.

    Remedy: correct what the message names, and run ``pull`` again: it goes on where it was.
    """
