"""What stands between a client and a model's server that speak different protocols."""

from __future__ import annotations

from abc import ABC, abstractmethod

from shared_engine.request.forwarded_answer import ForwardedAnswer


class Translation(ABC):
    """What becomes of an answer of the model's server, from there to its client; of one request.

    Attributes:
        stream_type: its content type.
        waiting: what a stream gets while it waits for its model; its reader skips it.
    """

    stream_type: str
    waiting: bytes

    def begin(self, answer: ForwardedAnswer) -> None:  # noqa: B027
        """The server answers, well."""

    @abstractmethod
    def whole(self, body: bytes) -> bytes:
        """Of an answer that has come in one piece; of a stream too, where the server makes none."""

    @abstractmethod
    def piece(self, piece: bytes) -> bytes:
        """What can be sent of a stream after this piece of it."""

    @abstractmethod
    def end(self) -> bytes:
        """The rest of it.

        Raises:
            VLLMError: it is not whole.
        """
