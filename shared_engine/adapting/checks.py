"""Engine's own checks of input, for what an adapter must know before it has a request."""

from __future__ import annotations

from shared_engine.request.checks import check_items, check_prompt

__all__ = ["check_items", "check_prompt"]
