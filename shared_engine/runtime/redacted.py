"""Text without secrets: for what is written to a log, or shown."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from functools import lru_cache

HIDDEN = "***"
MIN_SECRET = 8
_SECRET_NAME = re.compile(r"TOKEN|KEY|SECRET|PASSW|CREDENTIAL|AUTH", re.IGNORECASE)
_LOOKED_FOR = ("api_key", "apikey", "hf_token", "auth_token", "access_token", "passw", "secret")
_NAMES = r"(?:api_?key|hf_token|auth_token|access_token|password|passwd|secret(?:_key)?)"
# Keys of Hugging Face and OpenAI by their form, bearer tokens, passwords in URLs, and whatever follows such a name:
# 'hf_token': 'abc', api_key=abc, --hf-token abc.
_KEY = re.compile(r"\bhf_[A-Za-z0-9]{16,}|\bsk-[\w-]{16,}")
_BEARER = re.compile(r"(\bbearer\s+)[^\s'\",]+", re.IGNORECASE)
_IN_URL = re.compile(r"://[^/@\s]+@")
_NAMED = re.compile(rf"({_NAMES}['\"]?\s*[:=]\s*['\"]?)(?!None\b)[^\s'\",;)\]}}]+", re.IGNORECASE)
_OPTION = re.compile(rf"(--{_NAMES.replace('_', '[-_]')}[ =])\S+", re.IGNORECASE)


def redacted(text: str, environment: Mapping[str, str] | None = None) -> str:
    """Without what looks like a secret, and without the values of variables that have names of secrets.

    Args:
        environment: variables beside those of this process.
    """
    variables = [*os.environ.items(), *(environment or {}).items()]
    for value in _secrets(tuple(value for name, value in variables if _SECRET_NAME.search(name))):
        text = text.replace(value, HIDDEN)
    lower = text.lower()
    dashless = lower.replace("-", "_")
    if "hf_" in text or "sk-" in text:
        text = _KEY.sub(HIDDEN, text)
    if "://" in text:
        text = _IN_URL.sub(f"://{HIDDEN}@", text)
    if "bearer" in lower:
        text = _BEARER.sub(rf"\1{HIDDEN}", text)
    # A vLLM that floods its log must not be held up: most of what it writes has none of these in it.
    if any(name in dashless for name in _LOOKED_FOR):
        text = _OPTION.sub(rf"\1{HIDDEN}", _NAMED.sub(rf"\1{HIDDEN}", text))
    return text


@lru_cache(maxsize=4)
def _secrets(values: tuple[str, ...]) -> tuple[str, ...]:
    """The longest first: one may be part of another. A path is where a secret lies, not one."""
    secret = {value for value in values if len(value) >= MIN_SECRET and not value.startswith("/")}
    return tuple(sorted(secret, key=len, reverse=True))
