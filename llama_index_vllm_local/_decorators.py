"""LlamaIndex's decorators, whose types forget what the method takes and returns that they decorate."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

Method = TypeVar("Method", bound=Callable[..., Any])


def typed(decorator: Callable[..., Any]) -> Callable[[Method], Method]:
    """``decorator``, after which a method has the type that it had."""
    return decorator
