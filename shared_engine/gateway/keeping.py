"""How an engine is kept whose model another configuration has changed or left out. Its supervisor is told: for it the
longest of all wishes holds until the next start.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from shared_engine.errors import VLLMError
from shared_engine.request.endpoint import Endpoint
from shared_engine.runtime.keep_policy import KeepPolicy
from shared_engine.runtime.redacted import redacted

if TYPE_CHECKING:
    from shared_engine.gateway.catalog import ServedModel

LOOK_S = 0.25
logger = logging.getLogger(__name__)


async def hand_on(old: ServedModel, models: Callable[[], Iterable[ServedModel]]) -> None:
    """Have its engines kept as those models wish that have them now; where none has, until they are idle or in the way.

    Begins once its requests have ended: each of them may say how it is to be kept.

    Args:
        old: is served no more.
        models: those that are.
    """
    while old.places.taken or old.places.waiting:
        await asyncio.sleep(LOOK_S)
    others = [(model, await _engines(model)) for model in models()]
    for key, engine in (await _engines(old)).items():
        heirs = [model for model, engines in others if key in engines]
        ttl_s = max((each.ttl_s for each in heirs), default=_finite(old))
        is_pinned = any(each.is_pinned for each in heirs)
        if (ttl_s, is_pinned) == (old.ttl_s, old.is_pinned):
            continue  # others may wish more, and are not to be overruled
        try:
            await engine.keep(idle_ttl_s=ttl_s, pinned=is_pinned)
        except VLLMError as exc:
            logger.warning("%s: its engine is kept as before: %s", old.config.id, redacted(str(exc)))


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
