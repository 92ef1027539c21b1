"""What LoRA adapters need of an engine: that it takes any, of which rank, and how many at once.

That much is part of its key, and not which adapters there are: apps that name others share one engine, and each is
loaded when a request names it (request/adapters.py).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from shared_engine.errors import SettingsError
from shared_engine.model_files.adapter import Adapter, misfit, read_adapter
from shared_engine.settings import EngineSettings

# vllm/config/lora.py. The least is what vLLM takes by itself: a step below, that small adapters need, would only make
# engines differ.
_RANKS = (16, 32, 64, 128, 256, 320, 512)
# Adapters in one batch, each of which takes memory; more of them take turns.
_SLOTS = (4, 8)


def takes_adapters(settings: EngineSettings) -> bool:
    return settings.lora_adapters is not None or bool(settings.engine_args.get("enable_lora"))


def lora_args(settings: EngineSettings) -> dict[str, Any]:
    """vLLM's arguments for adapters, those of engine_args among them; none for an engine that takes no adapters.

    Raises:
        SettingsError: an adapter's rank is above what vLLM can do, or its files are gone.
    """
    if not takes_adapters(settings):
        return {}
    adapters = _adapters_of(settings)
    own: dict[str, Any] = {"enable_lora": True, "max_lora_rank": _rank(adapters), "max_loras": _slots(len(adapters))}
    given = {name: value for name, value in settings.engine_args.items() if name in own and value is not None}
    return {**own, **given}


def _adapters_of(settings: EngineSettings) -> dict[str, Adapter]:
    adapters: dict[str, Adapter] = {}
    for name, path in (settings.lora_adapters or {}).items():
        try:
            adapters[name] = read_adapter(path)
        except ValueError as exc:  # it was there when the settings were made
            raise SettingsError(f"lora_adapters[{name!r}] = {path!r}: {exc}") from None
    return adapters


def _rank(adapters: Mapping[str, Adapter]) -> int:
    name = max(adapters, key=lambda name: adapters[name].rank or 0, default=None)
    needed = 0 if name is None else adapters[name].rank or 0
    rank = next((each for each in _RANKS if each >= needed), None)
    if rank is None:
        raise SettingsError(f"lora_adapters[{name!r}]: its rank is {needed}, and vLLM takes {_RANKS[-1]} at most")
    return rank


def _slots(count: int) -> int:
    return next((slots for slots in _SLOTS if slots >= count), _SLOTS[-1])


def check_adapters(settings: EngineSettings) -> None:
    """
    Raises:
        SettingsError: one of lora_adapters can't be an adapter of this model, by the files of both.
    """
    args = lora_args(settings)
    for name, adapter in _adapters_of(settings).items():
        problem = problem_of(adapter, settings, args)
        if problem is not None:
            raise SettingsError(f"lora_adapters[{name!r}] = {adapter.path!r}: {problem}")


def problem_of(adapter: Adapter, settings: EngineSettings, args: Mapping[str, Any]) -> str | None:
    """Why this engine can't load an adapter; None where it can, or only vLLM can tell.

    Args:
        args: what ``lora_args`` gave for the engine.
    """
    limit = int(args["max_lora_rank"])
    if (adapter.rank or 0) > limit:
        needed = next((rank for rank in _RANKS if rank >= (adapter.rank or 0)), adapter.rank)
        return (
            f"its rank is {adapter.rank}, and this engine takes {limit} at most: pass "
            f'engine_args={{"max_lora_rank": {needed}}}, which is another engine'
        )
    folder = settings.model_folder()
    mismatch = None if folder is None else misfit(adapter, folder)
    if mismatch is None:
        return None
    base = f"{adapter.base!r}" if adapter.base else "another model"
    return f"it was made for {base}, and does not fit {settings.model}: {mismatch}"


def modules_of(engine_args: Mapping[str, Any]) -> list[str]:
    """Names of the adapters that vLLM loads at its start (``lora_modules``), in all forms that it takes."""
    given = engine_args.get("lora_modules") or ()
    return [_name_of(each) for each in (given if isinstance(given, (list, tuple)) else (given,))]


def _name_of(module: object) -> str:
    if isinstance(module, str) and not module.lstrip().startswith("{"):
        return module.partition("=")[0]
    try:
        return str((json.loads(module) if isinstance(module, str) else module)["name"])  # type: ignore[index]
    except (ValueError, TypeError, KeyError):
        return ""  # vLLM refuses it
