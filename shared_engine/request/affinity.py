"""What tells conversations apart, so that each stays with one server: their beginning."""

from __future__ import annotations

from hashlib import blake2b

import msgspec

from shared_engine.request.routes import CHAT, COMPLETIONS

KEY_BYTES = 1024
"""Of a prompt. A conversation's key is all up to its first message of the user's, which stays as it grows."""


class _Message(msgspec.Struct):
    role: str = ""


class _Beginning(msgspec.Struct):
    messages: list[msgspec.Raw] = msgspec.field(default_factory=list)
    prompt: msgspec.Raw = msgspec.Raw()


def affinity_key(path: str, body: bytes) -> str | None:
    """Tells conversations apart by their beginning, and texts; None for what has no use for a prefix cache."""
    if path not in (CHAT, COMPLETIONS):
        return None
    try:
        beginning = msgspec.json.decode(body, type=_Beginning)
        parts = []
        for message in beginning.messages:
            parts.append(bytes(message))
            if msgspec.json.decode(message, type=_Message).role == "user":
                break
    except msgspec.DecodeError:  # the server will say what is wrong with it
        return None
    start = b"".join(parts) or bytes(beginning.prompt)[:KEY_BYTES]
    return blake2b(start, digest_size=16).hexdigest() if start else None
