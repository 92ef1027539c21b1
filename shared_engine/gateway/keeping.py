"""How an engine is kept once the configuration has been read again: its model may have been changed, or be gone.

The engine's supervisor must be told. By itself it keeps to the longest time that anybody asked for, until its next
start.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from shared_engine.errors import VLLMError
from shared_engine.request.endpoint import Endpoint
from shared_engine.runtime.keep_policy import KeepPolicy
from shared_engine.runtime.redacted import redacted

if TYPE_CHECKING:
    from shared_engine.gateway.catalog import ServedModel

LOOK_S = 0.25
logger = logging.getLogger(__name__)


@dataclass
class Kept:
    """How long a model is to stay.

    Attributes:
        is_pinned: once it is loaded, until it is unpinned or unloaded.
        ttl_s: after its last request.
    """

    is_pinned: bool
    ttl_s: float


async def hand_on(old: ServedModel, models: Callable[[], Iterable[ServedModel]]) -> None:
    """Have the engines of a model kept as the models say that use them now. Engines that none of them uses may leave.

    Begins once the model's requests have ended: each of them may say how long it is to stay.

    Args:
        old: is no longer served.
        models: those that are.
    """
    await _hand_on_pin(old, models())
    while old.requests:
        await asyncio.sleep(LOOK_S)
    others = [(model, await _engines(model)) for model in models()]
    for key, engine in (await _engines(old)).items():
        heirs = [model for model, engines in others if key in engines]
        wished = Kept(
            any(each.kept.is_pinned for each in heirs), max((each.kept.ttl_s for each in heirs), default=_finite(old))
        )
        # Only a change overrules other programs, which may want it for longer. What was said last is not enough to
        # tell: if the engine was loaded again since, it is kept as the file said.
        if (heirs and all(each.kept is old.kept for each in heirs)) or wished == old.kept == old.declared:
            continue
        try:
            await engine.keep(idle_ttl_s=wished.ttl_s, pinned=wished.is_pinned)
        except VLLMError as exc:
            logger.warning("%s: its engine is kept as before: %s", old.config.id, redacted(str(exc)))


async def _hand_on_pin(old: ServedModel, models: Iterable[ServedModel]) -> None:
    """Have the next loads know, too, what was said by HTTP and still holds."""
    for model in models:
        if model.kept is old.kept and model.kept.is_pinned != model.declared.is_pinned:
            try:
                await model.endpoint.pin(is_pinned=model.kept.is_pinned)
            except VLLMError as exc:
                logger.warning("%s: whether it is pinned was not handed on: %s", old.config.id, redacted(str(exc)))


def _finite(old: ServedModel) -> float:
    ttl_s = old.config.settings.idle_ttl_s
    return ttl_s if math.isfinite(ttl_s) else KeepPolicy.idle_ttl_s


async def _engines(model: ServedModel) -> dict[str, Endpoint]:
    """Those of this machine, by their keys; none where that can't be told."""
    if model.config.settings.is_remote:
        return {}
    try:
        members = list((await model.endpoint.member_endpoints()).values()) or [model.endpoint]
        return {key: each for each in members if (key := (await each.status(processes=False)).key) is not None}
    except VLLMError:
        return {}
